#include "comm/internal/launch_environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/error.h"

namespace bitshard::comm::internal {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<LaunchEnvironment> Find(const std::map<std::string, std::string>& environment) {
  return FindLauncher([&](const char* name) {
    const auto it = environment.find(name);
    return it == environment.end() ? std::string() : it->second;
  });
}

TEST(LaunchEnvironment, NothingSetIsOneRankWithoutMpi) {
  const auto found = Find({});
  ASSERT_TRUE(found.ok());
  EXPECT_FALSE(found->mpi);
  EXPECT_EQ(found->size, 1);
  EXPECT_FALSE(Find({{"WORLD_SIZE", "1"}, {"RANK", "0"}})->mpi);
  EXPECT_FALSE(Find({{"WORLD_SIZE", "8"}})->mpi) << "a stale variable alone is no launcher";
  EXPECT_FALSE(Find({{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}})->mpi);
}

TEST(LaunchEnvironment, OpenMpiComesFirst) {
  const auto found =
      Find({{"OMPI_COMM_WORLD_SIZE", "4"}, {"RANK", "0"}, {"WORLD_SIZE", "2"}, {"PMI_SIZE", "3"}});
  ASSERT_TRUE(found.ok());
  EXPECT_TRUE(found->mpi);
  EXPECT_EQ(found->size, 4);
}

TEST(LaunchEnvironment, PmixAndPmiAreMpi) {
  EXPECT_TRUE(Find({{"PMIX_RANK", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}})->mpi);
  EXPECT_EQ(Find({{"PMIX_RANK", "0"}})->size, 0);
  EXPECT_EQ(Find({{"PMI_SIZE", "3"}})->size, 3);
}

TEST(LaunchEnvironment, LaunchersWithoutMpiAreRefused) {
  const auto torchrun = Find({{"RANK", "1"}, {"WORLD_SIZE", "2"}});
  EXPECT_EQ(core::KindOf(torchrun.status()), core::ErrorKind::kConfig);
  EXPECT_THAT(std::string(torchrun.status().message()), HasSubstr("launch/mpirun.sh -n 2"));
  const auto srun = Find({{"SLURM_STEP_NUM_TASKS", "16"}, {"SLURM_PROCID", "3"}});
  EXPECT_EQ(core::KindOf(srun.status()), core::ErrorKind::kConfig);
  EXPECT_THAT(std::string(srun.status().message()), HasSubstr("srun --mpi=pmix"));
}

}  // namespace
}  // namespace bitshard::comm::internal
