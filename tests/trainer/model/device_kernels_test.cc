// The decoder's operations on the device against those on the CPU: bit for bit where a result is
// one chain of IEEE operations, else within the sum of what both sides may be off by.
#include "trainer/model/device_kernels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/trainer/model/device_test.h"
#include "trainer/data/micro_batch.h"
#include "trainer/model/dropout.h"
#include "trainer/model/kernels.h"

namespace bitshard::trainer {
namespace {

using core::DeviceArray;
using core::DType;
using core::TestStream;

// Of the exp of both sides: 1.25 ulp (device_math.h) and 1 (Highway).
constexpr double kExpError = 2.25 * kEps;

template <class T>
class DeviceKernels : public testing::Test {
 protected:
  const TestStream stream_;

  DeviceArray<T> OnDevice(const std::vector<T>& x, size_t shift = 0) {
    return DeviceArray<T>(x, stream_.get(), shift);
  }
  DeviceArray<float> Floats(const std::vector<float>& x) {
    return DeviceArray<float>(x, stream_.get());
  }
};
TYPED_TEST_SUITE(DeviceKernels, Activations);

// Rows as they are in models, and ones that no pack fits.
struct RowSize {
  int64_t rows;
  int64_t n;
};
constexpr RowSize kRowSizes[] = {{11, 64}, {3, 264}, {9, 13}};

TYPED_TEST(DeviceKernels, GatherAndScatterMoveRows) {
  for (const RowSize size : kRowSizes) {
    const size_t n = static_cast<size_t>(size.n), rows = static_cast<size_t>(size.rows);
    std::vector<TypeParam> table = Normals<TypeParam>(size.n * (size.rows + 4), 1);
    std::vector<int32_t> index(rows);
    std::iota(index.begin(), index.end(), 2);
    std::reverse(index.begin(), index.end());
    std::vector<TypeParam> gathered(rows * n), scattered = Normals<TypeParam>(size.n * 20, 2);
    std::vector<TypeParam> target = scattered;
    for (size_t r = 0; r < rows; ++r) {
      const size_t at = static_cast<size_t>(index[r]) * n;
      std::copy_n(&table[at], n, &gathered[r * n]);
      std::copy_n(&gathered[r * n], n, &scattered[at]);
    }
    InEachOrder([&] {
      const auto from = this->OnDevice(table), out = this->OnDevice(target),
                 to = this->OnDevice(target);
      const DeviceArray<int32_t> on_device(index, this->stream_.get());
      ASSERT_TRUE(DeviceGather({.from = from.data(),
                                .index = on_device.data(),
                                .out = out.data(),
                                .rows = size.rows,
                                .n = size.n,
                                .type = kTypeOf<TypeParam>,
                                .stream = this->stream_.get()})
                      .ok());
      ASSERT_TRUE(DeviceScatter({.from = out.data(),
                                 .index = on_device.data(),
                                 .to = to.data(),
                                 .rows = size.rows,
                                 .n = size.n,
                                 .type = kTypeOf<TypeParam>,
                                 .stream = this->stream_.get()})
                      .ok());
      std::vector<TypeParam> got = out.Get();
      got.resize(rows * n);
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(got, gathered, "gathered"));
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(to.Get(), scattered, "scattered"));
    });
  }
}

TYPED_TEST(DeviceKernels, RopeEqualsTheCpus) {
  for (const int64_t head_dim : {64, 128, 10}) {
    const int64_t rows = 9, heads = 3, positions = 20;
    const std::vector<float> cosine = Normals<float>(positions * head_dim / 2, 3),
                             sine = Normals<float>(positions * head_dim / 2, 4);
    std::vector<int32_t> at = {0, 1, 2, 19, 0, 7, 8, 3, 1};
    const std::vector<TypeParam> x = Normals<TypeParam>(rows * heads * head_dim, 5);
    for (const bool inverse : {false, true}) {
      std::vector<TypeParam> want = x;
      Rope(RopeArgs<TypeParam>{.x = want.data(),
                               .positions = at.data(),
                               .cosine = cosine.data(),
                               .sine = sine.data(),
                               .rows = rows,
                               .heads = heads,
                               .head_dim = head_dim,
                               .inverse = inverse});
      InEachOrder([&] {
        const auto on_device = this->OnDevice(x);
        const DeviceArray<int32_t> where(at, this->stream_.get());
        const auto c = this->Floats(cosine), s = this->Floats(sine);
        ASSERT_TRUE(DeviceRope({.x = on_device.data(),
                                .positions = where.data(),
                                .cosine = c.data(),
                                .sine = s.data(),
                                .rows = rows,
                                .heads = heads,
                                .head_dim = head_dim,
                                .inverse = inverse,
                                .type = kTypeOf<TypeParam>,
                                .stream = this->stream_.get()})
                        .ok());
        ASSERT_NO_FATAL_FAILURE(ExpectSameBits(on_device.Get(), want, "x"));
      });
    }
  }
}

