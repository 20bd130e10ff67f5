// The table of keys. Names are axolotl's where it has one, else transformers'; other spellings are
// aliases.
#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/error.h"
#include "trainer/config_binder.h"
#include "trainer/config_field_types.h"
#include "trainer/config_optimizer_fields.h"

namespace bitshard::trainer {
namespace {

constexpr int64_t kKib = 1 << 10;

using Fields = std::vector<ConfigField>;

void Append(Fields fields, Fields* all) {
  for (ConfigField& field : fields) all->push_back(std::move(field));
}

Fields WithRole(KeyRole role, Fields fields) {
  for (ConfigField& field : fields) field.role = role;
  return fields;
}

std::vector<std::string> SplitNames(const std::string& text) {
  std::vector<std::string> names;
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(text, ','))) {
    names.emplace_back(absl::StripAsciiWhitespace(part));
  }
  return names;
}

bool IsLayerName(const std::string& name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.';
  });
}

Fields ModelFields() {
  return {
      StringField(
          "base_model", {"model_name_or_path"}, [](auto& c) -> auto& { return c.model.base_model; },
          "path"),
      StringField(
          "model_type", {}, [](auto& c) -> auto& { return c.model.model_type; }, "string"),
      BoolField(
          "load_in_4bit", {}, [](auto& c) -> auto& { return c.model.load_in_4bit; }),
      EnumField(
          "bnb_4bit_quant_type", {}, [](auto& c) -> auto& { return c.model.quant_type; },
          EnumNames<quant::Type4Bit>{{"nf4", quant::Type4Bit::kNf4},
                                     {"fp4", quant::Type4Bit::kFp4}}),
      BoolField(
          "bnb_4bit_use_double_quant", {}, [](auto& c) -> auto& { return c.model.double_quant; }),
      IntField("bnb_4bit_blocksize", {}, [](auto& c) -> auto& { return c.model.block_size; },
               {.min = 32, .max = 4096}),
  };
}

// "all-linear" (or "all"), a list, or names with commas between them.
ConfigField TargetModulesField() {
  const std::string type = "all-linear or a list of layer names, as in [q_proj, v_proj]";
  return {.key = "lora_target_modules",
          .aliases = {"target_modules", "lora_target"},
          .type = type,
          .parse = [=](const YamlNode& node, Config* config) -> std::string {
            std::vector<std::string> names;
            const std::string fault = ReadStrings(node, &names);
            if (!fault.empty()) return WithWanted(fault, type);
            if (names.size() == 1 && node.kind == YamlNode::Kind::kScalar) {
              names = SplitNames(names[0]);
            }
            if (names.empty()) return "got an empty list, want " + type;
            if (names.size() == 1 && (names[0] == "all-linear" || names[0] == "all")) names.clear();
            config->lora.target_modules = std::move(names);
            return "";
          },
          .print = [](const Config& config) -> std::string {
            const auto& names = config.lora.target_modules;
            return names.empty() ? "all-linear" : PrintStrings(names);
          },
          .check = [=](const Config& config) -> std::string {
            for (const std::string& name : config.lora.target_modules) {
              if (IsLayerName(name)) continue;
              return absl::StrCat("got \"", core::Escaped(name), "\", want ", type);
            }
            return "";
          }};
}

Fields LoraFields() {
  return {
      EnumField(
          "adapter", {}, [](auto& c) -> auto& { return c.lora.adapter; },
          EnumNames<AdapterKind>{{"qlora", AdapterKind::kQlora}, {"lora", AdapterKind::kLora}}),
      IntField("lora_r", {"lora_rank", "r"}, [](auto& c) -> auto& { return c.lora.r; },
               {.min = 1, .max = 4096}),
      IntField("lora_alpha", {}, [](auto& c) -> auto& { return c.lora.alpha; },
               {.min = 1, .max = 1 << 20}),
      NumberField("lora_dropout", {}, [](auto& c) -> auto& { return c.lora.dropout; },
                  {.max = 1, .below_max = true}),
      TargetModulesField(),
      BoolField(
          "use_rslora", {"peft_use_rslora"}, [](auto& c) -> auto& { return c.lora.use_rslora; }),
  };
}

