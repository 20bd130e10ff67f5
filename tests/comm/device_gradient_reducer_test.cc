// The reducer of gradients on devices over NCCL, with ranks that are processes: against the tree's
// definition and the host's reducer over MPI. Started by launch/mpirun.sh.
#include "comm/device_gradient_reducer.h"

#include <cstdio>
#include <deque>

#include "absl/time/clock.h"
#include "comm/mpi_communicator.h"
#include "comm/nccl_communicator.h"
#include "core/error.h"
#include "tests/comm/device_ranks.h"
#include "tests/comm/reducer_reference.h"
#include "tests/core/device_array.h"

namespace bitshard::comm {
namespace {

Communicator* job = nullptr;
DeviceCommunicator* devices = nullptr;
// Of copies: a device that reads pageable memory by itself may do so after the call.
std::deque<std::vector<float>> sources;

// Some leave every rank one node of the tree, some several; with 3 and 4 ranks some ranks have more
// micro-batches than others.
class DeviceGradientReducerOverNccl : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    if (GetParam() < job->world_size()) GTEST_SKIP() << "fewer micro-batches than ranks";
  }
  void TearDown() override {
    EXPECT_TRUE(devices->status().ok()) << devices->status();
    EXPECT_TRUE(job->Barrier().ok());  // Nobody frees memory while others communicate.
    sources.clear();
  }
};
INSTANTIATE_TEST_SUITE_P(MicroBatches, DeviceGradientReducerOverNccl,
                         testing::Values(1, 3, 4, 6, 8, 13));

// Gradients of the step, each tensor's enqueued just before it is told to be ready.
void RunDeviceStep(const core::FlatLayout& layout, int64_t step, int64_t micro_batches,
                   cudaStream_t stream, DeviceGradientReducer* reducer) {
  const MicroBatchRange range = MicroBatchesOf(job->rank(), job->world_size(), micro_batches);
  reducer->BeginStep();
  for (int64_t micro = range.begin; micro < range.end; ++micro) {
    reducer->BeginMicroBatch();
    std::vector<float>& host = sources.emplace_back(static_cast<size_t>(layout.padded_elems()));
    for (const int64_t index : ReadyOrder(layout.num_tensors(), micro + job->rank())) {
      const core::FlatTensor& tensor = layout.tensor(index);
      WriteTensor(layout, index, step, micro, host);
      ASSERT_EQ(
          cudaMemcpyAsync(reducer->leaf() + tensor.offset(), &host[size_t(tensor.offset())],
                          size_t(tensor.numel) * sizeof(float), cudaMemcpyHostToDevice, stream),
          cudaSuccess);
      const absl::Status ready = reducer->TensorReady(index);
      ASSERT_TRUE(ready.ok()) << ready;
    }
  }
}

