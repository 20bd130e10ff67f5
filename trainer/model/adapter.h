// Which Linear layers carry a LoRA adapter, and where their matrices stand in the flat arena.
// Hu et al., "LoRA", 2021; names and initialisation as PEFT has them.
#ifndef BITSHARD_TRAINER_MODEL_ADAPTER_H_
#define BITSHARD_TRAINER_MODEL_ADAPTER_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/flat_layout.h"
#include "trainer/model/decoder.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer {

/// The Linear layers of a block, in the order of the forward pass.
enum Module : int { kQProj, kKProj, kVProj, kOProj, kGateProj, kUpProj, kDownProj, kNumModules };

/// y [out] = W [out, in] x [in].
struct LinearShape {
  int64_t out = 0;
  int64_t in = 0;
  int64_t numel() const { return out * in; }
};
LinearShape ShapeOf(const ModelConfig& config, Module module);
/// "self_attn.q_proj", "mlp.down_proj", ...
std::string ModuleName(Module module);
/// "model.layers.3.self_attn.q_proj".
std::string LinearName(int64_t layer, Module module);

/// Tensor numbers of the layout, or -1 where a Linear layer has no adapter.
struct AdapterTensors {
  int64_t a = -1;  ///< [r, in]
  int64_t b = -1;  ///< [out, r]
};

class Adapter {
 public:
  /// Errors: kConfig for a target that matches no Linear layer, with the nearest name.
  static absl::StatusOr<Adapter> Create(const ModelConfig& config, const AdapterOptions& lora);

  const core::FlatLayout& layout() const { return layout_; }
  AdapterTensors tensors(int64_t layer, Module module) const {
    return tensors_[static_cast<size_t>(layer)][module];
  }
  int64_t r() const { return lora_.r; }
  float scale() const;
  float dropout() const { return static_cast<float>(lora_.dropout); }
  void Init(uint64_t seed, std::span<float> parameters) const;

 private:
  AdapterOptions lora_;
  core::FlatLayout layout_;
  std::vector<std::array<AdapterTensors, kNumModules>> tensors_;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_ADAPTER_H_
