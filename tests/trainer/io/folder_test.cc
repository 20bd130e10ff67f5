// Model and adapter folders whose files are cut short.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/flat_layout.h"
#include "tests/trainer/io/sample_files.h"
#include "trainer/io/peft_adapter.h"
#include "trainer/io/safetensors.h"
#include "trainer/io/weight_source.h"

namespace bitshard::trainer::io {
namespace {

using ::testing::HasSubstr;

const auto kAll = [](const std::string&) { return true; };

void ExpectNamed(const absl::Status& status, const std::string& path) {
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
}

TEST(HfModel, OpensEachArchitecture) {
  for (const std::string type : {"llama", "mistral", "qwen2", "qwen3"}) {
    const TempFolder folder;
    WriteSample(folder / "config.json", SampleConfigJson(type));
    WriteSample(folder / "model.safetensors", SampleSafetensors(type, kAll));
    const auto model = OpenModel(folder.path());
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->config().rope_scaling.factor, 8);
    EXPECT_EQ((*model)->Find("model.norm.weight")->shape, std::vector<int64_t>{16});
  }
}

TEST(HfModel, RefusesAConfigCutAnywhere) {
  const TempFolder folder;
  const std::string config = SampleConfigJson("llama");
  WriteSample(folder / "model.safetensors", SampleSafetensors("llama", kAll));
  for (size_t size = 0; size + 2 < config.size();
       ++size) {  // Without the last newline it is complete.
    WriteSample(folder / "config.json", config.substr(0, size));
    const absl::Status status = OpenModel(folder.path()).status();
    ASSERT_FALSE(status.ok()) << config.substr(0, size);
    ExpectNamed(status, folder / "config.json");
  }
}

TEST(HfModel, RefusesAShardThatIsCut) {
  const TempFolder folder;
  const auto first = [](const std::string& name) {
    return name.find("layers.0") != std::string::npos;
  };
  const std::string shard =
      SampleSafetensors("llama", [&](const std::string& name) { return !first(name); });
  WriteSample(folder / "config.json", SampleConfigJson("llama"));
  WriteSample(folder / "a.safetensors", SampleSafetensors("llama", first));
  std::string index = R"({"weight_map": {)";
  WriteSample(folder / "b.safetensors", shard);
  for (const std::string file : {"a.safetensors", "b.safetensors"}) {
    const auto opened = SafetensorsFile::Open(folder / file);
    ASSERT_TRUE(opened.ok()) << opened.status();
    for (const SafetensorsTensor& tensor : (*opened)->tensors()) {
      absl::StrAppend(&index, index.back() == '{' ? "" : ",", "\"", tensor.name, "\":\"", file,
                      "\"");
    }
  }
  WriteSample(folder / "model.safetensors.index.json", index + "}}");
  ASSERT_TRUE(OpenModel(folder.path()).ok()) << OpenModel(folder.path()).status();
  for (const size_t size :
       {size_t{0}, size_t{7}, size_t{8}, size_t{9}, shard.size() / 2, shard.size() - 1}) {
    WriteSample(folder / "b.safetensors", shard.substr(0, size));
    const absl::Status status = OpenModel(folder.path()).status();
    ASSERT_FALSE(status.ok()) << size;
    ExpectNamed(status, folder / "b.safetensors");
  }
}

core::FlatLayout AdapterLayout(int64_t rank) {
  std::vector<core::TensorSpec> tensors;
  for (const char* layer : {"1", "0"}) {
    const std::string prefix = std::string("model.layers.") + layer + ".";
    tensors.push_back({prefix + "mlp.down_proj.lora_B.weight", {16, rank}});
    tensors.push_back({prefix + "mlp.down_proj.lora_A.weight", {rank, 24}});
    tensors.push_back({prefix + "self_attn.q_proj.lora_B.weight", {16, rank}});
    tensors.push_back({prefix + "self_attn.q_proj.lora_A.weight", {rank, 16}});
  }
  return *core::FlatLayout::Create(tensors);
}

TEST(PeftAdapter, ReadsBackWhatWasWritten) {
  const TempFolder folder;
  const core::FlatLayout layout = AdapterLayout(4);
  std::vector<float> arena(static_cast<size_t>(layout.padded_elems())), loaded(arena.size(), 7.0f);
  for (const core::FlatTensor& tensor : layout.tensors()) {
    for (int64_t i = 0; i < tensor.numel; ++i) {
      arena[static_cast<size_t>(tensor.offset() + i)] =
          0.37f * static_cast<float>(tensor.offset() - i);
    }
  }
  const PeftSettings settings = {.r = 4,
                                 .alpha = 7.5,
                                 .dropout = 0.1,
                                 .rslora = true,
                                 .target_modules = {"all-linear"},
                                 .base_model = "o/\"m\""};
  const std::string path = folder / "new/adapter";
  ASSERT_TRUE(WritePeftAdapter(path, settings, layout, arena).ok());
  const auto adapter = PeftAdapter::Open(path);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ((*adapter)->settings().r, 4);
  EXPECT_EQ((*adapter)->settings().alpha, 7.5);
  EXPECT_EQ((*adapter)->settings().dropout, 0.1);
  EXPECT_TRUE((*adapter)->settings().rslora);
  EXPECT_EQ((*adapter)->settings().base_model, "o/\"m\"");
  EXPECT_THAT((*adapter)->settings().target_modules, ::testing::ElementsAre("down_proj", "q_proj"));
  ASSERT_TRUE((*adapter)->Load(layout, loaded).ok());
  EXPECT_EQ(loaded, arena);
}

TEST(PeftAdapter, RefusesAnotherLayout) {
  const TempFolder folder;
  WriteSample(folder / "adapter_config.json", SampleAdapterConfigJson());
  WriteSample(folder / "adapter_model.safetensors", SampleAdapterSafetensors());
  const auto adapter = PeftAdapter::Open(folder.path());
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  const auto load = [&](const core::FlatLayout& layout) {
    std::vector<float> arena(static_cast<size_t>(layout.padded_elems()));
    return (*adapter)->Load(layout, arena);
  };
  EXPECT_TRUE(load(AdapterLayout(4)).ok());
  const absl::Status rank = load(AdapterLayout(8));
  ExpectNamed(rank, folder / "adapter_model.safetensors");
  EXPECT_THAT(std::string(rank.message()), HasSubstr("has shape [16, 4], want [16, 8]"));
  const absl::Status fewer =
      load(*core::FlatLayout::Create({{"model.layers.0.mlp.down_proj.lora_A.weight", {4, 24}}}));
  EXPECT_THAT(std::string(fewer.message()), HasSubstr("no part of the adapter"));
  std::vector<core::TensorSpec> more;
  const core::FlatLayout layout = AdapterLayout(4);
  for (const core::FlatTensor& tensor : layout.tensors()) {
    more.push_back({tensor.name, tensor.shape});
  }
  more.push_back({"model.layers.2.mlp.down_proj.lora_A.weight", {4, 24}});
  EXPECT_THAT(std::string(load(*core::FlatLayout::Create(more)).message()),
              HasSubstr("layers.2.mlp.down_proj"));
}

TEST(PeftAdapter, RefusesAConfigCutAnywhere) {
  const TempFolder folder;
  const std::string config = SampleAdapterConfigJson();
  WriteSample(folder / "adapter_model.safetensors", SampleAdapterSafetensors());
  for (size_t size = 0; size + 2 < config.size(); ++size) {
    WriteSample(folder / "adapter_config.json", config.substr(0, size));
    const absl::Status status = PeftAdapter::Open(folder.path()).status();
    ASSERT_FALSE(status.ok()) << config.substr(0, size);
    ExpectNamed(status, folder / "adapter_config.json");
  }
}

}  // namespace
}  // namespace bitshard::trainer::io
