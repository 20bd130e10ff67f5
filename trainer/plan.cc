#include "trainer/plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/gradient_reducer.h"
#include "comm/shard_map.h"
#include "core/status_macros.h"
#include "trainer/answers.h"
#include "trainer/devices.h"
#include "trainer/model/decoder.h"
#include "trainer/run_options.h"
#include "trainer/shard_file.h"

namespace bitshard::trainer {
namespace {

// A checkpoint's shard is gathered, written and hashed in chunks.
constexpr int64_t kSavingBytes = 3 * kShardChunkBytes;

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

// oneDNN packs for bfloat16 where the processor has the instructions of AVX-512; elsewhere LibTorch
// multiplies without.
bool PacksBFloat16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
#else
  return true;
#endif
}

// Keys and values of the prompts that `rank` answers at a time (Decoder::Generate).
int64_t AnswerBytes(const PlanInput& input, const DecoderOptions& decoder, int rank) {
  const ModelConfig& model = *input.model;
  const int64_t mine = (input.num_prompts - rank + input.world_size - 1) / input.world_size;
  const int64_t together = std::clamp(mine, int64_t{0}, Answers::kPromptsAtATime);
  const int64_t tokens = std::min(input.prompt_tokens, input.max_sample_tokens) +
                         input.config->generate.max_new_tokens;
  const int64_t element_bytes = decoder.compute == ActivationType::kFloat32 ? 4 : 2;
  return 2 * model.num_hidden_layers * together * tokens * model.num_key_value_heads *
         model.head_dim * element_bytes;
}

// The rank's flag and the losses of its micro-batches (GatherMicroBatchSums).
int64_t LossBytesSent(const PlanInput& input, int rank) {
  constexpr int64_t kRecordBytes = 24;
  const comm::MicroBatchRange range =
      comm::MicroBatchesOf(rank, input.world_size, input.config->batch.micro_batches_per_step());
  return (input.world_size - 1) * (range.end - range.begin + 1) * kRecordBytes;
}

struct PlanParts {
  DecoderOptions decoder;
  core::FlatLayout layout;
  comm::ShardMap shards;
  optim::ShardedOptimizerOptions optimizer;
};

// Host memory of a rank that trains on the CPU.
absl::StatusOr<std::vector<PlanLine>> CpuMemory(const PlanInput& input, const PlanParts& parts,
                                                const comm::ReducerCost& gradients, int rank) {
  const DecoderCost model = Decoder::Cost(*input.model, parts.decoder);
  BITSHARD_ASSIGN_OR_RETURN(
      const int64_t state_bytes,
      optim::ShardedOptimizer::StateBytes(parts.layout, parts.shards, rank, parts.optimizer));
  return std::vector<PlanLine>{
      {"libraries and runtime", input.runtime_bytes},
      {"base weights", model.base_weights},
      {"embeddings and head", model.embeddings},
      {"dequantised weights (scratch)", model.dequantized},
      {"packed head (bf16 products)", PacksBFloat16() ? model.packed : 0},
      {"activations", model.activations},
      {"adapter parameters", parts.layout.padded_elems() * 4},
      {"gradient leaf", gradients.leaf_bytes},
      {"gradient partial sums", gradients.partial_bytes},
      {"gradient receive buffers", gradients.receive_bytes},
      {"optimizer state", state_bytes},
      {"token cache (mapped)", input.cache_bytes},
      // One after the other, when all of the above is there.
      {"answers, or saving", std::max(AnswerBytes(input, parts.decoder, rank), kSavingBytes)}};
}

// Host memory of a rank that trains on a GPU, without what CUDA and NCCL take for themselves. The
// model is on the CPU while prompts are answered.
std::vector<PlanLine> GpuHostMemory(const PlanInput& input, const PlanParts& parts, int rank) {
  const DecoderOptions answers = AnswerDecoderOptionsOf(parts.decoder);
  const DecoderCost model = Decoder::Cost(*input.model, answers);
  int64_t answering = 0;
  if (input.num_prompts > 0) {
    answering =
        AnswerBytes(input, answers, rank) + model.total() - (PacksBFloat16() ? 0 : model.packed);
  }
  return {{"libraries and runtime", input.runtime_bytes},
          {"adapter parameters", parts.layout.padded_elems() * 4},
          {"token cache (mapped)", input.cache_bytes},
          {"answers, or saving", std::max(answering, kSavingBytes)}};
}

absl::StatusOr<RankPlan> PlanOfRank(const PlanInput& input, const PlanParts& parts,
                                    const comm::ReducerCost& gradients, int rank) {
  RankPlan one{.rank = rank, .gradient_bytes_sent = gradients.sent_bytes_per_step};
  if (input.config->compute.device == DeviceKind::kCuda) {
    one.memory = GpuHostMemory(input, parts, rank);
    BITSHARD_ASSIGN_OR_RETURN(DevicePlan device, input.devices->MakePlan({.config = input.config,
                                                                          .model = input.model,
                                                                          .decoder = parts.decoder,
                                                                          .layout = &parts.layout,
                                                                          .shards = &parts.shards,
                                                                          .rank = rank}));
    one.device_memory = std::move(device.memory);
    one.gradient_bytes_sent = device.gradient_bytes_sent;
  } else {
    BITSHARD_ASSIGN_OR_RETURN(one.memory, CpuMemory(input, parts, gradients, rank));
  }
  for (const PlanLine& line : one.memory) one.peak_rss_bytes += line.bytes;
  BITSHARD_ASSIGN_OR_RETURN(
      one.parameter_bytes_sent,
      optim::ShardedOptimizer::SentBytesPerStep(parts.layout, parts.shards, rank, parts.optimizer));
  one.loss_bytes_sent = LossBytesSent(input, rank);
  return one;
}

void AppendLines(const std::vector<PlanLine>& lines, std::string* text) {
  for (const PlanLine& line : lines) {
    absl::StrAppendFormat(text, "    %-32s %14s\n", line.purpose, Megabytes(line.bytes));
  }
}

}  // namespace

