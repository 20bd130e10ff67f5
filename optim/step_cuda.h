// The optimizer step on the device: optim::Step's arguments with device pointers, and the same
// bits.
//
//   BITSHARD_ASSIGN_OR_RETURN(
//       auto stepper, optim::CudaStepper::Create({.max_runs = 200, .stream = stream}));
//   BITSHARD_RETURN_IF_ERROR(stepper->Step(
//       {.algorithm = optim::Algorithm::kAdamW, .hyper = ..., .runs = runs}));
//
// One launch for all runs, however many tensors they are of: 8-bit and 32-bit state, with and
// without master weights, aligned and not, side by side. Only whole blocks of 256 whose arrays are
// aligned (16 bytes for float32 arrays, 8 for 16-bit ones, 4 for codes) take the fast path. Built
// only with BITSHARD_CUDA.
#ifndef BITSHARD_OPTIM_STEP_CUDA_H_
#define BITSHARD_OPTIM_STEP_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "optim/step.h"

namespace bitshard::optim {

struct CudaStepperOptions {
  int64_t max_runs = 0;  ///< The most runs that one step will have.
  cudaStream_t stream = nullptr;
};

/// Holds the block table and the codec's tables in device memory: about 5 KB, and 160 bytes a run,
/// which are kept in pinned host memory four times more. Stream: everything is enqueued on the
/// stream of the options, which must outlive it; the destructor waits for that stream. Threads: one
/// thread uses it.
class CudaStepper {
 public:
  /// Errors: kResourceExhausted when device or pinned memory is short; kInvalidArgument for
  /// max_runs < 1.
  static absl::StatusOr<std::unique_ptr<CudaStepper>> Create(const CudaStepperOptions& options);
  virtual ~CudaStepper() = default;

  /// Enqueues one step of `args`, whose pointers are device pointers; the runs themselves are read
  /// before the call returns. Runs that are those of the call before are not sent to the device
  /// again. Where they differ, the call waits until the device has taken the table of the fourth
  /// upload before, no more. Without elements nothing is enqueued. Errors: kInvalidArgument for
  /// what StepArgsFault names, for tables (StepArgs::tables must be the rule's own) and for more
  /// than max_runs runs; kInternal when a launch is refused.
  virtual absl::Status Step(const StepArgs& args) = 0;

  /// Enqueues optim::UpdateNorms, the same bits, for block b of run r into out[first_norm[r] + b]
  /// in device memory. Errors: as Step, and kInvalidArgument for a rule that has no update norm.
  virtual absl::Status UpdateNorms(const StepArgs& args, std::span<const int64_t> first_norm,
                                   BlockNorms* out) = 0;
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_STEP_CUDA_H_
