#include "trainer/io/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "tests/trainer/io/sample_files.h"
#include "trainer/io/weight_source.h"

namespace bitshard::trainer::io {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// The status of opening the model, whose message must name the file.
absl::Status OpenStatus(const std::string& path) {
  const absl::Status status = OpenModel(path).status();
  if (!status.ok()) {
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("\n")));
  }
  return status;
}

TEST(GgufFile, ReadsEveryTypeOfValue) {
  const TempFolder folder;
  const std::string path = folder / "model.gguf";
  WriteSample(path, SampleGgufModel("llama").Build().bytes());
  const auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufFile& gguf = **file;
  EXPECT_EQ(*gguf.GetInt("test.uint8", {}), 200);
  EXPECT_EQ(*gguf.GetInt("test.int8", {}), -5);
  EXPECT_EQ(*gguf.GetInt("test.uint16", {}), 60000);
  EXPECT_EQ(*gguf.GetInt("test.int16", {}), -30000);
  EXPECT_EQ(*gguf.GetInt("llama.block_count", {}), 1);
  EXPECT_EQ(*gguf.GetInt("test.int32", {}), -7);
  EXPECT_EQ(*gguf.GetInt("test.uint64", {}), int64_t{1} << 40);
  EXPECT_EQ(*gguf.GetInt("test.int64", {}), -(int64_t{1} << 40));
  EXPECT_EQ(*gguf.GetNumber("test.float64"), 0.125);
  EXPECT_EQ(*gguf.GetNumber("test.int8"), -5.0);
  EXPECT_EQ(*gguf.GetNumber("llama.attention.layer_norm_rms_epsilon"), 1e-5);
  EXPECT_EQ(*gguf.GetString("general.name"), "tiny");
  EXPECT_EQ(*gguf.GetArrayCount("tokenizer.ggml.tokens"), 12);
  EXPECT_EQ(*gguf.GetArrayCount("test.nested"), 2);
  EXPECT_EQ(*gguf.GetIntOr("absent", 4, {}), 4);
  EXPECT_EQ(*gguf.GetNumberOr("absent", 0.5), 0.5);
  EXPECT_EQ(*gguf.GetStringOr("absent", "x"), "x");
  EXPECT_THAT(gguf.FindTensor("blk.0.ffn_up.weight")->shape, ::testing::ElementsAre(64, 32));
}

TEST(GgufFile, SaysWhichKeyHasWhichWrongType) {
  const TempFolder folder;
  const std::string path = folder / "model.gguf";
  WriteSample(path, SampleGgufModel("llama").Build().bytes());
  const auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto message = [](const auto& result) { return std::string(result.status().message()); };
  EXPECT_EQ(message((*file)->GetInt("general.name", {})),
            path + ": general.name: is of type string, want an integer");
  EXPECT_EQ(message((*file)->GetString("test.bool")),
            path + ": test.bool: is of type boolean, want a string");
  EXPECT_EQ(message((*file)->GetInt("test.uint8", {0, 9})),
            path + ": test.uint8: is 200, want 0 to 9");
  EXPECT_EQ(message((*file)->GetInt("absent", {})), path + ": absent: missing in the metadata");
  EXPECT_EQ(message((*file)->GetArrayCount("test.int8")),
            path + ": test.int8: is of type int8, want an array");
}

TEST(GgufModel, OpensEachArchitectureAndReadsEveryTensor) {
  const TempFolder folder;
  const std::string path = folder / "model.gguf";
  for (const std::string arch : {"llama", "qwen2", "qwen3"}) {
    SCOPED_TRACE(arch);
    WriteSample(path, SampleGgufModel(arch).Build().bytes());
    const auto model = OpenModel(path);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->config().model_type, arch);
    for (const WeightInfo& info : (*model)->tensors()) {
      std::vector<float> whole(static_cast<size_t>(info.numel()));
      ASSERT_TRUE((*model)->Read(info.name, whole).ok());
      // Every row by itself is that part of the whole, permuted or not.
      const int64_t columns = info.numel() / info.shape[0];
      std::vector<float> row(static_cast<size_t>(columns));
      for (int64_t r = 0; r < info.shape[0]; ++r) {
        ASSERT_TRUE((*model)->ReadRows(info.name, r, row).ok());
        ASSERT_TRUE(std::equal(row.begin(), row.end(), whole.begin() + r * columns))
            << info.name << " row " << r;
      }
    }
    EXPECT_FALSE((*model)->Read("model.absent", {}).ok());
  }
}

