#include "trainer/run_options.h"

#include <cmath>

#include "core/status_macros.h"

namespace bitshard::trainer {

ComputeType ResolveComputeType(ComputeType type) {
  if (type != ComputeType::kAuto) return type;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bf16")) return ComputeType::kBFloat16;
#endif
  return ComputeType::kFloat32;
}

optim::LrSchedule ScheduleOf(const Config& config, int64_t total_steps) {
  const OptimizerOptions& o = config.optimizer;
  const int64_t warmup =
      o.warmup_ratio > 0
          ? static_cast<int64_t>(std::ceil(o.warmup_ratio * static_cast<double>(total_steps)))
          : o.warmup_steps;
  return optim::LrSchedule({.kind = o.scheduler,
                            .base = o.learning_rate,
                            .warmup_steps = warmup,
                            .total_steps = total_steps,
                            .min_ratio = o.cosine_min_lr_ratio});
}

DecoderOptions DecoderOptionsOf(const Config& config, int64_t max_tokens,
                                int64_t max_sample_tokens) {
  DecoderOptions options;
  options.compute = ResolveComputeType(config.compute.type) == ComputeType::kBFloat16
                        ? ActivationType::kBFloat16
                        : ActivationType::kFloat32;
  options.load_in_4bit = config.model.load_in_4bit;
  options.quant_type = config.model.quant_type;
  options.quant_block_size = config.model.block_size;
  options.double_quant = config.model.double_quant;
  options.lora.r = config.lora.r;
  options.lora.alpha = static_cast<double>(config.lora.alpha);
  options.lora.dropout = config.lora.dropout;
  options.lora.rslora = config.lora.use_rslora;
  if (!config.lora.target_modules.empty()) options.lora.target_modules = config.lora.target_modules;
  options.activation_checkpointing = config.compute.activation_checkpointing;
  options.max_tokens = max_tokens;
  options.max_sample_tokens = max_sample_tokens;
  return options;
}

absl::StatusOr<optim::ShardedOptimizerOptions> OptimizerOptionsOf(const Config& config) {
  optim::ShardedOptimizerOptions options;
  BITSHARD_ASSIGN_OR_RETURN(options.name, optim::ParseOptimizerName(config.optimizer.name));
  options.beta1 = config.optimizer.adam_beta1;
  options.beta2 = config.optimizer.adam_beta2;
  options.eps = config.optimizer.adam_epsilon;
  options.weight_decay = config.optimizer.weight_decay;
  options.min_8bit_size = config.optimizer.min_8bit_size;
  options.paging = {.tier = config.paging.tier,
                    .budget_bytes = config.paging.budget,
                    .directory = config.paging.directory.empty() ? config.output.directory
                                                                 : config.paging.directory};
  return options;
}

}  // namespace bitshard::trainer
