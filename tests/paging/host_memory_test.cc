#include "paging/host_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace bitshard::paging {
namespace {

// A machine in a folder.
class HostMemoryTest : public testing::Test {
 protected:
  ~HostMemoryTest() override { std::filesystem::remove_all(root_); }
  void Put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  const std::string root_ = testing::TempDir() + absl::StrCat("bitshard_machine_", getpid());
};

constexpr char kMeminfo[] =
    "MemTotal:        2000 kB\nMemFree:          100 kB\nMemAvailable:    1000 kB\n"
    "HugePages_Total:       0\n";

TEST_F(HostMemoryTest, IsWhatTheSystemHasAvailable) {
  Put("/proc/meminfo", kMeminfo);
  EXPECT_EQ(AvailableHostMemory(root_).available_bytes, 1000 * 1024);
  EXPECT_EQ(AvailableHostMemory(root_).limited_by, "MemAvailable of /proc/meminfo");
  Put("/proc/self/cgroup", "0::/\n");
  Put("/sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(AvailableHostMemory(root_).available_bytes, 1000 * 1024);
}

TEST_F(HostMemoryTest, IsNoMoreThanAnyControlGroupLeaves) {
  Put("/proc/meminfo", kMeminfo);
  Put("/proc/self/cgroup", "1:cpu:/old\n0::/job/step\n");
  Put("/sys/fs/cgroup/job/step/memory.max", "max\n");
  Put("/sys/fs/cgroup/job/step/memory.current", "5000\n");
  Put("/sys/fs/cgroup/job/memory.max", "90000\n");
  Put("/sys/fs/cgroup/job/memory.current", "50000\n");
  const HostMemory memory = AvailableHostMemory(root_);
  EXPECT_EQ(memory.available_bytes, 40000);
  EXPECT_EQ(memory.limited_by, root_ + "/sys/fs/cgroup/job/memory.max");
  Put("/sys/fs/cgroup/job/step/memory.max", "6000\n");
  EXPECT_EQ(AvailableHostMemory(root_).available_bytes, 1000);
}

TEST_F(HostMemoryTest, IsUnknownWhereNothingSays) {
  EXPECT_EQ(AvailableHostMemory(root_).available_bytes, INT64_MAX);
}

TEST(HostMemory, OfThisMachineIsMoreThanNothing) {
  EXPECT_GT(AvailableHostMemory().available_bytes, 1 << 20);
  EXPECT_LT(AvailableHostMemory().available_bytes, int64_t{1} << 50);
  EXPECT_FALSE(MemlockLimit().empty());
}

}  // namespace
}  // namespace bitshard::paging