const EnumNames<SampleType>& SampleTypes() {
  static const auto* const names =
      new EnumNames<SampleType>{{"auto", SampleType::kAuto},
                                {"alpaca", SampleType::kAlpaca},
                                {"chat_template", SampleType::kChatTemplate},
                                {"sharegpt", SampleType::kShareGpt},
                                {"completion", SampleType::kCompletion},
                                {"prompt_completion", SampleType::kPromptCompletion},
                                {"text", SampleType::kText}};
  return *names;
}

std::string ReadDataset(const YamlNode& node, DatasetOptions* dataset) {
  if (node.kind == YamlNode::Kind::kScalar) {
    dataset->path = node.scalar;
    return "";
  }
  if (node.kind != YamlNode::Kind::kMap) return Got(node) + " in the list, want {path, type}";
  for (const YamlMember& member : node.members) {
    const std::string where =
        absl::StrFormat("in line %d, %s: ", member.line, core::Escaped(member.key));
    std::string fault;
    if (member.value.kind == YamlNode::Kind::kNull) continue;
    if (member.key == "path") {
      fault = WithWanted(ReadString(member.value, &dataset->path), "path");
    } else if (member.key == "type") {
      fault = WithWanted(ReadEnum(member.value, SampleTypes(), &dataset->type),
                         EnumType(SampleTypes()));
    } else {
      fault = "unknown key, want path or type";
    }
    if (!fault.empty()) return where + fault;
  }
  return "";
}

template <class At>
ConfigField DatasetsField(std::string key, At at) {
  const std::string type = "list of {path, type}";
  return {.key = std::move(key),
          .type = type,
          .parse = [=](const YamlNode& node, Config* config) -> std::string {
            if (node.kind != YamlNode::Kind::kList) return Got(node) + ", want a " + type;
            std::vector<DatasetOptions> datasets(node.items.size());
            for (size_t i = 0; i < datasets.size(); ++i) {
              const std::string fault = ReadDataset(node.items[i], &datasets[i]);
              if (!fault.empty()) return fault;
            }
            at(*config) = std::move(datasets);
            return "";
          },
          .print =
              [=](const Config& config) {
                return "[" +
                       absl::StrJoin(at(config), ", ",
                                     [](std::string* out, const auto& d) {
                                       absl::StrAppend(out, "{path: ", YamlQuoted(d.path),
                                                       ", type: ", PrintEnum(SampleTypes(), d.type),
                                                       "}");
                                     }) +
                       "]";
              },
          .check = [=](const Config& config) -> std::string {
            for (const DatasetOptions& dataset : at(config)) {
              if (dataset.path.empty()) return "an entry has no path";
            }
            return "";
          }};
}

Fields DataFields() {
  return {
      DatasetsField(
          "datasets", [](auto& c) -> auto& { return c.data.datasets; }),
      DatasetsField(
          "test_datasets", [](auto& c) -> auto& { return c.data.test_datasets; }),
      IntField("sequence_len", {"max_length", "cutoff_len", "max_seq_length"},
               [](auto& c) -> auto& { return c.data.sequence_len; }, {.min = 8, .max = 1 << 20}),
      BoolField(
          "sample_packing", {"packing"}, [](auto& c) -> auto& { return c.data.sample_packing; }),
      BoolField(
          "train_on_inputs", {"train_on_prompt"},
          [](auto& c) -> auto& { return c.data.train_on_inputs; }),
      EnumField(
          "excess_length_strategy", {}, [](auto& c) -> auto& { return c.data.excess_length; },
          EnumNames<ExcessLength>{{"drop", ExcessLength::kDrop},
                                  {"truncate", ExcessLength::kTruncate},
                                  {"raise", ExcessLength::kRaise}}),
  };
}

ConfigField MaxStepsField() {
  const std::string type = "integer, at least 1, or -1 for no limit";
  return {.key = "max_steps",
          .type = type,
          .parse =
              [=](const YamlNode& node, Config* config) {
                return WithWanted(ReadInt(node, &config->batch.max_steps), type);
              },
          .print = [](const Config& config) { return absl::StrCat(config.batch.max_steps); },
          .check =
              [=](const Config& config) {
                const int64_t steps = config.batch.max_steps;
                return steps == -1 || steps >= 1 ? ""
                                                 : absl::StrCat("got ", steps, ", want ", type);
              }};
}

