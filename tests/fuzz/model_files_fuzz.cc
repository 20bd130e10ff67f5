// The readers of trainer/io: GGUF, safetensors, JSON and Hugging Face folders, PEFT adapters.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/flat_layout.h"
#include "core/status_macros.h"
#include "tests/fuzz/fuzz.h"
#include "tests/trainer/io/sample_files.h"
#include "trainer/io/hf_config.h"
#include "trainer/io/json.h"
#include "trainer/io/peft_adapter.h"
#include "trainer/io/safetensors.h"
#include "trainer/io/weight_source.h"

namespace bitshard::trainer::io {
namespace {

const auto kAll = [](const std::string&) { return true; };

absl::Status ReadModel(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(const auto model, OpenModel(path));
  for (const WeightInfo& info : model->tensors()) {
    std::vector<float> values(static_cast<size_t>(info.numel()));
    BITSHARD_RETURN_IF_ERROR(model->Read(info.name, values));
  }
  return absl::OkStatus();
}

std::string FolderOf(const std::string& path) { return path.substr(0, path.rfind('/')); }

// The 32-bit or 64-bit integer as it lies in a file.
template <class T>
std::string Bytes(T value) {
  return SampleBytes().Put(value).bytes();
}

TEST(Fuzz, Gguf) {
  fuzz::Target target = {
      .name = "gguf", .file = "model.gguf", .read = ReadModel, .least_messages = 60};
  for (const char* arch : {"llama", "qwen2", "qwen3"}) {
    target.seeds.push_back(SampleGgufModel(arch).Build().bytes());
  }
  target.dictionary = {"general.alignment",
                       "general.architecture",
                       "tokenizer.ggml.tokens",
                       "llama",
                       "qwen2",
                       "blk.0.attn_q.weight",
                       "rope_freqs.weight",
                       "output.weight",
                       "llama.rope.scaling.type"};
  for (uint32_t type = 0; type < 14; ++type) target.dictionary.push_back(Bytes(type));
  fuzz::Run(target);
}

absl::Status ReadSafetensors(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(path));
  for (const SafetensorsTensor& tensor : file->tensors()) {
    const std::span<const std::byte> bytes = file->Bytes(tensor);
    int sum = 0;
    for (const std::byte byte : bytes) sum += std::to_integer<int>(byte);
    if (sum < 0) return absl::InternalError("bytes have no negative sum");
    if (!SafetensorsFile::IsFloat(tensor)) continue;
    std::vector<float> values(static_cast<size_t>(tensor.numel));
    file->ReadFloats(tensor, 0, values);
  }
  return absl::OkStatus();
}

const std::vector<std::string> kSafetensorsWords = {
    "\"data_offsets\":[", "\"shape\":[", "\"dtype\":\"", "F32", "BF16",  "U8", "I64",
    "__metadata__",       "{}",          "[]",           ",",   "\"a\":"};

TEST(Fuzz, Safetensors) {
  const auto few = [](const std::string& name) { return name.size() < 26; };
  fuzz::Run({.name = "safetensors",
             .file = "model.safetensors",
             .seeds = {SampleSafetensors("llama", few), SampleAdapterSafetensors(),
                       SampleSafetensors("llama", [](const std::string&) { return false; })},
             .dictionary = kSafetensorsWords,
             .read = ReadSafetensors,
             .repair = RepairSafetensorsLength,
             .least_messages = 40});
}

const std::vector<std::string> kJsonWords = {
    "{",       "}",    "[",    "]",     ",", ":",    "\"",           "\\u0000",
    "\\ud800", "null", "true", "1e999", "-", "\xff", "\xef\xbb\xbf", "[[[[[[[[",
    "{\"a\":", "//"};

TEST(Fuzz, Json) {
  fuzz::Run({.name = "json",
             .file = "config.json",
             .seeds = {SampleConfigJson("llama"), SampleAdapterConfigJson(),
                       R"({"a": [1, -2.5e-3, true, null, "\u00e4\\"], "b": {"c": [[], {}]}})"},
             .dictionary = kJsonWords,
             .read = [](const std::string& path) { return ReadJsonFile(path).status(); },
             .least_messages = 30});
}

TEST(Fuzz, HfConfig) {
  fuzz::Target target = {
      .name = "config.json", .file = "config.json", .dictionary = kJsonWords, .least_messages = 40};
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3"}) {
    target.seeds.push_back(SampleConfigJson(type));
  }
  for (const char* word :
       {"rope_parameters", "layer_types", "quantization_config", "head_dim", "\"llama3\"",
        "\"linear\"", "\"type\"", "use_sliding_window", "\"eos_token_id\":"}) {
    target.dictionary.push_back(word);
  }
  target.read = [](const std::string& path) { return ReadHfConfig(FolderOf(path)).status(); };
  fuzz::Run(target);
}

