#include "trainer/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "core/error.h"
#include "core/file.h"
#include "trainer/config_binder.h"

namespace bitshard::trainer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kLeast[] = "base_model: m\n";

Config Parsed(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const absl::StatusOr<Config> config = ParseConfig(kLeast + text, "run.yaml", overrides);
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : Config();
}

std::string Refusal(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const absl::StatusOr<Config> config = ParseConfig(kLeast + text, "run.yaml", overrides);
  if (config.ok()) return "accepted";
  EXPECT_EQ(core::KindOf(config.status()), core::ErrorKind::kConfig);
  return std::string(config.status().message());
}

TEST(Config, NamesTheNearestKeyAndThePlaceOfAnUnknownOne) {
  EXPECT_EQ(Refusal("lora_rr: 8\n"), "run.yaml:2:1: lora_rr: unknown key; did you mean lora_r?");
  EXPECT_THAT(Refusal("paging:\n  teir: file\n"),
              HasSubstr("run.yaml:3:3: paging.teir: unknown key; did you mean paging.tier?"));
  EXPECT_THAT(Refusal("", {"learning_rat=1"}), HasSubstr("did you mean learning_rate?"));
  EXPECT_THAT(Refusal("zzzzzzzzzzzzzzzzzzzzzzzz: 1\n"), HasSubstr("docs/config.md"));
}

TEST(Config, SaysWhatIsWrongWithTheYaml) {
  EXPECT_EQ(Refusal("comm:\n\ttimeout: 60\n"),
            "run.yaml:3:9: indented with a tab; YAML wants spaces");
  EXPECT_THAT(
      Refusal("lora_r 8\nseed: 1\n"),
      AllOf(HasSubstr("run.yaml:3:5: "), HasSubstr("in the line before for a missing ':'")));
  EXPECT_THAT(Refusal("datasets:\n  - path: x\n   type: text\n"), HasSubstr("indent that differs"));
  EXPECT_THAT(Refusal("", {"lora_target_modules=[q_proj"}), HasSubstr("a '[' without its ']'"));
  EXPECT_THAT(Refusal("<<: *a\n"), HasSubstr("aliases (*name) are not read"));
}

TEST(Config, AnOverrideOfWarmupStepsByARatioReplacesTheNumber) {
  const Config config = Parsed("warmup_steps: 2\n", {"warmup_steps=0.1"});
  EXPECT_EQ(config.optimizer.warmup_steps, 0);
  EXPECT_EQ(config.optimizer.warmup_ratio, 0.1);
}

TEST(Config, SuggestsTheOptimizerThatLacksItsBits) {
  EXPECT_THAT(Refusal("optimizer: paged_adamw\n"),
              HasSubstr("did you mean paged_adamw_8bit? Known"));
  EXPECT_THAT(Refusal("optimizer: AdamW_8bit\n"), HasSubstr("did you mean adamw_8bit? Known"));
  EXPECT_THAT(Refusal("optimizer: zzzzzzzzzzzz\n"), HasSubstr("\"zzzzzzzzzzzz\". Known: adagrad"));
}

TEST(Config, ReportsEveryFaultInOneMessage) {
  const std::string message = Refusal(
      "lora_r: 12abc\nlearning_rate: -1\nunknown_thing: 1\nglobal_batch_size: 3\n"
      "micro_batch_size: 2\nadapter: qlora\nload_in_4bit: false\n");
  EXPECT_THAT(message, HasSubstr("5 faults"));
  EXPECT_THAT(message, HasSubstr("run.yaml:2:1: lora_r: got \"12abc\", want integer, 1 to 4096"));
  EXPECT_THAT(message, HasSubstr("run.yaml:3:1: learning_rate: got -1, want number above 0"));
  EXPECT_THAT(message, HasSubstr("run.yaml:4:1: unknown_thing"));
  EXPECT_THAT(message, HasSubstr("run.yaml:5:1: global_batch_size: got 3, want a multiple"));
  EXPECT_THAT(message, HasSubstr("run.yaml:8:1: load_in_4bit: got false"));
}

