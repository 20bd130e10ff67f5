// Config: everything that a run can be told, as typed structs. Defaults stand here and nowhere
// else; the keys of the YAML file, their aliases and their ranges stand in
// trainer/config_fields.cc; docs/config.md lists them.
//
//   BITSHARD_ASSIGN_OR_RETURN(trainer::Config config,
//                             trainer::LoadConfig({.path = "run.yaml", .overrides =
//                             {"lora_r=8"}}));
//   config.lora.r;                        // 8
//   trainer::ConfigToYaml(config);        // every key; loads to the same Config
//   trainer::ConfigHash(config);          // the same for two configs that train the same adapter
//
// Threads: plain values and pure functions.
#ifndef BITSHARD_TRAINER_CONFIG_H_
#define BITSHARD_TRAINER_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/gradient_reducer.h"
#include "optim/lr_schedule.h"
#include "quant/blockwise.h"

namespace bitshard::trainer {

enum class AdapterKind { kQlora, kLora };
enum class SampleType {
  kAuto,
  kAlpaca,
  kChatTemplate,
  kShareGpt,
  kCompletion,
  kPromptCompletion,
  kText
};
enum class ExcessLength { kDrop, kTruncate, kRaise };
enum class DeviceKind { kAuto, kCpu, kCuda };
enum class PagingTier { kAuto, kHost, kFile, kManaged, kPinned };
enum class ComputeType { kAuto, kFloat32, kBFloat16 };
enum class CommBackend { kMpi };
enum class NonFinite { kSkip, kStop };
enum class Report { kJsonl, kTensorBoard, kCsv };

/// The frozen base model.
struct ModelOptions {
  /// A Hugging Face folder or a .gguf file.
  std::string base_model;
  /// What config.json's model_type must be ("llama"); empty: whatever the model says.
  std::string model_type;
  /// Hold the Linear layers of the blocks in 4 bits. Not given: true for qlora, false for lora.
  bool load_in_4bit = true;
  /// The 4-bit code table.
  quant::Type4Bit quant_type = quant::Type4Bit::kNf4;
  /// Quantise the scales of the 4-bit blocks too.
  bool double_quant = true;
  /// Elements that share one 4-bit scale: a power of two.
  int64_t block_size = 64;
};

/// The trained adapter.
struct LoraOptions {
  AdapterKind adapter = AdapterKind::kQlora;
  /// Rank of the adapter matrices.
  int64_t r = 16;
  /// The adapter's output is scaled by alpha / r.
  int64_t alpha = 32;
  /// Probability with which an element of the adapter's input is zeroed in training.
  double dropout = 0;
  /// Linear layers that get an adapter, by their last name (q_proj). Empty: every Linear layer of
  /// the blocks.
  std::vector<std::string> target_modules;
  /// Scale by alpha / sqrt(r) instead.
  bool use_rslora = false;
};

/// One file of samples.
struct DatasetOptions {
  /// A .json, .jsonl or .parquet file.
  std::string path;
  /// How a record becomes a sample; auto looks at the first record's columns.
  SampleType type = SampleType::kAuto;
  friend bool operator==(const DatasetOptions&, const DatasetOptions&) = default;
};

/// What is trained on, and how it becomes packs of tokens.
struct DataOptions {
  std::vector<DatasetOptions> datasets;
  /// Held out: evaluated, never trained on.
  std::vector<DatasetOptions> test_datasets;
  /// Longest sample and longest pack, in tokens.
  int64_t sequence_len = 512;
  /// Put several samples into one pack; they do not see each other. false: a pack is one sample.
  bool sample_packing = true;
  /// Count prompt tokens in the loss too.
  bool train_on_inputs = false;
  /// What to do with a sample that is longer than sequence_len.
  ExcessLength excess_length = ExcessLength::kDrop;
};

/// How much is trained on at a time, and for how long.
struct BatchOptions {
  /// Packs in one forward and backward pass.
  int64_t micro_batch_size = 1;
  /// Packs of one optimizer step over all ranks: the same at every world size.
  int64_t global_batch_size = 8;
  /// Passes over the data; a fraction stops in the middle of a pass.
  double num_epochs = 1;
  /// Steps to stop after; -1: by num_epochs.
  int64_t max_steps = -1;

