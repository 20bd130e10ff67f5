#include "trainer/micro_batch_sums.h"

#include <span>

#include "comm/gradient_reducer.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace bitshard::trainer {
namespace {

// What travels; the flag is a record of its own at the front of each rank's part.
struct Record {
  double nats;
  int64_t trained_tokens;
  int64_t tokens;
};

}  // namespace

absl::StatusOr<GatheredSums> GatherMicroBatchSums(comm::Communicator* comm,
                                                  const std::vector<LossSum>& mine,
                                                  int64_t micro_batches, bool flag) {
  const int world_size = comm->world_size();
  std::vector<std::vector<Record>> records(static_cast<size_t>(world_size));
  std::vector<std::span<std::byte>> gathered;
  for (int rank = 0; rank < world_size; ++rank) {
    const comm::MicroBatchRange range = comm::MicroBatchesOf(rank, world_size, micro_batches);
    auto& part = records[static_cast<size_t>(rank)];
    part.resize(static_cast<size_t>(range.end - range.begin) + 1);
    gathered.push_back(std::as_writable_bytes(std::span(part)));
  }
  std::vector<Record> own = {{.nats = 0, .trained_tokens = flag ? 1 : 0, .tokens = 0}};
  for (const LossSum& sum : mine) {
    own.push_back({.nats = sum.nats, .trained_tokens = sum.trained_tokens, .tokens = sum.tokens});
  }
  BITSHARD_CHECK(own.size() == records[static_cast<size_t>(comm->rank())].size()) << own.size();
  BITSHARD_RETURN_IF_ERROR(comm->AllGather(std::as_bytes(std::span(own)), gathered, "loss sums"));

  GatheredSums all;
  for (const auto& part : records) {
    all.any_flag |= part.front().trained_tokens != 0;
    for (size_t i = 1; i < part.size(); ++i) {
      const LossSum sum{
          .nats = part[i].nats, .trained_tokens = part[i].trained_tokens, .tokens = part[i].tokens};
      all.total.nats += sum.nats;
      all.total.trained_tokens += sum.trained_tokens;
      all.total.tokens += sum.tokens;
      all.sums.push_back(sum);
    }
  }
  return all;
}

}  // namespace bitshard::trainer