TEST(Fuzz, HfIndex) {
  fuzz::Target target = {.name = "index",
                         .file = "model.safetensors.index.json",
                         .dictionary = kJsonWords,
                         .least_messages = 30};
  target.prepare = [](const std::string& folder) {
    const auto in_a = [](const std::string& name) {
      return name.find("layers.1") != std::string::npos;
    };
    WriteSample(folder + "/config.json", SampleConfigJson("llama"));
    WriteSample(folder + "/a.safetensors", SampleSafetensors("llama", in_a));
    WriteSample(folder + "/b.safetensors", SampleSafetensors("llama", kAll));
  };
  target.read = [](const std::string& path) { return ReadModel(FolderOf(path)); };
  for (const char* word : {"../b.safetensors", "/etc/passwd", "a.safetensors", ".safetensors"}) {
    target.dictionary.push_back(word);
  }
  target.seeds = {SampleIndexJson("llama", "b.safetensors")};
  fuzz::Run(target);
}

TEST(Fuzz, Model) {
  fuzz::Run({.name = "model.safetensors",
             .file = "model.safetensors",
             .seeds = {SampleSafetensors("llama", kAll)},
             .dictionary = kSafetensorsWords,
             .read = [](const std::string& path) { return ReadModel(FolderOf(path)); },
             .prepare =
                 [](const std::string& folder) {
                   WriteSample(folder + "/config.json", SampleConfigJson("llama"));
                 },
             .repair = RepairSafetensorsLength,
             .least_messages = 40});
}

absl::Status ReadAdapter(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(const auto adapter, PeftAdapter::Open(FolderOf(path)));
  // The settings decide the layout, as they do in the trainer; a rank of 65536 of this model needs
  // 11 MiB.
  std::vector<core::TensorSpec> tensors;
  const int64_t rank = adapter->settings().r;
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors.push_back({prefix + "self_attn.q_proj.lora_A.weight", {rank, 16}});
    tensors.push_back({prefix + "self_attn.q_proj.lora_B.weight", {16, rank}});
    tensors.push_back({prefix + "mlp.down_proj.lora_A.weight", {rank, 24}});
    tensors.push_back({prefix + "mlp.down_proj.lora_B.weight", {16, rank}});
  }
  BITSHARD_ASSIGN_OR_RETURN(const core::FlatLayout layout, core::FlatLayout::Create(tensors));
  std::vector<float> arena(static_cast<size_t>(layout.padded_elems()));
  return adapter->Load(layout, arena);
}

TEST(Fuzz, AdapterConfig) {
  fuzz::Target target = {.name = "adapter_config.json",
                         .file = "adapter_config.json",
                         .seeds = {SampleAdapterConfigJson()},
                         .dictionary = kJsonWords,
                         .read = ReadAdapter,
                         .prepare =
                             [](const std::string& folder) {
                               WriteSample(folder + "/adapter_model.safetensors",
                                           SampleAdapterSafetensors());
                             },
                         .least_messages = 40};
  for (const char* word :
       {"\"use_dora\": true,", "\"all-linear\"", "\"modules_to_save\": [\"x\"],", "\"r\": 0,"}) {
    target.dictionary.push_back(word);
  }
  fuzz::Run(target);
}

TEST(Fuzz, AdapterWeights) {
  fuzz::Run({.name = "adapter_model.safetensors",
             .file = "adapter_model.safetensors",
             .seeds = {SampleAdapterSafetensors()},
             .dictionary = kSafetensorsWords,
             .read = ReadAdapter,
             .prepare =
                 [](const std::string& folder) {
                   WriteSample(folder + "/adapter_config.json", SampleAdapterConfigJson());
                 },
             .repair = RepairSafetensorsLength,
             .least_messages = 40});
}

}  // namespace
}  // namespace bitshard::trainer::io
