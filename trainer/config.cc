#include "trainer/config.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/status_macros.h"
#include "optim/optimizer_name.h"
#include "trainer/config_binder.h"

namespace bitshard::trainer {
namespace {

// Changes when keys, defaults or meanings change so that an old hash must not match.
constexpr char kHashVersion[] = "bitshard config 2";

bool IsPowerOfTwo(int64_t value) { return value > 0 && (value & (value - 1)) == 0; }

void CheckModelAndAdapter(const Config& config, std::vector<KeyFault>* faults) {
  if (config.model.base_model.empty()) {
    faults->push_back({"base_model", "missing; want a Hugging Face folder or a .gguf file"});
  }
  if (config.lora.adapter == AdapterKind::kQlora && !config.model.load_in_4bit) {
    faults->push_back({"load_in_4bit",
                       "got false, but adapter: qlora is an adapter on a 4-bit base; write "
                       "adapter: lora for a base that is not quantised"});
  }
  if (!IsPowerOfTwo(config.model.block_size)) {
    faults->push_back({"bnb_4bit_blocksize",
                       absl::StrCat("got ", config.model.block_size, ", want a power of two")});
  }
}

void CheckBatch(const Config& config, std::vector<KeyFault>* faults) {
  const int64_t micro = config.batch.micro_batch_size;
  const int64_t global = config.batch.global_batch_size;
  if (micro >= 1 && global >= 1 && global % micro != 0) {
    faults->push_back({"global_batch_size",
                       absl::StrFormat("got %d, want a multiple of micro_batch_size %d: %d or %d",
                                       global, micro, std::max(global / micro, int64_t{1}) * micro,
                                       (global / micro + 1) * micro)});
  }
}

const char* NameOf(PagingTier tier) {
  switch (tier) {
    case PagingTier::kAuto:
      return "auto";
    case PagingTier::kHost:
      return "host";
    case PagingTier::kFile:
      return "file";
    case PagingTier::kManaged:
      return "managed";
    case PagingTier::kPinned:
      break;
  }
  return "pinned";
}

void CheckOptimizer(const Config& config, std::vector<KeyFault>* faults) {
  const OptimizerOptions& optimizer = config.optimizer;
  if (optimizer.warmup_steps > 0 && optimizer.warmup_ratio > 0) {
    faults->push_back({"warmup_ratio", "warmup_steps is given too; keep one of them"});
  }
  if (optimizer.cosine_min_lr_ratio > 0 && optimizer.scheduler != optim::LrKind::kCosine) {
    faults->push_back({"cosine_min_lr_ratio", "has no effect here; want lr_scheduler: cosine"});
  }
  const auto name = optim::ParseOptimizerName(optimizer.name);
  const PagingTier tier = config.paging.tier;
  if (tier != PagingTier::kAuto && tier != PagingTier::kHost && name.ok() && !name->paged) {
    faults->push_back(
        {"paging.tier", absl::StrCat(NameOf(tier), " has no effect with optimizer: ",
                                     core::Escaped(optimizer.name),
                                     "; want one of the paged_ ones, as in paged_adamw_8bit")});
  }
}

// What one of the two devices can't do.
void CheckDevice(const Config& config, std::vector<KeyFault>* faults) {
  const PagingTier tier = config.paging.tier;
  const auto name = optim::ParseOptimizerName(config.optimizer.name);
  const bool paged = name.ok() && name->paged;
  const bool on_device = tier == PagingTier::kManaged || tier == PagingTier::kPinned;
  const bool on_host = tier == PagingTier::kHost || tier == PagingTier::kFile;
  if (paged && on_device && config.compute.device == DeviceKind::kCpu) {
    faults->push_back({"paging.tier",
                       absl::StrCat("got ", NameOf(tier), " with device: cpu, want host or file")});
  }
  if (paged && on_host && config.compute.device == DeviceKind::kCuda) {
    faults->push_back({"paging.tier", absl::StrCat("got ", NameOf(tier),
                                                   " with device: cuda, want managed or pinned, or "
                                                   "device: cpu")});
  }
}

void CheckEvaluationAndOutput(const Config& config, std::vector<KeyFault>* faults) {
  if (config.eval.steps > 0 && config.data.test_datasets.empty()) {
    faults->push_back({"eval_steps", "there is nothing to evaluate on; want test_datasets"});
  }
  if (config.output.directory.empty()) {
    faults->push_back({"output_dir", "got \"\", want a path"});
  }
}

std::vector<KeyFault> FindFaults(const Config& config) {
  std::vector<KeyFault> faults = FindKeyFaults(config);
  CheckModelAndAdapter(config, &faults);
  CheckBatch(config, &faults);
  CheckOptimizer(config, &faults);
  CheckDevice(config, &faults);
  CheckEvaluationAndOutput(config, &faults);
  return faults;
}

absl::Status FaultsToStatus(const std::vector<ConfigFault>& faults) {
  if (faults.empty()) return absl::OkStatus();
  std::vector<std::string> lines;
  for (const ConfigFault& fault : faults) {
    lines.push_back(fault.where.empty() ? fault.text : fault.where + ": " + fault.text);
  }
  if (lines.size() == 1) return core::ConfigError(lines[0]);
  return core::ConfigError(absl::StrCat(lines.size(), " faults in the configuration:\n  ",
                                        absl::StrJoin(lines, "\n  ")));
}

absl::StatusOr<Config> ParseSource(const std::string& text, const ConfigSource& source) {
  ConfigBinder binder;
  BITSHARD_ASSIGN_OR_RETURN(const YamlNode root, ParseYaml(text, source.path));
  binder.Bind(root, source.path, false);
  for (const std::string& override_text : source.overrides) {
    const absl::StatusOr<YamlNode> tree = ParseOverride(override_text);
    if (tree.ok()) {
      binder.Bind(*tree, "--set", true);
    } else {
      binder.AddFault("", std::string(tree.status().message()));
    }
  }
  Config& config = binder.config();
  if (!binder.IsGiven("load_in_4bit")) {
    config.model.load_in_4bit = config.lora.adapter == AdapterKind::kQlora;
  }
  std::vector<KeyFault> faults = FindFaults(config);
  if (source.needs_data && config.data.datasets.empty()) {
    faults.push_back(
        {"datasets", "missing; want what to train on, as in [{path: train.jsonl, type: auto}]"});
  }
  for (const KeyFault& fault : faults) {
    const std::string where = binder.WhereIs(fault.key);
    binder.AddFault(where.empty() ? core::Escaped(source.path, 4096) : where,
                    absl::StrCat(fault.key, ": ", fault.text));
  }
  BITSHARD_RETURN_IF_ERROR(FaultsToStatus(binder.faults()));
  return std::move(config);
}

}  // namespace

absl::StatusOr<Config> ParseConfig(const std::string& text, const std::string& name,
                                   const std::vector<std::string>& overrides) {
  return ParseSource(text, {.path = name, .overrides = overrides});
}

absl::StatusOr<Config> LoadConfig(const ConfigSource& source) {
  const absl::StatusOr<std::string> text = core::ReadFile(source.path, kMaxYamlBytes);
  // A configuration that can't be read is a fault of the command line, not of the data.
  if (!text.ok()) return core::ConfigError(std::string(text.status().message()));
  return ParseSource(*text, source);
}

absl::Status ValidateConfig(const Config& config) {
  std::vector<ConfigFault> faults;
  for (const KeyFault& fault : FindFaults(config)) {
    faults.push_back({"", absl::StrCat(fault.key, ": ", fault.text)});
  }
  return FaultsToStatus(faults);
}

absl::Status ValidateWorldSize(const Config& config, int world_size) {
  const int64_t micro_batches = config.batch.micro_batches_per_step();
  if (micro_batches >= world_size) return absl::OkStatus();
  return core::ConfigError(absl::StrFormat(
      "global_batch_size: %d packs are %d micro-batches of micro_batch_size %d, fewer than the %d "
      "ranks; want at least %d, or fewer ranks",
      config.batch.global_batch_size, micro_batches, config.batch.micro_batch_size, world_size,
      config.batch.micro_batch_size * world_size));
}

std::string ConfigToYaml(const Config& config) {
  std::string out;
  std::string section;
  for (const ConfigField& field : ConfigFields()) {
    const size_t dot = field.key.find('.');
    const std::string outer = dot == std::string::npos ? "" : field.key.substr(0, dot);
    if (!outer.empty() && outer != section) absl::StrAppend(&out, outer, ":\n");
    section = outer;
    const std::string name = outer.empty() ? field.key : "  " + field.key.substr(dot + 1);
    absl::StrAppend(&out, name, ": ", field.print(config), "\n");
  }
  return out;
}

std::string ConfigHash(const Config& config) {
  core::Hasher hasher;
  hasher.UpdateString(kHashVersion);
  for (const ConfigField& field : ConfigFields()) {
    if (field.role != KeyRole::kResult) continue;
    const std::string value = field.hashed ? field.hashed(config) : field.print(config);
    if (field.hashed && value.empty()) continue;
    hasher.UpdateString(field.key);
    hasher.UpdateString(value);
  }
  return core::HexDigest(hasher.Digest());
}

std::vector<ConfigDifference> DiffConfigs(const Config& first, const Config& second) {
  std::vector<ConfigDifference> differences;
  for (const ConfigField& field : ConfigFields()) {
    const std::string a = field.print(first);
    const std::string b = field.print(second);
    if (a == b) continue;
    const bool same_hash = field.hashed && field.hashed(first) == field.hashed(second);
    differences.push_back({.key = field.key,
                           .first = a,
                           .second = b,
                           .changes_result = field.role == KeyRole::kResult && !same_hash});
  }
  return differences;
}

std::string DescribeDifferences(const std::vector<ConfigDifference>& differences) {
  return absl::StrJoin(differences, "; ", [](std::string* out, const ConfigDifference& difference) {
    absl::StrAppend(out, difference.key, ": ", difference.first, ", not ", difference.second);
  });
}

}  // namespace bitshard::trainer
