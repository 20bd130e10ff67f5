// LoRA adapters as PEFT keeps them: a folder with adapter_config.json, adapter_model.safetensors
// and a model card.
//
//   BITSHARD_RETURN_IF_ERROR(io::WritePeftAdapter("runs/x/adapter", settings,
//   decoder->adapter_layout(), arena));
//
//   BITSHARD_ASSIGN_OR_RETURN(auto adapter, io::PeftAdapter::Open("runs/x/adapter"));
//   // LoraOptions from adapter->settings(), a layout from those, then:
//   BITSHARD_RETURN_IF_ERROR(adapter->Load(layout, arena));
//
// A tensor "model.layers.0.self_attn.q_proj.lora_A.weight" of the layout has the key
// "base_model.model." + that name in the file, float32. Of adapter_config.json only the keys that
// every PEFT since 0.10 knows are written: older versions, and programs that read the file
// themselves, stop at keys they do not know.
#ifndef BITSHARD_TRAINER_IO_PEFT_ADAPTER_H_
#define BITSHARD_TRAINER_IO_PEFT_ADAPTER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/flat_layout.h"
#include "trainer/io/safetensors.h"

namespace bitshard::trainer::io {

/// What adapter_config.json says.
struct PeftSettings {
  int64_t r = 0;
  double alpha = 0;
  double dropout = 0;
  bool rslora = false;  ///< Scale alpha / sqrt(r) instead of alpha / r.
  /// Suffixes of Linear names ("q_proj"), full names, or the single entry "all-linear".
  std::vector<std::string> target_modules;
  std::string base_model;  ///< Path or hub name of the model that the adapter belongs to.
};

/// Writes the folder (made if it is not there); files of the same names are replaced, each at once,
/// the configuration last. "all-linear" is written as the suffixes that the layout holds. Shapes:
/// arena float32 [layout.padded_elems()]. Errors: kStorage.
absl::Status WritePeftAdapter(const std::string& folder, const PeftSettings& settings,
                              const core::FlatLayout& layout, std::span<const float> arena);

/// An adapter that PEFT or WritePeftAdapter wrote. Threads: immutable after Open.
class PeftAdapter {
 public:
  /// Errors: kData naming file and key: no LoRA, or a kind of LoRA that can't be reproduced (DoRA,
  /// biases, ranks by pattern, modules_to_save, target modules given by a regular expression).
  static absl::StatusOr<std::unique_ptr<PeftAdapter>> Open(const std::string& folder);

  const PeftSettings& settings() const { return settings_; }
  const std::string& path() const { return file_->path(); }

  /// Fills `arena` [layout.padded_elems()]: every tensor from the file, F32, F16 or BF16; padding
  /// is set to zero. Errors: kData when the tensors of file and layout are not the same names and
  /// shapes; arena is then undefined.
  absl::Status Load(const core::FlatLayout& layout, std::span<float> arena) const;

 private:
  PeftAdapter() = default;
  PeftSettings settings_;
  std::unique_ptr<SafetensorsFile> file_;
};

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_PEFT_ADAPTER_H_