std::vector<float> Copy(const float* device, int64_t elems, cudaStream_t stream) {
  std::vector<float> host(static_cast<size_t>(elems));
  if (elems == 0) return host;
  EXPECT_EQ(cudaMemcpyAsync(host.data(), device, host.size() * sizeof(float),
                            cudaMemcpyDeviceToHost, stream),
            cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  return host;
}

// This rank's runs of what `of` says of each element of the arena.
template <class Of>
auto OwnRuns(const ShardMap& shards, Of&& of) {
  std::vector<decltype(of(int64_t{}))> own;
  for (const core::BlockRange run : shards.RunsOf(job->rank())) {
    for (int64_t e = run.begin * core::kBlockElems; e < run.end * core::kBlockElems; ++e)
      own.push_back(of(e));
  }
  return own;
}

TEST_P(DeviceGradientReducerOverNccl, HasTheBitsOfTheTreeAndOfTheHostOverMpi) {
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, job->world_size(), kBucketBytes);
  const core::TestStream stream;
  auto host = GradientReducer::Create(layout, shards, job, {.micro_batches_per_step = GetParam()});
  auto reducer = DeviceGradientReducer::Create(
      layout, shards, devices, {.micro_batches_per_step = GetParam(), .stream = stream.get()});
  ASSERT_TRUE(host.ok() && reducer.ok()) << host.status() << reducer.status();
  const ReducerCost cost = DeviceGradientReducer::Cost(layout, shards, job->rank(),
                                                       {.micro_batches_per_step = GetParam()});
  for (int64_t step = 0; step < 2; ++step) {
    const int64_t before = devices->bytes_sent(), host_before = job->bytes_sent();
    ASSERT_NO_FATAL_FAILURE(RunDeviceStep(layout, step, GetParam(), stream.get(), reducer->get()));
    const auto sums = (*reducer)->FinishStep();
    ASSERT_TRUE(sums.ok()) << sums.status();
    const std::vector<float> got =
        Copy(*sums, shards.NumBlocksOf(job->rank()) * core::kBlockElems, stream.get());
    ASSERT_NO_FATAL_FAILURE(RunStep(layout, *job, step, GetParam(), host->get()));
    const auto host_sums = (*host)->FinishStep();
    ASSERT_TRUE(host_sums.ok()) << host_sums.status();
    ExpectSameBits(got, host_sums->data(), 0, "against the host");
    const std::vector<float> tree = ReferenceSum(layout, step, GetParam());
    const std::vector<float> want =
        OwnRuns(shards, [&](int64_t e) { return tree[static_cast<size_t>(e)]; });
    ExpectSameBits(got, want.data(), 0, "against the tree");
    EXPECT_EQ(devices->bytes_sent() - before, job->bytes_sent() - host_before);
    EXPECT_EQ(devices->bytes_sent() - before, cost.sent_bytes_per_step);
  }
}

TEST_P(DeviceGradientReducerOverNccl, FastSumsStayWithinTheBound) {
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, job->world_size(), kBucketBytes);
  const core::TestStream stream;
  const DeviceGradientReducerOptions options = {
      .micro_batches_per_step = GetParam(), .reduction = Reduction::kFast, .stream = stream.get()};
  auto reducer = DeviceGradientReducer::Create(layout, shards, devices, options);
  ASSERT_TRUE(reducer.ok()) << reducer.status();
  const ReducerCost cost = DeviceGradientReducer::Cost(layout, shards, job->rank(), options);
  for (int64_t step = 0; step < 2; ++step) {
    const int64_t before = devices->bytes_sent();
    ASSERT_NO_FATAL_FAILURE(RunDeviceStep(layout, step, GetParam(), stream.get(), reducer->get()));
    const auto sums = (*reducer)->FinishStep();
    ASSERT_TRUE(sums.ok()) << sums.status();
    EXPECT_EQ(devices->bytes_sent() - before, cost.sent_bytes_per_step);
    const std::vector<float> got =
        Copy(*sums, shards.NumBlocksOf(job->rank()) * core::kBlockElems, stream.get());
    ExpectWithinFastBound(layout, shards, job->rank(), step, GetParam(), got);
  }
}

TEST(DeviceGradientReducer, SendsABucketWhenItsLastTensorIsReady) {
  if (job->world_size() == 1) GTEST_SKIP() << "one rank sends nothing";
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, job->world_size(), kBucketBytes);
  const core::TestStream stream;
  {
    auto reducer = DeviceGradientReducer::Create(
        layout, shards, devices,
        {.micro_batches_per_step = 2 * job->world_size(), .stream = stream.get()});
    ASSERT_TRUE(reducer.ok()) << reducer.status();
    (*reducer)->BeginStep();
    for (int64_t micro = 0; micro < 2; ++micro) {
      (*reducer)->BeginMicroBatch();
      for (int64_t tensor = 0; tensor < layout.num_tensors(); ++tensor) {
        const int64_t bucket = shards.BucketOfTensor(tensor);
        const bool fills =
            tensor + 1 == layout.num_tensors() || shards.BucketOfTensor(tensor + 1) != bucket;
        const int64_t before = devices->bytes_sent();
        ASSERT_TRUE((*reducer)->TensorReady(tensor).ok());
        const int64_t others =
            shards.bucket(bucket).size() - shards.Run(bucket, job->rank()).size();
        EXPECT_EQ(devices->bytes_sent() - before,
                  micro == 1 && fills ? others * core::kBlockElems * 4 : 0)
            << "micro-batch " << micro << ", tensor " << tensor;
      }
    }
    ASSERT_TRUE((*reducer)->FinishStep().ok());
    ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
    ASSERT_TRUE(job->Barrier().ok());
  }
}

