// A model in a Hugging Face folder (config.json and safetensors, single or sharded) as a
// WeightSource.
#ifndef BITSHARD_TRAINER_IO_HF_MODEL_H_
#define BITSHARD_TRAINER_IO_HF_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "trainer/io/weight_source.h"

namespace bitshard::trainer::io {

/// `folder` holds config.json and model.safetensors or model.safetensors.index.json with its
/// shards. Names in the index must be plain file names: nothing outside the folder is opened by
/// what a file says. (The files themselves may be links, as they are in the hub's cache.) Errors:
/// kData naming file and key or tensor.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenHfModel(const std::string& folder);

/// The folder for what a user wrote: an existing folder is itself; "org/name" is looked up in the
/// hub's cache
/// ($HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub; the snapshot that refs/main names).
/// Nothing is ever downloaded. Errors: kData saying where was looked and `hf download org/name`.
absl::StatusOr<std::string> ResolveModelFolder(const std::string& path);

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_HF_MODEL_H_