Fields BatchFields() {
  return {
      IntField("micro_batch_size", {"per_device_train_batch_size"},
               [](auto& c) -> auto& { return c.batch.micro_batch_size; },
               {.min = 1, .max = 1 << 20}),
      IntField("global_batch_size", {}, [](auto& c) -> auto& { return c.batch.global_batch_size; },
               {.min = 1, .max = 1 << 20}),
      NumberField("num_epochs", {"num_train_epochs"},
                  [](auto& c) -> auto& { return c.batch.num_epochs; },
                  {.max = 100000, .above_min = true}),
      MaxStepsField(),
  };
}

Fields ComputeFields() {
  return {
      EnumField(
          "device", {}, [](auto& c) -> auto& { return c.compute.device; },
          EnumNames<DeviceKind>{
              {"auto", DeviceKind::kAuto}, {"cpu", DeviceKind::kCpu}, {"cuda", DeviceKind::kCuda}}),
      EnumField(
          "compute_type", {"bnb_4bit_compute_dtype"},
          [](auto& c) -> auto& { return c.compute.type; },
          EnumNames<ComputeType>{{"auto", ComputeType::kAuto},
                                 {"fp32", ComputeType::kFloat32},
                                 {"bf16", ComputeType::kBFloat16},
                                 {"float32", ComputeType::kFloat32},
                                 {"bfloat16", ComputeType::kBFloat16}}),
      BoolField(
          "activation_checkpointing", {"gradient_checkpointing"},
          [](auto& c) -> auto& { return c.compute.activation_checkpointing; }),
      EnumField(
          "nonfinite", {}, [](auto& c) -> auto& { return c.compute.nonfinite; },
          EnumNames<NonFinite>{{"stop", NonFinite::kStop}, {"skip", NonFinite::kSkip}}),
      IntField("seed", {}, [](auto& c) -> auto& { return c.compute.seed; }, {}),
      IntField("eval_max_samples", {}, [](auto& c) -> auto& { return c.eval.max_samples; }, {}),
  };
}

// "": false. "true" and "auto" by name, else a path.
ConfigField ResumeField() {
  const std::string type = "true | false | auto | path of a checkpoint";
  return {.key = "resume_from_checkpoint",
          .type = type,
          .parse = [=](const YamlNode& node, Config* config) -> std::string {
            std::string text;
            const std::string fault = ReadString(node, &text);
            if (!fault.empty()) return WithWanted(fault, type);
            bool yes = false;
            if (ReadBool(node, &yes).empty()) text = yes ? "true" : "";
            config->output.resume_from_checkpoint = text;
            return "";
          },
          .print = [](const Config& config) -> std::string {
            const std::string& text = config.output.resume_from_checkpoint;
            if (text.empty()) return "false";
            return text == "true" || text == "auto" ? text : YamlQuoted(text);
          },
          .check = [](const Config&) { return ""; }};
}

ConfigField ReportToField() {
  static const auto* const names = new EnumNames<Report>{
      {"jsonl", Report::kJsonl}, {"tensorboard", Report::kTensorBoard}, {"csv", Report::kCsv}};
  const std::string type = "list of jsonl, tensorboard, csv";
  return {.key = "report_to",
          .type = type,
          .parse = [=](const YamlNode& node, Config* config) -> std::string {
            std::vector<std::string> texts;
            const std::string fault = ReadStrings(node, &texts);
            if (!fault.empty()) return WithWanted(fault, type);
            std::vector<Report> reports;
            if (texts == std::vector<std::string>{"none"}) texts.clear();
            for (const std::string& text : texts) {
              Report report = Report::kJsonl;
              const YamlNode item{.kind = YamlNode::Kind::kScalar, .scalar = text};
              const std::string wrong = ReadEnum(item, *names, &report);
              if (!wrong.empty()) return WithWanted(wrong, type);
              if (std::find(reports.begin(), reports.end(), report) != reports.end()) {
                return text + " stands twice";
              }
              reports.push_back(report);
            }
            config->output.report_to = std::move(reports);
            return "";
          },
          .print =
              [](const Config& config) {
                return "[" +
                       absl::StrJoin(config.output.report_to, ", ",
                                     [](std::string* out, Report report) {
                                       out->append(PrintEnum(*names, report));
                                     }) +
                       "]";
              },
          .check = [](const Config&) { return ""; }};
}