TEST(Config, ReadsNumbersWhole) {
  for (const char* bad : {"12abc", "1e6", "1.0", "0x10", "+1", "1_000", "\" 1\"", "'16'", "1 2",
                          "99999999999999999999", "true", "[1]", "{a: 1}", "--1", "1-"}) {
    EXPECT_THAT(Refusal(absl::StrCat("lora_r: ", bad, "\n")), HasSubstr("lora_r: got")) << bad;
  }
  for (const char* bad : {"2e-4x", "nan", "inf", "-inf", ".nan", "1e999", "0x1p-2", "'1'", "1,5"}) {
    EXPECT_THAT(Refusal(absl::StrCat("learning_rate: ", bad, "\n")),
                HasSubstr("learning_rate: got"))
        << bad;
  }
  EXPECT_EQ(Parsed("learning_rate: 2e-4\n").optimizer.learning_rate, 2e-4);
  EXPECT_EQ(Parsed("learning_rate: .5\n").optimizer.learning_rate, 0.5);
  EXPECT_EQ(Parsed("learning_rate: 1\n").optimizer.learning_rate, 1);
  EXPECT_EQ(Parsed("seed: 9223372036854775807\n").compute.seed, 9223372036854775807);
}

TEST(Config, ReadsBytesWithUnits) {
  const auto budget = [](const std::string& text) {
    return Parsed("paging: {budget: " + text + "}\n").paging.budget;
  };
  EXPECT_EQ(budget("64MiB"), 64 << 20);
  EXPECT_EQ(budget("64 MiB"), 64 << 20);
  EXPECT_EQ(budget("2GB"), 2000000000);
  EXPECT_EQ(budget("300000"), 300000);
  for (const char* bad :
       {"64mib", "MiB", "-1MiB", "1.5GiB", "64MiBs", "9999999TiB", "64M", "1KiB"}) {
    EXPECT_THAT(Refusal(absl::StrCat("paging: {budget: ", bad, "}\n")), HasSubstr("paging.budget:"))
        << bad;
  }
}

