#include "trainer/io/weight_source.h"

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/io/gguf_model.h"
#include "trainer/io/hf_model.h"
#include "trainer/io/model_checks.h"

namespace bitshard::trainer::io {

const WeightInfo* WeightSource::Find(const std::string& name) const {
  return FindSorted(tensors(), name);
}

absl::StatusOr<std::unique_ptr<WeightSource>> OpenModel(const std::string& path) {
  if (absl::EndsWith(path, ".gguf")) return OpenGgufModel(path);
  std::error_code ignored;
  if (std::filesystem::is_regular_file(path, ignored)) {
    return core::DataError(absl::StrCat(core::Escaped(path, 4096),
                                        ": want a .gguf file, or the folder that holds config.json "
                                        "and the .safetensors files"));
  }
  BITSHARD_ASSIGN_OR_RETURN(const std::string folder, ResolveModelFolder(path));
  return OpenHfModel(folder);
}

}  // namespace bitshard::trainer::io
