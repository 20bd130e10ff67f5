// Quantising from and dequantising to every float type on the device, bit for bit against
// quant/blockwise.h on the same values: every block size, part blocks, special blocks, arrays off
// alignment, in twenty orders of blocks and threads.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/numeric.h"
#include "quant/blockwise.h"
#include "quant/blockwise_cuda.h"
#include "quant/codebook.h"
#include "tests/core/device_array.h"

namespace bitshard::quant {
namespace {

using core::DType;

constexpr DType kFloats[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// An array of floats of one type: its bytes, and what they stand for.
struct Floats {
  DType type;
  std::vector<uint8_t> bytes;

  Floats(DType t, const std::vector<float>& x) : type(t) {
    const size_t width = static_cast<size_t>(core::ByteSize(t));
    bytes.resize(x.size() * width);
    for (size_t i = 0; i < x.size(); ++i) {
      const uint32_t bits = t == DType::kFloat32    ? core::FloatBits(x[i])
                            : t == DType::kBFloat16 ? core::Bf16FromFloat(x[i])
                                                    : core::Fp16FromFloat(x[i]);
      for (size_t b = 0; b < width; ++b)
        bytes[i * width + b] = static_cast<uint8_t>(bits >> (8 * b));
    }
  }
  std::vector<float> Widened() const {
    const size_t width = static_cast<size_t>(core::ByteSize(type));
    std::vector<float> x(bytes.size() / width);
    for (size_t i = 0; i < x.size(); ++i) {
      uint32_t bits = 0;
      for (size_t b = 0; b < width; ++b) bits |= uint32_t{bytes[i * width + b]} << (8 * b);
      x[i] = type == DType::kFloat32    ? core::FloatFromBits(bits)
             : type == DType::kBFloat16 ? core::FloatFromBf16(static_cast<uint16_t>(bits))
                                        : core::FloatFromFp16(static_cast<uint16_t>(bits));
    }
    return x;
  }
};

// Ordinary blocks, and among them blocks of zeros, of denormals, with NaN and with infinity.
std::vector<float> Values(size_t n, size_t block_size, std::mt19937* random) {
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) {
    x[i] = std::normal_distribution<float>()(*random);
    const size_t block = i / block_size;
    if (block % 7 == 1) x[i] = i % 2 == 0 ? 0.0f : -0.0f;
    if (block % 7 == 2) x[i] *= 1e-40f;
    if (block % 7 == 3 && i % block_size == 5) x[i] = std::nanf("");
    if (block % 7 == 4 && i % block_size == 30) x[i] = HUGE_VALF;
    if (block % 7 == 5) x[i] = -1.0f;
  }
  return x;
}

struct Shape {
  DType type;
  size_t block_size;
  size_t n;
  size_t shift;
  std::string Name() const {
    return core::Name(type) + ", blocks of " + std::to_string(block_size) + ", " +
           std::to_string(n) + " elements, shifted by " + std::to_string(shift);
  }
  size_t blocks() const { return (n + block_size - 1) / block_size; }
  size_t byte_shift() const { return shift * static_cast<size_t>(core::ByteSize(type)); }
  int64_t count() const { return static_cast<int64_t>(n); }
  int64_t block() const { return static_cast<int64_t>(block_size); }
};

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  for (const DType type : kFloats) {
    for (const size_t block_size : {32u, 64u, 128u, 256u, 1024u, 4096u}) {
      for (const size_t n :
           {size_t{1}, block_size - 1, block_size, block_size + 1, 9 * block_size + 7}) {
        for (const size_t shift : {0u, 1u}) shapes.push_back({type, block_size, n, shift});
      }
    }
  }
  return shapes;
}

// Equal bits, or NaN on both sides.
void ExpectSame(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) && std::isnan(want[i])) continue;
    ASSERT_EQ(core::FloatBits(got[i]), core::FloatBits(want[i]))
        << "element " << i << ": " << got[i] << ", want " << want[i];
  }
}

// What the CPU's float32 values are in the type.
std::vector<float> Rounded(DType type, const std::vector<float>& x) {
  return Floats(type, x).Widened();
}

Floats Empty(const Shape& shape) { return Floats(shape.type, std::vector<float>(shape.n)); }

void Expect8Bit(const Shape& shape, const CodeTable& table, std::mt19937* random) {
  core::TestStream stream;
  const Floats x(shape.type, Values(shape.n, shape.block_size, random));
  std::vector<uint8_t> codes(shape.n);
  std::vector<float> absmax(shape.blocks()), back(shape.n);
  ASSERT_TRUE(QuantizeBlockwise(x.Widened(), table.values, shape.block(), codes, absmax).ok());
  ASSERT_TRUE(DequantizeBlockwise(codes, table.values, absmax, shape.block(), back).ok());

  const core::DeviceArray<uint8_t> device_x(x.bytes, stream.get(), shape.byte_shift());
  const core::DeviceArray<uint8_t> device_codes(std::vector<uint8_t>(shape.n, 0xEE), stream.get(),
                                                shape.shift);
  const core::DeviceArray<float> device_absmax(std::vector<float>(shape.blocks(), -1.0f),
                                               stream.get());
  Floats out = Empty(shape);
  const core::DeviceArray<uint8_t> device_out(out.bytes, stream.get(), shape.byte_shift());
  ASSERT_TRUE(QuantizeBlockwiseCuda({.x = device_x.data(),
                                     .x_type = shape.type,
                                     .n = shape.count(),
                                     .code = table.values,
                                     .block_size = shape.block(),
                                     .out = device_codes.data(),
                                     .absmax = device_absmax.data(),
                                     .stream = stream.get()})
                  .ok());
  ASSERT_TRUE(DequantizeBlockwiseCuda({.q = device_codes.data(),
                                       .n = shape.count(),
                                       .code = table.values,
                                       .absmax = device_absmax.data(),
                                       .block_size = shape.block(),
                                       .out = device_out.data(),
                                       .out_type = shape.type,
                                       .stream = stream.get()})
                  .ok());
  EXPECT_EQ(device_codes.Get(), codes);
  ExpectSame(device_absmax.Get(), absmax);
  out.bytes = device_out.Get();
  ExpectSame(out.Widened(), Rounded(shape.type, back));
}

