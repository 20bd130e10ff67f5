#include "trainer/io/peft_adapter.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/file.h"
#include "core/status_macros.h"
#include "trainer/io/json.h"
#include "trainer/io/model_checks.h"

namespace bitshard::trainer::io {
namespace {

constexpr char kPrefix[] = "base_model.model.";
constexpr char kWeightsFile[] = "/adapter_model.safetensors";
constexpr char kConfigFile[] = "/adapter_config.json";
constexpr char kAllLinear[] = "all-linear";
constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;

// "q_proj" of "model.layers.0.self_attn.q_proj.lora_A.weight".
std::string ModuleSuffix(const std::string& name) {
  const size_t lora = name.find(".lora_");
  BITSHARD_CHECK(lora != std::string::npos && lora > 0) << name << " is no LoRA tensor";
  const size_t dot = name.rfind('.', lora - 1);
  const size_t start = dot == std::string::npos ? 0 : dot + 1;
  return name.substr(start, lora - start);
}

std::vector<std::string> TargetModules(const PeftSettings& settings,
                                       const core::FlatLayout& layout) {
  if (settings.target_modules != std::vector<std::string>{kAllLinear}) {
    return settings.target_modules;
  }
  std::set<std::string> suffixes;
  for (const core::FlatTensor& tensor : layout.tensors()) {
    suffixes.insert(ModuleSuffix(tensor.name));
  }
  return {suffixes.begin(), suffixes.end()};
}

// PEFT declares alpha an integer; programs that read the file may insist on it.
nlohmann::ordered_json AlphaJson(double alpha) {
  const auto whole = static_cast<int64_t>(alpha);
  if (static_cast<double>(whole) == alpha) return whole;
  return alpha;
}

nlohmann::ordered_json ConfigJson(const PeftSettings& settings, const core::FlatLayout& layout) {
  return {{"peft_type", "LORA"},
          {"task_type", "CAUSAL_LM"},
          {"base_model_name_or_path", settings.base_model},
          {"r", settings.r},
          {"lora_alpha", AlphaJson(settings.alpha)},
          {"lora_dropout", settings.dropout},
          {"target_modules", TargetModules(settings, layout)},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"init_lora_weights", true},
          {"inference_mode", true},
          {"modules_to_save", nullptr},
          {"use_rslora", settings.rslora},
          {"use_dora", false},
          {"rank_pattern", nlohmann::ordered_json::object()},
          {"alpha_pattern", nlohmann::ordered_json::object()}};
}

std::string ModelCard(const PeftSettings& settings) {
  const auto quoted = [](const std::string& text) {
    return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  };
  return absl::StrCat(
      "---\n"
      "base_model: ",
      quoted(settings.base_model),
      "\n"
      "library_name: peft\n"
      "pipeline_tag: text-generation\n"
      "tags:\n"
      "- lora\n"
      "- bitshard\n"
      "---\n\n"
      "# LoRA adapter\n\n"
      "Trained with bitshard on the base model above; rank ",
      settings.r, ", alpha ", settings.alpha, settings.rslora ? " (rank-stabilised)" : "",
      ", dropout ", settings.dropout,
      ".\n\n"
      "```python\n"
      "from peft import PeftModel\n"
      "from transformers import AutoModelForCausalLM\n\n"
      "base = AutoModelForCausalLM.from_pretrained(",
      quoted(settings.base_model),
      ")\n"
      "model = PeftModel.from_pretrained(base, \"path/of/this/folder\")\n"
      "```\n");
}

absl::Status WriteWeights(const std::string& path, const core::FlatLayout& layout,
                          std::span<const float> arena) {
  std::vector<SafetensorsEntry> entries;
  for (const core::FlatTensor& tensor : layout.tensors()) {
    entries.push_back(
        {.name = kPrefix + tensor.name, .dtype = core::DType::kFloat32, .shape = tensor.shape});
  }
  BITSHARD_ASSIGN_OR_RETURN(const auto writer,
                            SafetensorsWriter::Create(path, entries, {{"format", "pt"}}));
  for (const core::FlatTensor& tensor : layout.tensors()) {
    BITSHARD_RETURN_IF_ERROR(writer->WriteFloats(
        arena.subspan(static_cast<size_t>(tensor.offset()), static_cast<size_t>(tensor.numel))));
  }
  return writer->Commit();
}

// The settings that would make another adapter than plain LoRA.
absl::Status RefuseOtherKinds(const JsonObject& json) {
  BITSHARD_ASSIGN_OR_RETURN(const std::string type, json.GetString("peft_type"));
  if (type != "LORA") {
    return json.Error("peft_type", absl::StrCat("is \"", core::Escaped(type), "\", want LORA"));
  }
  BITSHARD_ASSIGN_OR_RETURN(const std::string bias, json.GetStringOr("bias", "none"));
  if (bias != "none") {
    return json.Error("bias", absl::StrCat("is \"", core::Escaped(bias), "\", want none"));
  }
  for (const char* key : {"use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora"}) {
    BITSHARD_ASSIGN_OR_RETURN(const bool on, json.GetBoolOr(key, false));
    if (on) return json.Error(key, "true is not supported");
  }
  for (const char* key :
       {"modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform",
        "layer_replication", "trainable_token_indices", "exclude_modules", "target_parameters"}) {
    if (json.Has(key) && !json.json()[key].empty()) {
      return json.Error(key, "is set, which is not supported");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<PeftSettings> ReadSettings(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(const Json document,
                            ReadJsonFile(path, {.max_bytes = kMaxConfigBytes}));
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::Of(document, path));
  BITSHARD_RETURN_IF_ERROR(RefuseOtherKinds(json));
  PeftSettings settings;
  BITSHARD_ASSIGN_OR_RETURN(settings.r, json.GetInt("r", {1, 1 << 16}));
  BITSHARD_ASSIGN_OR_RETURN(settings.alpha, json.GetNumber("lora_alpha"));
  BITSHARD_ASSIGN_OR_RETURN(settings.dropout, json.GetNumberOr("lora_dropout", 0));
  if (!(settings.dropout >= 0 && settings.dropout < 1)) {
    return json.Error("lora_dropout",
                      absl::StrCat("is ", settings.dropout, ", want 0 <= dropout < 1"));
  }
  BITSHARD_ASSIGN_OR_RETURN(settings.rslora, json.GetBoolOr("use_rslora", false));
  BITSHARD_ASSIGN_OR_RETURN(settings.base_model, json.GetStringOr("base_model_name_or_path", ""));
  if (json.Has("target_modules") && json.json()["target_modules"].is_string()) {
    BITSHARD_ASSIGN_OR_RETURN(const std::string target, json.GetString("target_modules"));
    if (target != kAllLinear) {
      return json.Error("target_modules",
                        absl::StrCat("the regular expression \"", core::Escaped(target),
                                     "\" is not supported; list the modules"));
    }
    settings.target_modules = {target};
    return settings;
  }
  BITSHARD_ASSIGN_OR_RETURN(settings.target_modules, json.GetStrings("target_modules"));
  if (settings.target_modules.empty()) return json.Error("target_modules", "is empty");
  return settings;
}

}  // namespace

absl::Status WritePeftAdapter(const std::string& folder, const PeftSettings& settings,
                              const core::FlatLayout& layout, std::span<const float> arena) {
  BITSHARD_CHECK(static_cast<int64_t>(arena.size()) == layout.padded_elems()) << arena.size();
  BITSHARD_RETURN_IF_ERROR(core::MakeDirectories(folder));
  BITSHARD_RETURN_IF_ERROR(WriteWeights(folder + kWeightsFile, layout, arena));
  BITSHARD_RETURN_IF_ERROR(core::WriteFileAtomically(folder + "/README.md", ModelCard(settings)));
  return core::WriteFileAtomically(folder + kConfigFile, JsonText(ConfigJson(settings, layout)));
}

absl::StatusOr<std::unique_ptr<PeftAdapter>> PeftAdapter::Open(const std::string& folder) {
  std::unique_ptr<PeftAdapter> adapter(new PeftAdapter);
  BITSHARD_ASSIGN_OR_RETURN(adapter->settings_, ReadSettings(folder + kConfigFile));
  std::error_code ignored;
  if (!std::filesystem::exists(folder + kWeightsFile, ignored) &&
      std::filesystem::exists(folder + "/adapter_model.bin", ignored)) {
    return core::DataError(
        absl::StrCat(core::Escaped(folder, 4096),
                     "/adapter_model.bin: is a pickle, which can run code: convert it to "
                     "adapter_model.safetensors (PEFT: model.save_pretrained(folder))"));
  }
  BITSHARD_ASSIGN_OR_RETURN(adapter->file_, SafetensorsFile::Open(folder + kWeightsFile));
  return adapter;
}

absl::Status PeftAdapter::Load(const core::FlatLayout& layout, std::span<float> arena) const {
  BITSHARD_CHECK(static_cast<int64_t>(arena.size()) == layout.padded_elems()) << arena.size();
  for (const SafetensorsTensor& stored : file_->tensors()) {
    const bool known = absl::StartsWith(stored.name, kPrefix) &&
                       layout.Find(stored.name.substr(sizeof kPrefix - 1)) >= 0;
    if (!known) {
      return file_->Error(stored.name, "no part of the adapter that adapter_config.json describes");
    }
  }
  std::fill(arena.begin(), arena.end(), 0.0f);
  for (const core::FlatTensor& tensor : layout.tensors()) {
    const std::string key = kPrefix + tensor.name;
    const SafetensorsTensor* stored = file_->Find(key);
    if (stored == nullptr) {
      return file_->Error(key, absl::StrCat("missing, want shape ", ShapeText(tensor.shape)));
    }
    if (stored->shape != tensor.shape) {
      return file_->Error(key, absl::StrCat("has shape ", ShapeText(stored->shape), ", want ",
                                            ShapeText(tensor.shape)));
    }
    if (!SafetensorsFile::IsFloat(*stored)) {
      return file_->Error(key,
                          absl::StrCat("is stored as ", stored->dtype, ", want F32, F16 or BF16"));
    }
    file_->ReadFloats(
        *stored, 0,
        arena.subspan(static_cast<size_t>(tensor.offset()), static_cast<size_t>(tensor.numel)));
  }
  return absl::OkStatus();
}

}  // namespace bitshard::trainer::io
