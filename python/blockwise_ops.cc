// 8-bit and 4-bit blocks. The arithmetic is quant/blockwise.h's; here are types, shapes and parts.
#include "python/blockwise_ops.h"

#include <array>
#include <numeric>

#include "core/check.h"
#include "python/kernel_table.h"
#include "python/tensor_args.h"
#include "quant/blockwise.h"
#include "quant/blockwise_4bit.h"
#include "quant/codebook.h"

namespace bitshard::python {

using at::ScalarType;
using at::Tensor;

quant::Type4Bit TypeOf4Bit(c10::string_view name) {
  TORCH_CHECK(name == "nf4" || name == "fp4", "quant_type must be 'nf4' or 'fp4', got '", name,
              "'");
  return name == "nf4" ? quant::Type4Bit::kNf4 : quant::Type4Bit::kFp4;
}

Packed4Bit MakePacked4Bit(const Tensor& codes, const Tensor& absmax, int64_t block_size,
                          quant::Type4Bit type, int64_t elems) {
  TORCH_CHECK(block_size >= 2 && block_size % 2 == 0, "invalid blocksize ", block_size,
              ": 4-bit blocks have an even number of elements");
  const Tensor bytes = codes.contiguous();
  const int64_t num_bytes = static_cast<int64_t>(bytes.nbytes());
  TORCH_CHECK(num_bytes >= quant::PackedBytes(elems), "4-bit tensor: ", num_bytes, " bytes for ",
              elems, " elements, want ", quant::PackedBytes(elems));
  TORCH_CHECK(absmax.numel() >= quant::NumBlocks(elems, block_size), "4-bit tensor: absmax has ",
              absmax.numel(), " entries for ", elems, " elements in blocks of ", block_size,
              ", want ", quant::NumBlocks(elems, block_size));
  return {.codes = bytes,
          .absmax = ContiguousFloats(absmax),
          .block_size = block_size,
          .type = type,
          .elems = elems};
}

void DequantizePart(const Packed4Bit& in, int64_t begin, int64_t count, float* out) {
  quant::internal::DequantizeRun4Bit(
      static_cast<const uint8_t*>(in.codes.const_data_ptr()) + begin / 2,
      in.absmax.const_data_ptr<float>() + begin / in.block_size, count, in.type, in.block_size,
      out);
}

Tensor NestedAbsmax(const Tensor& codes, const Tensor& absmax, const Tensor& table,
                    const Tensor& offset) {
  CheckType(codes, at::kByte, "absmax_8bit");
  const Tensor bytes = codes.contiguous();
  const Tensor out = at::empty({bytes.numel()}, at::kFloat);
  const Tensor scales = ContiguousFloats(absmax).flatten();
  const int64_t blocks = quant::NumBlocks(bytes.numel(), quant::kNestedBlockSize);
  TORCH_CHECK(scales.numel() >= blocks, "absmax has ", scales.numel(), " entries for ",
              bytes.numel(), " nested scales, want ", blocks);
  ThrowIfError(quant::DequantizeBlockwise(ReadSpan<uint8_t>(bytes),
                                          ReadSpan<float>(ContiguousFloats(table)),
                                          ReadSpan<float>(scales.narrow(0, 0, blocks)),
                                          quant::kNestedBlockSize, WriteSpan<float>(out)));
  return out.add_(ContiguousFloats(offset));
}

namespace {

// --- 8-bit ---

std::tuple<Tensor, Tensor> QuantizeBlockwise(const Tensor& a, const Tensor& code,
                                             int64_t block_size) {
  CountCall("quantize_blockwise");
  TORCH_CHECK(block_size > 0, "blocksize must be positive, got ", block_size);
  const Tensor x = a.contiguous();
  const Tensor table = ContiguousFloats(code);
  const int64_t n = x.numel();
  block_size = std::min(block_size, std::max<int64_t>(n, 1));
  const Tensor out = at::empty(a.sizes(), at::kByte);
  const Tensor absmax = at::empty({quant::NumBlocks(n, block_size)}, at::kFloat);
  ThrowIfError(quant::MakeCodeTable(ReadSpan<float>(table)).status());
  ForEachPart(n, block_size, [&](int64_t begin, int64_t count, int64_t block) {
    std::vector<float> buffer;
    const size_t blocks = static_cast<size_t>(quant::NumBlocks(count, block_size));
    const size_t elems = static_cast<size_t>(count);
    const absl::Status status = quant::QuantizeBlockwise(
        {ReadFloats(x, begin, count, &buffer), elems}, ReadSpan<float>(table), block_size,
        {out.data_ptr<uint8_t>() + begin, elems}, {absmax.data_ptr<float>() + block, blocks});
    BITSHARD_CHECK(status.ok()) << status;
  });
  return {out, absmax};
}

void DequantizeBlockwiseTo(const Tensor& a, const Tensor& absmax, const Tensor& code,
                           int64_t block_size, const Tensor& out) {
  TORCH_CHECK(block_size > 0, "blocksize must be positive, got ", block_size);
  CheckType(a, at::kByte, "A");
  const Tensor q = a.contiguous();
  const Tensor table = ContiguousFloats(code);
  const Tensor scales = ContiguousFloats(absmax);
  const int64_t n = q.numel();
  block_size = std::min(block_size, std::max<int64_t>(n, 1));
  TORCH_CHECK(table.numel() == quant::kTableSize8, "code has ", table.numel(), " entries, want ",
              quant::kTableSize8);
  TORCH_CHECK(scales.numel() >= quant::NumBlocks(n, block_size), "absmax has ", scales.numel(),
              " entries for ", n, " elements in blocks of ", block_size, ", want ",
              quant::NumBlocks(n, block_size));
  ForEachPart(n, block_size, [&](int64_t begin, int64_t count, int64_t block) {
    std::vector<float> buffer;
    const bool direct = out.scalar_type() == at::kFloat;
    if (!direct) buffer.resize(static_cast<size_t>(count));
    float* to = direct ? out.data_ptr<float>() + begin : buffer.data();
    const size_t blocks = static_cast<size_t>(quant::NumBlocks(count, block_size));
    const size_t elems = static_cast<size_t>(count);
    const absl::Status status = quant::DequantizeBlockwise(
        {q.const_data_ptr<uint8_t>() + begin, elems}, ReadSpan<float>(table),
        {scales.const_data_ptr<float>() + block, blocks}, block_size, {to, elems});
    BITSHARD_CHECK(status.ok()) << status;
    if (!direct) WriteFloats(to, count, out, begin);
  });
}

Tensor DequantizeBlockwise(const Tensor& a, const Tensor& absmax, const Tensor& code,
                           int64_t block_size, ScalarType dtype) {
  CountCall("dequantize_blockwise");
  const Tensor out = at::empty(a.sizes(), dtype);
  DequantizeBlockwiseTo(a, absmax, code, block_size, out);
  return out;
}

void CheckOut(const Tensor& out, at::IntArrayRef shape, ScalarType dtype) {
  TORCH_CHECK(out.sizes() == shape, "Expected out.shape == ", shape, ", got ", out.sizes());
  TORCH_CHECK(out.scalar_type() == dtype, "Expected out.dtype == ", dtype, ", got ",
              out.scalar_type());
}

void DequantizeBlockwiseOut(const Tensor& a, const Tensor& absmax, const Tensor& code,
                            int64_t block_size, ScalarType dtype, const Tensor& out) {
  CountCall("dequantize_blockwise.out");
  CheckOut(out, a.sizes(), dtype);
  ComputeInto(out, [&](const Tensor& target) {
    DequantizeBlockwiseTo(a, absmax, code, block_size, target);
  });
}

// --- 4-bit ---

std::tuple<Tensor, Tensor> Quantize4Bit(const Tensor& a, int64_t block_size,
                                        c10::string_view quant_type, ScalarType storage) {
  CountCall("quantize_4bit");
  const quant::Type4Bit type = TypeOf4Bit(quant_type);
  TORCH_CHECK(block_size >= 2 && block_size % 2 == 0, "invalid blocksize ", block_size,
              ": 4-bit blocks have an even number of elements");
  const Tensor x = a.contiguous();
  const int64_t n = x.numel();
  const int64_t bytes = quant::PackedBytes(n);
  const int64_t width = static_cast<int64_t>(at::elementSize(storage));
  TORCH_CHECK(bytes % width == 0, "quant_storage ", storage, " of ", width,
              " bytes can't hold the ", bytes, " bytes of ", n, " elements in 4 bits: use uint8");
  const Tensor packed = at::empty({bytes / width, 1}, storage);
  const Tensor absmax = at::empty({quant::NumBlocks(n, block_size)}, at::kFloat);
  ForEachPart(n, block_size, [&](int64_t begin, int64_t count, int64_t block) {
    std::vector<float> buffer;
    quant::internal::QuantizeRun4Bit(ReadFloats(x, begin, count, &buffer), count, type, block_size,
                                     static_cast<uint8_t*>(packed.data_ptr()) + begin / 2,
                                     absmax.data_ptr<float>() + block);
  });
  return {packed, absmax};
}

void Dequantize4BitTo(const Packed4Bit& in, const Tensor& out) {
  ForEachPart(in.elems, in.block_size, [&](int64_t begin, int64_t count, int64_t block) {
    if (out.scalar_type() == at::kFloat)
      return DequantizePart(in, begin, count, out.data_ptr<float>() + begin);
    if (out.scalar_type() == at::kBFloat16) {
      return quant::internal::DequantizeRun4BitToBf16(
          static_cast<const uint8_t*>(in.codes.const_data_ptr()) + begin / 2,
          in.absmax.const_data_ptr<float>() + block, count, in.type, in.block_size,
          static_cast<uint16_t*>(out.data_ptr()) + begin);
    }
    std::vector<float> buffer(static_cast<size_t>(count));
    DequantizePart(in, begin, count, buffer.data());
    WriteFloats(buffer.data(), count, out, begin);
  });
}

int64_t ElemsOf(at::IntArrayRef shape) {
  for (const int64_t size : shape) TORCH_CHECK(size >= 0, "shape has a negative size: ", shape);
  return c10::multiply_integers(shape);
}

Tensor Dequantize4Bit(const Tensor& a, const Tensor& absmax, int64_t block_size,
                      c10::string_view quant_type, at::IntArrayRef shape, ScalarType dtype) {
  CountCall("dequantize_4bit");
  const Packed4Bit in =
      MakePacked4Bit(a, absmax, block_size, TypeOf4Bit(quant_type), ElemsOf(shape));
  const Tensor out = at::empty(shape, dtype);
  Dequantize4BitTo(in, out);
  return out;
}

void Dequantize4BitOut(const Tensor& a, const Tensor& absmax, int64_t block_size,
                       c10::string_view quant_type, at::IntArrayRef shape, ScalarType dtype,
                       const Tensor& out) {
  CountCall("dequantize_4bit.out");
  CheckOut(out, shape, dtype);
  const Packed4Bit in =
      MakePacked4Bit(a, absmax, block_size, TypeOf4Bit(quant_type), ElemsOf(shape));
  ComputeInto(out, [&](const Tensor& target) { Dequantize4BitTo(in, target); });
}

constexpr std::array<Kernel, 6> kKernels = {{
    {"quantize_blockwise", "(Tensor A, Tensor code, int blocksize) -> (Tensor, Tensor)",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(QuantizeBlockwise)); }},
    {"dequantize_blockwise",
     "(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype) -> Tensor",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(DequantizeBlockwise)); }},
    {"dequantize_blockwise.out",
     "(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype, Tensor! out) -> ()",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(DequantizeBlockwiseOut)); }},
    {"quantize_4bit",
     "(Tensor A, int blocksize, str quant_type, ScalarType quant_storage) -> (Tensor, Tensor)",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(Quantize4Bit)); }},
    {"dequantize_4bit",
     "(Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, ScalarType dtype)"
     " -> Tensor",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(Dequantize4Bit)); }},
    {"dequantize_4bit.out",
     "(Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, ScalarType dtype,"
     " Tensor! out) -> ()",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(Dequantize4BitOut)); }},
}};

}  // namespace

std::span<const Kernel> BlockwiseKernels() { return kKernels; }

}  // namespace bitshard::python
