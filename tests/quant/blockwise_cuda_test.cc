// The device's functions against the CPU's, bit for bit. On the stand-in (tests/cudahost) with the
// memory checker and 20 orders of blocks and threads; the calls are the runtime's alone, so that
// the same source runs on a GPU.
#include "quant/blockwise_cuda.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "core/numeric.h"
#include "quant/codebook.h"
#include "tests/cudahost/selftest/device_array.h"

#if defined(BITSHARD_ON_CUDAHOST)
#include "tests/cudahost/runtime.h"
#include "tests/cudahost/sched.h"
#endif

namespace bitshard::quant {
namespace {

using core::DType;
using cudahost::DeviceArray;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

#if defined(BITSHARD_ON_CUDAHOST)
constexpr int kRounds = 20;
void StartRound(int round) { cudahost::SetSeed(static_cast<uint64_t>(round) + 1); }
#else
constexpr int kRounds = 1;
void StartRound(int) {}
#endif

class Stream {
 public:
  Stream() { EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess); }
  ~Stream() { EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Values over many decades, with every kind of special block that the size has room for.
std::vector<float> Values(int64_t n, int64_t block_size) {
  std::mt19937 random(static_cast<uint32_t>(n * 31 + block_size));
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-12, 4);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& value : x) value = std::ldexp(normal(random), exponent(random));
  const float specials[] = {kNan, kInf, -kInf, 0.0f, -0.0f, 1e-40f, 3e38f};
  for (int64_t block = 1; block * block_size < n; block += 2) {
    const float special = specials[block / 2 % 7];
    const int64_t begin = block * block_size;
    const int64_t end = std::min(begin + block_size, n);
    const bool whole = special == 0.0f || special == 1e-40f;
    for (int64_t i = begin; i < (whole ? end : begin + 1); ++i) x[static_cast<size_t>(i)] = special;
  }
  return x;
}

// NaNs are equal whatever their payload: IEEE leaves it open.
std::vector<uint32_t> Bits(std::span<const float> x) {
  std::vector<uint32_t> bits;
  for (const float value : x) {
    bits.push_back(std::isnan(value) ? 0x7FC00000u : std::bit_cast<uint32_t>(value));
  }
  return bits;
}
std::vector<uint32_t> WideBits(std::span<const uint16_t> x) {
  std::vector<float> wide;
  for (const uint16_t value : x) wide.push_back(core::FloatFromBf16(value));
  return Bits(wide);
}

struct Size {
  int64_t n;
  int64_t block_size;
};
std::ostream& operator<<(std::ostream& out, const Size& size) {
  return out << size.n << "_by_" << size.block_size;
}

class BlockwiseCuda : public testing::TestWithParam<Size> {
 protected:
  const int64_t n_ = GetParam().n;
  const int64_t block_size_ = GetParam().block_size;
  const size_t elements_ = static_cast<size_t>(n_);
  const size_t blocks_ = static_cast<size_t>(NumBlocks(n_, block_size_));
  const size_t packed_bytes_ = static_cast<size_t>(PackedBytes(n_));
  const std::vector<float> x_ = Values(n_, block_size_);
};

TEST_P(BlockwiseCuda, EightBitsEqualTheCpus) {
  const CodeTable& table = SignedDynamicTable();
  std::vector<uint8_t> codes(elements_);
  std::vector<float> absmax(blocks_);
  std::vector<float> back(elements_);
  ASSERT_TRUE(QuantizeBlockwise(x_, table.values, block_size_, codes, absmax).ok());
  ASSERT_TRUE(DequantizeBlockwise(codes, table.values, absmax, block_size_, back).ok());
  for (int round = 0; round < kRounds; ++round) {
    StartRound(round);
    const Stream stream;
    const DeviceArray<float> x(x_);
    const DeviceArray<uint8_t> q(elements_);
    const DeviceArray<float> scales(blocks_);
    const DeviceArray<float> y(elements_);
    ASSERT_TRUE(QuantizeBlockwiseCuda({.x = x.data(),
                                       .n = n_,
                                       .code = table.values,
                                       .block_size = block_size_,
                                       .out = q.data(),
                                       .absmax = scales.data(),
                                       .stream = stream.get()})
                    .ok());
    ASSERT_TRUE(DequantizeBlockwiseCuda({.q = q.data(),
                                         .n = n_,
                                         .code = table.values,
                                         .absmax = scales.data(),
                                         .block_size = block_size_,
                                         .out = y.data(),
                                         .stream = stream.get()})
                    .ok());
    ASSERT_EQ(q.ToHost(), codes) << "round " << round;
    ASSERT_EQ(Bits(scales.ToHost()), Bits(absmax)) << "round " << round;
    ASSERT_EQ(Bits(y.ToHost()), Bits(back)) << "round " << round;
  }
}

TEST_P(BlockwiseCuda, FourBitsEqualTheCpus) {
  for (const Type4Bit type : {Type4Bit::kNf4, Type4Bit::kFp4}) {
    std::vector<uint8_t> codes(packed_bytes_);
    std::vector<float> absmax(blocks_);
    std::vector<float> back(elements_);
    std::vector<uint16_t> back_bf16(elements_);
    ASSERT_TRUE(Quantize4Bit(x_, type, block_size_, codes, absmax).ok());
    ASSERT_TRUE(Dequantize4Bit(codes, absmax, type, block_size_, back).ok());
    ASSERT_TRUE(Dequantize4BitToBf16(codes, absmax, type, block_size_, back_bf16).ok());
    for (int round = 0; round < kRounds; ++round) {
      StartRound(round);
      const Stream stream;
      const DeviceArray<float> x(x_);
      const DeviceArray<uint8_t> packed(packed_bytes_);
      const DeviceArray<float> scales(blocks_);
      const DeviceArray<float> y(elements_);
      const DeviceArray<uint16_t> y_bf16(elements_);
      ASSERT_TRUE(Quantize4BitCuda({.x = x.data(),
                                    .n = n_,
                                    .type = type,
                                    .block_size = block_size_,
                                    .packed = packed.data(),
                                    .absmax = scales.data(),
                                    .stream = stream.get()})
                      .ok());
      Dequantize4BitCudaArgs back_args{.packed = packed.data(),
                                       .n = n_,
                                       .absmax = scales.data(),
                                       .type = type,
                                       .block_size = block_size_,
                                       .out = y.data(),
                                       .stream = stream.get()};
      ASSERT_TRUE(Dequantize4BitCuda(back_args).ok());
      back_args.out = y_bf16.data();
      back_args.out_type = DType::kBFloat16;
      ASSERT_TRUE(Dequantize4BitCuda(back_args).ok());
      ASSERT_EQ(packed.ToHost(), codes) << "round " << round;
      ASSERT_EQ(Bits(scales.ToHost()), Bits(absmax)) << "round " << round;
      ASSERT_EQ(Bits(y.ToHost()), Bits(back)) << "round " << round;
      ASSERT_EQ(WideBits(y_bf16.ToHost()), WideBits(back_bf16)) << "round " << round;
    }
  }
}

TEST_P(BlockwiseCuda, DoubleQuantizedScalesEqualTheCpus) {
  DoubleQuantizedAbsmax nested;
  std::vector<float> scales(elements_);
  for (size_t i = 0; i < elements_; ++i) scales[i] = std::isfinite(x_[i]) ? std::abs(x_[i]) : 1.0f;
  ASSERT_TRUE(QuantizeAbsmax(scales, &nested).ok());
  std::vector<float> back(elements_);
  ASSERT_TRUE(DequantizeAbsmax(nested, back).ok());
  for (int round = 0; round < kRounds; ++round) {
    StartRound(round);
    const Stream stream;
    const DeviceArray<uint8_t> codes(nested.codes);
    const DeviceArray<float> absmax(nested.absmax);
    const DeviceArray<float> y(elements_);
    ASSERT_TRUE(DequantizeAbsmaxCuda({.codes = codes.data(),
                                      .n = n_,
                                      .absmax = absmax.data(),
                                      .offset = nested.offset,
                                      .out = y.data(),
                                      .stream = stream.get()})
                    .ok());
    ASSERT_EQ(Bits(y.ToHost()), Bits(back)) << "round " << round;
  }
}

TEST_P(BlockwiseCuda, HalfPrecisionIsWidenedAndRoundedOnce) {
  const CodeTable& table = SignedDynamicTable();
  for (const DType type : {DType::kBFloat16, DType::kFloat16}) {
    const bool bf16 = type == DType::kBFloat16;
    std::vector<uint16_t> narrow(elements_);
    std::vector<float> wide(elements_);
    for (size_t i = 0; i < elements_; ++i) {
      narrow[i] = bf16 ? core::Bf16FromFloat(x_[i]) : core::Fp16FromFloat(x_[i]);
      wide[i] = bf16 ? core::FloatFromBf16(narrow[i]) : core::FloatFromFp16(narrow[i]);
    }
    std::vector<uint8_t> codes(elements_);
    std::vector<float> absmax(blocks_);
    std::vector<float> back(elements_);
    ASSERT_TRUE(QuantizeBlockwise(wide, table.values, block_size_, codes, absmax).ok());
    ASSERT_TRUE(DequantizeBlockwise(codes, table.values, absmax, block_size_, back).ok());
    for (float& value : back) {
      value = bf16 ? core::FloatFromBf16(core::Bf16FromFloat(value))
                   : core::FloatFromFp16(core::Fp16FromFloat(value));
    }
    const Stream stream;
    const DeviceArray<uint16_t> x(narrow);
    const DeviceArray<uint8_t> q(elements_);
    const DeviceArray<float> scales(blocks_);
    const DeviceArray<uint16_t> y(elements_);
    ASSERT_TRUE(QuantizeBlockwiseCuda({.x = x.data(),
                                       .x_type = type,
                                       .n = n_,
                                       .code = table.values,
                                       .block_size = block_size_,
                                       .out = q.data(),
                                       .absmax = scales.data(),
                                       .stream = stream.get()})
                    .ok());
    ASSERT_TRUE(DequantizeBlockwiseCuda({.q = q.data(),
                                         .n = n_,
                                         .code = table.values,
                                         .absmax = scales.data(),
                                         .block_size = block_size_,
                                         .out = y.data(),
                                         .out_type = type,
                                         .stream = stream.get()})
                    .ok());
    ASSERT_EQ(q.ToHost(), codes);
    ASSERT_EQ(Bits(scales.ToHost()), Bits(absmax));
    std::vector<float> got;
    for (const uint16_t value : y.ToHost()) {
      got.push_back(bf16 ? core::FloatFromBf16(value) : core::FloatFromFp16(value));
    }
    ASSERT_EQ(Bits(got), Bits(back));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, BlockwiseCuda,
                         testing::Values(Size{1, 32}, Size{1002, 32}, Size{1003, 32},
                                         Size{2048, 64}, Size{2049, 64}, Size{1023, 128},
                                         Size{255, 256}, Size{257, 256}, Size{5 * 256 + 7, 256},
                                         Size{3000, 512}, Size{4097, 4096}, Size{9000, 4096}),
                         testing::PrintToStringParamName());

TEST(BlockwiseCuda, RefusesWhatTheCpuRefuses) {
  const CodeTable& table = SignedDynamicTable();
  EXPECT_EQ(QuantizeBlockwiseCuda({.n = 1, .code = table.values, .block_size = 48}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DequantizeBlockwiseCuda({.n = 1, .code = std::span(table.values, 255)}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Quantize4BitCuda({.n = 1, .block_size = 16}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Dequantize4BitCuda({.n = 0}).ok());
}

#if defined(BITSHARD_ON_CUDAHOST)
TEST(BlockwiseCuda, NamesTheKernelThatIsNotLaunched) {
  cudahost::FailCall("kernel", 1, cudaErrorLaunchOutOfResources);
  const absl::Status status = Dequantize4BitCuda({.n = 64, .block_size = 64});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("Dequantize4BitCuda"));
}
#endif

}  // namespace
}  // namespace bitshard::quant