  /// Forward and backward passes of one step over all ranks.
  int64_t micro_batches_per_step() const { return global_batch_size / micro_batch_size; }
};

/// What is different for the tensors that a pattern names (optim::TensorOverride).
struct OptimizerOverride {
  std::string pattern;
  std::optional<int64_t> bits;
  std::optional<int64_t> block_size;
  /// In the place of OptimizerOptions::learning_rate; the schedule scales both alike.
  std::optional<double> learning_rate;
  std::optional<double> weight_decay;
};

/// The optimizer and its schedule. A hyper-parameter that is not given has the rule's default
/// (optim::DefaultsOf); one that the rule does not have must not be given.
struct OptimizerOptions {
  /// As transformers spells it; optim::ParseOptimizerName says what it means.
  std::string name = "adamw_8bit";
  double learning_rate = 2e-4;
  optim::LrKind scheduler = optim::LrKind::kCosine;
  /// The cosine ends at this share of learning_rate.
  double cosine_min_lr_ratio = 0;
  /// Steps over which the learning rate rises from 0.
  int64_t warmup_steps = 0;
  /// The same as a share of all steps; one of the two.
  double warmup_ratio = 0;
  /// Of the Adams, Lion and LAMB; beta3 is AdEMAMix's.
  std::optional<double> adam_beta1;
  std::optional<double> adam_beta2;
  std::optional<double> adam_beta3;
  std::optional<double> adam_epsilon;
  /// Of SGD and LARS.
  std::optional<double> momentum;
  /// RMSprop's smoothing constant.
  std::optional<double> rmsprop_alpha;
  /// AdEMAMix's weight of the slow average, and the steps over which it and beta3 grow; 0: none.
  std::optional<double> ademamix_alpha;
  int64_t ademamix_t_alpha = 0;
  int64_t ademamix_t_beta3 = 0;
  /// An update is no longer than this times its tensor; 0: no limit.
  std::optional<double> max_unorm;
  double weight_decay = 0;
  /// The global gradient norm is clipped to this; 0: never.
  double max_grad_norm = 1.0;
  /// Tensors with fewer elements keep 32-bit state.
  int64_t min_8bit_size = 4096;
  /// The last that says something about a tensor counts.
  std::vector<OptimizerOverride> overrides;
};

/// Where a paged optimizer's state lives.
struct PagingSection {
  /// host and file where training is on the CPU, managed and pinned where it is on a GPU; auto:
  /// host, and managed.
  PagingTier tier = PagingTier::kAuto;
  /// For resident pages, per rank, in bytes: host memory of the file tier, device memory of managed
  /// and pinned.
  int64_t budget = int64_t{64} << 20;
  /// Where the file tier makes its (unlinked) files; empty: output_dir.
  std::string directory;
};

/// How a step is computed.
struct ComputeOptions {
  /// What trains; auto: a GPU for each rank where this program was built for them and they are
  /// there, else the CPU.
  DeviceKind device = DeviceKind::kAuto;
  /// Type of activations and matrix products; auto: bf16 where the processor has bf16 products,
  /// else fp32.
  ComputeType type = ComputeType::kAuto;
  /// Keep only each block's input and recompute the block in backward.
  bool activation_checkpointing = true;
  /// 0: the node's cores divided by its ranks.
  int64_t threads_per_rank = 0;
  /// What a step with a non-finite loss or gradient does: leave the parameters alone, or end the
  /// run.
  NonFinite nonfinite = NonFinite::kStop;
  int64_t seed = 42;
};

/// Evaluation on test_datasets.
struct EvalOptions {
  /// Steps between evaluations; 0: only before and after training.
  int64_t steps = 0;
  /// Evaluate before the first step.
  bool on_start = true;
  /// Held-out samples used; 0: all.
  int64_t max_samples = 0;
};

/// What is written, and where.
struct OutputOptions {
  std::string directory = "runs/default";
  /// Steps between checkpoints; 0: only at the end.
  int64_t save_steps = 50;
  /// Checkpoints kept; 0: all.
  int64_t save_total_limit = 3;
  /// "": start anew. "true": go on from the newest checkpoint in output_dir, which must have one.
  /// "auto": the same where there is one, else start anew. Else the path of a checkpoint.
  std::string resume_from_checkpoint;
  /// Steps between lines on the console when it is no terminal.
  int64_t logging_steps = 10;
  std::vector<Report> report_to = {Report::kJsonl, Report::kTensorBoard};
};

/// How ranks talk to each other.
struct CommOptions {
  CommBackend backend = CommBackend::kMpi;
  /// Seconds after which a rank that has not arrived counts as lost.
  double timeout_seconds = 600;
  /// Gradient bytes that are sent at a time while backward goes on.
  int64_t bucket_bytes = int64_t{4} << 20;
  comm::Reduction reduction = comm::Reduction::kOrdered;
};

/// Answers shown before and after training.
struct GenerateOptions {
  /// Held-out prompts to answer, at most as many as there are.
  int64_t heldout_prompts = 3;
  /// Further prompts.
  std::vector<std::string> prompts;
  int64_t max_new_tokens = 64;
};

struct Config {
  ModelOptions model;
  LoraOptions lora;
  DataOptions data;
  BatchOptions batch;
  OptimizerOptions optimizer;
  PagingSection paging;
  ComputeOptions compute;
  EvalOptions eval;
  OutputOptions output;
  CommOptions comm;
  GenerateOptions generate;
};

/// Where a Config comes from.
struct ConfigSource {
  std::string path;  ///< The YAML file.
  std::vector<std::string>
      overrides;            ///< "key=value", "paging.tier=file", "report_to=[csv]": after the file.
  bool needs_data = false;  ///< `datasets` must name something: for the commands that train.
};

/// Reads, binds and validates. Numbers are read whole ("12abc" and "1e6" for an integer are
/// faults), unknown keys are faults with the nearest known key, and so are keys that stand twice.
/// Errors: kConfig with one line for each fault: file:line:column, key, got, wanted. A file that
/// can't be read: kConfig.
absl::StatusOr<Config> LoadConfig(const ConfigSource& source);

/// The same for a text; `name` stands for the file in messages. For the resolved text inside a
/// checkpoint.
absl::StatusOr<Config> ParseConfig(const std::string& text, const std::string& name,
                                   const std::vector<std::string>& overrides = {});

/// Checks every range and every combination of keys.
/// Errors: kConfig, all faults, one a line.
absl::Status ValidateConfig(const Config& config);

/// What depends on the world size. Errors: kConfig when a step has fewer micro-batches than there
/// are ranks.
absl::Status ValidateWorldSize(const Config& config, int world_size);

/// Every key with its value, in the order of docs/config.md; ParseConfig makes the same Config of
/// it.
std::string ConfigToYaml(const Config& config);

/// 16 hex digits over the keys that decide what adapter comes out: not the world size, threads,
/// paths of output, paging, saving, logging, evaluation times, communication.
std::string ConfigHash(const Config& config);

/// A key whose values differ.
struct ConfigDifference {
  std::string key;
  std::string first;
  std::string second;
  bool changes_result = false;  ///< The key is part of ConfigHash.
};
std::vector<ConfigDifference> DiffConfigs(const Config& first, const Config& second);

/// "lora_r: 8, was 16; learning_rate: 0.0001, was 0.0002": for messages.
std::string DescribeDifferences(const std::vector<ConfigDifference>& differences);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_CONFIG_H_