TYPED_TEST(DeviceKernels, BiasEqualsTheCpus) {
  for (const RowSize size : kRowSizes) {
    const std::vector<TypeParam> y = Normals<TypeParam>(size.rows * size.n, 6);
    const std::vector<float> bias = Normals<float>(size.n, 7);
    std::vector<TypeParam> want = y;
    AddBias(want.data(), bias.data(), size.rows, size.n);
    InEachOrder([&] {
      const auto out = this->OnDevice(y);
      const auto b = this->Floats(bias);
      ASSERT_TRUE(DeviceAddBias({.y = out.data(),
                                 .bias = b.data(),
                                 .rows = size.rows,
                                 .n = size.n,
                                 .type = kTypeOf<TypeParam>,
                                 .stream = this->stream_.get()})
                      .ok());
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(out.Get(), want, "y"));
    });
  }
}

TYPED_TEST(DeviceKernels, ConversionEqualsTheCpus) {
  for (const size_t shift : {0u, 1u}) {
    std::vector<float> wide = Normals<float>(1003, 8, 1e20f);
    const float inf = std::numeric_limits<float>::infinity();
    for (const float special : {0.0f, -0.0f, inf, -inf, std::nanf(""), 1e-40f, 3.4e38f})
      wide.push_back(special);
    const int64_t n = static_cast<int64_t>(wide.size());
    std::vector<TypeParam> narrow(wide.size());
    std::vector<float> back(wide.size());
    Convert(wide.data(), narrow.data(), n);
    Convert(narrow.data(), back.data(), n);
    InEachOrder([&] {
      const auto x = this->Floats(wide), z = this->Floats(std::vector<float>(wide.size()));
      const auto y = this->OnDevice(std::vector<TypeParam>(wide.size()), shift);
      const DType type = kTypeOf<TypeParam>;
      ASSERT_TRUE(DeviceConvert({.x = x.data(),
                                 .x_type = DType::kFloat32,
                                 .y = y.data(),
                                 .y_type = type,
                                 .n = n,
                                 .stream = this->stream_.get()})
                      .ok());
      ASSERT_TRUE(DeviceConvert({.x = y.data(),
                                 .x_type = type,
                                 .y = z.data(),
                                 .y_type = DType::kFloat32,
                                 .n = n,
                                 .stream = this->stream_.get()})
                      .ok());
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(y.Get(), narrow, "y"));
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(z.Get(), back, "z"));
    });
  }
}

// With s = 1 / (1 + exp(-g)): relative errors of exp and, on each side, of the sum and the
// quotient make 2.25 + 2 eps for s, and each product adds one.
TYPED_TEST(DeviceKernels, SwiGluIsTheCpus) {
  for (const size_t shift : {0u, 1u}) {
    std::vector<TypeParam> gate = Normals<TypeParam>(1003, 9, 3), up = Normals<TypeParam>(1003, 10),
                           d_out = Normals<TypeParam>(1003, 11);
    for (const float extreme : {100.0f, -100.0f, 0.0f, -0.0f}) {
      SetRounded(extreme, &gate.emplace_back());
      SetRounded(1.5f, &up.emplace_back());
      SetRounded(-2.0f, &d_out.emplace_back());
    }
    const int64_t n = static_cast<int64_t>(gate.size());
    const std::vector<float> g = Widened(gate), u = Widened(up), d = Widened(d_out);
    std::vector<float> want(g.size()), want_gate(g.size()), want_up(g.size());
    SwiGlu(g.data(), u.data(), want.data(), n);
    SwiGluBackward(SwiGluBackwardArgs<float>{.gate = g.data(),
                                             .up = u.data(),
                                             .d_out = d.data(),
                                             .d_gate = want_gate.data(),
                                             .d_up = want_up.data(),
                                             .n = n});
    // The slope is s (1 + g (1 - s)): 4.25 eps of s, 5.25 |g| of g (1 - s), and four roundings.
    const auto gate_bound = [&](size_t i) {
      const double s = 1 / (1 + std::exp(-static_cast<double>(g[i])));
      return 15 * kEps * std::abs(d[i] * u[i]) * s * (1 + std::abs(g[i])) + 1e-37;
    };
    InEachOrder([&] {
      const auto on_gate = this->OnDevice(gate, shift), on_up = this->OnDevice(up),
                 on_d = this->OnDevice(d_out), out = this->OnDevice(gate);
      const DType type = kTypeOf<TypeParam>;
      ASSERT_TRUE(DeviceSwiGlu({.gate = on_gate.data(),
                                .up = on_up.data(),
                                .out = out.data(),
                                .n = n,
                                .type = type,
                                .stream = this->stream_.get()})
                      .ok());
      ASSERT_TRUE(DeviceSwiGluBackward({.gate = on_gate.data(),
                                        .up = on_up.data(),
                                        .d_out = on_d.data(),
                                        .d_gate = on_gate.data(),
                                        .d_up = on_up.data(),
                                        .n = n,
                                        .type = type,
                                        .stream = this->stream_.get()})
                      .ok());
      const auto relative = [&](const std::vector<float>& of) {
        return [&of](size_t i) { return (kExpError + 4 * kEps) * std::abs(of[i]) + 1e-37; };
      };
      ASSERT_NO_FATAL_FAILURE(ExpectNear(out.Get(), want, relative(want), "out"));
      ASSERT_NO_FATAL_FAILURE(ExpectNear(on_gate.Get(), want_gate, gate_bound, "d_gate"));
      ASSERT_NO_FATAL_FAILURE(ExpectNear(on_up.Get(), want_up, relative(want_up), "d_up"));
    });
  }
}