const RankPlan& Plan::largest() const {
  return *std::max_element(ranks.begin(), ranks.end(), [](const RankPlan& a, const RankPlan& b) {
    return a.peak_rss_bytes < b.peak_rss_bytes;
  });
}

int64_t Plan::most_bytes_sent() const {
  int64_t most = 0;
  for (const RankPlan& rank : ranks) most = std::max(most, rank.bytes_sent());
  return most;
}

absl::StatusOr<Plan> MakePlan(const PlanInput& input) {
  const Config& config = *input.config;
  BITSHARD_RETURN_IF_ERROR(ValidateWorldSize(config, input.world_size));
  PlanParts parts;
  parts.decoder = DecoderOptionsOf(config, input.max_tokens, input.max_sample_tokens);
  BITSHARD_ASSIGN_OR_RETURN(parts.layout, Decoder::AdapterLayout(*input.model, parts.decoder.lora));
  BITSHARD_ASSIGN_OR_RETURN(parts.optimizer, OptimizerOptionsOf(config));
  parts.shards = comm::ShardMap(parts.layout, input.world_size, config.comm.bucket_bytes);
  const comm::GradientReducerOptions reducer{
      .micro_batches_per_step = config.batch.micro_batches_per_step(),
      .reduction = config.comm.reduction};

  Plan plan;
  plan.text_process_bytes = input.text_process_bytes;
  plan.trainable_parameters = parts.layout.numel();
  plan.micro_batches_per_step = config.batch.micro_batches_per_step();
  for (int rank = 0; rank < input.world_size; ++rank) {
    const comm::ReducerCost gradients =
        comm::GradientReducer::Cost(parts.layout, parts.shards, rank, reducer);
    BITSHARD_ASSIGN_OR_RETURN(RankPlan one, PlanOfRank(input, parts, gradients, rank));
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
  AppendLines(largest.memory, &text);
  absl::StrAppendFormat(&text, "    %-32s %14s\n", "peak resident set",
                        Megabytes(largest.peak_rss_bytes));
  if (!largest.device_memory.empty()) {
    text += "  memory of its GPU, apart from CUDA's context and NCCL's buffers:\n";
    AppendLines(largest.device_memory, &text);
    int64_t total = 0;
    for (const PlanLine& line : largest.device_memory) total += line.bytes;
    absl::StrAppendFormat(&text, "    %-32s %14s\n", "together", Megabytes(total));
  }
  text += "  each rank: peak resident set, and what it sends to other ranks in a step:\n";
  for (const RankPlan& rank : plan.ranks) {
    absl::StrAppendFormat(&text,
                          "    rank %-3d %s; sends %s (gradients %s, parameters %s, losses %s)\n",
                          rank.rank, Megabytes(rank.peak_rss_bytes), Megabytes(rank.bytes_sent()),
                          Megabytes(rank.gradient_bytes_sent), Megabytes(rank.parameter_bytes_sent),
                          Megabytes(rank.loss_bytes_sent));
  }
  if (plan.text_process_bytes > 0) {
    absl::StrAppendFormat(&text, "  apart from the ranks: Python text process, %s while it ran\n",
                          Megabytes(plan.text_process_bytes));
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
