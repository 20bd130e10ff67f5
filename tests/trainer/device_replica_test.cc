// A rank's replica on a device against the one on the host: parameters, state and losses of whole
// steps of a small model, in several orders between streams.
#include "trainer/device_replica.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/thread_communicator.h"
#include "tests/trainer/model/small_model.h"
#include "trainer/model/adapter.h"
#ifdef BITSHARD_ON_CUDAHOST
#include "tests/cudahost/runtime.h"
#endif

namespace bitshard::trainer {
namespace {

constexpr int64_t kSteps = 2;
constexpr int64_t kMicroBatches = 2;

// On the stand-in: devices that copy from and to pageable memory at once or late, and that run an
// operation now and then or only when it is waited for.
#ifdef BITSHARD_ON_CUDAHOST
constexpr uint64_t kOrders = 4;
void TakeOrder(uint64_t seed) {
  cudahost::Settings settings = cudahost::CurrentSettings();
  settings.pageable_memory_access = seed % 2 == 0;
  settings.run_ahead_percent = seed % 4 < 2 ? 0 : 25;
  settings.seed = seed;
  cudahost::Configure(settings);
}
#else
constexpr uint64_t kOrders = 1;
void TakeOrder(uint64_t) {}
#endif

// The updates of SGD grow with the gradients, so that what is nearly the same on both stays so.
Config SmallConfig() {
  Config config;
  config.optimizer.name = "sgd_32bit";
  config.batch.global_batch_size = kMicroBatches;
  config.comm.bucket_bytes = 4096;
  return config;
}

DecoderOptions SmallDecoder() {
  DecoderOptions options;
  options.lora = {.r = 4, .alpha = 8, .dropout = 0.1};
  options.max_tokens = 50;
  options.max_sample_tokens = 30;
  return options;
}

// What a replica says and leaves.
struct Trained {
  std::vector<float> before;
  std::vector<std::vector<float>> after;  // Each step.
  std::vector<float> momentum;
  std::vector<double> losses, norms;
};

void TrainOn(Replica& replica, Trained* out) {
  // Both matrices of an adapter random: B is 0 in the one that it begins with.
  for (const core::FlatTensor& t : replica.layout().tensors()) {
    Fill(t.name, 0, 0.2f,
         replica.parameters().subspan(static_cast<size_t>(t.offset()),
                                      static_cast<size_t>(t.numel)));
  }
  out->before.assign(replica.parameters().begin(), replica.parameters().end());
  ASSERT_TRUE(replica.WriteParameters().ok());
  for (int64_t step = 1; step <= kSteps; ++step) {
    replica.BeginStep();
    int64_t trained_tokens = 0;
    for (int64_t micro = 0; micro < kMicroBatches; ++micro) {
      const auto sum = replica.RunMicroBatch(Batch(), step);
      ASSERT_TRUE(sum.ok()) << sum.status();
      out->losses.push_back(sum->nats);
      trained_tokens += sum->trained_tokens;
    }
    ASSERT_TRUE(replica.FinishGradients().ok());
    const double scale = 1.0 / static_cast<double>(trained_tokens);
    const auto norm = replica.GradientNorm(scale);
    ASSERT_TRUE(norm.ok()) << norm.status();
    out->norms.push_back(*norm);
    const absl::Status updated = replica.Update({.gradient_scale = scale, .learning_rate = 0.1});
    ASSERT_TRUE(updated.ok()) << updated;
    ASSERT_TRUE(replica.ReadParameters().ok());
    out->after.emplace_back(replica.parameters().begin(), replica.parameters().end());
  }
  out->losses.push_back(replica.Evaluate(Batch(), WhichModel::kAdapted)->nats);
  out->losses.push_back(replica.Evaluate(Batch(), WhichModel::kBase)->nats);
  for (const core::BlockRange run : replica.shards().RunsOf(0)) {
    int64_t bytes = 0;
    for (int64_t block = run.begin; block < run.end; ++block)
      bytes += replica.BlockStateBytes(block);
    std::vector<float> state(static_cast<size_t>(bytes) / sizeof(float));
    ASSERT_TRUE(replica.ExportState(run, std::as_writable_bytes(std::span(state))).ok());
    out->momentum.insert(out->momentum.end(), state.begin(), state.end());
  }
  ASSERT_TRUE(replica.Close().ok());
}

void Train(decltype(&MakeDeviceReplica) make, Trained* out) {
  const RandomSource source(Family("llama"));
  const Config config = SmallConfig();
  auto ranks = comm::ThreadCommunicator::Create(1);
  const auto replica = make(
      {.config = &config, .source = &source, .comm = ranks[0].get(), .decoder = SmallDecoder()});
  ASSERT_TRUE(replica.ok()) << replica.status();
  TrainOn(**replica, out);
}

// The difference within a tensor, by how far its elements are from `from`.
void ExpectClose(const std::vector<float>& device, const std::vector<float>& host,
                 const std::vector<float>& from, const core::FlatLayout& layout, double bound) {
  ASSERT_EQ(device.size(), host.size());
  for (const core::FlatTensor& t : layout.tensors()) {
    double largest = 0, difference = 0;
    for (int64_t e = t.offset(); e < t.offset() + t.numel; ++e) {
      const size_t i = static_cast<size_t>(e);
      largest = std::max(largest, std::abs(double{host[i]} - double{from[i]}));
      const double d = std::abs(double{device[i]} - double{host[i]});
      difference = std::isnan(d) ? INFINITY : std::max(difference, d);
    }
    EXPECT_GT(largest, 0) << t.name;
    EXPECT_LE(difference, bound * largest) << t.name;
  }
}

void ExpectClose(const std::vector<double>& device, const std::vector<double>& host, double bound) {
  ASSERT_EQ(device.size(), host.size());
  for (size_t i = 0; i < host.size(); ++i)
    EXPECT_LT(std::abs(device[i] / host[i] - 1), bound) << device[i] << " " << host[i];
}

// The bounds of one pass (device_decoder_test.cc) are 2e-5 for a loss and 1e-4 for a gradient; each
// step begins with what the ones before have left.
TEST(DeviceReplica, TrainsAsTheOneOfTheHostInAnyOrderOfStreams) {
  const auto adapter = Adapter::Create(Family("llama"), SmallDecoder().lora);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  const core::FlatLayout& layout = adapter->layout();
  Trained host;
  ASSERT_NO_FATAL_FAILURE(Train(&MakeHostReplica, &host));
  EXPECT_GT(std::abs(host.losses[0] / host.losses.rbegin()[1] - 1), 1e-2) << "nothing is learnt";
  for (uint64_t seed = 1; seed <= kOrders; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    TakeOrder(seed);
    Trained device;
    ASSERT_NO_FATAL_FAILURE(Train(&MakeDeviceReplica, &device));
    ExpectClose(device.losses, host.losses, 1e-4);
    ExpectClose(device.norms, host.norms, 1e-3);
    for (size_t i = 0; i < host.after.size(); ++i)
      ExpectClose(device.after[i], host.after[i], host.before, layout, 1e-3);
    ExpectClose(device.momentum, host.momentum, std::vector<float>(host.momentum.size()), layout,
                1e-3);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace bitshard::trainer
