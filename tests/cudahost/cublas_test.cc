// The stand-in for cuBLAS: column-major products as the library's manual defines them, against sums
// in float64, and what it refuses.
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/core/device_array.h"
#include "tests/cudahost/runtime_test.h"

namespace cudahost {
namespace {

using bitshard::core::DeviceArray;
using bitshard::core::TestStream;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Small whole numbers: exact in bfloat16, and so are their sums in float32.
std::vector<float> Numbers(size_t n, uint32_t seed) {
  std::vector<float> numbers(n);
  for (size_t i = 0; i < n; ++i)
    numbers[i] = static_cast<float>((i * 7919 + seed * 104729) % 17) - 8.0f;
  return numbers;
}

std::vector<__nv_bfloat16> Rounded(const std::vector<float>& from) {
  std::vector<__nv_bfloat16> to;
  for (const float x : from) to.push_back(__float2bfloat16(x));
  return to;
}

class CublasTest : public testing::Test {
 protected:
  CublasTest() {
    EXPECT_EQ(cublasCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasSetStream(handle_, stream_.get()), CUBLAS_STATUS_SUCCESS);
  }
  ~CublasTest() override { EXPECT_EQ(cublasDestroy(handle_), CUBLAS_STATUS_SUCCESS); }

  // C [2, 2] = A [2, 3] B [3, 2] without transposition.
  cublasStatus_t Product(const void* a, const void* b, void* c, float beta = 0, int64_t lda = 2) {
    const float alpha = 1;
    return cublasGemmEx_64(handle_, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 3, &alpha, a, CUDA_R_32F, lda,
                           b, CUDA_R_32F, 3, &beta, c, CUDA_R_32F, 2, CUBLAS_COMPUTE_32F,
                           CUBLAS_GEMM_DEFAULT);
  }

