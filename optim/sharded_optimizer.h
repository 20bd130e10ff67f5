// ShardedOptimizer: the engine. Owns this rank's blocks of the optimizer state (8-bit blockwise or
// 32-bit, in host memory or paged), updates this rank's blocks of the flat parameter arena, and
// gathers the updated parameters.
//
//   BITSHARD_ASSIGN_OR_RETURN(
//       auto optimizer, optim::ShardedOptimizer::Create(layout, shards, comm, options));
//   BITSHARD_ASSIGN_OR_RETURN(auto grads, reducer->FinishStep());
//   BITSHARD_ASSIGN_OR_RETURN(auto norm, optimizer->GradientNorm(grads, 1.0 / trained_tokens));
//   BITSHARD_RETURN_IF_ERROR(optimizer->Step({.parameters = arena, .gradients = grads,
//                                             .gradient_scale = ..., .learning_rate = ...}));
#ifndef BITSHARD_OPTIM_SHARDED_OPTIMIZER_H_
#define BITSHARD_OPTIM_SHARDED_OPTIMIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "comm/shard_map.h"
#include "core/flat_layout.h"
#include "optim/tensor_groups.h"
#include "paging/paged_buffer.h"

namespace bitshard::optim {

struct ShardedOptimizerOptions {
  OptimizerSettings settings;
  paging::PagingOptions paging;  ///< Used when settings.name.paged.
};

struct ShardedStepArgs {
  /// The whole arena, float32 [layout.padded_elems()]; the same on every rank.
  std::span<float> parameters;
  /// This rank's blocks, float32, in the order of shards.RunsOf(rank); padding is 0.
  std::span<const float> gradients;
  double gradient_scale = 1.0;  ///< Multiplies every gradient first (1 / tokens, clipping).
  double learning_rate = 0;
};

/// Threads: one thread calls it. Ranks make the same calls.
class ShardedOptimizer {
 public:
  /// The state is zero, the step 0. `comm` outlives it.
  /// Errors: those of TensorGroups::Create and of PagedBuffer::Create.
  static absl::StatusOr<std::unique_ptr<ShardedOptimizer>> Create(
      const core::FlatLayout& layout, const comm::ShardMap& shards, comm::Communicator* comm,
      const ShardedOptimizerOptions& options);
  /// Host memory that Create takes on `rank`, without creating anything; and bytes that a step and
  /// a norm send. Errors: those of TensorGroups::Create.
  static absl::StatusOr<int64_t> StateBytes(const core::FlatLayout& layout,
                                            const comm::ShardMap& shards, int rank,
                                            const ShardedOptimizerOptions& options);
  static absl::StatusOr<int64_t> SentBytesPerStep(const core::FlatLayout& layout,
                                                  const comm::ShardMap& shards, int rank,
                                                  const ShardedOptimizerOptions& options);
  virtual ~ShardedOptimizer() = default;

  /// Euclidean norm of gradient_scale * gradients over all ranks: per-block float64 partials (a
  /// fixed pairwise tree), gathered and summed in block order, so the bits are the same at any
  /// world size. May be inf or NaN. Errors: those of the communicator.
  virtual absl::StatusOr<double> GradientNorm(std::span<const float> gradients,
                                              double gradient_scale) = 0;

  /// One step: updates this rank's blocks of `parameters`, then gathers everybody's. Steps count
  /// from 1. With max_unorm (LAMB, LARS) all state is read once more before, and the norms of all
  /// blocks are gathered and summed tensor by tensor in block order: the same bits at any world
  /// size. Non-finite gradients make the state of their blocks NaN: ask GradientNorm first.
  /// Errors: those of TensorGroups::CheckMoment, with nothing changed (a learning rate of NaN);
  /// those of the communicator and of the pages, after which parameters and state are half stepped.
  virtual absl::Status Step(const ShardedStepArgs& args) = 0;

  virtual int64_t step() const = 0;
  /// How many tensors and elements are held and stepped how: printed by the trainer.
  virtual std::vector<StateShare> shares() const = 0;
  virtual paging::PagingCounters paging_counters() const = 0;

  /// The state as bytes that do not depend on the world size, for checkpoints. Block b of the arena
  /// is BlockStateBytes(b) bytes: 8-bit: the codes of each state [256], then the absmax of each
  /// [256 / block_size] float32; 32-bit: each state [256] float32. Little-endian.
  virtual int64_t BlockStateBytes(int64_t block) const = 0;
  /// `blocks` must lie in one of this rank's runs; `out` and `in` are as many bytes as the sum of
  /// BlockStateBytes over it. Errors: those of the pages. The step's number is not part of it.
  virtual absl::Status ExportState(core::BlockRange blocks, std::span<std::byte> out) = 0;
  virtual absl::Status ImportState(core::BlockRange blocks, std::span<const std::byte> in) = 0;
  virtual void set_step(int64_t step) = 0;
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_SHARDED_OPTIMIZER_H_
