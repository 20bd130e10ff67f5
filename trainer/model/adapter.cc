#include "trainer/model/adapter.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/status_macros.h"

namespace bitshard::trainer {
namespace {

// The order in which the backward pass of a block finishes gradients.
constexpr Module kBackwardOrder[] = {kDownProj, kGateProj, kUpProj, kOProj, kQProj, kKProj, kVProj};

bool EndsWithPart(const std::string& name, const std::string& suffix) {
  return name == suffix || (name.size() > suffix.size() &&
                            name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0 &&
                            name[name.size() - suffix.size() - 1] == '.');
}

// For each target, whether `name` is meant by it.
bool Targets(const std::vector<std::string>& targets, const std::string& name,
             std::vector<bool>* used) {
  bool found = false;
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] == "all-linear" || EndsWithPart(name, targets[i])) {
      found = true;
      (*used)[i] = true;
    }
  }
  return found;
}

absl::Status UnmatchedTarget(const std::string& target) {
  std::vector<std::string> known = {"all-linear"};
  for (int m = 0; m < kNumModules; ++m) {
    const std::string name = ModuleName(static_cast<Module>(m));
    known.push_back(name.substr(name.find('.') + 1));
  }
  const std::string nearest = core::Nearest(target, known);
  std::string message =
      absl::StrCat("lora_target_modules: \"", core::Escaped(target), "\" matches no Linear layer");
  if (!nearest.empty()) absl::StrAppend(&message, "; did you mean ", nearest, "?");
  absl::StrAppend(
      &message,
      " Known: all-linear, q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, "
      "or full names (model.layers.0.mlp.down_proj)");
  return core::ConfigError(message);
}

}  // namespace

LinearShape ShapeOf(const ModelConfig& c, Module module) {
  const int64_t q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  switch (module) {
    case kQProj:
      return {q, c.hidden_size};
    case kKProj:
    case kVProj:
      return {kv, c.hidden_size};
    case kOProj:
      return {c.hidden_size, q};
    case kGateProj:
    case kUpProj:
      return {c.intermediate_size, c.hidden_size};
    case kDownProj:
    case kNumModules:
      break;
  }
  return {c.hidden_size, c.intermediate_size};
}

std::string ModuleName(Module module) {
  static constexpr const char* kNames[] = {
      "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
      "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
  return kNames[module];
}

std::string LinearName(int64_t layer, Module module) {
  return absl::StrCat("model.layers.", layer, ".", ModuleName(module));
}

absl::StatusOr<Adapter> Adapter::Create(const ModelConfig& config, const AdapterOptions& lora) {
  Adapter adapter;
  adapter.lora_ = lora;
  adapter.tensors_.resize(static_cast<size_t>(config.num_hidden_layers));
  if (lora.r == 0) return adapter;
  std::vector<bool> used(lora.target_modules.size(), false);
  std::vector<core::TensorSpec> specs;
  for (int64_t layer = config.num_hidden_layers - 1; layer >= 0; --layer) {
    for (const Module module : kBackwardOrder) {
      const std::string name = LinearName(layer, module);
      if (!Targets(lora.target_modules, name, &used)) continue;
      const LinearShape shape = ShapeOf(config, module);
      const int64_t next = static_cast<int64_t>(specs.size());
      adapter.tensors_[static_cast<size_t>(layer)][module] = {.a = next + 1, .b = next};
      specs.push_back({absl::StrCat(name, ".lora_B.weight"), {shape.out, lora.r}});
      specs.push_back({absl::StrCat(name, ".lora_A.weight"), {lora.r, shape.in}});
    }
  }
  for (size_t i = 0; i < used.size(); ++i) {
    if (!used[i]) return UnmatchedTarget(lora.target_modules[i]);
  }
  BITSHARD_ASSIGN_OR_RETURN(adapter.layout_, core::FlatLayout::Create(specs));
  return adapter;
}

float Adapter::scale() const {
  if (lora_.r == 0) return 0;
  const double r = static_cast<double>(lora_.r);
  return static_cast<float>(lora_.alpha / (lora_.rslora ? std::sqrt(r) : r));
}

void Adapter::Init(uint64_t seed, std::span<float> parameters) const {
  std::fill(parameters.begin(), parameters.end(), 0.0f);
  for (int64_t i = 1; i < layout_.num_tensors(); i += 2) {  // A stands after its B.
    const core::FlatTensor& tensor = layout_.tensor(i);
    const float bound = 1.0f / std::sqrt(static_cast<float>(tensor.shape[1]));
    const uint64_t key = core::RngKey(seed, core::RngPurpose::kInit, static_cast<uint64_t>(i));
    for (int64_t e = 0; e < tensor.numel; e += 4) {
      const core::Philox4 random = core::Philox(key, static_cast<uint64_t>(e / 4), 0);
      for (int64_t k = 0; k < std::min<int64_t>(4, tensor.numel - e); ++k) {
        const float u = core::UniformFloat(random.word[k]);
        parameters[static_cast<size_t>(tensor.offset() + e + k)] = (2.0f * u - 1.0f) * bound;
      }
    }
  }
}

}  // namespace bitshard::trainer