TEST(GgufModel, RefusesAFileCutAtAnyFieldOrBesideIt) {
  const TempFolder folder;
  const std::string path = folder / "model.gguf";
  const SampleBytes file = SampleGgufModel("llama").Build();
  int cuts = 0;
  for (const size_t end : file.ends()) {
    for (const size_t size : {end - 1, end, end + 1}) {
      if (size >= file.bytes().size()) continue;
      WriteSample(path, file.bytes().substr(0, size));
      EXPECT_FALSE(OpenStatus(path).ok())
          << "cut to " << size << " of " << file.bytes().size() << " bytes";
      ++cuts;
    }
  }
  EXPECT_GT(cuts, 250);
  WriteSample(path, file.bytes());
  EXPECT_TRUE(OpenStatus(path).ok());
}

TEST(GgufFile, RefusesAFileOfOneTensorCutAnywhere) {
  const TempFolder folder;
  const std::string path = folder / "model.gguf";
  const SampleGguf gguf = {
      .tensors = {{.name = "x", .dimensions = {2}, .data = std::string(8, 'x')}}};
  const std::string file = gguf.Build().bytes();
  for (size_t size = 0; size < file.size();
       ++size) {  // Also inside the padding in front of the data.
    WriteSample(path, file.substr(0, size));
    ASSERT_FALSE(GgufFile::Open(path).ok())
        << "cut to " << size << " of " << file.size() << " bytes";
  }
  WriteSample(path, file);
  EXPECT_TRUE(GgufFile::Open(path).ok());
}

