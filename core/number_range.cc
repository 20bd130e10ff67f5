#include "core/number_range.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace bitshard::core {

bool Contains(const NumberRange& range, double value) {
  return (range.above_min ? value > range.min : value >= range.min) &&
         (range.below_max ? value < range.max : value <= range.max);
}

std::string RangeText(const NumberRange& range) {
  const std::string low = range.min <= std::numeric_limits<double>::lowest()
                              ? ""
                              : absl::StrCat(range.above_min ? "above " : "at least ", range.min);
  const std::string high = range.max >= std::numeric_limits<double>::max()
                               ? ""
                               : absl::StrCat(range.below_max ? "below " : "at most ", range.max);
  return low.empty() || high.empty() ? low + high : low + " and " + high;
}

std::string RangeFault(double value, const NumberRange& range) {
  if (Contains(range, value)) return "";
  std::string wanted = RangeText(range);
  if (!std::isfinite(value)) {
    const char* kind = std::isfinite(range.max) ? "a finite number" : "a number";
    wanted = wanted.empty() ? kind : absl::StrCat(kind, " ", wanted);
  }
  return absl::StrCat("got ", value, ", want ", wanted);
}

}  // namespace bitshard::core
