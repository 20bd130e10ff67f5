#include "trainer/io/hf_model.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/file.h"
#include "core/status_macros.h"
#include "trainer/io/hf_config.h"
#include "trainer/io/json.h"
#include "trainer/io/model_checks.h"
#include "trainer/io/safetensors.h"

namespace bitshard::trainer::io {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

bool IsFolder(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

std::string Shown(const std::string& path) { return core::Escaped(path, 4096); }

absl::Status NoConfig(const std::string& folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.path().extension() != ".gguf") continue;
    return core::DataError(absl::StrCat(
        Shown(folder),
        ": no config.json; for a GGUF model give the file: ", Shown(entry.path().string())));
  }
  return core::DataError(
      absl::StrCat(Shown(folder), ": no config.json; give the folder of a Hugging Face model"));
}

class HfModel : public WeightSource {
 public:
  static absl::StatusOr<std::unique_ptr<WeightSource>> Open(const std::string& folder);

  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return folder_; }
  const std::vector<WeightInfo>& tensors() const override { return infos_; }
  absl::Status Read(const std::string& name, std::span<float> out) const override;
  absl::Status ReadRows(const std::string& name, int64_t row, std::span<float> out) const override;

 private:
  struct Place {
    const SafetensorsFile* file = nullptr;
    const SafetensorsTensor* tensor = nullptr;
  };

  explicit HfModel(std::string folder) : folder_(std::move(folder)) {}
  absl::Status OpenFiles();
  absl::Status OpenShards();
  absl::Status DropTiedHead();
  absl::Status ListTensors();

  std::string folder_;
  ModelConfig config_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Place> places_;
  std::vector<WeightInfo> infos_;
};

absl::StatusOr<std::unique_ptr<WeightSource>> HfModel::Open(const std::string& folder) {
  if (!Exists(folder + "/config.json")) return NoConfig(folder);
  std::unique_ptr<HfModel> model(new HfModel(folder));
  BITSHARD_ASSIGN_OR_RETURN(model->config_, ReadHfConfig(folder));
  BITSHARD_RETURN_IF_ERROR(model->OpenFiles());
  BITSHARD_RETURN_IF_ERROR(model->DropTiedHead());
  BITSHARD_RETURN_IF_ERROR(model->ListTensors());
  BITSHARD_RETURN_IF_ERROR(CheckTensors(model->config_, model->infos_, folder));
  return model;
}

absl::Status HfModel::OpenFiles() {
  const std::string single = absl::StrCat(folder_, "/", kSingleFile);
  if (Exists(single)) {
    BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(single));
    for (const SafetensorsTensor& tensor : file->tensors()) {
      places_[tensor.name] = {file.get(), &tensor};
    }
    files_.push_back(std::move(file));
    return absl::OkStatus();
  }
  if (Exists(absl::StrCat(folder_, "/", kIndexFile))) return OpenShards();
  const bool pickled =
      Exists(folder_ + "/pytorch_model.bin") || Exists(folder_ + "/pytorch_model.bin.index.json");
  return core::DataError(absl::StrCat(
      Shown(folder_), ": neither ", kSingleFile, " nor ", kIndexFile,
      pickled ? "; pytorch_model.bin is a pickle, which can run code: convert it to safetensors "
                "(transformers: model.save_pretrained(folder))"
              : "; give the folder that holds the weights"));
}

absl::Status HfModel::OpenShards() {
  const std::string path = absl::StrCat(folder_, "/", kIndexFile);
  BITSHARD_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject index, JsonObject::Of(json, path));
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject weight_map, index.GetObject("weight_map"));
  std::map<std::string, const SafetensorsFile*> shards;
  for (const auto& [name, unused] : weight_map.json().items()) {
    BITSHARD_ASSIGN_OR_RETURN(const std::string shard, weight_map.GetString(name));
    if (shard.find('/') != std::string::npos || shard.find('\0') != std::string::npos ||
        !absl::EndsWith(shard, ".safetensors")) {
      return weight_map.Error(name,
                              absl::StrCat("\"", core::Escaped(shard),
                                           "\" is no plain file name that ends with .safetensors"));
    }
    const SafetensorsFile*& file = shards[shard];
    if (file == nullptr) {
      BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> opened,
                                SafetensorsFile::Open(absl::StrCat(folder_, "/", shard)));
      file = opened.get();
      files_.push_back(std::move(opened));
    }
    const SafetensorsTensor* tensor = file->Find(name);
    if (tensor == nullptr) {
      return file->Error(name, absl::StrCat("missing, though ", kIndexFile, " names it"));
    }
    places_[name] = {file, tensor};
  }
  return absl::OkStatus();
}