TEST(GgufModel, RefusesWhatIsDamaged) {
  struct Case {
    const char* message;
    std::function<void(SampleGguf*)> damage;
  };
  const uint64_t kHuge = ~uint64_t{0};
  const Case cases[] = {
      {"does not start with \"GGUF\"", [](SampleGguf* g) { g->magic = 0x46554748; }},
      {"GGUF version 1", [](SampleGguf* g) { g->version = 1; }},
      {"GGUF version 4", [](SampleGguf* g) { g->version = 4; }},
      {"big-endian", [](SampleGguf* g) { g->version = 0x03000000; }},
      {"header: tensor count", [](SampleGguf* g) { g->extra_tensors = uint64_t{1} << 60; }},
      {"header: key count", [](SampleGguf* g) { g->extra_keys = uint64_t{1} << 62; }},
      {"test.uint8: stands twice", [](SampleGguf* g) { g->Key<uint8_t>("test.uint8", 0, 1); }},
      {"x: has the unknown type 13", [](SampleGguf* g) { g->Key<uint8_t>("x", 13, 1); }},
      {"x: holds a boolean", [](SampleGguf* g) { g->Key<uint8_t>("x", 7, 2); }},
      {"x: claims", [=](SampleGguf* g) { g->Key<uint64_t>("x", 8, kHuge); }},
      {"x: claims", [=](SampleGguf* g) { g->Key("x", 9, std::pair<uint32_t, uint32_t>(10, ~0u)); }},
      {"two tensors have this name",
       [](SampleGguf* g) { g->tensors[1].name = g->tensors[2].name; }},
      {"output_norm.weight: has 0 dimensions",
       [](SampleGguf* g) { g->tensors[1].dimensions = {}; }},
      {"output_norm.weight: has 5 dimensions",
       [](SampleGguf* g) {
         g->tensors[1].dimensions = {1, 1, 1, 1, 1};
       }},
      {"output_norm.weight: dimension 0 is 0",
       [](SampleGguf* g) { g->tensors[1].dimensions = {0}; }},
      {"output_norm.weight: dimension 1",
       [](SampleGguf* g) {
         g->tensors[1].dimensions = {uint64_t{1} << 40, uint64_t{1} << 40};
       }},
      {"output_norm.weight: the file ends",
       [](SampleGguf* g) { g->tensors[1].dimensions = {uint64_t{1} << 61}; }},
      {"output_norm.weight: dimension 0 is 18446744073709551615",
       [=](SampleGguf* g) { g->tensors[1].dimensions = {kHuge}; }},
      {"output_norm.weight: is stored as Q4_K", [](SampleGguf* g) { g->tensors[1].type = 12; }},
      {"output_norm.weight: is stored as type 99", [](SampleGguf* g) { g->tensors[1].type = 99; }},
      {"token_embd.weight: rows of 33",
       [](SampleGguf* g) {
         g->tensors[0].dimensions = {33, 12};
       }},
      {"output_norm.weight: the file ends",
       [](SampleGguf* g) { g->tensors[1].offset = uint64_t{1} << 63; }},
      {"output_norm.weight: offset 3 is no", [](SampleGguf* g) { g->tensors[1].offset = 3; }},
      {"overlaps tensor token_embd.weight", [](SampleGguf* g) { g->tensors[1].offset = 0; }},
      {"general.alignment: is 24",
       [](SampleGguf* g) { g->Key<uint32_t>("general.alignment", 4, 24); }},
      {"general.alignment: is 0",
       [](SampleGguf* g) { g->Key<uint32_t>("general.alignment", 4, 0); }},
      {"general.alignment: is 2147483648",
       [](SampleGguf* g) { g->Key<uint32_t>("general.alignment", 4, 1u << 31); }},
      {"output_norm.weight: a vector stored as Q8_0",
       [](SampleGguf* g) { g->tensors[1].type = 8; }},
      {"tensor model.norm.weight has shape [16], want [32]",
       [](SampleGguf* g) { g->tensors[1].dimensions = {16}; }},
      {"tensor model.norm.weight is missing",
       [](SampleGguf* g) { g->tensors.erase(g->tensors.begin() + 1); }},
      {"blk.0.odd.weight: a tensor that llama models do not have",
       [](SampleGguf* g) { g->tensors[1].name = "blk.0.odd.weight"; }},
      {"blk.00.attn_norm.weight: a tensor",
       [](SampleGguf* g) { g->tensors[2].name = "blk.00.attn_norm.weight"; }},
      {"general.architecture: missing", [](SampleGguf* g) { g->keys.erase(g->keys.begin()); }},
      {"expert_count", [](SampleGguf* g) { g->Key<uint32_t>("llama.expert_count", 4, 8); }},
      {"rope.dimension_count: is 8",
       [](SampleGguf* g) { g->Key<uint32_t>("llama.rope.dimension_count", 4, 8); }},
      {"rope.scaling.type: is \"yarn\"",
       [](SampleGguf* g) { g->KeyText("llama.rope.scaling.type", "yarn"); }},
      {"rope_freqs.weight: has 16 elements, want half the head size 16",
       [](SampleGguf* g) {
         g->tensors[2].name = "rope_freqs.weight", g->tensors[2].dimensions = {16};
       }},
      {"split.count", [](SampleGguf* g) { g->Key<uint16_t>("split.count", 2, 3); }},
      {"general.type: is \"adapter\", want a model",
       [](SampleGguf* g) { g->KeyText("general.type", "adapter"); }},
      {"rope_scaling: factor: is 0.5, want 1 or more",
       [](SampleGguf* g) { g->Key<float>("llama.rope.scaling.factor", 6, 0.5f); }},
  };
  const TempFolder folder;
  const std::string path = folder / "model.gguf";
  for (const Case& c : cases) {
    SCOPED_TRACE(c.message);
    SampleGguf gguf = SampleGgufModel("llama");
    c.damage(&gguf);
    WriteSample(path, gguf.Build().bytes());
    const absl::Status status = OpenStatus(path);
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

// Old files have another key for the factor, and none for the kind.
TEST(GgufModel, ReadsLinearRopeScaling) {
  const TempFolder folder;
  const std::string path = folder / "model.gguf";
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    for (const char* kind : {"", "linear", "none"}) {
      SCOPED_TRACE(absl::StrCat(key, " ", kind));
      SampleGguf gguf = SampleGgufModel("llama");
      gguf.Key<float>(key, 6, 4.0f);
      if (*kind != 0) gguf.KeyText("llama.rope.scaling.type", kind);
      WriteSample(path, gguf.Build().bytes());
      const auto model = OpenModel(path);
      ASSERT_TRUE(model.ok()) << model.status();
      const bool scaled = std::string(kind) != "none";
      EXPECT_EQ((*model)->config().rope_scaling.kind, scaled ? "linear" : "default");
      EXPECT_EQ((*model)->config().rope_scaling.factor, scaled ? 4.0 : 1.0);
    }
  }
}

TEST(GgufModel, EscapesNamesFromTheFile) {
  const TempFolder folder;
  const std::string path = folder / "model.gguf";
  SampleGguf gguf = SampleGgufModel("llama");
  gguf.tensors[1].name = "evil\x1b[2J\n" + std::string(5000, 'x');
  WriteSample(path, gguf.Build().bytes());
  const absl::Status status = OpenStatus(path);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("evil\\x1b[2J\\x0a"));
  EXPECT_LT(status.message().size(), 600u);
}

TEST(GgufModel, RefusesADirectoryAndAMissingFile) {
  const TempFolder folder;
  EXPECT_FALSE(OpenStatus(folder / "absent.gguf").ok());
  EXPECT_FALSE(OpenStatus("/dev/null.gguf").ok());
}

}  // namespace
}  // namespace bitshard::trainer::io
