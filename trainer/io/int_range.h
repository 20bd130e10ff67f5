// The values that an integer read from a file may have.
#ifndef BITSHARD_TRAINER_IO_INT_RANGE_H_
#define BITSHARD_TRAINER_IO_INT_RANGE_H_

#include <cstdint>
#include <limits>

namespace bitshard::trainer::io {

/// Both ends are allowed values.
struct IntRange {
  int64_t least = std::numeric_limits<int64_t>::min();
  int64_t most = std::numeric_limits<int64_t>::max();
};

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_INT_RANGE_H_
