// Loss sums of single micro-batches, gathered from the ranks that ran them and added in the order
// of the global micro-batch index: the total has the same bits at any world size.
#ifndef BITSHARD_TRAINER_MICRO_BATCH_SUMS_H_
#define BITSHARD_TRAINER_MICRO_BATCH_SUMS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "trainer/model/decoder.h"

namespace bitshard::trainer {

struct GatheredSums {
  std::vector<LossSum> sums;  ///< [micro_batches], by global index.
  LossSum total;
  bool any_flag = false;  ///< Some rank passed flag = true.
};

/// `mine` are the sums of comm::MicroBatchesOf(rank, world_size, micro_batches), in order. A
/// collective.
absl::StatusOr<GatheredSums> GatherMicroBatchSums(comm::Communicator* comm,
                                                  const std::vector<LossSum>& mine,
                                                  int64_t micro_batches, bool flag);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MICRO_BATCH_SUMS_H_
