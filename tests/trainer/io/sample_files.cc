#include "tests/trainer/io/sample_files.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/rng.h"
#include "trainer/io/hf_config.h"
#include "trainer/io/json.h"
#include "trainer/io/model_checks.h"

namespace bitshard::trainer::io {
namespace {

constexpr uint32_t kUint32 = 4, kFloat32 = 6, kString = 8, kArray = 9;
constexpr uint64_t kHidden = 32, kInner = 64, kHeads = 2, kHeadDim = 16, kVocabulary = 12;
constexpr uint64_t kLargestOffset = 1 << 20;

// Reproducible bytes; what they mean is of no interest.
std::string Noise(size_t bytes, uint64_t stream) {
  std::string noise(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) {
    noise[i] = static_cast<char>(core::Philox(stream, i, 0).word[0] & 0x3B);
  }
  return noise;
}

size_t DataBytes(const SampleTensor& tensor) {
  uint64_t elements = 1;
  for (const uint64_t d : tensor.dimensions) elements *= d;
  switch (tensor.type) {
    case 0:
      return elements * 4;
    case 2:
      return elements / 32 * 18;
    case 3:
      return elements / 32 * 20;
    case 8:
      return elements / 32 * 34;
    default:
      return elements * 2;
  }
}

// Every type of value that the format has, none of them used by a model.
void AddOtherKeys(SampleGguf* gguf) {
  gguf->Key<uint8_t>("test.uint8", 0, 200);
  gguf->Key<int8_t>("test.int8", 1, -5);
  gguf->Key<uint16_t>("test.uint16", 2, 60000);
  gguf->Key<int16_t>("test.int16", 3, -30000);
  gguf->Key<int32_t>("test.int32", 5, -7);
  gguf->Key<uint8_t>("test.bool", 7, 1);
  gguf->Key<uint64_t>("test.uint64", 10, uint64_t{1} << 40);
  gguf->Key<int64_t>("test.int64", 11, -(int64_t{1} << 40));
  gguf->Key<double>("test.float64", 12, 0.125);
  gguf->keys.push_back(SampleBytes()
                           .PutString("test.nested")
                           .Put(kArray)
                           .Put(kArray)
                           .Put<uint64_t>(2)
                           .Put(kUint32)
                           .Put<uint64_t>(1)
                           .Put<uint32_t>(9)
                           .Put(kString)
                           .Put<uint64_t>(1)
                           .PutString("deep")
                           .bytes());
}

void AddModelKeys(const std::string& arch, SampleGguf* gguf) {
  gguf->KeyText("general.architecture", arch);
  gguf->KeyText("general.name", "tiny");
  gguf->Key<uint32_t>(arch + ".block_count", kUint32, 1);
  gguf->Key<uint32_t>(arch + ".context_length", kUint32, 128);
  gguf->Key<uint32_t>(arch + ".embedding_length", kUint32, kHidden);
  gguf->Key<uint32_t>(arch + ".feed_forward_length", kUint32, kInner);
  gguf->Key<uint32_t>(arch + ".attention.head_count", kUint32, kHeads);
  gguf->Key<uint32_t>(arch + ".attention.head_count_kv", kUint32, 1);
  gguf->Key<float>(arch + ".attention.layer_norm_rms_epsilon", kFloat32, 1e-5f);
  gguf->Key<float>(arch + ".rope.freq_base", kFloat32, 10000.0f);
  gguf->Key<uint32_t>("tokenizer.ggml.bos_token_id", kUint32, 1);
  gguf->Key<uint32_t>("tokenizer.ggml.eos_token_id", kUint32, 2);
  SampleBytes tokens;
  tokens.PutString("tokenizer.ggml.tokens").Put(kArray).Put(kString).Put(kVocabulary);
  for (uint64_t i = 0; i < kVocabulary; ++i) tokens.PutString(absl::StrCat("t", i));
  gguf->keys.push_back(tokens.bytes());
}

}  // namespace

void SampleGguf::KeyText(const std::string& name, const std::string& value) {
  keys.push_back(SampleBytes().PutString(name).Put(kString).PutString(value).bytes());
}

SampleBytes SampleGguf::Build() const {
  SampleBytes file;
  file.Put(magic)
      .Put(version)
      .Put<uint64_t>(tensors.size() + extra_tensors)
      .Put<uint64_t>(keys.size() + extra_keys);
  for (const std::string& key : keys) file.PutText(key);
  for (const SampleTensor& tensor : tensors) {
    file.PutString(tensor.name).Put(static_cast<uint32_t>(tensor.dimensions.size()));
    for (const uint64_t d : tensor.dimensions) file.Put(d);
    file.Put(tensor.type).Put(tensor.offset);
  }
  file.PadTo(alignment);
  const size_t data = file.bytes().size();
  for (const SampleTensor& tensor : tensors) {
    if (tensor.offset > kLargestOffset) continue;  // A lie; there is no such place in the file.
    if (data + tensor.offset > file.bytes().size()) {
      file.PutText(std::string(data + tensor.offset - file.bytes().size(), '\0'));
    }
    file.PutText(tensor.data);
  }
  return file;
}

SampleGguf SampleGgufModel(const std::string& architecture) {
  SampleGguf gguf;
  AddModelKeys(architecture, &gguf);
  AddOtherKeys(&gguf);
  uint64_t offset = 0;
  const auto add = [&](const std::string& name, std::vector<uint64_t> dimensions, uint32_t type) {
    SampleTensor tensor = {
        .name = name, .dimensions = std::move(dimensions), .type = type, .offset = offset};
    tensor.data = Noise(DataBytes(tensor), gguf.tensors.size());
    offset = (offset + tensor.data.size() + gguf.alignment - 1) / gguf.alignment * gguf.alignment;
    gguf.tensors.push_back(std::move(tensor));
  };
  constexpr uint32_t kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBf16 = 30;
  add("token_embd.weight", {kHidden, kVocabulary}, kQ8_0);
  add("output_norm.weight", {kHidden}, kF32);
  add("blk.0.attn_norm.weight", {kHidden}, kF32);
  add("blk.0.ffn_norm.weight", {kHidden}, kF16);
  add("blk.0.attn_q.weight", {kHidden, kHeads * kHeadDim}, kQ4_0);
  add("blk.0.attn_k.weight", {kHidden, kHeadDim}, kQ4_1);
  add("blk.0.attn_v.weight", {kHidden, kHeadDim}, kBf16);
  add("blk.0.attn_output.weight", {kHeads * kHeadDim, kHidden}, kQ4_1);
  add("blk.0.ffn_gate.weight", {kHidden, kInner}, kQ4_0);
  add("blk.0.ffn_up.weight", {kHidden, kInner}, kQ4_1);
  add("blk.0.ffn_down.weight", {kInner, kHidden}, kQ8_0);
  if (architecture == "qwen2") {
    add("blk.0.attn_q.bias", {kHeads * kHeadDim}, kF32);
    add("blk.0.attn_k.bias", {kHeadDim}, kF32);
    add("blk.0.attn_v.bias", {kHeadDim}, kF32);
  }
  if (architecture == "qwen3") {
    add("blk.0.attn_q_norm.weight", {kHeadDim}, kF32);
    add("blk.0.attn_k_norm.weight", {kHeadDim}, kF32);
  }
  return gguf;
}

ModelConfig SampleConfig(const std::string& model_type) {
  return {.model_type = model_type,
          .vocab_size = 12,
          .hidden_size = 16,
          .intermediate_size = 24,
          .num_hidden_layers = 2,
          .num_attention_heads = 2,
          .num_key_value_heads = 1,
          .head_dim = 8,
          .max_position_embeddings = 64,
          .rope_scaling = {.kind = "llama3", .factor = 8, .original_max_position_embeddings = 32},
          .qkv_bias = model_type == "qwen2",
          .qk_norm = model_type == "qwen3",
          .bos_token_id = 1,
          .eos_token_ids = {2, 3}};
}

std::string SampleConfigJson(const std::string& model_type) {
  return JsonText(HfConfigJson(SampleConfig(model_type), core::DType::kFloat32));
}

namespace {

// A safetensors file with noise for data; the types are taken in turn.
class SafetensorsSample {
 public:
  void Add(const std::string& name, const std::vector<int64_t>& shape) {
    static constexpr const char* kTypes[] = {"F32", "BF16", "F16"};
    static constexpr size_t kWidths[] = {4, 2, 2};
    const size_t type = header_.size() % 3;
    size_t bytes = kWidths[type];
    for (const int64_t d : shape) bytes *= static_cast<size_t>(d);
    header_[name] = {{"dtype", kTypes[type]},
                     {"shape", shape},
                     {"data_offsets", {data_.size(), data_.size() + bytes}}};
    data_ += Noise(bytes, header_.size());
  }
  std::string Build() {
    header_["__metadata__"] = {{"format", "pt"}};
    const std::string text = header_.dump();
    return SampleBytes().PutString(text).bytes() + data_;
  }