  TestStream stream_;
  cublasHandle_t handle_ = nullptr;
};

struct Sizes {
  int64_t m, n, k;
};

// Element (i, j) of op(x), x stored column by column with `stride` elements from one to the next.
double At(const std::vector<float>& x, bool transposed, int64_t stride, int64_t i, int64_t j) {
  return x[static_cast<size_t>(transposed ? i * stride + j : j * stride + i)];
}

TEST_F(CublasTest, MultipliesColumnMajorMatricesTransposedOrNot) {
  for (const Sizes s : {Sizes{5, 3, 4}, Sizes{1, 7, 2}, Sizes{8, 8, 16}}) {
    for (int bits = 0; bits < 16; ++bits) {
      const bool ta = (bits & 1) != 0, tb = (bits & 2) != 0;
      const bool narrow = (bits & 4) != 0, narrow_out = narrow && (bits & 8) != 0;
      const int64_t lda = (ta ? s.k : s.m) + 1, ldb = (tb ? s.n : s.k) + 2, ldc = s.m + 3;
      const auto a = Numbers(static_cast<size_t>(lda * (ta ? s.m : s.k)), 1);
      const auto b = Numbers(static_cast<size_t>(ldb * (tb ? s.k : s.n)), 2);
      const auto c = Numbers(static_cast<size_t>(ldc * s.n), 3);
      const DeviceArray<float> a32(a, stream_.get()), b32(b, stream_.get()), c32(c, stream_.get());
      const DeviceArray<__nv_bfloat16> a16(Rounded(a), stream_.get()),
          b16(Rounded(b), stream_.get()), c16(Rounded(c), stream_.get());
      const float alpha = 2, beta = -1;
      ASSERT_EQ(cublasGemmEx_64(handle_, ta ? CUBLAS_OP_T : CUBLAS_OP_N,
                                tb ? CUBLAS_OP_T : CUBLAS_OP_N, s.m, s.n, s.k, &alpha,
                                narrow ? static_cast<void*>(a16.data()) : a32.data(),
                                narrow ? CUDA_R_16BF : CUDA_R_32F, lda,
                                narrow ? static_cast<void*>(b16.data()) : b32.data(),
                                narrow ? CUDA_R_16BF : CUDA_R_32F, ldb, &beta,
                                narrow_out ? static_cast<void*>(c16.data()) : c32.data(),
                                narrow_out ? CUDA_R_16BF : CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F,
                                CUBLAS_GEMM_DEFAULT),
                CUBLAS_STATUS_SUCCESS);
      const auto wide = c32.Get();
      const auto half = c16.Get();
      for (int64_t j = 0; j < s.n; ++j) {
        for (int64_t i = 0; i < ldc; ++i) {
          const size_t at = static_cast<size_t>(j * ldc + i);
          double want = c[at];  // Between the columns nothing changes.
          if (i < s.m) {
            double sum = 0;
            for (int64_t p = 0; p < s.k; ++p) sum += At(a, ta, lda, i, p) * At(b, tb, ldb, p, j);
            want = 2 * sum - want;
          }
          const float got = narrow_out ? __bfloat162float(half[at]) : wide[at];
          const float expected = static_cast<float>(want);
          ASSERT_EQ(got, narrow_out ? __bfloat162float(__float2bfloat16(expected)) : expected)
              << "case " << bits << ", element (" << i << ", " << j << ")";
        }
      }
    }
  }
}

TEST_F(CublasTest, OverwritesWhateverTheResultHoldsWhereBetaIsZero) {
  const DeviceArray<float> a({1, 2, 3, 4, 5, 6}, stream_.get()),
      b({1, 0, 0, 0, 1, 1}, stream_.get()), c({NAN, NAN, NAN, NAN}, stream_.get());
  ASSERT_EQ(Product(a.data(), b.data(), c.data()), CUBLAS_STATUS_SUCCESS);
  EXPECT_THAT(c.Get(), ElementsAre(1, 2, 8, 10));
}

TEST_F(CublasTest, RefusesHostMemoryShortBuffersAndAliases) {
  std::vector<float> host(6, 1.0f);
  const DeviceArray<float> six(host, stream_.get()), other(host, stream_.get()),
      c({0, 0, 0, 0}, stream_.get());
  EXPECT_EQ(Product(host.data(), six.data(), c.data()), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Product(six.data(), other.data(), host.data()), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Product(c.data(), six.data(), other.data()), CUBLAS_STATUS_INVALID_VALUE)
      << "A has 4 of 6";
  EXPECT_EQ(Product(six.data(), other.data(), six.data()), CUBLAS_STATUS_INVALID_VALUE) << "C is A";
  EXPECT_EQ(Product(six.data(), other.data(), c.data(), 0, 1), CUBLAS_STATUS_INVALID_VALUE)
      << "lda";
  EXPECT_EQ(cublasSetMathMode(handle_, CUBLAS_TF32_TENSOR_OP_MATH), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(Product(six.data(), other.data(), c.data()), CUBLAS_STATUS_SUCCESS);
}

class CublasFaultsTest : public RuntimeTest {
 protected:
  // c = a a, of one element each, put on a stream of its own.
  static cudaStream_t Square(const void* a, void* c) {
    const float alpha = 1, beta = 0;
    const cudaStream_t stream = NonBlockingStream();
    cublasHandle_t handle = nullptr;
    EXPECT_EQ(cublasCreate(&handle), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasSetStream(handle, stream), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasGemmEx_64(handle, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 1, &alpha, a, CUDA_R_32F, 1,
                              a, CUDA_R_32F, 1, &beta, c, CUDA_R_32F, 1, CUBLAS_COMPUTE_32F,
                              CUBLAS_GEMM_DEFAULT),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasDestroy(handle), CUBLAS_STATUS_SUCCESS);
    return stream;
  }
};

TEST_F(CublasFaultsTest, AProductRunsWhenItsStreamGetsThere) {
  StayLazy();
  float* c = reinterpret_cast<float*>(DeviceInts(1));
  float* a = reinterpret_cast<float*>(DeviceInts(1));
  ASSERT_EQ(cudaMemset(a, 0, sizeof(float)), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const cudaStream_t stream = Square(a, c);
  EXPECT_TRUE(std::isnan(*c)) << "the device has not been waited for";
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(*c, 0.0f);
}

TEST_F(CublasFaultsTest, AFactorThatWasNeverWrittenIsReported) {
  const cudaStream_t stream = Square(DeviceInts(1), DeviceInts(1));
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("cublasGemmEx_64 reads of A what was never")));
}

}  // namespace
}  // namespace cudahost
