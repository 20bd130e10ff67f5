// Writes a model as a Hugging Face folder that transformers loads: config.json,
// generation_config.json and model.safetensors. (Tokenizer files are written by trainer/text.)
//
//   io::ExportHuggingFace(*source, "out", {.dtype = core::DType::kBFloat16},
//                         [&](const io::WeightInfo& info, std::span<float> out) ->
//                         absl::StatusOr<bool> {
//                           if (!IsQuantised(info.name)) return false;   // the source's own values
//                           BITSHARD_RETURN_IF_ERROR(decoder->DequantizedWeight(info.name, out));
//                           return true;
//                         });
#ifndef BITSHARD_TRAINER_IO_HF_EXPORT_H_
#define BITSHARD_TRAINER_IO_HF_EXPORT_H_

#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/dtype.h"
#include "trainer/io/weight_source.h"

namespace bitshard::trainer::io {

struct ExportOptions {
  core::DType dtype = core::DType::kFloat32;  ///< kFloat32 or kBFloat16 (rounded to nearest even).
};

/// May write a tensor's values to `out` ([info.numel()], float32) and return true; false: take the
/// source's.
using FillWeight =
    absl::FunctionRef<absl::StatusOr<bool>(const WeightInfo& info, std::span<float> out)>;

/// Tensor by tensor: the peak is the largest tensor. The folder is made if it is not there; files
/// of the same names are replaced, each at once, config.json last. Errors: kStorage; kConfig for
/// another dtype; what `fill` and the source return.
absl::Status ExportHuggingFace(const WeightSource& source, const std::string& folder,
                               const ExportOptions& options, FillWeight fill);

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_HF_EXPORT_H_
