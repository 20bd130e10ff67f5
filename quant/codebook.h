// The code tables: what each code stands for, before the block's scale. Layouts: quant/formats.h.
//
//   const quant::CodeTable& table = quant::SignedDynamicTable();
//   float x = table.values[code] * absmax;
#ifndef BITSHARD_QUANT_CODEBOOK_H_
#define BITSHARD_QUANT_CODEBOOK_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "quant/block_codec.h"

namespace bitshard::quant {

/// Signed dynamic 8-bit: seven decades of 1, 2, 4 .. 64 values on either side of zero, denser
/// towards 1; entry 127 is 0, entry 255 is +1, and there is no -1. First moments and
/// double-quantised scales. Source: Dettmers et al. 2021 (arXiv 2110.02861), section 2.1;
/// bitsandbytes' create_dynamic_map(signed=True), bit for bit.
const CodeTable& SignedDynamicTable();

/// Unsigned dynamic 8-bit: the sign bit goes to the fraction, so a decade holds twice as many
/// values; entry 0 is 0, entry 255 is 1. Second moments. Source: as above, signed=False.
const CodeTable& UnsignedDynamicTable();

/// NormalFloat4, ascending; entry 7 is 0. Source: Dettmers et al. 2023 (arXiv 2305.14314), appendix
/// E.
std::span<const float, 16> Nf4Values();

/// FP4 in index order: bit 3 is the sign, entries 0..7 are 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4.
/// Entry 8 is +0. Source: bitsandbytes' get_4bit_type("fp4").
std::span<const float, 16> Fp4Values();

/// A caller's own table. Errors: kInvalidArgument unless there are 256 finite entries in ascending
/// order (equal neighbours are allowed).
absl::StatusOr<CodeTable> MakeCodeTable(std::span<const float> values);

/// True when `values` are the 256 floats of `table`, bit for bit.
bool SameValues(const CodeTable& table, std::span<const float> values);

}  // namespace bitshard::quant

#endif  // BITSHARD_QUANT_CODEBOOK_H_