Fields OutputFields() {
  return {
      StringField(
          "output_dir", {}, [](auto& c) -> auto& { return c.output.directory; }, "path"),
      IntField("eval_steps", {}, [](auto& c) -> auto& { return c.eval.steps; }, {}),
      BoolField(
          "eval_on_start", {}, [](auto& c) -> auto& { return c.eval.on_start; }),
      IntField("save_steps", {}, [](auto& c) -> auto& { return c.output.save_steps; }, {}),
      IntField("save_total_limit", {}, [](auto& c) -> auto& { return c.output.save_total_limit; },
               {}),
      ResumeField(),
      IntField("logging_steps", {}, [](auto& c) -> auto& { return c.output.logging_steps; },
               {.min = 1}),
      ReportToField(),
      IntField("threads_per_rank", {}, [](auto& c) -> auto& { return c.compute.threads_per_rank; },
               {.max = 1024}),
  };
}

// Before there was a choice every run was ordered, and the key no part of a hash.
ConfigField ReductionField() {
  using comm::Reduction;
  ConfigField field = EnumField(
      "comm.reduction", {}, [](auto& c) -> auto& { return c.comm.reduction; },
      EnumNames<Reduction>{{"ordered", Reduction::kOrdered}, {"fast", Reduction::kFast}});
  field.hashed = [](const Config& config) {
    return config.comm.reduction == Reduction::kFast ? "fast" : "";
  };
  return field;
}

Fields GenerateFields() {
  return {
      IntField("generate.heldout_prompts", {},
               [](auto& c) -> auto& { return c.generate.heldout_prompts; }, {.max = 1000}),
      StringsField(
          "generate.prompts", [](auto& c) -> auto& { return c.generate.prompts; }),
      IntField("generate.max_new_tokens", {},
               [](auto& c) -> auto& { return c.generate.max_new_tokens; },
               {.min = 1, .max = 1 << 20}),
  };
}

Fields SectionFields() {
  return {
      EnumField(
          "paging.tier", {}, [](auto& c) -> auto& { return c.paging.tier; },
          EnumNames<PagingTier>{{"auto", PagingTier::kAuto},
                                {"host", PagingTier::kHost},
                                {"file", PagingTier::kFile},
                                {"managed", PagingTier::kManaged},
                                {"pinned", PagingTier::kPinned}}),
      BytesField("paging.budget", {}, [](auto& c) -> auto& { return c.paging.budget; },
                 {.min = 256 * kKib}),
      StringField(
          "paging.directory", {}, [](auto& c) -> auto& { return c.paging.directory; }, "path"),
      EnumField(
          "comm.backend", {}, [](auto& c) -> auto& { return c.comm.backend; },
          EnumNames<CommBackend>{{"mpi", CommBackend::kMpi}}),
      NumberField("comm.timeout", {"comm_timeout", "ddp_timeout"},
                  [](auto& c) -> auto& { return c.comm.timeout_seconds; },
                  {.max = 1e9, .above_min = true}),
      BytesField("comm.bucket_bytes", {}, [](auto& c) -> auto& { return c.comm.bucket_bytes; },
                 {.min = kKib, .max = int64_t{1} << 30}),
  };
}

}  // namespace

const std::vector<ConfigField>& ConfigFields() {
  static const Fields* const all = [] {
    auto* fields = new Fields;
    Append(ModelFields(), fields);
    Append(LoraFields(), fields);
    Append(DataFields(), fields);
    Append(BatchFields(), fields);
    Append(OptimizerFields(), fields);
    Append(ComputeFields(), fields);
    Append(WithRole(KeyRole::kPlacement, OutputFields()), fields);
    Append(WithRole(KeyRole::kPlacement, SectionFields()), fields);
    Append({ReductionField()}, fields);
    Append(WithRole(KeyRole::kPlacement, GenerateFields()), fields);
    return fields;
  }();
  return *all;
}

std::vector<KeyFault> FindKeyFaults(const Config& config) {
  std::vector<KeyFault> faults;
  for (const ConfigField& field : ConfigFields()) {
    const std::string fault = field.check(config);
    if (!fault.empty()) faults.push_back({field.key, fault});
  }
  return faults;
}

}  // namespace bitshard::trainer
