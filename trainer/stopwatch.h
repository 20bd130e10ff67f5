// Wall time between two points, by the steady clock.
#ifndef BITSHARD_TRAINER_STOPWATCH_H_
#define BITSHARD_TRAINER_STOPWATCH_H_

#include <chrono>

namespace bitshard::trainer {

class Stopwatch {
 public:
  /// Seconds since construction or the last Lap.
  double Lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - start_).count();
    start_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_STOPWATCH_H_
