#include "trainer/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/error.h"
#include "core/file.h"
#include "nlohmann/json.hpp"
#include "trainer/tensorboard.h"

namespace bitshard::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A folder of this test's own, removed at its end.
class MetricsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    dir_ = absl::StrCat(::testing::TempDir(), "bitshard_metrics_", name, "_", getpid());
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string Text(const std::string& name) {
    const absl::StatusOr<std::string> text = core::ReadFile(dir_ + "/" + name);
    EXPECT_TRUE(text.ok()) << text.status().message();
    return text.ok() ? *text : "";
  }

  std::vector<int64_t> Steps() {
    std::vector<int64_t> steps;
    for (const std::string& line :
         std::vector<std::string>(absl::StrSplit(Text("metrics.jsonl"), '\n', absl::SkipEmpty()))) {
      const auto json = nlohmann::json::parse(line, nullptr, false);
      EXPECT_FALSE(json.is_discarded()) << line;
      if (!json.is_discarded()) steps.push_back(json["step"]);
    }
    return steps;
  }

  void WriteSteps(int64_t first, int64_t last, int64_t resumed) {
    auto writer = MetricsWriter::Open({.directory = dir_, .resumed_step = resumed, .csv = true});
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    for (int64_t step = first; step <= last; ++step)
      (*writer)->Write({.step = step, .loss = 1.0 / 3});
    (*writer)->Sync();
    EXPECT_TRUE((*writer)->status().ok());
  }

  std::string dir_;
};

TEST_F(MetricsTest, EachStepStandsOnceAfterAResume) {
  WriteSteps(1, 7, 0);
  EXPECT_THAT(Steps(), ElementsAre(1, 2, 3, 4, 5, 6, 7));
  WriteSteps(5, 6, 4);
  EXPECT_THAT(Steps(), ElementsAre(1, 2, 3, 4, 5, 6));
  const std::vector<std::string> rows =
      absl::StrSplit(Text("metrics.csv"), '\n', absl::SkipEmpty());
  ASSERT_EQ(rows.size(), 7u);
  EXPECT_EQ(rows[0].substr(0, 5), "step,");
  for (size_t i = 1; i < rows.size(); ++i) EXPECT_EQ(rows[i].substr(0, 2), absl::StrCat(i, ","));
  WriteSteps(1, 1, 0);
  EXPECT_THAT(Steps(), ElementsAre(1));
}

TEST_F(MetricsTest, ALineThatWasCutInHalfIsDroppedOnResume) {
  WriteSteps(1, 3, 0);
  const std::string whole = Text("metrics.jsonl");
  for (size_t bytes = 0; bytes <= whole.size(); ++bytes) {
    ASSERT_TRUE(core::WriteFileAtomically(dir_ + "/metrics.jsonl", whole.substr(0, bytes)).ok());
    ASSERT_TRUE(MetricsWriter::Open({.directory = dir_, .resumed_step = 3}).ok());
    const size_t end = whole.substr(0, bytes).rfind('\n');
    EXPECT_EQ(Text("metrics.jsonl"), end == std::string::npos ? "" : whole.substr(0, end + 1));
  }
}

TEST_F(MetricsTest, LinesHoldExactNumbersAndEscapedText) {
  const StepMetrics metrics{.step = 3,
                            .epoch = 0.1,
                            .loss = 0.1 + 0.2,
                            .learning_rate = std::numeric_limits<double>::quiet_NaN(),
                            .grad_norm = std::numeric_limits<double>::infinity(),
                            .tokens = int64_t{1} << 60,
                            .phase_seconds = {{"a\"\n\x1b\xff", 0.5}},
                            .eval_loss = 2.5};
  const std::string line = MetricsLine(metrics);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(line.find('\x1b'), std::string::npos);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["loss"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(json["tokens"].get<int64_t>(), int64_t{1} << 60);
  EXPECT_TRUE(json["learning_rate"].is_null());
  EXPECT_TRUE(json["grad_norm"].is_null());
  EXPECT_EQ(json["eval_loss"].get<double>(), 2.5);
  EXPECT_FALSE(nlohmann::json::parse(MetricsLine({})).contains("eval_loss"));
}

TEST_F(MetricsTest, AFullDiskLosesLinesButNotTheRun) {
  auto writer = MetricsWriter::Open({.directory = dir_, .tensorboard = false});
  ASSERT_TRUE(writer.ok());
  (*writer)->Write({.step = 1});
  const size_t line = Text("metrics.jsonl").size();
  signal(SIGXFSZ, SIG_IGN);
  struct rlimit before {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit small { .rlim_cur = line + line / 2, .rlim_max = before.rlim_max };
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  (*writer)->Write({.step = 2});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  (*writer)->Write({.step = 3});
  EXPECT_THAT(Steps(), ElementsAre(1, 3));
  EXPECT_EQ(core::ExitCode((*writer)->status()), 6);
  EXPECT_THAT(std::string((*writer)->status().message()), HasSubstr("1 records lost"));
}

TEST_F(MetricsTest, AFileThatWasRemovedMeanwhileIsTold) {
  auto writer = MetricsWriter::Open({.directory = dir_});
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  (*writer)->Write({.step = 1});
  std::filesystem::remove(dir_ + "/metrics.jsonl");
  (*writer)->Sync();
  EXPECT_THAT(std::string((*writer)->status().message()),
              HasSubstr("metrics.jsonl: was removed while the run was writing it"));
}

TEST_F(MetricsTest, OpenNamesAFolderThatIsNotThere) {
  const auto writer = MetricsWriter::Open({.directory = dir_ + "/none"});
  EXPECT_EQ(core::ExitCode(writer.status()), 6);
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("none/metrics.jsonl"));
}

TEST_F(MetricsTest, SummaryHoldsWhatWasMeasured) {
  ASSERT_TRUE(WriteSummary(dir_ + "/summary.json", {.version = "1",
                                                    .config_hash = "ab",
                                                    .world_size = 2,
                                                    .tokens_per_second = 3.5,
                                                    .heldout_loss_before = 2.0,
                                                    .peak_rss_bytes = 7})
                  .ok());
  const auto json = nlohmann::json::parse(Text("summary.json"));
  EXPECT_EQ(json["heldout_loss_before"], 2.0);
  EXPECT_EQ(json["world_size"], 2);
  EXPECT_EQ(json["peak_rss_bytes"], 7);
  EXPECT_FALSE(json.contains("heldout_loss_after"));
}

// RFC 3720, appendix B.4, and the check value of the CRC catalogue.
TEST(Crc32c, GivesThePublishedValues) {
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62A8AB43u);
  EXPECT_EQ(Crc32c(""), 0u);
}

}  // namespace
}  // namespace bitshard::trainer
