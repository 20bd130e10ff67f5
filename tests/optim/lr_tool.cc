// For the oracle in Python: lr_tool KIND BASE WARMUP TOTAL MIN_RATIO prints the rate of every step,
// one a line.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "optim/lr_schedule.h"

int main(int argc, char** argv) {
  using bitshard::optim::LrKind;
  if (argc != 6) return 2;
  const std::string kind = argv[1];
  const bitshard::optim::LrSchedule schedule({.kind = kind == "cosine"   ? LrKind::kCosine
                                                      : kind == "linear" ? LrKind::kLinear
                                                                         : LrKind::kConstant,
                                              .base = std::atof(argv[2]),
                                              .warmup_steps = std::atoll(argv[3]),
                                              .total_steps = std::atoll(argv[4]),
                                              .min_ratio = std::atof(argv[5])});
  for (int64_t step = 1; step <= std::atoll(argv[4]); ++step)
    std::printf("%.17g\n", schedule.At(step));
  return 0;
}
