// Attention on the device against the CPU's: both are float32 sums of the same terms in different
// orders, so their difference is bounded by roundings of the sizes of these terms, which a plain
// reference in double adds up.
#include "trainer/model/device_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/trainer/model/device_test.h"
#include "trainer/model/attention.h"

namespace bitshard::trainer {
namespace {

using core::DeviceArray;
using core::TestStream;

struct Case {
  AttentionShape shape;
  std::vector<int32_t> starts;  // Samples that tiles hold several of, and that have several tiles.
  size_t shift = 0;             // Elements off alignment.

  int64_t rows() const { return starts.back(); }
  size_t q_elems() const { return static_cast<size_t>(rows() * shape.heads * shape.head_dim); }
  size_t k_elems() const { return static_cast<size_t>(rows() * shape.kv_heads * shape.head_dim); }
};
const Case kCases[] = {
    {.shape = {.heads = 4, .kv_heads = 2, .head_dim = 64}, .starts = {0, 41, 42, 75}},
    {.shape = {.heads = 2, .kv_heads = 1, .head_dim = 128, .window = 9}, .starts = {0, 50, 67}},
    {.shape = {.heads = 2, .kv_heads = 2, .head_dim = 20}, .starts = {0, 35}, .shift = 1},
    {.shape = {.heads = 1, .kv_heads = 1, .head_dim = 160, .window = 12}, .starts = {0, 5, 26}},
};

std::vector<int32_t> Positions(const Case& c) {
  std::vector<int32_t> positions(static_cast<size_t>(c.rows()));
  for (size_t s = 0; s + 1 < c.starts.size(); ++s) {
    std::iota(positions.begin() + c.starts[s], positions.begin() + c.starts[s + 1], 0);
  }
  return positions;
}

// What the CPU makes of a case, in float32 from values that T holds; `out` is rounded to T, as
// the backward pass finds it.
template <class T>
struct Reference {
  std::vector<T> q, k, v, out, d_out;
  std::vector<float> exact_out, log_sum_exp, dq, dk, dv;
  // Sizes of what is summed in each element.
  std::vector<double> out_terms, dq_terms, dk_terms, dv_terms;
  double forward_error = 0;  // Of these, relative.
  double backward_error = 0;
  double log_error = 0;  // Of log_sum_exp, absolute.

  explicit Reference(const Case& c)
      : q(Normals<T>(static_cast<int64_t>(c.q_elems()), 1)),
        k(Normals<T>(static_cast<int64_t>(c.k_elems()), 2)),
        v(Normals<T>(static_cast<int64_t>(c.k_elems()), 3)),
        d_out(Normals<T>(static_cast<int64_t>(c.q_elems()), 4)) {
    RunCpu(c);
    AddTerms(c);
  }

 private:
  void RunCpu(const Case& c) {
    std::vector<float> wide_q = Widened(q), wide_k = Widened(k), wide_v = Widened(v);
    std::vector<float> scratch(static_cast<size_t>(
        AttentionScratchBytes(c.shape, c.rows(), /*threads=*/64) / int64_t{sizeof(float)}));
    exact_out.resize(c.q_elems());
    log_sum_exp.resize(static_cast<size_t>(c.rows() * c.shape.heads));
    AttentionArgs<float> args = {.shape = c.shape,
                                 .starts = &c.starts,
                                 .q = wide_q.data(),
                                 .k = wide_k.data(),
                                 .v = wide_v.data(),
                                 .out = exact_out.data(),
                                 .log_sum_exp = log_sum_exp.data(),
                                 .rows = c.rows(),
                                 .scratch = scratch.data(),
                                 .max_sample_tokens = c.rows()};
    Attention(args);
    out = Rounded<T>(exact_out);
    std::vector<float> rounded_out = Widened(out), wide_d = Widened(d_out);
    args.out = rounded_out.data();
    dq.resize(c.q_elems());
    dk.resize(c.k_elems());
    dv.resize(c.k_elems());
    AttentionBackward(AttentionBackwardArgs<float>{.forward = args,
                                                   .d_out = wide_d.data(),
                                                   .dq = dq.data(),
                                                   .dk = dk.data(),
                                                   .dv = dv.data()});
  }