// Warps have rows of up to 1024 elements, blocks of threads longer ones.
constexpr RowSize kNormSizes[] = {{11, 64}, {9, 13}, {3, 1032}, {2, 1501}};

// A sum of n positive terms is off by n roundings at most on each side: n eps / 2 each, halved by
// the root; the rest of the inverse has three roundings a side, and y two more.
TYPED_TEST(DeviceKernels, RmsNormIsTheCpus) {
  for (const RowSize size : kNormSizes) {
    const std::vector<TypeParam> x = Normals<TypeParam>(size.rows * size.n, 12);
    const std::vector<float> weight = Normals<float>(size.n, 13), wide = Widened(x);
    std::vector<float> want(x.size()), inverse(static_cast<size_t>(size.rows));
    RmsNorm(RmsNormArgs<float>{.x = wide.data(),
                               .weight = weight.data(),
                               .y = want.data(),
                               .inverse_rms = inverse.data(),
                               .rows = size.rows,
                               .n = size.n,
                               .eps = 1e-5f});
    const double error = (static_cast<double>(size.n) / 2 + 3) * kEps;
    InEachOrder([&] {
      const auto on_device = this->OnDevice(x), y = this->OnDevice(x);
      const auto w = this->Floats(weight), kept = this->Floats(std::vector<float>(inverse.size()));
      ASSERT_TRUE(DeviceRmsNorm({.x = on_device.data(),
                                 .weight = w.data(),
                                 .y = y.data(),
                                 .inverse_rms = kept.data(),
                                 .rows = size.rows,
                                 .n = size.n,
                                 .eps = 1e-5f,
                                 .type = kTypeOf<TypeParam>,
                                 .stream = this->stream_.get()})
                      .ok());
      ASSERT_NO_FATAL_FAILURE(ExpectNear(
          kept.Get(), inverse, [&](size_t i) { return error * inverse[i]; }, "inverse"));
      ASSERT_NO_FATAL_FAILURE(ExpectNear(
          y.Get(), want, [&](size_t i) { return (error + 2 * kEps) * std::abs(want[i]); }, "y"));
    });
  }
}