// Some writers store a tied head a second time. The same values are left out; other values mean
// that the configuration is wrong.
absl::Status HfModel::DropTiedHead() {
  const auto head = places_.find("lm_head.weight");
  if (!config_.tie_word_embeddings || head == places_.end()) return absl::OkStatus();
  const auto embedding = places_.find("model.embed_tokens.weight");
  if (embedding != places_.end()) {
    const Place& a = head->second;
    const Place& b = embedding->second;
    const bool same = a.tensor->dtype == b.tensor->dtype && a.tensor->bytes == b.tensor->bytes &&
                      std::memcmp(a.file->Bytes(*a.tensor).data(), b.file->Bytes(*b.tensor).data(),
                                  a.tensor->bytes) == 0;
    a.file->Release(*a.tensor);
    b.file->Release(*b.tensor);
    if (!same) {
      return a.file->Error("lm_head.weight",
                           "differs from model.embed_tokens.weight, but config.json says "
                           "tie_word_embeddings: true");
    }
  }
  places_.erase(head);
  return absl::OkStatus();
}

absl::Status HfModel::ListTensors() {
  for (const auto& [name, place] : places_) {
    // A buffer that old versions of transformers stored; it follows from the configuration.
    if (absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
    if (!SafetensorsFile::IsFloat(*place.tensor)) {
      return place.file->Error(
          name, absl::StrCat("is stored as ", place.tensor->dtype, ", want F32, F16 or BF16"));
    }
    infos_.push_back(
        {.name = name, .shape = place.tensor->shape, .stored_as = place.tensor->dtype});
  }
  return absl::OkStatus();
}

absl::Status HfModel::Read(const std::string& name, std::span<float> out) const {
  const WeightInfo* info = Find(name);
  BITSHARD_CHECK(info == nullptr || static_cast<int64_t>(out.size()) == info->numel()) << name;
  return ReadRows(name, 0, out);
}

absl::Status HfModel::ReadRows(const std::string& name, int64_t row, std::span<float> out) const {
  const WeightInfo* info = Find(name);
  if (info == nullptr) {
    return core::DataError(
        absl::StrCat(Shown(folder_), ": ", core::Escaped(name), ": the model has no such tensor"));
  }
  const int64_t columns = info->numel() / info->shape[0];
  BITSHARD_CHECK(row >= 0 && static_cast<int64_t>(out.size()) % columns == 0)
      << name << ": row " << row;
  const Place& place = places_.at(name);
  place.file->ReadFloats(*place.tensor, row * columns, out);
  place.file->Release(*place.tensor);
  return absl::OkStatus();
}

bool IsHubName(const std::string& path) {
  const size_t slash = path.find('/');
  if (slash == std::string::npos || slash == 0 || slash + 1 == path.size() || path[0] == '.' ||
      path.find("..") != std::string::npos) {
    return false;
  }
  return std::all_of(path.begin(), path.end(), [&](const char& c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || std::strchr("._-", c) != nullptr ||
           &c == &path[slash];
  });
}

std::string HubCache() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (!variable("HF_HUB_CACHE").empty()) return variable("HF_HUB_CACHE");
  if (!variable("HF_HOME").empty()) return variable("HF_HOME") + "/hub";
  if (!variable("XDG_CACHE_HOME").empty()) return variable("XDG_CACHE_HOME") + "/huggingface/hub";
  return variable("HOME") + "/.cache/huggingface/hub";
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> OpenHfModel(const std::string& folder) {
  return HfModel::Open(folder);
}

absl::StatusOr<std::string> ResolveModelFolder(const std::string& path) {
  if (IsFolder(path)) return path;
  if (!IsHubName(path)) {
    return core::DataError(
        absl::StrCat(Shown(path), ": no such folder or .gguf file, and no ORG/NAME of the hub"));
  }
  std::string name = path;
  name.replace(name.find('/'), 1, "--");
  const std::string repository = absl::StrCat(HubCache(), "/models--", name);
  const std::string advice = absl::StrCat("; nothing is downloaded here, run: hf download ", path);
  const auto commit = core::ReadFile(repository + "/refs/main", 256);
  if (!commit.ok()) {
    return core::DataError(absl::StrCat(path, ": no such folder, and not in the hub's cache (",
                                        Shown(repository), ")", advice));
  }
  const std::string revision(absl::StripAsciiWhitespace(*commit));
  const bool sound = !revision.empty() && std::all_of(revision.begin(), revision.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c));
  });
  const std::string folder = absl::StrCat(repository, "/snapshots/", revision);
  if (!sound || !IsFolder(folder)) {
    return core::DataError(absl::StrCat(Shown(repository),
                                        ": refs/main names no snapshot that is there (\"",
                                        core::Escaped(revision), "\")", advice));
  }
  return folder;
}

}  // namespace bitshard::trainer::io