void Expect4Bit(const Shape& shape, Type4Bit type, std::mt19937* random) {
  core::TestStream stream;
  const Floats x(shape.type, Values(shape.n, shape.block_size, random));
  const size_t packed_bytes = (shape.n + 1) / 2;
  std::vector<uint8_t> packed(packed_bytes);
  std::vector<float> absmax(shape.blocks()), back(shape.n);
  ASSERT_TRUE(Quantize4Bit(x.Widened(), type, shape.block(), packed, absmax).ok());
  ASSERT_TRUE(Dequantize4Bit(packed, absmax, type, shape.block(), back).ok());

  const core::DeviceArray<uint8_t> device_x(x.bytes, stream.get(), shape.byte_shift());
  const core::DeviceArray<uint8_t> device_packed(std::vector<uint8_t>(packed_bytes, 0xEE),
                                                 stream.get(), shape.shift);
  const core::DeviceArray<float> device_absmax(std::vector<float>(shape.blocks(), -1.0f),
                                               stream.get());
  Floats out = Empty(shape);
  const core::DeviceArray<uint8_t> device_out(out.bytes, stream.get(), shape.byte_shift());
  ASSERT_TRUE(Quantize4BitCuda({.x = device_x.data(),
                                .x_type = shape.type,
                                .n = shape.count(),
                                .type = type,
                                .block_size = shape.block(),
                                .packed = device_packed.data(),
                                .absmax = device_absmax.data(),
                                .stream = stream.get()})
                  .ok());
  ASSERT_TRUE(Dequantize4BitCuda({.packed = device_packed.data(),
                                  .n = shape.count(),
                                  .absmax = device_absmax.data(),
                                  .type = type,
                                  .block_size = shape.block(),
                                  .out = device_out.data(),
                                  .out_type = shape.type,
                                  .stream = stream.get()})
                  .ok());
  EXPECT_EQ(device_packed.Get(), packed);
  ExpectSame(device_absmax.Get(), absmax);
  out.bytes = device_out.Get();
  ExpectSame(out.Widened(), Rounded(shape.type, back));
}

TEST(BlockwiseCudaTypes, Quantises8BitAsTheCpu) {
  std::mt19937 random(1);
  for (const Shape& shape : Shapes()) {
    SCOPED_TRACE(shape.Name());
    Expect8Bit(shape, shape.shift == 0 ? SignedDynamicTable() : UnsignedDynamicTable(), &random);
    if (HasFailure()) return;
  }
}

TEST(BlockwiseCudaTypes, Quantises4BitAsTheCpu) {
  std::mt19937 random(2);
  for (const Shape& shape : Shapes()) {
    for (const Type4Bit type : {Type4Bit::kNf4, Type4Bit::kFp4}) {
      SCOPED_TRACE(shape.Name() + (type == Type4Bit::kNf4 ? ", nf4" : ", fp4"));
      Expect4Bit(shape, type, &random);
      if (HasFailure()) return;
    }
  }
}

TEST(BlockwiseCudaTypes, GivesTheSameCodesInTwentyOrders) {
  std::mt19937 random(3);
  for (int order = 0; order < 20; ++order) {
    Expect8Bit({DType::kBFloat16, 64, 2000, 0}, SignedDynamicTable(), &random);
    Expect4Bit({DType::kBFloat16, 64, 2000, 0}, Type4Bit::kNf4, &random);
  }
}

TEST(BlockwiseCudaTypes, DequantisesNestedScalesAsTheCpu) {
  core::TestStream stream;
  std::mt19937 random(4);
  for (const size_t n : {1u, 255u, 256u, 257u, 1001u}) {
    std::vector<float> scales(n), want(n);
    for (float& s : scales) s = std::abs(std::normal_distribution<float>()(random));
    DoubleQuantizedAbsmax nested;
    ASSERT_TRUE(QuantizeAbsmax(scales, &nested).ok());
    ASSERT_TRUE(DequantizeAbsmax(nested, want).ok());
    for (const size_t shift : {0u, 1u}) {
      const core::DeviceArray<uint8_t> codes(nested.codes, stream.get(), shift);
      const core::DeviceArray<float> absmax(nested.absmax, stream.get()),
          out(std::vector<float>(n), stream.get(), shift);
      ASSERT_TRUE(DequantizeAbsmaxCuda({.codes = codes.data(),
                                        .n = static_cast<int64_t>(n),
                                        .absmax = absmax.data(),
                                        .offset = nested.offset,
                                        .out = out.data(),
                                        .stream = stream.get()})
                      .ok());
      ExpectSame(out.Get(), want);
    }
  }
}

TEST(BlockwiseCudaTypes, RefusesOtherTypesAndBlockSizes) {
  EXPECT_EQ(Dequantize4BitCuda({.n = 1, .out_type = DType::kInt8}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Quantize4BitCuda({.n = 1, .block_size = 48}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Quantize4BitCuda({.n = 1, .block_size = 16}).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace bitshard::quant
