#include "quant/vector_tables.h"

#include <algorithm>

#include "core/numeric.h"
#include "quant/codebook.h"

namespace bitshard::quant {
namespace {

// Slots of the lowest decade are 63 and 64, of the highest 75 to 77:
// tests/quant/vector_codec_test.cc checks every slot against the decade that it stands for.
int DecadeOfSlot(int slot) {
  const int first = slot == 15 ? 0 : slot + 1;  // slot 63 mod 16 is the first one
  return first < 14 ? first / 2 : 6;
}

// The same for the form with fixed-point positions: slot 7 is the lowest decade, 6 the end of the
// top one.
int DecadeOfFixedSlot(int slot) { return slot == 7 ? 0 : std::min(slot + 1, 6); }

// Decade d holds `cells` codes in [10^(d - 7), 10^(d - 6)], the first of which has rank `first`.
// With x the position in cells from the decade's lower end, rank first + k covers [k, k + 1); but
// the decision point to the decade below is at x = 0.2. So floor(first + x - 0.5) is the rank or
// one less, and still is for x up to half a cell above the decade and a fifth below it.
struct Affine {
  float scale;
  float offset;
};

Affine DecadeAffine(int decade, bool is_signed) {
  const double cells = is_signed ? 1 << decade : 2 << decade;
  const double first = is_signed ? cells : cells - 1;
  double upper = 1.0;
  for (int d = decade; d < 6; ++d) upper /= 10.0;
  return {static_cast<float>(cells / (0.9 * upper)), static_cast<float>(first - cells / 9.0 - 0.5)};
}

void MakeFixed(bool is_signed, VectorTables* out) {
  for (int slot = 0; slot < 8; ++slot) {
    const bool is_end = slot == 6;
    const int decade = DecadeOfFixedSlot(slot);
    const int cells = is_signed ? 1 << decade : 2 << decade;
    const int first = is_signed ? cells : cells - 1;
    double upper = 1.0;
    for (int d = decade; d < 6; ++d) upper /= 10.0;
    out->fixed_scale[slot] = static_cast<float>(65536.0 * cells / (0.9 * upper));
    const double bias = kFixedUnsure / 2.0 + (is_end ? kFixedStepDown : 0.0);
    out->fixed_offset[slot] = static_cast<float>(65536.0 * (first - cells / 9.0) + bias);
    // The first magnitude above the decision point.
    const float threshold = out->threshold[is_end ? first + cells - 1 : first - 1];
    out->fixed_lower[slot] = core::FloatFromBits(core::FloatBits(threshold) + 1);
  }
}

VectorTables Make(const CodeTable& table, bool is_signed) {
  VectorTables out{};
  const int zero = table.zero_code;
  const int ranks = 256 - zero;
  for (int r = 0; r < 256; ++r) {
    out.value[r] = table.values[r];
    out.threshold[r] = __builtin_huge_valf();
    if (zero + r < 255) {
      const float midpoint = table.midpoints[zero + r];
      const bool tie_goes_up = (zero + r) % 2 == 1;
      out.threshold[r] =
          tie_goes_up ? core::FloatFromBits(core::FloatBits(midpoint) - 1) : midpoint;
    }
    for (int b = 0; b < 4; ++b) {
      const float value = r < ranks ? table.values[zero + r] : 0.0f;
      out.value_planes[b][r] = static_cast<uint8_t>(core::FloatBits(value) >> (8 * b));
      out.threshold_planes[b][r] =
          static_cast<uint8_t>(core::FloatBits(out.threshold[r]) >> (8 * b));
    }
  }
  for (int slot = 0; slot < 16; ++slot) {
    const Affine affine = DecadeAffine(DecadeOfSlot(slot), is_signed);
    out.scale[slot] = affine.scale;
    out.offset[slot] = affine.offset;
  }
  for (int slot = 0; slot < 8; ++slot) {
    const Affine affine = DecadeAffine(slot < 6 ? slot : 6, is_signed);
    out.scale8[slot] = affine.scale;
    out.offset8[slot] = affine.offset;
  }
  MakeFixed(is_signed, &out);
  return out;
}

}  // namespace

const VectorTables& SignedVectorTables() {
  static const VectorTables tables = Make(SignedDynamicTable(), true);
  return tables;
}

const VectorTables& UnsignedVectorTables() {
  static const VectorTables tables = Make(UnsignedDynamicTable(), false);
  return tables;
}

}  // namespace bitshard::quant
