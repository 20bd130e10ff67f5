// The range that a number must lie in, and what to say of one that does not.
//
//   core::RangeFault(1, {.max = 1, .below_max = true})  // "got 1, want at least 0 and below 1"
#ifndef BITSHARD_CORE_NUMBER_RANGE_H_
#define BITSHARD_CORE_NUMBER_RANGE_H_

#include <limits>
#include <string>

namespace bitshard::core {

/// NaN is in none.
struct NumberRange {
  double min = 0;
  double max = std::numeric_limits<double>::max();  ///< Infinity is in range only if it is this.
  bool above_min = false;                           ///< min itself is out of range.
  bool below_max = false;                           ///< max itself is out of range.
};

/// Every finite number.
inline constexpr NumberRange kFinite = {.min = std::numeric_limits<double>::lowest()};

bool Contains(const NumberRange& range, double value);
/// "at least 0 and below 1": its ends that are no number's limits.
std::string RangeText(const NumberRange& range);
/// "" where the value is in range, else "got inf, want a finite number at least 0".
std::string RangeFault(double value, const NumberRange& range);

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_NUMBER_RANGE_H_