 private:
  nlohmann::ordered_json header_ = nlohmann::ordered_json::object();
  std::string data_;
};

}  // namespace

std::string SampleSafetensors(const std::string& model_type,
                              const std::function<bool(const std::string& name)>& keep) {
  SafetensorsSample sample;
  const absl::Status status =
      ForEachRequiredTensor(SampleConfig(model_type), [&](const WeightInfo& info) {
        if (keep(info.name)) sample.Add(info.name, info.shape);
        return absl::OkStatus();
      });
  BITSHARD_CHECK(status.ok()) << status;
  return sample.Build();
}

std::string SampleIndexJson(const std::string& model_type, const std::string& shard) {
  nlohmann::ordered_json index = {{"metadata", {{"total_size", 1}}}};
  const absl::Status status =
      ForEachRequiredTensor(SampleConfig(model_type), [&](const WeightInfo& info) {
        index["weight_map"][info.name] = shard;
        return absl::OkStatus();
      });
  BITSHARD_CHECK(status.ok()) << status;
  return JsonText(index);
}

void RepairSafetensorsLength(std::string* file) {
  int depth = 0;
  for (size_t i = 8; i < file->size(); ++i) {
    depth += (*file)[i] == '{' ? 1 : (*file)[i] == '}' ? -1 : 0;
    if (depth != 0) continue;
    const uint64_t length = i - 7;
    std::memcpy(file->data(), &length, sizeof length);
    return;
  }
}

std::string SampleAdapterConfigJson() {
  return JsonText({{"peft_type", "LORA"},
                   {"task_type", "CAUSAL_LM"},
                   {"base_model_name_or_path", "org/tiny"},
                   {"r", 4},
                   {"lora_alpha", 8},
                   {"lora_dropout", 0.05},
                   {"target_modules", {"q_proj", "down_proj"}},
                   {"bias", "none"},
                   {"use_rslora", false},
                   {"rank_pattern", nlohmann::ordered_json::object()}});
}

std::string SampleAdapterSafetensors() {
  SafetensorsSample sample;
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = absl::StrCat("base_model.model.model.layers.", layer, ".");
    sample.Add(prefix + "self_attn.q_proj.lora_A.weight", {4, 16});
    sample.Add(prefix + "self_attn.q_proj.lora_B.weight", {16, 4});
    sample.Add(prefix + "mlp.down_proj.lora_A.weight", {4, 24});
    sample.Add(prefix + "mlp.down_proj.lora_B.weight", {16, 4});
  }
  return sample.Build();
}

TempFolder::TempFolder() {
  std::string pattern = std::filesystem::temp_directory_path() / "bitshard_test_XXXXXX";
  BITSHARD_CHECK(mkdtemp(pattern.data()) != nullptr) << pattern;
  path_ = pattern;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void WriteSample(const std::string& path, const std::string& content) {
  // A new file each time: ext4 writes a file that was cut to nothing to the disk when it is closed.
  std::filesystem::remove(path);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << content;
  file.close();
  BITSHARD_CHECK(file.good()) << path;
}

}  // namespace bitshard::trainer::io
