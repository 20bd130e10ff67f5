// 8-bit blockwise loops: which block is whose, nothing about rounding.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/status_macros.h"
#include "quant/block_codec.h"
#include "quant/blockwise.h"
#include "quant/codebook.h"
#include "quant/streaming.h"

#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/blockwise_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "quant/block_codec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace bitshard::quant::HWY_NAMESPACE {

template <bool kSigned>
void QuantizeBlocks(const float* x, int64_t n, int64_t block_size, uint8_t* out, float* absmax) {
  const DynamicCoder<kSigned> coder;
  for (int64_t begin = 0; begin < n; begin += block_size) {
    *absmax++ = EncodeBlock(coder, x + begin, std::min(block_size, n - begin), out + begin);
  }
}

template <bool kSigned>
void DequantizeBlocks(const uint8_t* q, int64_t n, int64_t block_size, const float* absmax,
                      float* out, bool stream) {
  const DynamicCoder<kSigned> coder;
  for (int64_t begin = 0; begin < n; begin += block_size) {
    const int64_t elems = std::min(block_size, n - begin);
    const float scale = *absmax++;
    if (stream) {
      StreamDecoded(elems, out + begin, [&](int64_t at, int64_t count, float* to) {
        DecodeBlock(coder, q + begin + at, count, scale, to);
      });
    } else {
      DecodeBlock(coder, q + begin, elems, scale, out + begin);
    }
  }
  if (stream) hwy::FlushStream();
}

void QuantizeSigned(const float* x, int64_t n, int64_t block_size, uint8_t* out, float* absmax) {
  QuantizeBlocks<true>(x, n, block_size, out, absmax);
}
void QuantizeUnsigned(const float* x, int64_t n, int64_t block_size, uint8_t* out, float* absmax) {
  QuantizeBlocks<false>(x, n, block_size, out, absmax);
}
void DequantizeSigned(const uint8_t* q, int64_t n, int64_t block_size, const float* absmax,
                      float* out, bool stream) {
  DequantizeBlocks<true>(q, n, block_size, absmax, out, stream);
}
void DequantizeUnsigned(const uint8_t* q, int64_t n, int64_t block_size, const float* absmax,
                        float* out, bool stream) {
  DequantizeBlocks<false>(q, n, block_size, absmax, out, stream);
}

}  // namespace bitshard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace bitshard::quant {
namespace {

HWY_EXPORT(QuantizeSigned);
HWY_EXPORT(QuantizeUnsigned);
HWY_EXPORT(DequantizeSigned);
HWY_EXPORT(DequantizeUnsigned);

constexpr int64_t kGrainElems = 1 << 15;

int64_t GrainBlocks(int64_t block_size) { return std::max<int64_t>(1, kGrainElems / block_size); }

absl::Status CheckSizes(const char* function, int64_t n, int64_t codes, int64_t absmax,
                        int64_t block_size) {
  if (block_size < 1) {
    return core::ConfigError(
        absl::StrCat(function, ": block_size is ", block_size, ", want at least 1"));
  }
  if (codes != n) {
    return core::ConfigError(
        absl::StrCat(function, ": ", codes, " codes for ", n, " elements, want one for each"));
  }
  if (absmax != NumBlocks(n, block_size)) {
    return core::ConfigError(absl::StrCat(function, ": absmax has ", absmax, " entries, want ",
                                          NumBlocks(n, block_size), " for ", n,
                                          " elements in blocks of ", block_size));
  }
  return absl::OkStatus();
}

// Any ascending table, by binary search.
void QuantizeGeneric(const CodeTable& table, const float* x, int64_t n, int64_t block_size,
                     uint8_t* out, float* absmax) {
  for (int64_t begin = 0; begin < n; begin += block_size) {
    const int64_t end = std::min(n, begin + block_size);
    uint32_t max_bits = 0;
    for (int64_t i = begin; i < end; ++i) max_bits = MaxAbsBits(max_bits, x[i]);
    const BlockScale scale = ScaleOfBlock(max_bits);
    *absmax++ = scale.absmax;
    if (!scale.coded()) {
      std::fill(out + begin, out + end, table.zero_code);
      continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      out[i] = NearestCode(table, Normalize(x[i], scale.reciprocal));
    }
  }
}

void DequantizeGeneric(const float* code, const uint8_t* q, int64_t n, int64_t block_size,
                       const float* absmax, float* out) {
  for (int64_t begin = 0; begin < n; begin += block_size) {
    const float scale = *absmax++;
    const int64_t end = std::min(n, begin + block_size);
    for (int64_t i = begin; i < end; ++i) out[i] = code[q[i]] * scale;
  }
}

}  // namespace

absl::Status QuantizeBlockwise(std::span<const float> x, std::span<const float> code,
                               int64_t block_size, std::span<uint8_t> out,
                               std::span<float> absmax) {
  const int64_t n = std::ssize(x);
  BITSHARD_RETURN_IF_ERROR(
      CheckSizes("QuantizeBlockwise", n, std::ssize(out), std::ssize(absmax), block_size));
  BITSHARD_ASSIGN_OR_RETURN(const CodeTable table, MakeCodeTable(code));
  const bool is_signed = SameValues(SignedDynamicTable(), code);
  const bool is_unsigned = SameValues(UnsignedDynamicTable(), code);
  core::ParallelFor(std::ssize(absmax), GrainBlocks(block_size), [&](int64_t first, int64_t last) {
    const int64_t begin = first * block_size;
    const int64_t count = std::min(n, last * block_size) - begin;
    const float* from = x.data() + begin;
    uint8_t* to = out.data() + begin;
    if (is_signed) {
      HWY_DYNAMIC_DISPATCH(QuantizeSigned)(from, count, block_size, to, absmax.data() + first);
    } else if (is_unsigned) {
      HWY_DYNAMIC_DISPATCH(QuantizeUnsigned)(from, count, block_size, to, absmax.data() + first);
    } else {
      QuantizeGeneric(table, from, count, block_size, to, absmax.data() + first);
    }
  });
  return absl::OkStatus();
}

absl::Status DequantizeBlockwise(std::span<const uint8_t> q, std::span<const float> code,
                                 std::span<const float> absmax, int64_t block_size,
                                 std::span<float> out) {
  const int64_t n = std::ssize(out);
  BITSHARD_RETURN_IF_ERROR(
      CheckSizes("DequantizeBlockwise", n, std::ssize(q), std::ssize(absmax), block_size));
  if (code.size() != 256) {
    return core::ConfigError(absl::StrCat("code table: got ", code.size(), " entries, want 256"));
  }
  const bool is_signed = SameValues(SignedDynamicTable(), code);
  const bool is_unsigned = SameValues(UnsignedDynamicTable(), code);
  const bool stream = ShouldStream(out.data(), n, block_size);
  core::ParallelFor(std::ssize(absmax), GrainBlocks(block_size), [&](int64_t first, int64_t last) {
    const int64_t begin = first * block_size;
    const int64_t count = std::min(n, last * block_size) - begin;
    const uint8_t* from = q.data() + begin;
    float* to = out.data() + begin;
    if (is_signed) {
      HWY_DYNAMIC_DISPATCH(DequantizeSigned)
      (from, count, block_size, absmax.data() + first, to, stream);
    } else if (is_unsigned) {
      HWY_DYNAMIC_DISPATCH(DequantizeUnsigned)
      (from, count, block_size, absmax.data() + first, to, stream);
    } else {
      DequantizeGeneric(code.data(), from, count, block_size, absmax.data() + first, to);
    }
  });
  return absl::OkStatus();
}

}  // namespace bitshard::quant

#endif  // HWY_ONCE
