#include "trainer/io/gguf_dequantize.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/numeric.h"
#include "core/parallel.h"
#include "trainer/io/widen.h"

namespace bitshard::trainer::io {
namespace {

constexpr uint32_t kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBf16 = 30;
constexpr int64_t kQuantBlock = 32;  // Elements of a Q4_0, Q4_1 or Q8_0 block.

constexpr std::array kFormats = {
    GgufFormat{kF32, "F32", 1, 4},
    GgufFormat{kF16, "F16", 1, 2},
    GgufFormat{kBf16, "BF16", 1, 2},
    GgufFormat{kQ4_0, "Q4_0", kQuantBlock, 2 + 16},
    GgufFormat{kQ4_1, "Q4_1", kQuantBlock, 2 + 2 + 16},
    GgufFormat{kQ8_0, "Q8_0", kQuantBlock, 2 + 32},
};

// enum ggml_type of ggml.h; the empty places are encodings that were removed.
constexpr std::array kTypeNames = {
    "F32",    "F16",   "Q4_0",  "Q4_1",   "",      "",      "Q5_0",    "Q5_1",   "Q8_0",    "Q8_1",
    "Q2_K",   "Q3_K",  "Q4_K",  "Q5_K",   "Q6_K",  "Q8_K",  "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
    "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",    "I16",   "I32",     "I64",    "F64",     "IQ1_M",
    "BF16",   "",      "",      "",       "TQ1_0", "TQ2_0", "",        "",       "",        "MXFP4",
};

void DequantizeQ4_0(const std::byte* from, int64_t blocks, float* out) {
  for (int64_t b = 0; b < blocks; ++b, from += 18, out += kQuantBlock) {
    const float d = core::FloatFromFp16(LoadUnaligned<uint16_t>(from));
    const auto* q = reinterpret_cast<const uint8_t*>(from + 2);
    for (int i = 0; i < 16; ++i) out[i] = d * static_cast<float>((q[i] & 15) - 8);
    for (int i = 0; i < 16; ++i) out[i + 16] = d * static_cast<float>((q[i] >> 4) - 8);
  }
}

void DequantizeQ4_1(const std::byte* from, int64_t blocks, float* out) {
  for (int64_t b = 0; b < blocks; ++b, from += 20, out += kQuantBlock) {
    const float d = core::FloatFromFp16(LoadUnaligned<uint16_t>(from));
    const float m = core::FloatFromFp16(LoadUnaligned<uint16_t>(from + 2));
    const auto* q = reinterpret_cast<const uint8_t*>(from + 4);
    for (int i = 0; i < 16; ++i) out[i] = d * static_cast<float>(q[i] & 15) + m;
    for (int i = 0; i < 16; ++i) out[i + 16] = d * static_cast<float>(q[i] >> 4) + m;
  }
}

void DequantizeQ8_0(const std::byte* from, int64_t blocks, float* out) {
  for (int64_t b = 0; b < blocks; ++b, from += 34, out += kQuantBlock) {
    const float d = core::FloatFromFp16(LoadUnaligned<uint16_t>(from));
    const auto* q = reinterpret_cast<const int8_t*>(from + 2);
    for (int i = 0; i < kQuantBlock; ++i) out[i] = d * static_cast<float>(q[i]);
  }
}

void DequantizeRun(uint32_t type, const std::byte* from, int64_t blocks, float* out) {
  switch (type) {
    case kF32:
      std::memcpy(out, from, static_cast<size_t>(blocks) * sizeof(float));
      return;
    case kF16:
      return WidenFp16(from, blocks, out);
    case kBf16:
      return WidenBf16(from, blocks, out);
    case kQ4_0:
      return DequantizeQ4_0(from, blocks, out);
    case kQ4_1:
      return DequantizeQ4_1(from, blocks, out);
    case kQ8_0:
      return DequantizeQ8_0(from, blocks, out);
    default:
      BITSHARD_CHECK(false) << "ggml type " << type;
  }
}

}  // namespace

const GgufFormat* FindGgufFormat(uint32_t type) {
  const auto at = std::find_if(kFormats.begin(), kFormats.end(),
                               [&](const GgufFormat& format) { return format.type == type; });
  return at == kFormats.end() ? nullptr : &*at;
}

std::string GgufTypeName(uint32_t type) {
  if (type < kTypeNames.size() && kTypeNames[type][0] != '\0') return kTypeNames[type];
  return absl::StrCat("type ", type);
}

std::string GgufFormatNames() {
  std::string names;
  for (const GgufFormat& format : kFormats) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", format.name);
  }
  return names;
}

void DequantizeGguf(const GgufFormat& format, std::span<const std::byte> from,
                    std::span<float> out) {
  const int64_t blocks = static_cast<int64_t>(out.size()) / format.block_elems;
  BITSHARD_CHECK(static_cast<int64_t>(from.size()) == blocks * format.block_bytes &&
                 static_cast<int64_t>(out.size()) == blocks * format.block_elems)
      << format.name << ": " << from.size() << " bytes for " << out.size() << " elements";
  constexpr int64_t kGgufGrainElems =
      1 << 15;  // 128 KiB of output: about what a core's L2 cache takes.
  core::ParallelFor(blocks, std::max<int64_t>(1, kGgufGrainElems / format.block_elems),
                    [&](int64_t begin, int64_t end) {
                      DequantizeRun(format.type, from.data() + begin * format.block_bytes,
                                    end - begin, out.data() + begin * format.block_elems);
                    });
}

}  // namespace bitshard::trainer::io
