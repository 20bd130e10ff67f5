#include "quant/dynamic_codec.h"

#include <algorithm>

namespace bitshard::quant {
namespace {

DynamicTable From(const VectorTables& tables) {
  DynamicTable out;
  std::copy_n(tables.value, 256, out.value);
  std::copy_n(tables.threshold, 256, out.threshold);
  std::copy_n(tables.scale, 16, out.scale);
  std::copy_n(tables.offset, 16, out.offset);
  return out;
}

}  // namespace

DynamicTable SignedDynamicCodecTable() { return From(SignedVectorTables()); }
DynamicTable UnsignedDynamicCodecTable() { return From(UnsignedVectorTables()); }

}  // namespace bitshard::quant
