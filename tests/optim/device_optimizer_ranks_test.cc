// The engine on devices over NCCL against the engine on the host over MPI, in the same ranks: norm,
// parameters and state, bit for bit.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "comm/mpi_communicator.h"
#include "comm/nccl_communicator.h"
#include "core/error.h"
#include "core/rng.h"
#include "optim/device_optimizer.h"
#include "optim/sharded_optimizer.h"
#include "tests/comm/device_ranks.h"
#include "tests/core/device_array.h"

namespace bitshard::optim {
namespace {

comm::Communicator* job = nullptr;
comm::DeviceCommunicator* devices = nullptr;

struct Case {
  std::string name;
  paging::DeviceTier tier = paging::DeviceTier::kDevice;
};

class DeviceOptimizerOverNccl : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Tiers, DeviceOptimizerOverNccl,
                         testing::Values(Case{"adamw_8bit"}, Case{"lion_32bit"},
                                         Case{"paged_adamw_8bit", paging::DeviceTier::kPinned},
                                         Case{"paged_adamw_8bit", paging::DeviceTier::kManaged}),
                         [](const auto& info) {
                           return info.param.name +
                                  std::to_string(static_cast<int>(info.param.tier));
                         });

// The last bucket has fewer blocks than ranks.
core::FlatLayout Layout() {
  return *core::FlatLayout::Create(
      {{"a", {200, 1000}}, {"b", {300}}, {"c", {70, 100}}, {"d", {3}}});
}

std::vector<float> OwnGradients(const core::FlatLayout& layout, const comm::ShardMap& shards,
                                int64_t step) {
  std::vector<float> own;
  for (const core::BlockRange run : shards.RunsOf(job->rank())) {
    for (int64_t e = run.begin * core::kBlockElems; e < run.end * core::kBlockElems; ++e) {
      const core::FlatTensor& tensor = layout.tensor(layout.TensorOfBlock(e / core::kBlockElems));
      const core::Philox4 random =
          core::Philox(5, static_cast<uint64_t>(e), static_cast<uint64_t>(step));
      const bool padding = e - tensor.offset() >= tensor.numel;
      own.push_back(padding ? 0 : core::UniformFloat(random.word[0]) - 0.4f);
    }
  }
  return own;
}

TEST_P(DeviceOptimizerOverNccl, HasTheBitsOfTheHostsEngineOverMpi) {
  const core::FlatLayout layout = Layout();
  const comm::ShardMap shards(layout, job->world_size(), 1 << 18);
  const core::TestStream stream;
  ShardedOptimizerOptions on_host{.name = *ParseOptimizerName(GetParam().name),
                                  .weight_decay = 0.1};
  DeviceOptimizerOptions on_device{.shard = {.name = on_host.name, .stream = stream.get()},
                                   .weight_decay = 0.1};
  on_device.shard.paging = {.tier = GetParam().tier, .budget_bytes = 5 << 20};
  on_host.name.paged = false;
  auto host = ShardedOptimizer::Create(layout, shards, job, on_host);
  auto device = DeviceOptimizer::Create(layout, shards, devices, on_device);
  ASSERT_TRUE(host.ok() && device.ok()) << host.status() << " " << device.status();

  std::vector<float> parameters(static_cast<size_t>(layout.padded_elems()), 0.25f);
  const core::DeviceArray<float> arena(parameters, stream.get());
  for (int64_t step = 1; step <= 2; ++step) {
    const std::vector<float> own = OwnGradients(layout, shards, step);
    const core::DeviceArray<float> gradients(own, stream.get());
    const auto norm = (*host)->GradientNorm(own, 0.5);
    const auto device_norm = (*device)->GradientNorm(gradients.data(), 0.5);
    ASSERT_TRUE(norm.ok() && device_norm.ok()) << norm.status() << " " << device_norm.status();
    EXPECT_EQ(*device_norm, *norm);
    ASSERT_TRUE((*host)
                    ->Step({.parameters = parameters,
                            .gradients = own,
                            .gradient_scale = 0.5,
                            .learning_rate = 1e-2})
                    .ok());
    const absl::Status status = (*device)->Step({.parameters = arena.data(),
                                                 .gradients = gradients.data(),
                                                 .gradient_scale = 0.5,
                                                 .learning_rate = 1e-2});
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(arena.Get(), parameters) << "step " << step;
  }
  for (const core::BlockRange run : shards.RunsOf(job->rank())) {
    int64_t bytes = 0;
    for (int64_t b = run.begin; b < run.end; ++b) bytes += (*host)->BlockStateBytes(b);
    std::vector<std::byte> want(static_cast<size_t>(bytes)), got(static_cast<size_t>(bytes));
    ASSERT_TRUE((*host)->ExportState(run, want).ok());
    ASSERT_TRUE((*device)->shard().ExportState(run, got).ok());
    EXPECT_EQ(got, want) << "state of blocks " << run.begin << " to " << run.end;
  }
  EXPECT_TRUE(devices->status().ok()) << devices->status();
  EXPECT_TRUE(job->Barrier().ok());
}

int Main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  auto comm = comm::MpiCommunicator::Create({.timeout = absl::Seconds(60)});
  if (!comm.ok()) {
    std::fprintf(stderr, "%s\n", comm.status().ToString().c_str());
    return core::ExitCode(comm.status());
  }
  job = comm->get();
  if (!comm::EveryRankHasADevice(job)) {
    (void)job->Finalize();
    return 77;
  }
  auto nccl = comm::NcclCommunicator::Create(
      {.host = job, .device = job->local_rank(), .timeout = absl::Seconds(60)});
  if (!nccl.ok()) {
    std::fprintf(stderr, "%s\n", nccl.status().ToString().c_str());
    return core::ExitCode(nccl.status());
  }
  devices = nccl->get();
  const int failed = RUN_ALL_TESTS();
  absl::Status status = devices->Finalize();
  if (status.ok()) status = job->Finalize();
  if (!status.ok()) comm::EndJob(job, status, status.ToString());
  return failed;
}

}  // namespace
}  // namespace bitshard::optim

int main(int argc, char** argv) { return bitshard::optim::Main(argc, argv); }
