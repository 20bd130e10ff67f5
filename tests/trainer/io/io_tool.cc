// Opens what the Python oracles compare: io_tool COMMAND ARGUMENTS...
//   dump MODEL OUT          config and tensor list to OUT/index.json, all tensors as float32 to
//   OUT/tensors.bin time MODEL              seconds to open the model and to read every tensor
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/flat_layout.h"
#include "core/status_macros.h"
#include "trainer/io/gguf.h"
#include "trainer/io/hf_export.h"
#include "trainer/io/json.h"
#include "trainer/io/peft_adapter.h"
#include "trainer/io/safetensors.h"
#include "trainer/io/weight_source.h"

namespace bitshard::trainer::io {
namespace {

nlohmann::ordered_json ConfigJson(const ModelConfig& config) {
  return {{"model_type", config.model_type},
          {"vocab_size", config.vocab_size},
          {"hidden_size", config.hidden_size},
          {"intermediate_size", config.intermediate_size},
          {"num_hidden_layers", config.num_hidden_layers},
          {"num_attention_heads", config.num_attention_heads},
          {"num_key_value_heads", config.num_key_value_heads},
          {"head_dim", config.head_dim},
          {"max_position_embeddings", config.max_position_embeddings},
          {"sliding_window", config.sliding_window},
          {"rms_norm_eps", config.rms_norm_eps},
          {"rope_theta", config.rope_theta},
          {"rope_kind", config.rope_scaling.kind},
          {"rope_factor", config.rope_scaling.factor},
          {"rope_low_freq_factor", config.rope_scaling.low_freq_factor},
          {"rope_high_freq_factor", config.rope_scaling.high_freq_factor},
          {"rope_original_max_position_embeddings",
           config.rope_scaling.original_max_position_embeddings},
          {"tie_word_embeddings", config.tie_word_embeddings},
          {"qkv_bias", config.qkv_bias},
          {"qk_norm", config.qk_norm},
          {"bos_token_id", config.bos_token_id},
          {"eos_token_ids", config.eos_token_ids},
          {"pad_token_id", config.pad_token_id}};
}

absl::Status Dump(const std::string& model, const std::string& out) {
  BITSHARD_ASSIGN_OR_RETURN(const auto source, OpenModel(model));
  nlohmann::ordered_json index = {{"config", ConfigJson(source->config())}};
  BITSHARD_ASSIGN_OR_RETURN(const auto file, core::AtomicFile::Create(out + "/tensors.bin"));
  for (const WeightInfo& info : source->tensors()) {
    std::vector<float> values(static_cast<size_t>(info.numel()));
    BITSHARD_RETURN_IF_ERROR(source->Read(info.name, values));
    index["tensors"].push_back(
        {{"name", info.name}, {"shape", info.shape}, {"stored_as", info.stored_as}});
    BITSHARD_RETURN_IF_ERROR(file->Write(values.data(), values.size() * sizeof(float)));
  }
  BITSHARD_RETURN_IF_ERROR(file->Commit());
  return core::WriteFileAtomically(out + "/index.json", JsonText(index));
}

absl::Status DumpGguf(const std::string& path, const std::string& out) {
  BITSHARD_ASSIGN_OR_RETURN(const auto source, GgufFile::Open(path));
  nlohmann::ordered_json index;
  BITSHARD_ASSIGN_OR_RETURN(const auto file, core::AtomicFile::Create(out + "/tensors.bin"));
  for (const GgufTensor& tensor : source->tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.numel));
    source->Read(tensor, 0, values);
    index["tensors"].push_back(
        {{"name", tensor.name}, {"shape", tensor.shape}, {"stored_as", tensor.format->name}});
    BITSHARD_RETURN_IF_ERROR(file->Write(values.data(), values.size() * sizeof(float)));
  }
  BITSHARD_RETURN_IF_ERROR(file->Commit());
  return core::WriteFileAtomically(out + "/index.json", JsonText(index));
}

absl::StatusOr<core::DType> DTypeOf(const SafetensorsTensor& tensor) {
  const std::map<std::string, core::DType> types = {
      {"F32", core::DType::kFloat32},   {"F16", core::DType::kFloat16},
      {"BF16", core::DType::kBFloat16}, {"U8", core::DType::kUInt8},
      {"I8", core::DType::kInt8},       {"I32", core::DType::kInt32},
      {"I64", core::DType::kInt64}};
  const auto at = types.find(tensor.dtype);
  if (at == types.end()) return core::ConfigError("no writer for " + tensor.dtype);
  return at->second;
}

