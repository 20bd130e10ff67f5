// Double quantisation of scales, and a 4-bit tensor with its scales.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/status_macros.h"
#include "quant/blockwise.h"
#include "quant/blockwise_4bit.h"
#include "quant/codebook.h"

namespace bitshard::quant {
namespace {

std::span<const float> NestedCode() { return SignedDynamicTable().values; }

absl::Status CheckNested(const DoubleQuantizedAbsmax& in, int64_t n) {
  if (std::ssize(in.codes) != n || std::ssize(in.absmax) != NumBlocks(n, kNestedBlockSize)) {
    return core::ConfigError(absl::StrCat("double-quantised absmax: ", in.codes.size(),
                                          " codes and ", in.absmax.size(), " scales, want ", n,
                                          " and ", NumBlocks(n, kNestedBlockSize)));
  }
  return absl::OkStatus();
}

absl::Status CheckTensor(const Tensor4Bit& in, int64_t begin, int64_t count) {
  if (in.block_size < 2 || in.block_size % 2 != 0) {
    return core::ConfigError(absl::StrCat("4-bit tensor: block_size is ", in.block_size,
                                          ", want an even number from 2"));
  }
  if (in.numel < 0 || std::ssize(in.packed) != PackedBytes(in.numel)) {
    return core::ConfigError(absl::StrCat("4-bit tensor: ", in.packed.size(), " packed bytes for ",
                                          in.numel, " elements"));
  }
  const int64_t blocks = NumBlocks(in.numel, in.block_size);
  if (in.double_quant) {
    BITSHARD_RETURN_IF_ERROR(CheckNested(in.nested, blocks));
  } else if (std::ssize(in.absmax) != blocks) {
    return core::ConfigError(
        absl::StrCat("4-bit tensor: absmax has ", in.absmax.size(), " entries, want ", blocks));
  }
  const int64_t end = begin + count;
  if (begin < 0 || begin > in.numel - count || begin % in.block_size != 0 ||
      (end % in.block_size != 0 && end != in.numel)) {
    return core::ConfigError(absl::StrCat("4-bit tensor: elements [", begin, ", ", end, ") of ",
                                          in.numel, ", want bounds at multiples of block_size ",
                                          in.block_size));
  }
  return absl::OkStatus();
}

// The scales of blocks [first, first + count): where they are, or decoded into `buffer`.
const float* Scales(const Tensor4Bit& in, int64_t first, int64_t count,
                    std::vector<float>* buffer) {
  if (!in.double_quant) return in.absmax.data() + first;
  const float* code = NestedCode().data();
  buffer->resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t block = first + i;
    const float difference = code[in.nested.codes[static_cast<size_t>(block)]] *
                             in.nested.absmax[static_cast<size_t>(block / kNestedBlockSize)];
    (*buffer)[static_cast<size_t>(i)] = difference + in.nested.offset;
  }
  return buffer->data();
}

// Calls run(packed, scales, count, offset into the output) on runs of whole blocks of [begin, begin
// + n).
template <class Run>
void ForEachRun(const Tensor4Bit& in, int64_t begin, int64_t n, Run run) {
  const int64_t size = in.block_size;
  const int64_t begin_block = begin / size;
  core::ParallelFor(NumBlocks(n, size), internal::GrainBlocks4Bit(size),
                    [&](int64_t first, int64_t last) {
                      std::vector<float> buffer;
                      const float* scales = Scales(in, begin_block + first, last - first, &buffer);
                      const int64_t offset = first * size;
                      run(in.packed.data() + (begin + offset) / 2, scales,
                          std::min(n, last * size) - offset, offset);
                    });
}

}  // namespace

absl::Status QuantizeAbsmax(std::span<const float> absmax, DoubleQuantizedAbsmax* out) {
  double sum = 0;
  for (const float a : absmax) sum += double{a};
  const float offset =
      absmax.empty() ? 0.0f : static_cast<float>(sum / static_cast<double>(absmax.size()));
  std::vector<float> difference(absmax.size());
  for (size_t i = 0; i < absmax.size(); ++i) difference[i] = absmax[i] - offset;
  out->offset = offset;
  out->codes.resize(absmax.size());
  out->absmax.resize(static_cast<size_t>(NumBlocks(std::ssize(absmax), kNestedBlockSize)));
  return QuantizeBlockwise(difference, NestedCode(), kNestedBlockSize, out->codes, out->absmax);
}

absl::Status DequantizeAbsmax(const DoubleQuantizedAbsmax& in, std::span<float> out) {
  BITSHARD_RETURN_IF_ERROR(CheckNested(in, std::ssize(out)));
  BITSHARD_RETURN_IF_ERROR(
      DequantizeBlockwise(in.codes, NestedCode(), in.absmax, kNestedBlockSize, out));
  for (float& a : out) a = a + in.offset;
  return absl::OkStatus();
}

absl::Status QuantizeTensor4Bit(std::span<const float> x, Type4Bit type, int64_t block_size,
                                bool double_quant, Tensor4Bit* out) {
  if (block_size < 2) {
    return core::ConfigError(
        absl::StrCat("4-bit tensor: block_size is ", block_size, ", want an even number from 2"));
  }
  Tensor4Bit made;
  made.type = type;
  made.block_size = block_size;
  made.numel = std::ssize(x);
  made.double_quant = double_quant;
  made.packed.resize(static_cast<size_t>(PackedBytes(made.numel)));
  made.absmax.resize(static_cast<size_t>(NumBlocks(made.numel, block_size)));
  BITSHARD_RETURN_IF_ERROR(Quantize4Bit(x, type, block_size, made.packed, made.absmax));
  if (double_quant) {
    BITSHARD_RETURN_IF_ERROR(QuantizeAbsmax(made.absmax, &made.nested));
    made.absmax = std::vector<float>();  // Assigning {} would keep its memory.
  }
  *out = std::move(made);
  return absl::OkStatus();
}

absl::Status DequantizeTensor4Bit(const Tensor4Bit& in, int64_t begin, std::span<float> out) {
  BITSHARD_RETURN_IF_ERROR(CheckTensor(in, begin, std::ssize(out)));
  ForEachRun(in, begin, std::ssize(out),
             [&](const uint8_t* packed, const float* scales, int64_t count, int64_t offset) {
               internal::DequantizeRun4Bit(packed, scales, count, in.type, in.block_size,
                                           out.data() + offset);
             });
  return absl::OkStatus();
}

absl::Status DequantizeTensor4BitToBf16(const Tensor4Bit& in, int64_t begin,
                                        std::span<uint16_t> out) {
  BITSHARD_RETURN_IF_ERROR(CheckTensor(in, begin, std::ssize(out)));
  ForEachRun(in, begin, std::ssize(out),
             [&](const uint8_t* packed, const float* scales, int64_t count, int64_t offset) {
               internal::DequantizeRun4BitToBf16(packed, scales, count, in.type, in.block_size,
                                                 out.data() + offset);
             });
  return absl::OkStatus();
}

}  // namespace bitshard::quant
