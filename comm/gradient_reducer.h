// Gradients of all micro-batches of a step, summed and scattered to the ranks that own them.
//
// The order is a binary tree over the *global* micro-batch index (comm/tree_sum.h): the sum's bits
// depend neither on the world size nor on the transport. Each micro-batch's gradient is written,
// not added, into a leaf buffer laid out as the flat arena; complete leaves merge into partial sums
// as a binary counter does. In a rank's last micro-batch each bucket is sent to its owners as soon
// as its last gradient has arrived, while backward goes on. Reduction::kFast sends less where a
// rank's micro-batches are not an aligned power of two, and gives up the world size's part of this.
//
//   reducer->BeginStep();
//   for (int64_t micro : my_micro_batches) {
//     reducer->BeginMicroBatch();
//     ... backward writes reducer->leaf() and calls reducer->TensorReady(i) once per tensor ...
//   }
//   BITSHARD_ASSIGN_OR_RETURN(std::span<const float> my_blocks, reducer->FinishStep());   // summed
#ifndef BITSHARD_COMM_GRADIENT_REDUCER_H_
#define BITSHARD_COMM_GRADIENT_REDUCER_H_

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "comm/shard_map.h"
#include "core/flat_layout.h"

namespace bitshard::comm {

/// With one rank the two are the same.
enum class Reduction {
  kOrdered,  ///< In the tree over micro-batches: the same bits at any world size.
  kFast,     ///< A rank sends one sum, of its own micro-batches: the bits depend on the world size.
};

struct GradientReducerOptions {
  int64_t micro_batches_per_step = 1;  ///< Over all ranks; at least world_size.
  Reduction reduction = Reduction::kOrdered;
};

/// |fast - ordered| <= FastReductionBound(...) * (sum over all micro-batches of |g|), elementwise.
///
/// Of n terms, a sum in which none passes more than d additions differs from the exact one by at
/// most gamma(d) = d u / (1 - d u) times the sum of magnitudes, u = 2^-24 (Higham, Accuracy and
/// Stability, 4.2); underflow adds nothing, as additions of floats that underflow are exact. The
/// tree over M micro-batches has d = ceil(log2 M). A rank's own tree over its at most
/// m = ceil(M / R) has ceil(log2 m), and however a transport adds R terms, none passes more than
/// R - 1 of its additions (GradientReducer's own tree over ranks: ceil(log2 R)). The two differ by
/// at most the sum of both bounds.
double FastReductionBound(int64_t micro_batches, int world_size);

/// What a reducer allocates and sends: the same numbers that `bitshard plan` prints.
struct ReducerCost {
  int64_t leaf_bytes = 0;           ///< One gradient of the whole arena, float32.
  int64_t partial_bytes = 0;        ///< Partial sums of the tree.
  int64_t receive_bytes = 0;        ///< Buffers for what other ranks send, and the summed shard.
  int64_t sent_bytes_per_step = 0;  ///< To other ranks, payload.
  int64_t partials_per_rank = 1;    ///< Tree nodes it sends; 1 for an aligned power-of-two run.
};

/// Micro-batches [begin, end) of a rank: contiguous, sizes differing by at most one.
struct MicroBatchRange {
  int64_t begin = 0;
  int64_t end = 0;
};
MicroBatchRange MicroBatchesOf(int rank, int world_size, int64_t micro_batches_per_step);

/// Threads: one thread calls it. All ranks make the same calls.
class GradientReducer {
 public:
  /// Errors: kConfig when there are fewer micro-batches than ranks; kMemory.
  static absl::StatusOr<std::unique_ptr<GradientReducer>> Create(
      const core::FlatLayout& layout, const ShardMap& shards, Communicator* comm,
      const GradientReducerOptions& options);
  static ReducerCost Cost(const core::FlatLayout& layout, const ShardMap& shards, int rank,
                          const GradientReducerOptions& options);
  virtual ~GradientReducer() = default;

  virtual void BeginStep() = 0;
  /// Sets the leaf's padding to zero; the tensors' elements are the caller's to write.
  virtual void BeginMicroBatch() = 0;
  /// Float32 [layout.padded_elems()], 64-byte aligned; tensor i at layout.tensor(i).offset(). Its
  /// address may change at each BeginMicroBatch.
  virtual std::span<float> leaf() = 0;
  /// Tensor `index` of this micro-batch's gradient is written. Once per tensor and micro-batch, in
  /// any order.
  virtual absl::Status TensorReady(int64_t index) = 0;
  /// Waits for the other ranks' parts and sums them. Returns this rank's blocks, one run after
  /// another in the order of shards.RunsOf(rank); valid until the next BeginStep.
  virtual absl::StatusOr<std::span<float>> FinishStep() = 0;
  /// Seconds that the last step waited for the network, nearly all of them in FinishStep: the
  /// communication that backward did not hide.
  virtual double exposed_seconds() const = 0;
};

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_GRADIENT_REDUCER_H_
