// Small valid files of every format that trainer/io reads, made byte by byte: what the tests cut,
// bend and mutate.
#ifndef BITSHARD_TESTS_TRAINER_IO_SAMPLE_FILES_H_
#define BITSHARD_TESTS_TRAINER_IO_SAMPLE_FILES_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trainer/model/model_config.h"

namespace bitshard::trainer::io {

/// A file under construction that remembers where each of its fields ends.
class SampleBytes {
 public:
  template <class T>
  SampleBytes& Put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    ends_.push_back(bytes_.size());
    return *this;
  }
  SampleBytes& PutText(const std::string& text) {
    bytes_ += text;
    ends_.push_back(bytes_.size());
    return *this;
  }
  /// GGUF's string: its length in 64 bits, then the text.
  SampleBytes& PutString(const std::string& text) {
    return Put<uint64_t>(text.size()).PutText(text);
  }
  void PadTo(size_t alignment) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment);
    ends_.push_back(bytes_.size());
  }
  const std::string& bytes() const { return bytes_; }
  /// File sizes at which a field is complete: every place where cutting the file is a case of its
  /// own.
  const std::vector<size_t>& ends() const { return ends_; }

 private:
  std::string bytes_;
  std::vector<size_t> ends_;
};

/// A tensor of SampleGguf: `data` is as long as shape and type say.
struct SampleTensor {
  std::string name;
  std::vector<uint64_t> dimensions;  ///< Fastest first, as GGUF has them.
  uint32_t type = 0;                 ///< enum ggml_type.
  uint64_t offset = 0;
  std::string data;
};

/// The parts of a GGUF file, so that a test can change one of them.
struct SampleGguf {
  uint32_t magic = 0x46554747;
  uint32_t version = 3;
  std::vector<std::string> keys;  ///< Each encoded: name, type, value.
  std::vector<SampleTensor> tensors;
  uint64_t extra_tensors = 0;  ///< Claimed in the header beyond those that are there.
  uint64_t extra_keys = 0;
  size_t alignment = 32;

  /// Appends a key: KeyText("general.name", "tiny"), Key<uint32_t>("llama.block_count", 4, 1).
  void KeyText(const std::string& name, const std::string& value);
  template <class T>
  void Key(const std::string& name, uint32_t type, T value) {
    keys.push_back(SampleBytes().PutString(name).Put(type).Put(value).bytes());
  }
  SampleBytes Build() const;
};

/// A tiny model of the architecture "llama", "qwen2" or "qwen3": its tensors use every encoding
/// that is read, its metadata every type of value.
SampleGguf SampleGgufModel(const std::string& architecture);

/// The shape of the Hugging Face samples: two layers, heads of 8, vocabulary of 12.
ModelConfig SampleConfig(const std::string& model_type);

/// Its config.json.
std::string SampleConfigJson(const std::string& model_type);

/// A safetensors file with the tensors of SampleConfig in F32, F16 and BF16; `keep` chooses those
/// to hold.
std::string SampleSafetensors(const std::string& model_type,
                              const std::function<bool(const std::string& name)>& keep);

/// The index of a sharded model whose tensors are all in `shard`.
std::string SampleIndexJson(const std::string& model_type, const std::string& shard);

/// The header's length is the file's first 8 bytes: sets it to where the JSON text ends, the
/// closing brace at the nesting level of the first. For mutations that reach behind a wrong length.
void RepairSafetensorsLength(std::string* file);

/// A PEFT adapter of rank 4 on q_proj and down_proj of SampleConfig("llama").
std::string SampleAdapterConfigJson();
std::string SampleAdapterSafetensors();

/// A folder for one test, removed with everything in it.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Writes `content` to `path`; aborts the test when it can't.
void WriteSample(const std::string& path, const std::string& content);

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TESTS_TRAINER_IO_SAMPLE_FILES_H_
