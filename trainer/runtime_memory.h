// What the libraries take for themselves in a run: measured, not guessed.
//
//   BITSHARD_ASSIGN_OR_RETURN(const int64_t bytes, MeasureRuntimeBytes(config, options));
#ifndef BITSHARD_TRAINER_RUNTIME_MEMORY_H_
#define BITSHARD_TRAINER_RUNTIME_MEMORY_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "trainer/model/decoder.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer {

/// Resident bytes of this process once one matrix product of each shape that a pass with `options`
/// makes has been run on zeros: libraries that packed their operands keep the buffers, compiled
/// kernels and the pages of code that they touched, and how much that is depends on processor,
/// threads and library. Called before anything is loaded, it takes less memory than the run will,
/// and some tenths of a second. Errors: kInternal where /proc can't be read.
absl::StatusOr<int64_t> MeasureRuntimeBytes(const ModelConfig& config,
                                            const DecoderOptions& options);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_RUNTIME_MEMORY_H_
