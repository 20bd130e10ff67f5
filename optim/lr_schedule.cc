#include "optim/lr_schedule.h"

#include <algorithm>
#include <cmath>

namespace bitshard::optim {

double LrSchedule::At(int64_t step) const {
  const double done = static_cast<double>(step - 1);
  const double warmup = static_cast<double>(options_.warmup_steps);
  if (done < warmup) return options_.base * (done / std::max(1.0, warmup));
  const double length = std::max(1.0, static_cast<double>(options_.total_steps) - warmup);
  switch (options_.kind) {
    case LrKind::kConstant:
      return options_.base;
    case LrKind::kLinear:
      return options_.base *
             std::max(0.0, (static_cast<double>(options_.total_steps) - done) / length);
    case LrKind::kCosine:
      break;
  }
  const double cosine = 0.5 * (1.0 + std::cos(M_PI * (done - warmup) / length));
  return options_.base * std::max(0.0, cosine * (1.0 - options_.min_ratio) + options_.min_ratio);
}

}  // namespace bitshard::optim
