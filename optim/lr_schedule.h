// Learning-rate schedules, as transformers' get_scheduler computes them: pure functions of the
// step.
//
//   optim::LrSchedule schedule({.kind = optim::LrKind::kCosine,
//                               .base = 2e-4,
//                               .warmup_steps = 10,
//                               .total_steps = 100});
//   schedule.At(1);  // the rate of the first step: 0, since a warmup begins there
#ifndef BITSHARD_OPTIM_LR_SCHEDULE_H_
#define BITSHARD_OPTIM_LR_SCHEDULE_H_

#include <cstdint>

namespace bitshard::optim {

enum class LrKind { kConstant, kLinear, kCosine };

struct LrScheduleOptions {
  LrKind kind = LrKind::kConstant;
  double base = 1e-3;        ///< The rate after the warmup.
  int64_t warmup_steps = 0;  ///< Over which it grows linearly from 0; 0: none.
  int64_t total_steps = 1;   ///< Warmup included; where kLinear is 0 and kCosine at its least.
  double min_ratio = 0;      ///< kCosine ends at base * min_ratio.
};

/// Immutable; safe to share between threads.
class LrSchedule {
 public:
  explicit LrSchedule(const LrScheduleOptions& options) : options_(options) {}
  /// The rate of step `step`, counted from 1: what torch's scheduler has set after step - 1 calls.
  double At(int64_t step) const;

 private:
  LrScheduleOptions options_;
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_LR_SCHEDULE_H_
