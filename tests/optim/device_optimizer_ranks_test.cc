// The engine on devices over NCCL against the engine on the host over MPI, in the same ranks: norm,
// parameters and state, bit for bit.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "comm/device_gradient_reducer.h"
#include "comm/gradient_reducer.h"
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
  bool is_overridden = false;
};

class DeviceOptimizerOverNccl : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Tiers, DeviceOptimizerOverNccl,
                         testing::Values(Case{"adamw_8bit"}, Case{"lion_32bit"},
                                         Case{"paged_adamw_8bit", paging::DeviceTier::kPinned},
                                         Case{"paged_adamw_8bit", paging::DeviceTier::kManaged},
                                         Case{"lamb_8bit"},
                                         Case{"lars_32bit", paging::DeviceTier::kDevice, true},
                                         Case{"paged_lamb_8bit", paging::DeviceTier::kPinned, true},
                                         Case{"paged_rmsprop_8bit", paging::DeviceTier::kManaged}),
                         [](const auto& info) {
                           return info.param.name +
                                  std::to_string(static_cast<int>(info.param.tier)) +
                                  (info.param.is_overridden ? "_overridden" : "");
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

// RMSprop has no limit of its own: one that shortens every update.
OptimizerSettings SettingsOf(const Case& c) {
  OptimizerSettings settings{.name = *ParseOptimizerName(c.name), .weight_decay = 0.1};
  if (settings.name.algorithm == Algorithm::kRmsProp) settings.max_unorm = 0.01;
  if (c.is_overridden) {
    settings.overrides = {{.pattern = "a", .bits = 8, .block_size = 64},
                          {.pattern = "b", .bits = 8, .block_size = 128},
                          {.pattern = "c", .learning_rate_factor = 2, .weight_decay = 0}};
  }
  return settings;
}

constexpr double kLearningRate = 1e-2;

// The same gradients of this rank's blocks, for both engines.
struct Gradients {
  std::span<const float> host;
  const float* device = nullptr;
};

// The engine on the host and that on devices, made alike.
class TwoEngines {
 public:
  void Create(OptimizerSettings settings, const paging::DevicePagingOptions& paging = {}) {
    auto on_device = DeviceOptimizer::Create(
        layout, shards, devices, {.settings = settings, .paging = paging, .stream = stream.get()});
    settings.name.paged = false;
    auto on_host = ShardedOptimizer::Create(layout, shards, job, {.settings = settings});
    ASSERT_TRUE(on_host.ok() && on_device.ok()) << on_host.status() << " " << on_device.status();
    host = *std::move(on_host);
    device = *std::move(on_device);
  }
  // Of the scaled gradients, into `norm`.
  void ExpectSameNorm(const Gradients& gradients, double scale, double* norm) {
    const auto on_host = host->GradientNorm(gradients.host, scale);
    const auto on_device = device->GradientNorm(gradients.device, scale);
    ASSERT_TRUE(on_host.ok() && on_device.ok()) << on_host.status() << " " << on_device.status();
    EXPECT_EQ(*on_device, *on_host);
    *norm = *on_host;
  }
  void Step(const Gradients& gradients, double scale) {
    const absl::Status on_host = host->Step({.parameters = parameters,
                                             .gradients = gradients.host,
                                             .gradient_scale = scale,
                                             .learning_rate = kLearningRate});
    const absl::Status on_device = device->Step({.parameters = arena.data(),
                                                 .gradients = gradients.device,
                                                 .gradient_scale = scale,
                                                 .learning_rate = kLearningRate});
    ASSERT_TRUE(on_host.ok() && on_device.ok()) << on_host << " " << on_device;
  }

  const core::FlatLayout layout = Layout();
  const comm::ShardMap shards{layout, job->world_size(), 1 << 18};
  const core::TestStream stream;
  std::unique_ptr<ShardedOptimizer> host;
  std::unique_ptr<DeviceOptimizer> device;
  std::vector<float> parameters =
      std::vector<float>(static_cast<size_t>(layout.padded_elems()), 0.25f);
  const core::DeviceArray<float> arena{parameters, stream.get()};
};

TEST_P(DeviceOptimizerOverNccl, HasTheBitsOfTheHostsEngineOverMpi) {
  TwoEngines engines;
  ASSERT_NO_FATAL_FAILURE(
      engines.Create(SettingsOf(GetParam()), {.tier = GetParam().tier, .budget_bytes = 5 << 20}));
  for (int64_t step = 1; step <= 2; ++step) {
    const std::vector<float> own = OwnGradients(engines.layout, engines.shards, step);
    const core::DeviceArray<float> copy(own, engines.stream.get());
    const Gradients gradients{.host = own, .device = copy.data()};
    double norm = 0;
    ASSERT_NO_FATAL_FAILURE(engines.ExpectSameNorm(gradients, 0.5, &norm));
    ASSERT_NO_FATAL_FAILURE(engines.Step(gradients, 0.5));
    EXPECT_EQ(engines.arena.Get(), engines.parameters) << "step " << step;
  }
  for (const core::BlockRange run : engines.shards.RunsOf(job->rank())) {
    int64_t bytes = 0;
    for (int64_t b = run.begin; b < run.end; ++b) bytes += engines.host->BlockStateBytes(b);
    std::vector<std::byte> want(static_cast<size_t>(bytes)), got(static_cast<size_t>(bytes));
    ASSERT_TRUE(engines.host->ExportState(run, want).ok());
    ASSERT_TRUE(engines.device->shard().ExportState(run, got).ok());
    EXPECT_EQ(got, want) << "state of blocks " << run.begin << " to " << run.end;
  }
  EXPECT_TRUE(devices->status().ok()) << devices->status();
  EXPECT_TRUE(job->Barrier().ok());
}

// Six leave ranks several nodes of the tree, eight one each; with 4 ranks, six are not shared
// evenly.
class DeviceTrainingOverNccl : public testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(MicroBatches, DeviceTrainingOverNccl, testing::Values(6, 8));

float LeafGradient(int64_t step, int64_t micro, int64_t e) {
  const core::Philox4 random =
      core::Philox(9, static_cast<uint64_t>(e), static_cast<uint64_t>(step * 100 + micro));
  return std::ldexp(core::UniformFloat(random.word[0]) - 0.5f,
                    static_cast<int>(random.word[1] % 13) - 6);
}

// Of copies: a device that reads pageable memory by itself may do so after the call.
std::deque<std::vector<float>> sources;

// The ordered reduction on the host, and one on devices.
struct TwoReducers {
  void Create(const TwoEngines& engines, int64_t micro_batches, comm::Reduction reduction) {
    auto on_host = comm::GradientReducer::Create(engines.layout, engines.shards, job,
                                                 {.micro_batches_per_step = micro_batches});
    auto on_device = comm::DeviceGradientReducer::Create(engines.layout, engines.shards, devices,
                                                         {.micro_batches_per_step = micro_batches,
                                                          .reduction = reduction,
                                                          .stream = engines.stream.get()});
    ASSERT_TRUE(on_host.ok() && on_device.ok()) << on_host.status() << " " << on_device.status();
    host = *std::move(on_host);
    device = *std::move(on_device);
  }

  std::unique_ptr<comm::GradientReducer> host;
  std::unique_ptr<comm::DeviceGradientReducer> device;
};

// Gives both this rank's micro-batches of the step, and takes the sums. Backward finishes tensors
// in order.
void Reduce(const TwoEngines& engines, const TwoReducers& to, int64_t step, int64_t micro_batches,
            Gradients* sums) {
  const comm::MicroBatchRange range =
      comm::MicroBatchesOf(job->rank(), job->world_size(), micro_batches);
  to.host->BeginStep();
  to.device->BeginStep();
  for (int64_t micro = range.begin; micro < range.end; ++micro) {
    to.host->BeginMicroBatch();
    to.device->BeginMicroBatch();
    for (int64_t i = 0; i < engines.layout.num_tensors(); ++i) {
      const core::FlatTensor& tensor = engines.layout.tensor(i);
      std::vector<float>& gradient = sources.emplace_back();
      for (int64_t e = 0; e < tensor.numel; ++e)
        gradient.push_back(LeafGradient(step, micro, tensor.offset() + e));
      ASSERT_EQ(cudaMemcpyAsync(to.device->leaf() + tensor.offset(), gradient.data(),
                                gradient.size() * sizeof(float), cudaMemcpyHostToDevice,
                                engines.stream.get()),
                cudaSuccess);
      std::copy(gradient.begin(), gradient.end(), to.host->leaf().begin() + tensor.offset());
      const absl::Status on_host = to.host->TensorReady(i), on_device = to.device->TensorReady(i);
      ASSERT_TRUE(on_host.ok() && on_device.ok()) << on_host << " " << on_device;
    }
  }
  const auto on_host = to.host->FinishStep();
  const auto on_device = to.device->FinishStep();
  ASSERT_TRUE(on_host.ok() && on_device.ok()) << on_host.status() << " " << on_device.status();
  *sums = {.host = *on_host, .device = *on_device};
}

// From the gradients of micro-batches over the reduction, the norm and the step to everybody's
// parameters.
TEST_P(DeviceTrainingOverNccl, HasTheBitsOfTheHostOverMpi) {
  TwoEngines engines;
  TwoReducers reducers;
  ASSERT_NO_FATAL_FAILURE(engines.Create(SettingsOf({.name = "adamw_8bit"})));
  ASSERT_NO_FATAL_FAILURE(reducers.Create(engines, GetParam(), comm::Reduction::kOrdered));
  const double scale = 1.0 / static_cast<double>(GetParam());
  for (int64_t step = 1; step <= 3; ++step) {
    Gradients sums;
    ASSERT_NO_FATAL_FAILURE(Reduce(engines, reducers, step, GetParam(), &sums));
    double norm = 0;
    ASSERT_NO_FATAL_FAILURE(engines.ExpectSameNorm(sums, scale, &norm));
    constexpr double kMaxNorm = 1;
    ASSERT_NO_FATAL_FAILURE(engines.Step(sums, scale * std::min(1.0, kMaxNorm / norm)));
    EXPECT_EQ(engines.arena.Get(), engines.parameters) << "step " << step;
  }
  EXPECT_TRUE(devices->status().ok()) << devices->status();
}

// AdamW's first update, where both moments come from the gradient alone. It only grows with the
// gradient, so that bounds of the one are bounds of the other.
double FirstUpdate(double gradient) {
  constexpr double kEps = 1e-8;
  return kLearningRate * gradient / (std::abs(gradient) + kEps);
}

// Of floats on the stream.
std::vector<float> Copied(std::span<const float> from, cudaStream_t stream) {
  std::vector<float> to(from.size());
  EXPECT_EQ(
      cudaMemcpyAsync(to.data(), from.data(), from.size_bytes(), cudaMemcpyDeviceToHost, stream),
      cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  return to;
}

// docs/comm.md, "The fast reduction".
TEST_P(DeviceTrainingOverNccl, StaysWithinTheBoundOfTheFastReduction) {
  constexpr double kUnit = 0x1p-24;
  TwoEngines engines;
  TwoReducers reducers;
  ASSERT_NO_FATAL_FAILURE(engines.Create(SettingsOf({.name = "adamw_8bit"})));
  ASSERT_NO_FATAL_FAILURE(reducers.Create(engines, GetParam(), comm::Reduction::kFast));
  Gradients sums;
  ASSERT_NO_FATAL_FAILURE(Reduce(engines, reducers, 1, GetParam(), &sums));
  const std::vector<float> gradients(sums.host.begin(), sums.host.end());
  if (GetParam() == 6 && job->world_size() > 1) {
    EXPECT_NE(Copied({sums.device, gradients.size()}, engines.stream.get()), gradients)
        << "the order of additions was no other one";
  }
  const double scale = 1.0 / static_cast<double>(GetParam());
  ASSERT_NO_FATAL_FAILURE(engines.Step(sums, scale));
  const std::vector<float> got = engines.arena.Get();
  const double bound = comm::FastReductionBound(GetParam(), job->world_size());
  size_t at = 0;
  for (const core::BlockRange run : engines.shards.RunsOf(job->rank())) {
    for (int64_t e = run.begin * core::kBlockElems; e < run.end * core::kBlockElems; ++e, ++at) {
      double magnitude = 0;
      for (int64_t micro = 0; micro < GetParam(); ++micro)
        magnitude += std::abs(double{LeafGradient(1, micro, e)});
      const double gradient = scale * double{gradients[at]};
      const double off = scale * bound * magnitude;
      const double exact = FirstUpdate(gradient);
      const double moved =
          std::max(FirstUpdate(gradient + off) - exact, exact - FirstUpdate(gradient - off));
      // Eight roundings of the update on each side, two of the parameter.
      const double want = double{engines.parameters[static_cast<size_t>(e)]};
      const double rounding = kUnit * (16 * kLearningRate + 4 * std::abs(want));
      ASSERT_LE(std::abs(double{got[static_cast<size_t>(e)]} - want), moved + rounding)
          << "element " << e << " of gradient " << gradient << " within " << off;
    }
  }
  EXPECT_TRUE(devices->status().ok()) << devices->status();
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
