#include "trainer/plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/gradient_reducer.h"
#include "comm/shard_map.h"
#include "core/status_macros.h"
#include "trainer/model/decoder.h"
#include "trainer/run_options.h"

namespace bitshard::trainer {
namespace {

// A rank sends one partial sum where its micro-batches are an aligned power-of-two run: so when
// every rank has the same power of two of them.
int64_t NearestAlignedBatch(const Config& config, int world_size) {
  const int64_t wanted = config.batch.global_batch_size;
  int64_t best = 0;
  for (int64_t per_rank = 1; per_rank <= (int64_t{1} << 40); per_rank *= 2) {
    const int64_t batch = per_rank * world_size * config.batch.micro_batch_size;
    if (best == 0 || std::abs(batch - wanted) < std::abs(best - wanted)) best = batch;
    if (batch > 2 * wanted) break;
  }
  return best;
}

}  // namespace

const RankPlan& Plan::largest() const {
  return *std::max_element(ranks.begin(), ranks.end(), [](const RankPlan& a, const RankPlan& b) {
    return a.peak_rss_bytes < b.peak_rss_bytes;
  });
}

absl::StatusOr<Plan> MakePlan(const PlanInput& input) {
  const Config& config = *input.config;
  BITSHARD_RETURN_IF_ERROR(ValidateWorldSize(config, input.world_size));
  const DecoderOptions decoder =
      DecoderOptionsOf(config, input.max_tokens, input.max_sample_tokens);
  BITSHARD_ASSIGN_OR_RETURN(const core::FlatLayout layout,
                            Decoder::AdapterLayout(*input.model, decoder.lora));
  BITSHARD_ASSIGN_OR_RETURN(const optim::ShardedOptimizerOptions optimizer,
                            OptimizerOptionsOf(config));
  const DecoderCost model = Decoder::Cost(*input.model, decoder);
  const comm::ShardMap shards(layout, input.world_size, config.comm.bucket_bytes);
  const comm::GradientReducerOptions reducer{.micro_batches_per_step =
                                                 config.batch.micro_batches_per_step()};

  Plan plan;
  plan.trainable_parameters = layout.numel();
  plan.micro_batches_per_step = config.batch.micro_batches_per_step();
  for (int rank = 0; rank < input.world_size; ++rank) {
    const comm::ReducerCost gradients = comm::GradientReducer::Cost(layout, shards, rank, reducer);
    RankPlan one;
    one.rank = rank;
    one.memory = {
        {"libraries and runtime", input.runtime_bytes},
        {"base weights", model.base_weights},
        {"embeddings and head", model.embeddings},
        {"dequantised weights (scratch)", model.dequantized},
        {"packed head (bf16 products)", model.packed},
        {"activations", model.activations},
        {"adapter parameters", layout.padded_elems() * 4},
        {"gradient leaf", gradients.leaf_bytes},
        {"gradient partial sums", gradients.partial_bytes},
        {"gradient receive buffers", gradients.receive_bytes},
        {"optimizer state", optim::ShardedOptimizer::StateBytes(layout, shards, rank, optimizer)},
        {"token cache (mapped)", input.cache_bytes}};
    for (const PlanLine& line : one.memory) one.peak_rss_bytes += line.bytes;
    one.gradient_bytes_sent = gradients.sent_bytes_per_step;
    one.parameter_bytes_sent = optim::ShardedOptimizer::SentBytesPerStep(shards, rank);
    plan.most_partials_per_rank =
        std::max(plan.most_partials_per_rank, gradients.partials_per_rank);
    plan.ranks.push_back(std::move(one));
  }
  plan.nearest_batch_without_extra_partials = NearestAlignedBatch(config, input.world_size);
  return plan;
}

std::string Megabytes(int64_t bytes) {
  return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6);
}

std::string DescribePlan(const Plan& plan) {
  const RankPlan& largest = plan.largest();
  std::string text = absl::StrFormat(
      "Plan for %d rank%s: %d trainable parameters, %d micro-batches a step\n", plan.ranks.size(),
      plan.ranks.size() == 1 ? "" : "s", plan.trainable_parameters, plan.micro_batches_per_step);
  absl::StrAppendFormat(&text, "  memory of rank %d, which needs most:\n", largest.rank);
  for (const PlanLine& line : largest.memory) {
    absl::StrAppendFormat(&text, "    %-32s %14s\n", line.purpose, Megabytes(line.bytes));
  }
  absl::StrAppendFormat(&text, "    %-32s %14s\n", "peak resident set",
                        Megabytes(largest.peak_rss_bytes));
  text += "  sent to other ranks, a step:\n";
  for (const RankPlan& rank : plan.ranks) {
    absl::StrAppendFormat(&text, "    rank %-3d gradients %s, parameters %s\n", rank.rank,
                          Megabytes(rank.gradient_bytes_sent),
                          Megabytes(rank.parameter_bytes_sent));
  }
  if (plan.most_partials_per_rank > 1) {
    absl::StrAppendFormat(
        &text,
        "  note: micro-batches per rank are not an aligned power of two, so gradients are sent as "
        "up to %d partial sums; global_batch_size %d would send 1\n",
        plan.most_partials_per_rank, plan.nearest_batch_without_extra_partials);
  }
  return text;
}

}  // namespace bitshard::trainer