  void AddTerms(const Case& c) {
    const AttentionShape& s = c.shape;
    const double scale = 1 / std::sqrt(static_cast<double>(s.head_dim));
    const std::vector<int32_t> positions = Positions(c);
    for (auto* terms : {&out_terms, &dq_terms}) terms->resize(c.q_elems());
    for (auto* terms : {&dk_terms, &dv_terms}) terms->resize(c.k_elems());
    double score = 0, log = 0;
    for (int64_t i = 0; i < c.rows(); ++i) {
      int64_t first = i - positions[static_cast<size_t>(i)];
      if (s.window > 0) first = std::max(first, i - s.window + 1);
      for (int64_t h = 0; h < s.heads; ++h) {
        const double lse = log_sum_exp[static_cast<size_t>(h * c.rows() + i)];
        log = std::max(log, std::abs(lse));
        const size_t at = static_cast<size_t>((i * s.heads + h) * s.head_dim);
        for (int64_t j = first; j <= i; ++j) {
          const size_t key =
              static_cast<size_t>((j * s.kv_heads + h / (s.heads / s.kv_heads)) * s.head_dim);
          double dot = 0, size = 0, d_size = 0;
          for (size_t e = 0; e < static_cast<size_t>(s.head_dim); ++e) {
            const double product = static_cast<double>(Wide(q[at + e])) * Wide(k[key + e]);
            dot += product;
            size += std::abs(product);
            d_size += std::abs(static_cast<double>(Wide(d_out[at + e]))) *
                      (std::abs(Wide(v[key + e])) + std::abs(Wide(out[at + e])));
          }
          score = std::max(score, size * scale);
          const double p = std::exp(dot * scale - lse);
          for (size_t e = 0; e < static_cast<size_t>(s.head_dim); ++e) {
            out_terms[at + e] += p * std::abs(Wide(v[key + e]));
            dq_terms[at + e] += p * scale * d_size * std::abs(Wide(k[key + e]));
            dk_terms[key + e] += p * scale * d_size * std::abs(Wide(q[at + e]));
            dv_terms[key + e] += p * std::abs(Wide(d_out[at + e]));
          }
        }
      }
    }
    SetErrors(s, static_cast<double>(c.rows()), score, log);
  }

  // On both sides together, in eps: a score is a sum of head_dim products (head_dim + 1), scaled
  // and less another number (4); its exp adds 2.25. A softmax has such errors above and below its
  // line and a sum of n terms below; the device also shrinks what it has summed for each tile of 16
  // keys or more that brings a new maximum. Products with n values add n, their ends 4.
  void SetErrors(const AttentionShape& s, double n, double score, double log) {
    const double exponent = (static_cast<double>(s.head_dim) + 5) * score + 2.25;
    const double shrinks = (n / 16 + 4) * (2 + 2 * score);
    forward_error = kEps * (2 * exponent + shrinks + 2 * n + 2 * log + 4);
    log_error = kEps * (exponent + shrinks + n + 2 * log + 4);
    // Here the sum is given, by its logarithm; d_out v and the dot are sums of head_dim products.
    const double group = static_cast<double>(s.heads / s.kv_heads);
    backward_error = kEps * (exponent + 2 * log + static_cast<double>(s.head_dim) + n * group + 8);
  }
};

template <class T>
class DeviceAttentionOf : public testing::Test {
 protected:
  const TestStream stream_;