TEST(Config, TakesTheNamesOfOtherTrainers) {
  const Config config = Parsed(
      "lora_rank: 8\ntarget_modules: q_proj, v_proj\npeft_use_rslora: true\nmax_length: 128\n"
      "packing: false\nper_device_train_batch_size: 2\nnum_train_epochs: 0.5\noptim: adamw_torch\n"
      "lr_scheduler_type: constant_with_warmup\ngradient_checkpointing: false\nbf16: true\n"
      "fp16: false\nwarmup_steps: 0.03\ncomm_timeout: 30\nreport_to: tensorboard\n"
      "lora_dropout:\n");
  EXPECT_EQ(config.lora.r, 8);
  EXPECT_EQ(config.lora.target_modules, (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_TRUE(config.lora.use_rslora);
  EXPECT_EQ(config.lora.dropout, 0);
  EXPECT_EQ(config.data.sequence_len, 128);
  EXPECT_FALSE(config.data.sample_packing);
  EXPECT_EQ(config.batch.micro_batch_size, 2);
  EXPECT_EQ(config.batch.num_epochs, 0.5);
  EXPECT_EQ(config.optimizer.name, "adamw_torch");
  EXPECT_EQ(config.optimizer.scheduler, optim::LrKind::kConstant);
  EXPECT_EQ(config.optimizer.warmup_steps, 0);
  EXPECT_EQ(config.optimizer.warmup_ratio, 0.03);
  EXPECT_FALSE(config.compute.activation_checkpointing);
  EXPECT_EQ(config.compute.type, ComputeType::kBFloat16);
  EXPECT_EQ(config.comm.timeout_seconds, 30);
  EXPECT_EQ(config.output.report_to, std::vector<Report>{Report::kTensorBoard});
  EXPECT_TRUE(
      Parsed("lora_target_linear: true\nlora_target_modules:\n").lora.target_modules.empty());
}

TEST(Config, RefusesWhatItCanNotMeetAndSaysWhatToWrite) {
  EXPECT_THAT(Refusal("gradient_accumulation_steps: 4\n"), HasSubstr("write global_batch_size"));
  EXPECT_THAT(Refusal("fp16: true\n"), HasSubstr("write compute_type: bf16 or fp32"));
  EXPECT_THAT(Refusal("bf16: maybe\n"), HasSubstr("bf16: got \"maybe\", want true | auto | false"));
  EXPECT_THAT(Refusal("bf16: [true]\n"), HasSubstr("bf16: got a list, want true | auto | false"));
  EXPECT_THAT(Refusal("val_set_size: 0.05\n"), HasSubstr("test_datasets"));
  EXPECT_THAT(Refusal("comm: {reduction: quick}\n"),
              HasSubstr("comm.reduction: got \"quick\", want ordered | fast"));
  EXPECT_THAT(Refusal("comm: {reductoin: fast}\n"), HasSubstr("did you mean comm.reduction"));
  EXPECT_THAT(
      Refusal("optim: adamw_8bits\n"),
      HasSubstr("run.yaml:2:1: optimizer: unknown name \"adamw_8bits\", did you mean adamw_8bit?"));
  EXPECT_THAT(Refusal("adapter: dora\n"), HasSubstr("want qlora | lora"));
}

TEST(Config, RefusesContradictions) {
  EXPECT_THAT(Refusal("adapter: qlora\nload_in_4bit: false\n"), HasSubstr("adapter: lora"));
  EXPECT_THAT(Refusal("warmup_steps: 3\nwarmup_ratio: 0.1\n"), HasSubstr("keep one"));
  EXPECT_THAT(Refusal("lr_scheduler: linear\ncosine_min_lr_ratio: 0.1\n"), HasSubstr("cosine"));
  EXPECT_THAT(Refusal("paging: {tier: file}\n"), HasSubstr("as in paged_adamw_8bit"));
  EXPECT_THAT(Refusal("device: cuda\noptimizer: paged_lion_8bit\npaging: {tier: file}\n"),
              HasSubstr("paging.tier: got file with device: cuda, want managed or pinned"));
  EXPECT_THAT(Refusal("device: cpu\noptimizer: paged_lion_8bit\npaging: {tier: pinned}\n"),
              HasSubstr("paging.tier: got pinned with device: cpu, want host or file"));
  EXPECT_THAT(Refusal("eval_steps: 3\n"), HasSubstr("test_datasets"));
  EXPECT_THAT(Refusal("bnb_4bit_blocksize: 96\n"), HasSubstr("power of two"));
  EXPECT_THAT(Refusal("max_steps: 0\n"), HasSubstr("max_steps: got 0"));
  EXPECT_THAT(Refusal("bf16: true\ncompute_type: fp32\n"),
              HasSubstr("run.yaml:3:1: compute_type: says the same as bf16 (run.yaml:2:1)"));
  EXPECT_THAT(Refusal("lora_r: 8\nlora_rank: 8\n"), HasSubstr("says the same as lora_r"));
  EXPECT_EQ(ParseConfig("lora_r: 8\n", "run.yaml").status().message(),
            "run.yaml: base_model: missing; want a Hugging Face folder or a .gguf file");
}

TEST(Config, RefusesHyperParametersThatTheOptimizerDoesNotHave) {
  const auto no_effect = [](const std::string& optimizer, const std::string& key) {
    const std::string text = absl::StrCat("optimizer: ", optimizer, "\n", key, ": 0.5\n");
    return Refusal(text) == absl::StrCat("run.yaml:3:1: ", key,
                                         ": has no effect with optimizer: ", optimizer,
                                         "; leave it out");
  };
  const std::vector<std::string> keys = {"adam_beta1",     "adam_beta2", "adam_beta3",
                                         "adam_epsilon",   "momentum",   "rmsprop_alpha",
                                         "ademamix_alpha", "max_unorm"};
  const std::map<std::string, std::set<std::string>> taken = {
      {"adam_8bit", {"adam_beta1", "adam_beta2", "adam_epsilon", "max_unorm"}},
      {"adamw_8bit", {"adam_beta1", "adam_beta2", "adam_epsilon", "max_unorm"}},
      {"lamb_8bit", {"adam_beta1", "adam_beta2", "adam_epsilon", "max_unorm"}},
      {"lion_8bit", {"adam_beta1", "adam_beta2"}},
      {"ademamix_8bit",
       {"adam_beta1", "adam_beta2", "adam_beta3", "adam_epsilon", "ademamix_alpha"}},
      {"sgd_8bit", {"momentum", "max_unorm"}},
      {"lars_8bit", {"momentum", "max_unorm"}},
      {"rmsprop_8bit", {"rmsprop_alpha", "adam_epsilon", "max_unorm"}},
      {"adagrad_8bit", {"adam_epsilon"}}};
  for (const auto& [optimizer, has] : taken) {
    for (const std::string& key : keys)
      EXPECT_EQ(no_effect(optimizer, key), has.count(key) == 0) << optimizer << " " << key;
  }
  EXPECT_THAT(Refusal("ademamix_t_alpha: 3\n"), HasSubstr("has no effect"));
  EXPECT_THAT(Refusal("adam_beta1: 1\n"),
              HasSubstr("adam_beta1: got 1, want number at least 0 and below 1, or auto"));
  EXPECT_EQ(Parsed("adam_beta1: 0.8\n", {"adam_beta1=auto"}).optimizer.adam_beta1, std::nullopt);
  EXPECT_EQ(Parsed("adam_beta1: 0.8\n").optimizer.adam_beta1, 0.8);
}

TEST(Config, ReadsOverridesOfTheOptimizer) {
  const auto overrides = Parsed(
                             "optimizer_overrides:\n  - {pattern: '*.lora_B.*', bits: 32}\n"
                             "  - pattern: a\n    learning_rate: 1e-3\n    weight_decay:\n")
                             .optimizer.overrides;
  ASSERT_EQ(overrides.size(), 2u);
  EXPECT_EQ(overrides[0].pattern, "*.lora_B.*");
  EXPECT_EQ(overrides[0].bits, 32);
  EXPECT_EQ(overrides[0].learning_rate, std::nullopt);
  EXPECT_EQ(overrides[1].learning_rate, 1e-3);
  EXPECT_EQ(overrides[1].weight_decay, std::nullopt);
  const auto refusal = [](const std::string& entry) {
    return Refusal("optimizer_overrides: [" + entry + "]\n");
  };
  EXPECT_THAT(refusal("x"), HasSubstr("want list of {pattern, bits"));
  EXPECT_THAT(refusal("{bits: 8}"), HasSubstr("an entry has no pattern"));
  EXPECT_THAT(refusal("{pattern: x}"), HasSubstr("\"x\": changes nothing"));
  EXPECT_THAT(refusal("{pattern: x, bits: 16}"), HasSubstr("\"x\": bits: got 16, want 8 or 32"));
  EXPECT_THAT(refusal("{pattern: x, bits: 8.0}"), HasSubstr("bits: got \"8.0\", want integer"));
  EXPECT_THAT(refusal("{pattern: x, block_size: 32}"), HasSubstr("got 32, want 64, 128 or 256"));
  EXPECT_THAT(refusal("{pattern: x, weight_decay: -1}"), HasSubstr("want number at least 0"));
  EXPECT_THAT(refusal("{pattern: x, lr: 1}"), HasSubstr("in line 2, lr: unknown key"));
}

TEST(Config, TrainingNeedsData) {
  const std::string path =
      absl::StrCat(::testing::TempDir(), "bitshard_config_", getpid(), ".yaml");
  ASSERT_TRUE(core::WriteFileAtomically(path, "base_model: m\nlora_r: 0\n").ok());
  const absl::StatusOr<Config> config = LoadConfig({.path = path, .needs_data = true});
  EXPECT_THAT(std::string(config.status().message()),
              AllOf(HasSubstr("2 faults"), HasSubstr(path + ": datasets: missing")));
  std::filesystem::remove(path);
}

TEST(Config, LoraIsNotQuantisedUnlessAsked) {
  EXPECT_TRUE(Parsed("").model.load_in_4bit);
  EXPECT_FALSE(Parsed("adapter: lora\n").model.load_in_4bit);
  EXPECT_TRUE(Parsed("adapter: lora\nload_in_4bit: true\n").model.load_in_4bit);
}

TEST(Config, OverridesReplaceWhatTheFileSays) {
  const Config config =
      Parsed("lora_r: 8\npaging: {budget: 1MiB}\noptimizer: paged_adamw_8bit\n",
             {"lora_rank=4", "lora_r=2", "paging.tier=file", "report_to=[csv, jsonl]",
              "datasets=[{path: a.jsonl, type: alpaca}, b.parquet]", "output_dir='x y'"});
  EXPECT_EQ(config.lora.r, 2);
  EXPECT_EQ(config.paging.tier, PagingTier::kFile);
  EXPECT_EQ(config.paging.budget, 1 << 20);
  EXPECT_EQ(config.output.report_to, (std::vector<Report>{Report::kCsv, Report::kJsonl}));
  EXPECT_EQ(config.data.datasets,
            (std::vector<DatasetOptions>{{"a.jsonl", SampleType::kAlpaca}, {"b.parquet"}}));
  EXPECT_EQ(config.output.directory, "x y");
  EXPECT_THAT(Refusal("", {"lora_r"}), HasSubstr("want key=value"));
  EXPECT_THAT(Refusal("", {"lora_r="}), HasSubstr("want a value"));
  EXPECT_THAT(Refusal("", {"lora_r=x"}), HasSubstr("--set: lora_r: got \"x\""));
  EXPECT_THAT(Refusal("", {"paging=3"}), HasSubstr("--set: paging: want a map"));
}

TEST(Config, RefusesHostileYamlWithItsPlace) {
  EXPECT_THAT(Refusal("lora_r: 1\nlora_r: 2\n"),
              HasSubstr("run.yaml:3:1: lora_r: the key stands twice, first in line 2"));
  EXPECT_THAT(Refusal("a: &x [1]\nb: *x\n"), HasSubstr("run.yaml:2:"));
  EXPECT_THAT(Refusal("lora_r: !!int 3\n"), HasSubstr("tags"));
  EXPECT_THAT(Refusal("a: [[[[[[[[[[1]]]]]]]]]]\n"), HasSubstr("nested deeper"));
  EXPECT_THAT(Refusal("lora_r: [1\n"), HasSubstr("run.yaml:"));
  EXPECT_THAT(Refusal("lora_r: 1\n---\nlora_r: 2\n"), HasSubstr("more than one document"));
  EXPECT_THAT(Refusal("model_type: \x01\n"), HasSubstr("run.yaml:2:13: a control character"));
  EXPECT_THAT(Refusal("model_type: \xff\n"), HasSubstr("run.yaml:2:13: not UTF-8"));
  EXPECT_THAT(ParseConfig("\xEF\xBB\xBFseed: 1\n", "run.yaml").status().message().data(),
              HasSubstr("run.yaml:1:1: starts with a byte order mark"));
  const std::string deep(100000, '[');
  EXPECT_THAT(Refusal("a: " + deep), HasSubstr("run.yaml:"));
  EXPECT_THAT(
      ParseConfig(std::string(kMaxYamlBytes + 1, ' '), "run.yaml").status().message().data(),
      HasSubstr("want at most"));
  EXPECT_THAT(Refusal("? [a, b]\n: 1\n"), HasSubstr("a key must be a word"));
  EXPECT_THAT(ParseConfig("- a\n", "run.yaml").status().message().data(), HasSubstr("not a map"));
}

TEST(Config, MessagesEscapeWhatTheFileSays) {
  EXPECT_THAT(Refusal("\"lora\\x1b[31m\\nr\": 1\n"),
              AllOf(HasSubstr("lora\\x1b[31m\\x0ar"), Not(HasSubstr("\x1b"))));
  EXPECT_THAT(Refusal("lora_r: \"\\x1b\\n\"\n"), Not(HasSubstr("\x1b")));
}

// A config in which no key has its default value.
Config FarFromDefaults() {
  return Parsed(
      "model_type: \"odd \\\"name\\\\ \\t#: x\"\nload_in_4bit: true\nbnb_4bit_quant_type: fp4\n"
      "bnb_4bit_use_double_quant: false\nbnb_4bit_blocksize: 128\nadapter: lora\nlora_r: 3\n"
      "lora_alpha: 5\nlora_dropout: 0.1\nlora_target_modules: [q_proj, mlp.up_proj]\n"
      "use_rslora: true\ndatasets: [{path: \"a, b]: c.json\", type: text}]\n"
      "test_datasets: [{path: 'it''s', type: sharegpt}]\nsequence_len: 99\nsample_packing: false\n"
      "train_on_inputs: true\nexcess_length_strategy: raise\nmicro_batch_size: 2\n"
      "global_batch_size: 6\nnum_epochs: 0.1\nmax_steps: 7\noptimizer: paged_ademamix_8bit\n"
      "learning_rate: 1e-300\nlr_scheduler: cosine\ncosine_min_lr_ratio: 0.1\nwarmup_steps: 3\n"
      "adam_beta1: 0.1\nadam_beta2: 0.3\nadam_beta3: 0.5\nadam_epsilon: 1e-20\n"
      "ademamix_alpha: 2\nademamix_t_alpha: 5\nademamix_t_beta3: 6\nweight_decay: 0.7\n"
      "optimizer_overrides: [{pattern: \"*.lora_B: '#*\", bits: 32, learning_rate: 1e-300}, "
      "{pattern: x, block_size: 64, weight_decay: 0}]\n"
      "max_grad_norm: 1e20\nmin_8bit_size: 1\ndevice: cpu\ncompute_type: bf16\n"
      "activation_checkpointing: false\n"
      "nonfinite: skip\nseed: 9\neval_max_samples: 4\noutput_dir: \"true\"\neval_steps: 2\n"
      "eval_on_start: false\nsave_steps: 0\nsave_total_limit: 0\nresume_from_checkpoint: /x/y\n"
      "logging_steps: 3\nreport_to: [csv]\nthreads_per_rank: 5\n"
      "paging: {tier: file, budget: 1000001, directory: /tmp}\n"
      "comm: {timeout: 0.5, bucket_bytes: 3KiB, reduction: fast}\n"
      "generate: {heldout_prompts: 0, prompts: [\"a\\nb\", '- x'], max_new_tokens: 1}\n");
}

TEST(Config, ResolvedTextLoadsToTheSameConfig) {
  for (const Config& config :
       {Parsed(""), Parsed("warmup_ratio: 0.1\nlr_scheduler: linear\n"), FarFromDefaults()}) {
    const std::string text = ConfigToYaml(config);
    const absl::StatusOr<Config> again = ParseConfig(text, "resolved");
    ASSERT_TRUE(again.ok()) << again.status().message() << "\n" << text;
    EXPECT_EQ(ConfigToYaml(*again), text);
    EXPECT_THAT(DiffConfigs(config, *again), ::testing::IsEmpty());
    EXPECT_EQ(ConfigHash(config), ConfigHash(*again));
  }
}

TEST(Config, EveryKeyIsPrintedAndDiffersWhereItsValueDoes) {
  std::set<std::string> different;
  for (const ConfigDifference& difference : DiffConfigs(Parsed(""), FarFromDefaults())) {
    different.insert(difference.key);
  }
  // The only keys that have one value, or that another key excludes or decides.
  const std::set<std::string> same = {"base_model",    "lr_scheduler", "warmup_ratio",
                                      "load_in_4bit",  "comm.backend", "momentum",
                                      "rmsprop_alpha", "max_unorm"};
  for (const ConfigField& field : ConfigFields()) {
    EXPECT_NE(different.count(field.key), same.count(field.key)) << field.key;
  }
}

TEST(Config, HashCoversWhatDecidesTheAdapterAndNothingElse) {
  const Config base = Parsed("");
  for (const char* text :
       {"threads_per_rank: 7\n", "output_dir: other\n", "save_steps: 1\n", "logging_steps: 1\n",
        "report_to: none\n", "resume_from_checkpoint: true\n", "comm: {timeout: 1}\n",
        "comm: {bucket_bytes: 1MiB}\n", "optimizer: paged_adamw_8bit\npaging: {tier: file}\n",
        "optimizer: adamw_bnb_8bit\n", "adam_beta2: 0.999\nmax_unorm: 0\n",
        "generate: {max_new_tokens: 3}\n", "eval_on_start: false\n"}) {
    const Config other = Parsed(text);
    EXPECT_EQ(ConfigHash(base), ConfigHash(other)) << text;
    const std::vector<ConfigDifference> differences = DiffConfigs(base, other);
    EXPECT_FALSE(differences.empty()) << text;
    for (const ConfigDifference& d : differences) EXPECT_FALSE(d.changes_result) << d.key;
  }
  for (const char* text :
       {"lora_r: 15\n", "seed: 1\n", "global_batch_size: 16\n", "max_steps: 3\n",
        "optimizer: lion_8bit\n", "compute_type: fp32\n", "weight_decay: 0.1\n", "datasets: [x]\n",
        "min_8bit_size: 1\n", "adam_beta2: 0.99\n", "max_unorm: 1\n", "device: cpu\n",
        "comm: {reduction: fast}\n", "optimizer_overrides: [{pattern: \"*\", block_size: 64}]\n"}) {
    const Config other = Parsed(text);
    EXPECT_NE(ConfigHash(base), ConfigHash(other)) << text;
    ASSERT_EQ(DiffConfigs(base, other).size(), 1u) << text;
    EXPECT_TRUE(DiffConfigs(base, other)[0].changes_result) << text;
  }
  EXPECT_EQ(DescribeDifferences(DiffConfigs(base, Parsed("lora_r: 8\nseed: 1\n"))),
            "lora_r: 16, not 8; seed: 42, not 1");
}

TEST(Config, ChecksValuesSetByCodeToo) {
  Config config;
  EXPECT_EQ(ValidateConfig(Parsed("")), absl::OkStatus());
  config.lora.r = 0;
  config.optimizer.learning_rate = std::numeric_limits<double>::quiet_NaN();
  const absl::Status status = ValidateConfig(config);
  EXPECT_EQ(core::ExitCode(status), 2);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("3 faults"), HasSubstr("base_model"), HasSubstr("lora_r: got 0"),
                    HasSubstr("learning_rate: got nan")));
}

