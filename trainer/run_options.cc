#include "trainer/run_options.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/flat_layout.h"
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

DecoderOptions AnswerDecoderOptionsOf(const DecoderOptions& training) {
  DecoderOptions options = training;
  if (ResolveComputeType(ComputeType::kAuto) == ComputeType::kFloat32)
    options.compute = ActivationType::kFloat32;
  return options;
}

absl::StatusOr<optim::OptimizerSettings> OptimizerSettingsOf(const Config& config) {
  const OptimizerOptions& o = config.optimizer;
  optim::OptimizerSettings settings;
  BITSHARD_ASSIGN_OR_RETURN(settings.name, optim::ParseOptimizerName(o.name));
  // At most one of the three means something to an optimizer.
  for (const auto& beta1 : {o.adam_beta1, o.momentum, o.rmsprop_alpha}) {
    if (beta1) settings.beta1 = beta1;
  }
  settings.beta2 = o.adam_beta2;
  settings.beta3 = o.adam_beta3;
  settings.eps = o.adam_epsilon;
  settings.weight_decay = o.weight_decay;
  settings.max_unorm = o.max_unorm;
  settings.alpha = o.ademamix_alpha;
  settings.alpha_steps = o.ademamix_t_alpha;
  settings.beta3_steps = o.ademamix_t_beta3;
  settings.min_8bit_size = o.min_8bit_size;
  for (const OptimizerOverride& override : o.overrides) {
    optim::TensorOverride& made = settings.overrides.emplace_back(
        optim::TensorOverride{.pattern = override.pattern,
                              .bits = override.bits,
                              .block_size = override.block_size,
                              .weight_decay = override.weight_decay});
    if (override.learning_rate)
      made.learning_rate_factor = *override.learning_rate / o.learning_rate;
  }
  return settings;
}

absl::StatusOr<optim::ShardedOptimizerOptions> OptimizerOptionsOf(const Config& config) {
  optim::ShardedOptimizerOptions options;
  BITSHARD_ASSIGN_OR_RETURN(options.settings, OptimizerSettingsOf(config));
  options.paging = {
      .tier = config.paging.tier == PagingTier::kFile ? paging::Tier::kFile : paging::Tier::kHost,
      .budget_bytes = config.paging.budget,
      .directory =
          config.paging.directory.empty() ? config.output.directory : config.paging.directory};
  return options;
}

std::string DescribeShares(const Config& config, const std::vector<optim::StateShare>& shares) {
  std::string text;
  for (const optim::StateShare& share : shares) {
    absl::StrAppendFormat(&text, "%s%d%s (%d elements) with %d-bit state", text.empty() ? "" : ", ",
                          share.tensors, text.empty() ? " tensors" : "", share.elems,
                          share.form.is_8bit ? 8 : 32);
    if (share.form.state_block != core::kBlockElems)
      absl::StrAppend(&text, " in blocks of ", share.form.state_block);
    if (share.learning_rate_factor != 1) {
      absl::StrAppendFormat(&text, ", learning rate %g",
                            config.optimizer.learning_rate * share.learning_rate_factor);
    }
    if (share.weight_decay != config.optimizer.weight_decay)
      absl::StrAppendFormat(&text, ", weight decay %g", share.weight_decay);
  }
  return text;
}

}  // namespace bitshard::trainer
