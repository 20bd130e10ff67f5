// Opens what the Python oracles compare: io_tool COMMAND ARGUMENTS...
//   dump MODEL OUT          config and tensor list to OUT/index.json, all tensors as float32 to
//   OUT/tensors.bin time MODEL              seconds to open the model and to read every tensor
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/file.h"
#include "core/status_macros.h"
#include "trainer/io/json.h"
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
  if (args.size() == 3 && args[0] == "dump") return Dump(args[1], args[2]);
  if (args.size() == 2 && args[0] == "time") return Time(args[1]);
  return core::ConfigError("usage: io_tool dump MODEL OUT | time MODEL");
}

}  // namespace
}  // namespace bitshard::trainer::io

int main(int argc, char** argv) {
  const absl::Status status = bitshard::trainer::io::Run({argv + 1, argv + argc});
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return bitshard::core::ExitCode(status);
}