int64_t FreeBytes() {
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return static_cast<int64_t>(free);
}

// The stand-in counts bytes; a device gives out whole pages.
TEST_P(DeviceGradientReducerOverNccl, AllocatesWhatItsCostSays) {
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, job->world_size(), kBucketBytes);
  const core::TestStream stream;
  for (const Reduction reduction : {Reduction::kOrdered, Reduction::kFast}) {
    const DeviceGradientReducerOptions options = {
        .micro_batches_per_step = GetParam(), .reduction = reduction, .stream = stream.get()};
    const int64_t before = FreeBytes();
    const auto reducer = DeviceGradientReducer::Create(layout, shards, devices, options);
    ASSERT_TRUE(reducer.ok()) << reducer.status();
    const ReducerCost cost = DeviceGradientReducer::Cost(layout, shards, job->rank(), options);
    const int64_t want = cost.leaf_bytes + cost.partial_bytes + cost.receive_bytes;
#if defined(BITSHARD_ON_CUDAHOST)
    EXPECT_EQ(before - FreeBytes(), want);
#else
    EXPECT_LE(before - FreeBytes(), want + 16 * (int64_t{2} << 20));
#endif
    ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
  }
}

TEST(DeviceGradientReducer, SaysHowLongTheStreamWaitedForALateRank) {
  if (job->world_size() == 1) GTEST_SKIP() << "one rank waits for nobody";
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, job->world_size(), kBucketBytes);
  const core::TestStream stream;
  auto reducer = DeviceGradientReducer::Create(
      layout, shards, devices,
      {.micro_batches_per_step = job->world_size(), .stream = stream.get()});
  ASSERT_TRUE(reducer.ok()) << reducer.status();
  EXPECT_EQ((*reducer)->exposed_seconds(), 0);
  ASSERT_TRUE(job->Barrier().ok());
  if (job->rank() == 0) absl::SleepFor(absl::Seconds(2));  // Others may begin to wait late too.
  ASSERT_NO_FATAL_FAILURE(
      RunDeviceStep(layout, 0, job->world_size(), stream.get(), reducer->get()));
  ASSERT_TRUE((*reducer)->FinishStep().ok());
  ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
  const double waited = (*reducer)->exposed_seconds();
  EXPECT_GE(waited, job->rank() == 0 ? 0 : 0.1);
  EXPECT_LT(waited, 30);
  EXPECT_EQ((*reducer)->exposed_seconds(), waited);
  ASSERT_TRUE(job->Barrier().ok());
}

TEST(DeviceGradientReducer, RefusesMoreRanksThanMicroBatches) {
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, job->world_size(), kBucketBytes);
  const auto reducer =
      DeviceGradientReducer::Create(layout, shards, devices, {.micro_batches_per_step = 0});
  EXPECT_EQ(core::KindOf(reducer.status()), core::ErrorKind::kConfig) << reducer.status();
}

int Main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  auto comm = MpiCommunicator::Create({.timeout = absl::Seconds(60)});
  if (!comm.ok()) {
    std::fprintf(stderr, "%s\n", comm.status().ToString().c_str());
    return core::ExitCode(comm.status());
  }
  job = comm->get();
  if (!EveryRankHasADevice(job)) {
    (void)job->Finalize();
    return 77;
  }
  auto nccl = NcclCommunicator::Create(
      {.host = job, .device = job->local_rank(), .timeout = absl::Seconds(60)});
  if (!nccl.ok()) {
    std::fprintf(stderr, "%s\n", nccl.status().ToString().c_str());
    return core::ExitCode(nccl.status());
  }
  devices = nccl->get();
  const int failed = RUN_ALL_TESTS();
  absl::Status status = devices->Finalize();
  if (status.ok()) status = job->Finalize();
  if (!status.ok()) EndJob(job, status, status.ToString());
  return failed;
}

}  // namespace
}  // namespace bitshard::comm

int main(int argc, char** argv) { return bitshard::comm::Main(argc, argv); }