  std::vector<T> Blank(size_t n) {
    std::vector<T> x(n);
    for (T& value : x) SetRounded(std::nanf(""), &value);
    return x;
  }
};
TYPED_TEST_SUITE(DeviceAttentionOf, Activations);

TYPED_TEST(DeviceAttentionOf, ForwardIsTheCpus) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "head_dim " << c.shape.head_dim);
    const Reference<TypeParam> want(c);
    std::vector<TypeParam> first;
    InEachOrder([&] {
      const cudaStream_t stream = this->stream_.get();
      const DeviceArray<TypeParam> q(want.q, stream, c.shift), k(want.k, stream), v(want.v, stream),
          out(this->Blank(c.q_elems()), stream);
      const DeviceArray<int32_t> positions(Positions(c), stream);
      const DeviceArray<float> log(std::vector<float>(want.log_sum_exp.size()), stream);
      ASSERT_TRUE(DeviceAttention({.shape = c.shape,
                                   .positions = positions.data(),
                                   .q = q.data(),
                                   .k = k.data(),
                                   .v = v.data(),
                                   .out = out.data(),
                                   .log_sum_exp = log.data(),
                                   .rows = c.rows(),
                                   .type = kTypeOf<TypeParam>,
                                   .stream = stream})
                      .ok());
      const std::vector<TypeParam> got = out.Get();
      ASSERT_NO_FATAL_FAILURE(ExpectNear(
          got, want.exact_out,
          [&](size_t i) { return want.forward_error * want.out_terms[i] + 1e-37; }, "out"));
      ASSERT_NO_FATAL_FAILURE(ExpectNear(
          log.Get(), want.log_sum_exp, [&](size_t) { return want.log_error; }, "log_sum_exp"));
      if (first.empty()) first = got;
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(got, first, "out in another order"));
    });
  }
}

TYPED_TEST(DeviceAttentionOf, BackwardIsTheCpus) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "head_dim " << c.shape.head_dim);
    const Reference<TypeParam> want(c);
    std::vector<TypeParam> first;
    InEachOrder([&] {
      const cudaStream_t stream = this->stream_.get();
      const DeviceArray<TypeParam> q(want.q, stream, c.shift), k(want.k, stream), v(want.v, stream),
          out(want.out, stream), d_out(want.d_out, stream), dq(this->Blank(c.q_elems()), stream),
          dk(this->Blank(c.k_elems()), stream), dv(this->Blank(c.k_elems()), stream);
      const DeviceArray<int32_t> positions(Positions(c), stream);
      const DeviceArray<float> log(want.log_sum_exp, stream),
          dots(std::vector<float>(want.log_sum_exp.size()), stream);
      ASSERT_TRUE(DeviceAttentionBackward({.forward = {.shape = c.shape,
                                                       .positions = positions.data(),
                                                       .q = q.data(),
                                                       .k = k.data(),
                                                       .v = v.data(),
                                                       .out = out.data(),
                                                       .log_sum_exp = log.data(),
                                                       .rows = c.rows(),
                                                       .type = kTypeOf<TypeParam>,
                                                       .stream = stream},
                                           .d_out = d_out.data(),
                                           .dots = dots.data(),
                                           .dq = dq.data(),
                                           .dk = dk.data(),
                                           .dv = dv.data()})
                      .ok());
      const auto bound = [&](const std::vector<double>& terms) {
        return [&](size_t i) { return want.backward_error * terms[i] + 1e-37; };
      };
      std::vector<TypeParam> got = dq.Get();
      ASSERT_NO_FATAL_FAILURE(ExpectNear(got, want.dq, bound(want.dq_terms), "dq"));
      for (const auto* more : {&dk, &dv}) {
        const std::vector<TypeParam> part = more->Get();
        const bool keys = more == &dk;
        ASSERT_NO_FATAL_FAILURE(ExpectNear(part, keys ? want.dk : want.dv,
                                           bound(keys ? want.dk_terms : want.dv_terms),
                                           keys ? "dk" : "dv"));
        got.insert(got.end(), part.begin(), part.end());
      }
      if (first.empty()) first = got;
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(got, first, "gradients in another order"));
    });
  }
}

TEST(DeviceAttentionErrors, ALargerHeadIsRefused) {
  const absl::Status status =
      DeviceAttention({.shape = {.heads = 1, .kv_heads = 1, .head_dim = 258}, .rows = 1});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("head_dim is 258, want at most 256 on a device"));
}

}  // namespace
}  // namespace bitshard::trainer
