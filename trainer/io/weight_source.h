// WeightSource: a model's weights, tensor by tensor, under Hugging Face's names and in Hugging
// Face's layout, whatever file they come from. Reading one tensor at a time keeps the peak at the
// largest tensor.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto source, io::OpenModel("models/SmolLM2"));   // a folder, or a
//   .gguf file std::vector<float>
//   w(static_cast<size_t>(source->Find("model.embed_tokens.weight")->numel()));
//   BITSHARD_RETURN_IF_ERROR(source->Read("model.embed_tokens.weight", std::span<float>(w)));
#ifndef BITSHARD_TRAINER_IO_WEIGHT_SOURCE_H_
#define BITSHARD_TRAINER_IO_WEIGHT_SOURCE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer::io {

struct WeightInfo {
  std::string name;            ///< "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  ///< Row-major; Linear weights are [out, in].
  std::string stored_as;       ///< "Q4_1", "BF16", ...: for messages.
  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    return n;
  }
};

/// Threads: Read may be called from several threads.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const std::string& path() const = 0;
  /// All tensors, sorted by name. Tied output embeddings are not listed twice.
  virtual const std::vector<WeightInfo>& tensors() const = 0;
  /// nullptr when there is none of that name.
  const WeightInfo* Find(const std::string& name) const;
  /// The whole tensor, widened or dequantised to float32; rotary rows of q and k in Hugging Face's
  /// split-half order. Pages of the file that were touched are released again, here and in
  /// ReadRows. Errors: kData naming file and tensor; out.size() must be the tensor's numel.
  virtual absl::Status Read(const std::string& name, std::span<float> out) const = 0;
  /// Rows [row, row + out.size() / columns) of a matrix.
  virtual absl::Status ReadRows(const std::string& name, int64_t row,
                                std::span<float> out) const = 0;
};

/// Opens `path`: a .gguf file, or a folder with config.json and model.safetensors or
/// model.safetensors.index.json. Checks that every tensor the architecture needs is there with its
/// right shape. Errors: kData with file, key or tensor; nothing is read outside the folder.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenModel(const std::string& path);

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_WEIGHT_SOURCE_H_
