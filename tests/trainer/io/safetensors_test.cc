#include "trainer/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/numeric.h"
#include "tests/trainer/io/sample_files.h"

namespace bitshard::trainer::io {
namespace {

using ::testing::HasSubstr;

const auto kAll = [](const std::string&) { return true; };

TEST(SafetensorsFile, RefusesAFileCutAnywhere) {
  const TempFolder folder;
  const std::string path = folder / "model.safetensors";
  const std::string file =
      SampleSafetensors("llama", [](const std::string& name) { return name.size() < 20; });
  ASSERT_LT(file.size(), 2000u);
  for (size_t size = 0; size < file.size(); ++size) {
    WriteSample(path, file.substr(0, size));
    const absl::Status status = SafetensorsFile::Open(path).status();
    ASSERT_FALSE(status.ok()) << "cut to " << size << " of " << file.size() << " bytes";
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
  WriteSample(path, file + "x");
  EXPECT_FALSE(SafetensorsFile::Open(path).ok());
  WriteSample(path, file);
  EXPECT_TRUE(SafetensorsFile::Open(path).ok());
}

TEST(SafetensorsFile, FindsByNameAndReadsParts) {
  const TempFolder folder;
  const std::string path = folder / "model.safetensors";
  WriteSample(path, SampleSafetensors("qwen2", kAll));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  EXPECT_EQ((*file)->Find("absent"), nullptr);
  for (const SafetensorsTensor& tensor : (*file)->tensors()) {
    ASSERT_EQ((*file)->Find(tensor.name), &tensor);
    std::vector<float> whole(static_cast<size_t>(tensor.numel)), part(3);
    (*file)->ReadFloats(tensor, 0, whole);
    (*file)->ReadFloats(tensor, 2, part);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 2)) << tensor.name;
  }
}

TEST(SafetensorsWriter, LeavesNothingWithoutCommit) {
  const TempFolder folder;
  const std::string path = folder / "out.safetensors";
  {
    const auto writer = SafetensorsWriter::Create(path, {{.name = "a", .shape = {2}}}, {});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->WriteFloats(std::vector<float>{1, 2}).ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsWriter, RoundsToBfloat16AndTakesPieces) {
  const TempFolder folder;
  const std::string path = folder / "out.safetensors";
  const std::vector<SafetensorsEntry> entries = {
      {.name = "wide", .shape = {2, 2}},
      {.name = "none", .shape = {0}},
      {.name = "narrow", .dtype = core::DType::kBFloat16, .shape = {4}},
      {.name = "one", .shape = {}}};
  const auto writer = SafetensorsWriter::Create(path, entries, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<float> values = {1.00390625f, -1.01171875f, 3e38f,
                                     NAN};  // Two ties: down to even, up to even.
  ASSERT_TRUE((*writer)->WriteFloats(std::span(values).first(1)).ok());
  ASSERT_TRUE((*writer)->WriteFloats(std::span(values).subspan(1)).ok());
  ASSERT_TRUE((*writer)->WriteFloats(values).ok());
  ASSERT_TRUE((*writer)->WriteFloats(std::vector<float>{5}).ok());
  ASSERT_TRUE((*writer)->Commit().ok());

  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> wide(4), narrow(4), one(1);
  (*file)->ReadFloats(*(*file)->Find("wide"), 0, wide);
  (*file)->ReadFloats(*(*file)->Find("narrow"), 0, narrow);
  (*file)->ReadFloats(*(*file)->Find("one"), 0, one);
  EXPECT_EQ(wide[0], values[0]);
  EXPECT_EQ(wide[2], values[2]);
  EXPECT_TRUE(std::isnan(wide[3]));
  EXPECT_EQ(narrow[0], 1.0f);
  EXPECT_EQ(narrow[1], -1.015625f);
  EXPECT_EQ(core::FloatBits(narrow[2]), 0x7F620000u);
  EXPECT_TRUE(std::isnan(narrow[3]));
  EXPECT_EQ(one[0], 5.0f);
  EXPECT_EQ((*file)->Find("none")->numel, 0);
}

TEST(SafetensorsWriter, SaysThatItCannotWrite) {
  const auto writer = SafetensorsWriter::Create("/absent-folder/x.safetensors", {}, {});
  ASSERT_FALSE(writer.ok());
  EXPECT_EQ(core::KindOf(writer.status()), core::ErrorKind::kStorage);
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("/absent-folder/x.safetensors"));
}

}  // namespace
}  // namespace bitshard::trainer::io
