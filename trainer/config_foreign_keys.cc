// Keys of other trainers that mean something here under another name, and those that can't be met.
#include "trainer/config_binder.h"

namespace bitshard::trainer {

const std::vector<TranslatedKey>& TranslatedKeys() {
  static const auto* const keys = new std::vector<TranslatedKey>{
      {"bf16", "true", "compute_type", "bf16"},
      {"bf16", "auto", "compute_type", "auto"},
      {"bf16", "false", "compute_type", "fp32"},
      {"fp16", "false", "", ""},
      {"load_in_8bit", "false", "", ""},
      {"lora_target_linear", "true", "lora_target_modules", "all-linear"},
      {"disable_gradient_checkpointing", "true", "activation_checkpointing", "false"},
      {"disable_gradient_checkpointing", "false", "activation_checkpointing", "true"},
  };
  return *keys;
}

const std::vector<RefusedKey>& RefusedKeys() {
  static const auto* const keys = new std::vector<RefusedKey>{
      {"gradient_accumulation_steps",
       "refused: what a step trains on must not depend on the number of ranks; write "
       "global_batch_size: micro_batch_size x gradient_accumulation_steps x ranks, and the "
       "accumulation follows from it"},
      {"fp16", "fp16 is not trained in; write compute_type: bf16 or fp32"},
      {"load_in_8bit", "an 8-bit base is not built; write load_in_4bit: true or adapter: lora"},
      {"lora_target_linear", "write lora_target_modules with the layers that you want"},
      {"val_set_size",
       "refused: put the held-out samples in a file of their own and name it in "
       "test_datasets"},
      {"eval_strategy", "write eval_steps (0: only before and after training)"},
      {"evaluation_strategy", "write eval_steps (0: only before and after training)"},
      {"evals_per_epoch", "write eval_steps"},
      {"save_strategy", "write save_steps (0: only at the end)"},
      {"saves_per_epoch", "write save_steps"},
      {"logging_strategy", "write logging_steps"},
      {"logging_dir", "refused: TensorBoard events are written to output_dir"},
      {"deepspeed", "refused: the optimizer's state is always sharded over the ranks"},
      {"fsdp", "refused: the optimizer's state is always sharded over the ranks"},
      {"optim_args",
       "refused; write the keys themselves: adam_beta1, adam_beta2, adam_beta3, adam_epsilon, "
       "momentum, rmsprop_alpha, max_unorm, ademamix_alpha, ademamix_t_alpha, ademamix_t_beta3"},
      {"lr_groups", "write optimizer_overrides: [{pattern: \"*.q_proj.*\", learning_rate: 1e-3}]"},
      {"loraplus_lr_ratio",
       "write optimizer_overrides: [{pattern: \"*.lora_B.*\", learning_rate: RATE}]"},
      {"group_by_length", "refused: samples are packed; see sample_packing"},
      {"lora_modules_to_save", "whole modules are not trained beside the adapter"},
      {"modules_to_save", "whole modules are not trained beside the adapter"},
      {"use_dora", "DoRA is not built"},
      {"peft_use_dora", "DoRA is not built"},
      {"bnb_4bit_quant_storage", "refused: 4-bit weights are held as uint8"},
      {"attn_implementation", "refused: there is one attention, exact and block-diagonal"},
      {"flash_attention", "refused: there is one attention, exact and block-diagonal"},
      {"load_best_model_at_end", "not built; every checkpoint up to save_total_limit is kept"},
      {"max_memory", "refused; `bitshard plan` prints what a run needs"},
  };
  return *keys;
}

}  // namespace bitshard::trainer
