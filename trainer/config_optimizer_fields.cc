// Names are transformers' and axolotl's; what they have no name for is called as in bitsandbytes.
#include "trainer/config_optimizer_fields.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "core/error.h"
#include "optim/hyper_fault.h"
#include "optim/optimizer_name.h"
#include "optim/rules/hyper.h"
#include "trainer/config_field_types.h"

namespace bitshard::trainer {
namespace {

// --- hyper-parameters that not every optimizer has ---

using optim::Algorithm;

bool IsRmsProp(Algorithm a) { return a == Algorithm::kRmsProp; }
bool IsAdEmaMix(Algorithm a) { return a == Algorithm::kAdEmaMix; }
bool HasAdamBeta1(Algorithm a) {
  return optim::HasBeta1(a) && !optim::HasMomentum(a) && !IsRmsProp(a);
}

// A rule's defaults, AdEMAMix's own among them.
struct Defaults : optim::RuleDefaults {
  double beta3 = optim::StepHyper().beta3;
  double alpha = optim::StepHyper().alpha;
};

// The algorithm, or nothing where the optimizer's name is not known, which is a fault of its own.
std::optional<Algorithm> AlgorithmOf(const Config& config) {
  const auto name = optim::ParseOptimizerName(config.optimizer.name);
  if (!name.ok()) return std::nullopt;
  return name->algorithm;
}

std::string HasNoEffect(const Config& config) {
  return absl::StrCat("has no effect with optimizer: ", core::Escaped(config.optimizer.name),
                      "; leave it out");
}

// A number, or auto for the rule's default.
template <class Default, class At>
ConfigField HyperField(std::string key, Default default_of, NumberRange range,
                       bool (*applies)(Algorithm), At at) {
  const std::string type = TypeText(range) + ", or auto";
  const auto print = [](const std::optional<double>& value) {
    return value ? PrintNumber(*value) : "auto";
  };
  return {.key = std::move(key),
          .type = type,
          .parse = [=](const YamlNode& node, Config* config) -> std::string {
            at(*config).reset();
            if (node.kind == YamlNode::Kind::kScalar && node.scalar == "auto") return "";
            double value = 0;
            const std::string fault = ReadNumber(node, &value);
            if (fault.empty()) at(*config) = value;
            return WithWanted(fault, type);
          },
          .print = [=](const Config& config) { return print(at(config)); },
          .check = [=](const Config& config) -> std::string {
            const std::optional<double>& value = at(config);
            if (!value) return "";
            const auto algorithm = AlgorithmOf(config);
            if (algorithm && !applies(*algorithm)) return HasNoEffect(config);
            if (Contains(range, *value)) return "";
            return absl::StrCat("got ", print(value), ", want ", type);
          },
          // auto and the value that it stands for give the same adapter.
          .hashed = [=](const Config& config) -> std::string {
            const auto algorithm = AlgorithmOf(config);
            if (!algorithm || !applies(*algorithm)) return print(at(config));
            const Defaults defaults{optim::DefaultsOf(*algorithm)};
            return print(at(config).value_or(defaults.*default_of));
          }};
}

// Steps over which a value of AdEMAMix grows; 0: none.
template <class At>
ConfigField WarmedUpField(std::string key, At at) {
  ConfigField field = IntField(std::move(key), {}, at, {});
  field.check = [=, in_range = field.check](const Config& config) {
    const auto algorithm = AlgorithmOf(config);
    if (at(config) != 0 && algorithm && !IsAdEmaMix(*algorithm)) return HasNoEffect(config);
    return in_range(config);
  };
  return field;
}

// --- overrides ---

constexpr char kOverrideType[] = "list of {pattern, bits, block_size, learning_rate, weight_decay}";

std::string ReadOverrideMember(const YamlMember& member, OptimizerOverride* override) {
  const auto read_int = [&](std::optional<int64_t>* value) {
    return WithWanted(ReadInt(member.value, &value->emplace()), "integer");
  };
  const auto read_number = [&](std::optional<double>* value) {
    return WithWanted(ReadNumber(member.value, &value->emplace()), "number");
  };
  if (member.key == "pattern")
    return WithWanted(ReadString(member.value, &override->pattern), "pattern of tensor names");
  if (member.key == "bits") return read_int(&override->bits);
  if (member.key == "block_size") return read_int(&override->block_size);
  if (member.key == "learning_rate") return read_number(&override->learning_rate);
  if (member.key == "weight_decay") return read_number(&override->weight_decay);
  return "unknown key, want pattern, bits, block_size, learning_rate or weight_decay";
}

std::string ReadOverride(const YamlNode& node, OptimizerOverride* override) {
  if (node.kind != YamlNode::Kind::kMap)
    return absl::StrCat(Got(node), " in the list, want ", kOverrideType);
  for (const YamlMember& member : node.members) {
    if (member.value.kind == YamlNode::Kind::kNull) continue;
    const std::string fault = ReadOverrideMember(member, override);
    if (fault.empty()) continue;
    return absl::StrFormat("in line %d, %s: %s", member.line, core::Escaped(member.key), fault);
  }
  return "";
}

std::string PrintOverride(const OptimizerOverride& override) {
  std::string text = absl::StrCat("{pattern: ", YamlQuoted(override.pattern));
  if (override.bits) absl::StrAppend(&text, ", bits: ", *override.bits);
  if (override.block_size) absl::StrAppend(&text, ", block_size: ", *override.block_size);
  if (override.learning_rate)
    absl::StrAppend(&text, ", learning_rate: ", PrintNumber(*override.learning_rate));
  if (override.weight_decay)
    absl::StrAppend(&text, ", weight_decay: ", PrintNumber(*override.weight_decay));
  return text + "}";
}

std::string CheckOverride(const OptimizerOverride& o) {
  if (o.pattern.empty()) return "an entry has no pattern";
  const std::string what = absl::StrCat("\"", core::Escaped(o.pattern), "\": ");
  const auto outside = [&](const char* key, const std::optional<double>& value,
                           const NumberRange& range) -> std::string {
    if (!value || Contains(range, *value)) return "";
    return absl::StrCat(what, key, ": got ", PrintNumber(*value), ", want ", TypeText(range));
  };
  if (!o.bits && !o.block_size && !o.learning_rate && !o.weight_decay)
    return what + "changes nothing; want bits, block_size, learning_rate or weight_decay";
  if (o.bits && *o.bits != 8 && *o.bits != 32)
    return absl::StrCat(what, "bits: got ", *o.bits, ", want 8 or 32");
  if (o.block_size && *o.block_size != 64 && *o.block_size != 128 && *o.block_size != 256)
    return absl::StrCat(what, "block_size: got ", *o.block_size, ", want 64, 128 or 256");
  const std::string rate = outside("learning_rate", o.learning_rate, {.max = 100});
  return rate.empty() ? outside("weight_decay", o.weight_decay, {.max = 100}) : rate;
}

ConfigField OverridesField() {
  return {.key = "optimizer_overrides",
          .type = kOverrideType,
          .parse = [](const YamlNode& node, Config* config) -> std::string {
            if (node.kind != YamlNode::Kind::kList)
              return absl::StrCat(Got(node), ", want a ", kOverrideType);
            std::vector<OptimizerOverride> overrides(node.items.size());
            for (size_t i = 0; i < overrides.size(); ++i) {
              const std::string fault = ReadOverride(node.items[i], &overrides[i]);
              if (!fault.empty()) return fault;
            }
            config->optimizer.overrides = std::move(overrides);
            return "";
          },
          .print =
              [](const Config& config) {
                const auto append = [](std::string* out, const OptimizerOverride& override) {
                  out->append(PrintOverride(override));
                };
                return absl::StrCat("[", absl::StrJoin(config.optimizer.overrides, ", ", append),
                                    "]");
              },
          .check = [](const Config& config) -> std::string {
            for (const OptimizerOverride& override : config.optimizer.overrides) {
              const std::string fault = CheckOverride(override);
              if (!fault.empty()) return fault;
            }
            return "";
          }};
}

// --- the optimizer and its schedule ---

ConfigField OptimizerNameField() {
  ConfigField field = StringField(
      "optimizer", {"optim"}, [](auto& c) -> auto& { return c.optimizer.name; },
      "name, as in adamw_8bit");
  field.check = [](const Config& config) -> std::string {
    const auto name = optim::ParseOptimizerName(config.optimizer.name);
    return name.ok() ? "" : std::string(absl::StripPrefix(name.status().message(), "optimizer: "));
  };
  // One optimizer has several names, and paged_ says where its state lives, not what it is.
  field.hashed = [](const Config& config) {
    const auto name = optim::ParseOptimizerName(config.optimizer.name);
    if (!name.ok()) return config.optimizer.name;
    return absl::StrCat(static_cast<int>(name->algorithm), " ", name->bits);
  };
  return field;
}

// transformers 5 takes a warmup_steps below 1 as a ratio.
ConfigField WarmupStepsField() {
  ConfigField field =
      IntField("warmup_steps", {}, [](auto& c) -> auto& { return c.optimizer.warmup_steps; }, {});
  field.parse = [type = field.type](const YamlNode& node, Config* config) -> std::string {
    double ratio = 0;
    if (ReadInt(node, &config->optimizer.warmup_steps).empty()) return "";
    if (!ReadNumber(node, &ratio).empty() || ratio <= 0 || ratio >= 1) {
      return WithWanted(Got(node), type + ", or a ratio above 0 and below 1");
    }
    config->optimizer.warmup_steps = 0;  // An override of a number of steps in the file.
    config->optimizer.warmup_ratio = ratio;
    return "";
  };
  return field;
}

}  // namespace

std::vector<ConfigField> OptimizerFields() {
  return {
      OptimizerNameField(),
      NumberField("learning_rate", {}, [](auto& c) -> auto& { return c.optimizer.learning_rate; },
                  {.max = 100, .above_min = true}),
      EnumField(
          "lr_scheduler", {"lr_scheduler_type"},
          [](auto& c) -> auto& { return c.optimizer.scheduler; },
          EnumNames<optim::LrKind>{{"cosine", optim::LrKind::kCosine},
                                   {"linear", optim::LrKind::kLinear},
                                   {"constant", optim::LrKind::kConstant},
                                   {"constant_with_warmup", optim::LrKind::kConstant},
                                   {"cosine_with_min_lr", optim::LrKind::kCosine}}),
      NumberField("cosine_min_lr_ratio", {},
                  [](auto& c) -> auto& { return c.optimizer.cosine_min_lr_ratio; }, {.max = 1}),
      WarmupStepsField(),
      NumberField("warmup_ratio", {}, [](auto& c) -> auto& { return c.optimizer.warmup_ratio; },
                  {.max = 1, .below_max = true}),
      HyperField(
          "adam_beta1", &Defaults::beta1, optim::kDecayRange, &HasAdamBeta1,
          [](auto& c) -> auto& { return c.optimizer.adam_beta1; }),
      HyperField(
          "adam_beta2", &Defaults::beta2, optim::kDecayRange, &optim::HasBeta2,
          [](auto& c) -> auto& { return c.optimizer.adam_beta2; }),
      HyperField(
          "adam_beta3", &Defaults::beta3, optim::kDecayRange, &IsAdEmaMix,
          [](auto& c) -> auto& { return c.optimizer.adam_beta3; }),
      HyperField(
          "adam_epsilon", &Defaults::eps, {.max = 1, .above_min = true}, &optim::HasEps,
          [](auto& c) -> auto& { return c.optimizer.adam_epsilon; }),
      HyperField(
          "momentum", &Defaults::beta1, optim::kDecayRange, &optim::HasMomentum,
          [](auto& c) -> auto& { return c.optimizer.momentum; }),
      HyperField(
          "rmsprop_alpha", &Defaults::beta1, optim::kDecayRange, &IsRmsProp,
          [](auto& c) -> auto& { return c.optimizer.rmsprop_alpha; }),
      HyperField(
          "ademamix_alpha", &Defaults::alpha, {.max = 1000}, &IsAdEmaMix,
          [](auto& c) -> auto& { return c.optimizer.ademamix_alpha; }),
      WarmedUpField(
          "ademamix_t_alpha", [](auto& c) -> auto& { return c.optimizer.ademamix_t_alpha; }),
      WarmedUpField(
          "ademamix_t_beta3", [](auto& c) -> auto& { return c.optimizer.ademamix_t_beta3; }),
      HyperField(
          "max_unorm", &Defaults::max_unorm, {.max = 1000}, &optim::HasUpdateNorm,
          [](auto& c) -> auto& { return c.optimizer.max_unorm; }),
      NumberField("weight_decay", {}, [](auto& c) -> auto& { return c.optimizer.weight_decay; },
                  {.max = 100}),
      NumberField("max_grad_norm", {}, [](auto& c) -> auto& { return c.optimizer.max_grad_norm; },
                  {}),
      IntField("min_8bit_size", {}, [](auto& c) -> auto& { return c.optimizer.min_8bit_size; }, {}),
      OverridesField(),
  };
}

}  // namespace bitshard::trainer