absl::Status CopySafetensors(const std::string& path, const std::string& out) {
  BITSHARD_ASSIGN_OR_RETURN(const auto source, SafetensorsFile::Open(path));
  std::vector<SafetensorsEntry> entries;
  for (const SafetensorsTensor& tensor : source->tensors()) {
    BITSHARD_ASSIGN_OR_RETURN(const core::DType dtype, DTypeOf(tensor));
    entries.push_back({.name = tensor.name, .dtype = dtype, .shape = tensor.shape});
  }
  BITSHARD_ASSIGN_OR_RETURN(const auto writer,
                            SafetensorsWriter::Create(out, entries, source->metadata()));
  for (const SafetensorsTensor& tensor : source->tensors()) {
    const std::span<const std::byte> bytes = source->Bytes(tensor);
    const size_t half = bytes.size() / 2;  // In two pieces: a piece need not be a whole tensor.
    BITSHARD_RETURN_IF_ERROR(writer->Write(bytes.first(half)));
    BITSHARD_RETURN_IF_ERROR(writer->Write(bytes.subspan(half)));
  }
  return writer->Commit();
}

absl::Status Export(const std::string& model, const std::string& out, const std::string& dtype) {
  BITSHARD_ASSIGN_OR_RETURN(const auto source, OpenModel(model));
  const ExportOptions options = {.dtype = dtype == "float32" ? core::DType::kFloat32
                                                             : core::DType::kBFloat16};
  return ExportHuggingFace(
      *source, out, options,
      [](const WeightInfo&, std::span<float>) -> absl::StatusOr<bool> { return false; });
}

// The layout that the trainer would derive from the model is here read off the adapter's own names.
absl::Status CopyAdapter(const std::string& folder, const std::string& out) {
  BITSHARD_ASSIGN_OR_RETURN(const auto adapter, PeftAdapter::Open(folder));
  BITSHARD_ASSIGN_OR_RETURN(const auto file,
                            SafetensorsFile::Open(folder + "/adapter_model.safetensors"));
  std::vector<core::TensorSpec> specs;
  for (const SafetensorsTensor& tensor : file->tensors()) {
    specs.push_back(
        {.name = tensor.name.substr(std::strlen("base_model.model.")), .shape = tensor.shape});
  }
  std::reverse(specs.begin(), specs.end());  // The trainer's order is not the file's either.
  BITSHARD_ASSIGN_OR_RETURN(const core::FlatLayout layout, core::FlatLayout::Create(specs));
  std::vector<float> arena(static_cast<size_t>(layout.padded_elems()));
  BITSHARD_RETURN_IF_ERROR(adapter->Load(layout, arena));
  return WritePeftAdapter(out, adapter->settings(), layout, arena);
}

absl::Status Time(const std::string& model) {
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  BITSHARD_ASSIGN_OR_RETURN(const auto source, OpenModel(model));
  std::printf("open %.3f s\n", seconds());
  std::vector<float> values;
  int64_t elements = 0;
  for (const WeightInfo& info : source->tensors()) {
    values.resize(static_cast<size_t>(info.numel()));
    BITSHARD_RETURN_IF_ERROR(source->Read(info.name, values));
    elements += info.numel();
  }
  std::printf("open and read %lld elements %.3f s\n", static_cast<long long>(elements), seconds());
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& args) {
  const std::string command = args.empty() ? "" : args[0];
  if (args.size() == 2 && command == "time") return Time(args[1]);
  if (args.size() == 3 && command == "dump") return Dump(args[1], args[2]);
  if (args.size() == 3 && command == "gguf") return DumpGguf(args[1], args[2]);
  if (args.size() == 3 && command == "safetensors") return CopySafetensors(args[1], args[2]);
  if (args.size() == 3 && command == "adapter") return CopyAdapter(args[1], args[2]);
  if (args.size() == 4 && command == "export") return Export(args[1], args[2], args[3]);
  return core::ConfigError("usage: io_tool COMMAND ARGUMENTS... (see io_tool.cc)");
}

}  // namespace
}  // namespace bitshard::trainer::io

int main(int argc, char** argv) {
  const absl::Status status = bitshard::trainer::io::Run({argv + 1, argv + argc});
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return bitshard::core::ExitCode(status);
}