TEST(Config, NeedsAMicroBatchForEachRank) {
  const Config config = Parsed("micro_batch_size: 2\nglobal_batch_size: 6\n");
  EXPECT_EQ(ValidateWorldSize(config, 3), absl::OkStatus());
  const absl::Status status = ValidateWorldSize(config, 4);
  EXPECT_EQ(core::ExitCode(status), 2);
  EXPECT_THAT(std::string(status.message()), HasSubstr("want at least 8"));
}

TEST(Config, AMissingFileIsNamed) {
  const absl::StatusOr<Config> config = LoadConfig({.path = "no/such.yaml"});
  EXPECT_EQ(core::ExitCode(config.status()), 2);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("no/such.yaml"));
}

TEST(Config, EachFileInConfigsLoads) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(BITSHARD_SOURCE_DIR "/configs")) {
    SCOPED_TRACE(entry.path());
    const absl::StatusOr<Config> config = LoadConfig({.path = entry.path(), .needs_data = true});
    EXPECT_TRUE(config.ok()) << config.status().message();
    if (!config.ok()) continue;
    EXPECT_EQ(ConfigHash(*config).size(), 16u);
    ++count;
  }
  EXPECT_GE(count, 3);
}

// docs/config.md has one table row for each key: | `key` | type | `default` | meaning |.
TEST(Config, TheDocumentListsEveryKeyWithItsTypeAndDefault) {
  const absl::StatusOr<std::string> text = core::ReadFile(BITSHARD_SOURCE_DIR "/docs/config.md");
  ASSERT_TRUE(text.ok()) << text.status().message();
  std::map<std::string, std::vector<std::string>> rows;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(*text, '\n'))) {
    if (line.rfind("| `", 0) != 0) continue;
    std::vector<std::string> cells = absl::StrSplit(line, " | ");
    ASSERT_GE(cells.size(), 4u) << line;
    const std::string key = cells[0].substr(3, cells[0].size() - 4);
    EXPECT_TRUE(rows.emplace(key, cells).second) << key << " stands twice";
  }
  const Config defaults;
  for (const ConfigField& field : ConfigFields()) {
    ASSERT_EQ(rows.count(field.key), 1u) << field.key << " is not in docs/config.md";
    const std::vector<std::string>& cells = rows[field.key];
    // A table's cell holds no "|".
    EXPECT_EQ(cells[1], absl::StrReplaceAll(field.type, {{" | ", ", "}})) << field.key;
    EXPECT_EQ(cells[2], absl::StrCat("`", field.print(defaults), "`")) << field.key;
    for (const std::string& alias : field.aliases) {
      EXPECT_THAT(cells.back(), HasSubstr("`" + alias + "`")) << field.key;
    }
    rows.erase(field.key);
  }
  for (const auto& [key, cells] : rows) ADD_FAILURE() << key << " is no key";
}

}  // namespace
}  // namespace bitshard::trainer
