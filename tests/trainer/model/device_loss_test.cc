// Cross-entropy on the device against the CPU's.
#include "trainer/model/device_loss.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "tests/trainer/model/device_test.h"
#include "trainer/model/kernels.h"

namespace bitshard::trainer {
namespace {

using core::DeviceArray;
using core::TestStream;

template <class T>
class DeviceLoss : public testing::Test {
 protected:
  const TestStream stream_;

  DeviceCrossEntropyArgs Args(T* logits, const int32_t* targets, double* nats, int64_t vocab,
                              bool gradient) {
    return {.logits = logits,
            .targets = targets,
            .nats = nats,
            .rows = 3,
            .vocab = vocab,
            .loss_scale = 0.125f,
            .gradient = gradient,
            .type = kTypeOf<T>,
            .stream = stream_.get()};
  }
};
TYPED_TEST_SUITE(DeviceLoss, Activations);

// What the sums of exponentials differ by at most, relative. Both sum at most a quarter of the
// terms, or what a thread has of them and the tree over 256 threads, one after another. The device
// also shrinks a sum when its maximum grows: an exp, a product, and the exponent's difference
// rounded again, for each pack of a thread and each level of the tree.
double SumError(int64_t vocab, double range) {
  const double terms = static_cast<double>(vocab);
  const double shrinks = terms / 1024 + 1 + 8;
  return kEps * (terms / 4 + 16 + 2.25 + shrinks * (2 + range));
}

// Of the row whose logits are furthest apart.
double Range(const std::vector<float>& logits, int64_t vocab) {
  double range = 0;
  for (auto row = logits.begin(); row != logits.end(); row += vocab) {
    const auto [low, high] = std::minmax_element(row, row + vocab);
    range = std::max(range, static_cast<double>(*high) - *low);
  }
  return range;
}

TYPED_TEST(DeviceLoss, IsTheCpus) {
  for (const int64_t vocab : {512, 2504, 3001}) {
    std::vector<TypeParam> logits = Normals<TypeParam>(3 * vocab, 1, 4);
    // In the last row a 0 from past its end would be what matters.
    for (int64_t i = 2 * vocab; i < 3 * vocab; ++i) {
      TypeParam& x = logits[static_cast<size_t>(i)];
      SetRounded(Wide(x) - 40, &x);
    }
    const std::vector<int32_t> targets = {0, static_cast<int32_t>(vocab - 1), 300};
    const std::vector<float> wide = Widened(logits);
    const double error = SumError(vocab, Range(wide, vocab));
    std::vector<float> want = wide;
    std::vector<double> nats(3);
    CrossEntropy(CrossEntropyArgs<float>{.logits = want.data(),
                                         .targets = targets.data(),
                                         .nats = nats.data(),
                                         .rows = 3,
                                         .vocab = vocab,
                                         .loss_scale = 0.125f});
    const auto bound = [&](size_t i) {
      const int64_t row = static_cast<int64_t>(i) / vocab;
      const bool at_target = static_cast<int64_t>(i) % vocab == targets[static_cast<size_t>(row)];
      const double softmax = std::abs(want[i]) + (at_target ? 0.125 : 0);
      return (error + 5 * kEps) * softmax + 1e-37;
    };
    for (const bool gradient : {true, false}) {
      InEachOrder([&] {
        const DeviceArray<TypeParam> on_device(logits, this->stream_.get());
        const DeviceArray<int32_t> on_targets(targets, this->stream_.get());
        const DeviceArray<double> got(std::vector<double>(3, -1), this->stream_.get());
        ASSERT_TRUE(DeviceCrossEntropy(this->Args(on_device.data(), on_targets.data(), got.data(),
                                                  vocab, gradient))
                        .ok());
        const std::vector<double> rows = got.Get();
        for (size_t i = 0; i < rows.size(); ++i)
          ASSERT_NEAR(rows[i], nats[i], error) << "row " << i;
        if (gradient) {
          ASSERT_NO_FATAL_FAILURE(ExpectNear(on_device.Get(), want, bound, "gradient"));
        } else {
          ASSERT_NO_FATAL_FAILURE(ExpectSameBits(on_device.Get(), logits, "logits"));
        }
      });
    }
  }
}

// A row whose logits are not finite makes itself heard, and no other does.
TYPED_TEST(DeviceLoss, NonFiniteLogitsGiveNoFiniteLoss) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const float bad : {std::nanf(""), inf}) {
    std::vector<TypeParam> logits = Normals<TypeParam>(3 * 600, 2);
    SetRounded(bad, &logits[600 + 77]);
    const DeviceArray<TypeParam> on_device(logits, this->stream_.get());
    const DeviceArray<int32_t> targets({1, 2, 3}, this->stream_.get());
    const DeviceArray<double> nats(std::vector<double>(3), this->stream_.get());
    ASSERT_TRUE(
        DeviceCrossEntropy(this->Args(on_device.data(), targets.data(), nats.data(), 600, true))
            .ok());
    const std::vector<double> got = nats.Get();
    EXPECT_TRUE(std::isfinite(got[0]) && !std::isfinite(got[1]) && std::isfinite(got[2]));
    const std::vector<float> gradient = Widened(on_device.Get());
    EXPECT_TRUE(
        std::all_of(&gradient[600], &gradient[1200], [](float x) { return std::isnan(x); }));
  }
}

}  // namespace
}  // namespace bitshard::trainer
