// A model of the Llama family in a GGUF file, as a WeightSource: GGUF's metadata as a ModelConfig,
// its tensor names as Hugging Face's, its rotary row order as Hugging Face's.
#ifndef BITSHARD_TRAINER_IO_GGUF_MODEL_H_
#define BITSHARD_TRAINER_IO_GGUF_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "trainer/io/weight_source.h"

namespace bitshard::trainer::io {

/// Architectures "llama" (Mistral too, which llama.cpp stores under that name), "qwen2" and
/// "qwen3". Errors: kData naming file and key or tensor.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenGgufModel(const std::string& path);

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_GGUF_MODEL_H_