// The dot is off by n + 2 roundings of the sum of its terms' sizes on each side; what it is
// multiplied with adds four, the products of the other part three, the sums two.
TYPED_TEST(DeviceKernels, RmsNormBackwardIsTheCpus) {
  for (const RowSize size : kNormSizes) {
    const int64_t elems = size.rows * size.n;
    const std::vector<TypeParam> x = Normals<TypeParam>(elems, 14),
                                 dy = Normals<TypeParam>(elems, 15),
                                 add = Normals<TypeParam>(elems, 16);
    const std::vector<float> weight = Normals<float>(size.n, 17), wide_x = Widened(x),
                             wide_dy = Widened(dy), wide_add = Widened(add);
    const std::vector<float> inverse = Normals<float>(size.rows, 18);
    for (const bool has_add : {true, false}) {
      std::vector<float> want(x.size()), bound(x.size());
      RmsNormBackward(RmsNormBackwardArgs<float>{.x = wide_x.data(),
                                                 .weight = weight.data(),
                                                 .inverse_rms = inverse.data(),
                                                 .dy = wide_dy.data(),
                                                 .add = has_add ? wide_add.data() : nullptr,
                                                 .dx = want.data(),
                                                 .rows = size.rows,
                                                 .n = size.n});
      for (size_t row = 0; row < inverse.size(); ++row) {
        const size_t n = static_cast<size_t>(size.n), begin = row * n;
        const double r = std::abs(inverse[row]);
        double sizes = 0;
        for (size_t i = 0; i < n; ++i)
          sizes += std::abs(wide_dy[begin + i] * weight[i] * wide_x[begin + i]);
        const double shift = sizes * r * r * r / static_cast<double>(n);
        for (size_t i = 0; i < n; ++i) {
          const double parts = (static_cast<double>(n) + 8) * shift * std::abs(wide_x[begin + i]) +
                               5 * std::abs(wide_dy[begin + i] * weight[i]) * r +
                               (has_add ? std::abs(wide_add[begin + i]) : 0);
          bound[begin + i] = static_cast<float>(kEps * parts);
        }
      }
      InEachOrder([&] {
        const auto on_x = this->OnDevice(x), on_dy = this->OnDevice(dy),
                   on_add = this->OnDevice(add);
        const auto w = this->Floats(weight), saved = this->Floats(inverse);
        TypeParam* const dx = has_add ? on_add.data() : on_dy.data();
        ASSERT_TRUE(DeviceRmsNormBackward({.x = on_x.data(),
                                           .weight = w.data(),
                                           .inverse_rms = saved.data(),
                                           .dy = on_dy.data(),
                                           .add = has_add ? on_add.data() : nullptr,
                                           .dx = dx,
                                           .rows = size.rows,
                                           .n = size.n,
                                           .type = kTypeOf<TypeParam>,
                                           .stream = this->stream_.get()})
                        .ok());
        ASSERT_NO_FATAL_FAILURE(ExpectNear(
            has_add ? on_add.Get() : on_dy.Get(), want, [&](size_t i) { return bound[i]; }, "dx"));
      });
    }
  }
}

TYPED_TEST(DeviceKernels, DropoutHasTheCpusMask) {
  const DropoutKey key = {.seed = 42, .step = 7, .layer = 3, .module = 5, .probability = 0.3f};
  MicroBatch batch;
  batch.starts = {0, 4, 5, 11};
  batch.sample_ids = {17, int64_t{1} << 40, 3};
  std::vector<int32_t> positions;
  std::vector<int64_t> ids;
  for (size_t s = 0; s + 1 < batch.starts.size(); ++s) {
    for (int32_t t = batch.starts[s]; t < batch.starts[s + 1]; ++t) {
      positions.push_back(t - batch.starts[s]);
      ids.push_back(batch.sample_ids[s]);
    }
  }
  for (const int64_t n : {64, 264, 13}) {
    const int64_t rows = static_cast<int64_t>(ids.size());
    const std::vector<TypeParam> x = Normals<TypeParam>(rows * n, 19),
                                 y = Normals<TypeParam>(rows * n, 20);
    std::vector<TypeParam> dropped(x.size()), added = y;
    Dropout(key, batch, x.data(), n, dropped.data());
    AddDropout(key, batch, x.data(), n, added.data());
    InEachOrder([&] {
      const auto on_x = this->OnDevice(x), on_y = this->OnDevice(y);
      const DeviceArray<int32_t> at(positions, this->stream_.get());
      const DeviceArray<int64_t> of(ids, this->stream_.get());
      DeviceDropoutArgs args = {.key = key,
                                .positions = at.data(),
                                .sample_ids = of.data(),
                                .x = on_x.data(),
                                .y = on_y.data(),
                                .rows = rows,
                                .n = n,
                                .type = kTypeOf<TypeParam>,
                                .stream = this->stream_.get()};
      ASSERT_TRUE(DeviceAddDropout(args).ok());
      args.y = on_x.data();
      ASSERT_TRUE(DeviceDropout(args).ok());
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(on_y.Get(), added, "added"));
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(on_x.Get(), dropped, "dropped"));
    });
  }
}

TEST(DeviceKernelsErrors, AnotherTypeIsRefusedByName) {
  const TestStream stream;
  const absl::Status status =
      DeviceSwiGlu({.n = 8, .type = DType::kFloat16, .stream = stream.get()});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("DeviceSwiGlu: type is float16, want float32 or bfloat16"));
}

}  // namespace
}  // namespace bitshard::trainer
