#include "trainer/io/hf_export.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/file.h"
#include "core/status_macros.h"
#include "trainer/io/hf_config.h"
#include "trainer/io/json.h"
#include "trainer/io/safetensors.h"

namespace bitshard::trainer::io {
namespace {

absl::Status WriteWeights(const WeightSource& source, const std::string& path, core::DType dtype,
                          FillWeight fill) {
  std::vector<SafetensorsEntry> entries;
  for (const WeightInfo& info : source.tensors()) {
    entries.push_back({.name = info.name, .dtype = dtype, .shape = info.shape});
  }
  BITSHARD_ASSIGN_OR_RETURN(const auto writer,
                            SafetensorsWriter::Create(path, entries, {{"format", "pt"}}));
  std::vector<float> values;
  for (const WeightInfo& info : source.tensors()) {
    values.resize(static_cast<size_t>(info.numel()));
    BITSHARD_ASSIGN_OR_RETURN(const bool filled, fill(info, values));
    if (!filled) BITSHARD_RETURN_IF_ERROR(source.Read(info.name, values));
    BITSHARD_RETURN_IF_ERROR(writer->WriteFloats(values));
  }
  return writer->Commit();
}

}  // namespace

absl::Status ExportHuggingFace(const WeightSource& source, const std::string& folder,
                               const ExportOptions& options, FillWeight fill) {
  if (options.dtype != core::DType::kFloat32 && options.dtype != core::DType::kBFloat16) {
    return core::ConfigError(absl::StrCat("export dtype: got ", core::Name(options.dtype),
                                          ", want float32 or bfloat16"));
  }
  BITSHARD_RETURN_IF_ERROR(core::MakeDirectories(folder));
  BITSHARD_RETURN_IF_ERROR(
      WriteWeights(source, folder + "/model.safetensors", options.dtype, fill));
  BITSHARD_RETURN_IF_ERROR(core::WriteFileAtomically(
      folder + "/generation_config.json", JsonText(HfGenerationConfigJson(source.config()))));
  return core::WriteFileAtomically(folder + "/config.json",
                                   JsonText(HfConfigJson(source.config(), options.dtype)));
}

}  // namespace bitshard::trainer::io
