// The passes on a device against those on the CPU, which decoder_oracle_test.py holds to
// transformers and PEFT: small models of each family with every feature that the family adds.
#include "trainer/model/device_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/core/device_array.h"
#include "tests/trainer/model/small_model.h"
#include "trainer/model/adapter.h"
#ifdef BITSHARD_ON_CUDAHOST
#include "tests/cudahost/runtime.h"
#endif

namespace bitshard::trainer {
namespace {

using core::DeviceArray;
using core::TestStream;
using ::testing::HasSubstr;

DecoderOptions Options(ActivationType compute) {
  DecoderOptions options;
  options.compute = compute;
  options.lora = {.r = 4, .alpha = 8, .dropout = 0.1};
  options.max_tokens = 50;
  options.max_sample_tokens = 30;
  return options;
}

struct Result {
  LossSum sum;
  std::vector<float> gradients;
  double evaluated = 0, evaluated_base = 0;  // Nats.
};

// Both matrices random: with B = 0, as training starts, A's gradient would not show.
std::vector<float> Parameters(const ModelConfig& config, const DecoderOptions& options) {
  const auto adapter = Adapter::Create(config, options.lora);
  std::vector<float> parameters(static_cast<size_t>(adapter->layout().padded_elems()));
  for (const core::FlatTensor& t : adapter->layout().tensors()) {
    Fill(t.name, 0, 0.2f,
         std::span(parameters)
             .subspan(static_cast<size_t>(t.offset()), static_cast<size_t>(t.numel)));
  }
  return parameters;
}

Result OnCpu(const ModelConfig& config, const DecoderOptions& options) {
  const auto decoder = Decoder::Create(RandomSource(config), options);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  const std::vector<float> parameters = Parameters(config, options);
  Result result{.gradients = std::vector<float>(parameters.size())};
  const auto sum = (*decoder)->ForwardBackward(
      Batch(), {.parameters = parameters, .gradients = result.gradients, .seed = 7, .step = 3},
      [](int64_t) { return absl::OkStatus(); });
  EXPECT_TRUE(sum.ok()) << sum.status();
  result.sum = *sum;
  result.evaluated = (*decoder)->Evaluate(Batch(), parameters, {})->nats;
  result.evaluated_base = (*decoder)->Evaluate(Batch(), {}, {})->nats;
  return result;
}

Result OnDevice(const ModelConfig& config, const DecoderOptions& options) {
  const TestStream stream;
  const auto decoder = DeviceDecoder::Create(RandomSource(config), options, stream.get());
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  const std::vector<float> host = Parameters(config, options);
  const DeviceArray<float> parameters(host, stream.get());
  const DeviceArray<float> gradients(std::vector<float>(host.size()), stream.get());
  std::vector<int64_t> ready;
  const auto sum = (*decoder)->ForwardBackward(
      Batch(),
      {.parameters = parameters.data(), .gradients = gradients.data(), .seed = 7, .step = 3},
      [&](int64_t tensor) {
        ready.push_back(tensor);
        return absl::OkStatus();
      });
  EXPECT_TRUE(sum.ok()) << sum.status();
  for (size_t i = 0; i < ready.size(); ++i) EXPECT_EQ(ready[i], static_cast<int64_t>(i));
  EXPECT_EQ(static_cast<int64_t>(ready.size()),
            Adapter::Create(config, options.lora)->layout().num_tensors());
  Result result{.sum = *sum, .gradients = gradients.Get()};
  result.evaluated = (*decoder)->Evaluate(Batch(), parameters.data())->nats;
  result.evaluated_base = (*decoder)->Evaluate(Batch(), nullptr)->nats;
  return result;
}

// The largest difference within a tensor, relative to its largest value.
void ExpectClose(const Result& device, const Result& cpu, const core::FlatLayout& layout,
                 double loss_bound, double gradient_bound) {
  EXPECT_EQ(device.sum.tokens, cpu.sum.tokens);
  EXPECT_EQ(device.sum.trained_tokens, cpu.sum.trained_tokens);
  EXPECT_LT(std::abs(device.sum.nats / cpu.sum.nats - 1), loss_bound);
  EXPECT_LT(std::abs(device.evaluated / cpu.evaluated - 1), loss_bound);
  EXPECT_LT(std::abs(device.evaluated_base / cpu.evaluated_base - 1), loss_bound);
  EXPECT_NE(device.evaluated, device.sum.nats) << "dropout does nothing";
  EXPECT_GT(std::abs(device.evaluated / device.evaluated_base - 1), 1e-3) << "nor does the adapter";
  double worst = 0;
  for (const core::FlatTensor& t : layout.tensors()) {
    double largest = 0, difference = 0;
    for (int64_t e = t.offset(); e < t.offset() + t.numel; ++e) {
      const size_t i = static_cast<size_t>(e);
      largest = std::max<double>(largest, std::abs(cpu.gradients[i]));
      const double d = std::abs(double{device.gradients[i]} - double{cpu.gradients[i]});
      difference = std::isnan(d) ? INFINITY : std::max(difference, d);
    }
    EXPECT_GT(largest, 0) << t.name;
    EXPECT_LE(difference, gradient_bound * largest) << t.name;
    worst = std::max(worst, difference / largest);
  }
  ::testing::Test::RecordProperty("largest_relative_difference", std::to_string(worst));
}

class DeviceDecoderTest : public testing::TestWithParam<std::string> {};

// The bounds of decoder_oracle_test.py: rounding of sums of some hundred terms in another order.
TEST_P(DeviceDecoderTest, AgreesWithTheCpuInFloat32) {
  const ModelConfig config = Family(GetParam());
  const DecoderOptions options = Options(ActivationType::kFloat32);
  ExpectClose(OnDevice(config, options), OnCpu(config, options),
              Adapter::Create(config, options.lora)->layout(), 2e-5, 1e-4);
}
INSTANTIATE_TEST_SUITE_P(Families, DeviceDecoderTest,
                         testing::Values("llama", "mistral", "qwen2", "qwen3"));

// Each is within the bounds of decoder_oracle_test.py of float32, so both within twice that of each
// other; the loss of a whole batch averages its tokens' errors.
TEST(DeviceDecoder, AgreesWithTheCpuInBFloat16) {
  const ModelConfig config = Family("qwen3");
  const DecoderOptions options = Options(ActivationType::kBFloat16);
  ExpectClose(OnDevice(config, options), OnCpu(config, options),
              Adapter::Create(config, options.lora)->layout(), 4e-2, 1.6e-1);
}

TEST(DeviceDecoder, AgreesWithTheCpuOnDenseWeightsAndSomeTargets) {
  const ModelConfig config = Family("llama");
  DecoderOptions options = Options(ActivationType::kFloat32);
  options.load_in_4bit = false;
  options.lora.target_modules = {"q_proj", "down_proj"};
  ExpectClose(OnDevice(config, options), OnCpu(config, options),
              Adapter::Create(config, options.lora)->layout(), 2e-5, 1e-4);
}

TEST(DeviceDecoder, GivesTheSameBitsAgainAndWithoutCheckpointing) {
  for (const ActivationType compute : {ActivationType::kFloat32, ActivationType::kBFloat16}) {
    DecoderOptions options = Options(compute);
    const Result first = OnDevice(Family("qwen2"), options);
    const Result again = OnDevice(Family("qwen2"), options);
    options.activation_checkpointing = false;
    const Result kept = OnDevice(Family("qwen2"), options);
    for (const Result* other : {&again, &kept}) {
      EXPECT_EQ(first.sum.nats, other->sum.nats);
      EXPECT_TRUE(std::ranges::equal(first.gradients, other->gradients));
    }
  }
}

TEST(DeviceDecoder, RefusesHeadsThatTheKernelsHaveNoRoomFor) {
  ModelConfig config = Family("llama");
  config.head_dim = 264;
  const TestStream stream;
  const auto decoder =
      DeviceDecoder::Create(RandomSource(config), Options(ActivationType::kFloat32), stream.get());
  EXPECT_EQ(core::KindOf(decoder.status()), core::ErrorKind::kConfig);
  EXPECT_THAT(std::string(decoder.status().message()), HasSubstr("heads of 264 elements"));
}

#ifdef BITSHARD_ON_CUDAHOST
TEST(DeviceDecoder, TakesTheMemoryThatItsCostSays) {
  for (const ActivationType compute : {ActivationType::kFloat32, ActivationType::kBFloat16}) {
    const ModelConfig config = Family("qwen3");
    const DecoderOptions options = Options(compute);
    const TestStream stream;
    size_t before = 0, after = 0, total = 0;
    ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
    const auto decoder = DeviceDecoder::Create(RandomSource(config), options, stream.get());
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    ASSERT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
    const int64_t taken = static_cast<int64_t>(before - after);
    const int64_t planned = DeviceDecoder::Cost(config, options)->total();
    EXPECT_GE(taken, planned);
    EXPECT_LT(taken, planned + 4 * 256) << "four allocations, each rounded up";
  }
}

TEST(DeviceDecoder, SaysWhatDoesNotFitIntoTheDevice) {
  const size_t whole = cudahost::CurrentSettings().device_bytes;
  const TestStream stream;
  cudahost::SetDeviceBytes(8 << 20);  // The workspace of products alone takes more.
  const auto decoder = DeviceDecoder::Create(RandomSource(Family("llama")),
                                             Options(ActivationType::kFloat32), stream.get());
  cudahost::SetDeviceBytes(whole);
  EXPECT_EQ(core::KindOf(decoder.status()), core::ErrorKind::kMemory);
  EXPECT_THAT(std::string(decoder.status().message()), HasSubstr("cuBLAS's workspace"));
}
#endif

}  // namespace
}  // namespace bitshard::trainer
