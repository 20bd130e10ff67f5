// TrainingData: the token caches of a run and the micro-batches cut from them.
//
// What is in micro-batch i of step s is a pure function of the caches, the seed and (s, i): it
// depends neither on the world size nor on what was asked for before, so resuming needs no more
// than the step number.
#ifndef BITSHARD_TRAINER_TRAINING_DATA_H_
#define BITSHARD_TRAINER_TRAINING_DATA_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "trainer/config.h"
#include "trainer/data/micro_batch.h"
#include "trainer/data/text_process.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer {

/// What there is to train on: printed at the start.
struct DataSummary {
  int64_t train_samples = 0, train_tokens = 0, train_trained_tokens = 0, packs = 0;
  int64_t held_out_samples = 0, held_out_tokens = 0;
  int64_t dropped = 0;  ///< Samples left out: too long, or nothing to train on.
  int64_t truncated = 0;
  double fill = 0;  ///< Tokens of a pack divided by sequence_len, on average.
};

struct DataRequest {
  const Config* config = nullptr;
  const ModelConfig* model = nullptr;
  int rank = 0;
  TextPython python;
  std::string cache_directory;
  std::string tokenizer;  ///< A .gguf file or a Hugging Face folder.
  /// Gets a line about what is going on now and then; may be empty.
  std::function<void(const std::string&)> on_progress;
};

/// Threads: one thread calls it. Immutable after Open.
class TrainingData {
 public:
  /// Prepares the caches where they don't exist yet (one process a node does, the others wait for
  /// it without a collective), maps them, checks that all ranks have the same, and packs the
  /// samples. Errors: kData, kConfig, agreed on by all ranks; kPeer for a process that hangs.
  static absl::StatusOr<std::unique_ptr<TrainingData>> Open(const DataRequest& request,
                                                            comm::Communicator* comm);
  virtual ~TrainingData() = default;

  virtual const DataSummary& summary() const = 0;
  /// Steps that the configuration asks for: max_steps, or num_epochs passes.
  virtual int64_t total_steps() const = 0;
  /// Passes over the data completed by the end of `step`.
  virtual double EpochAfter(int64_t step) const = 0;
  /// Tokens of the longest micro-batch, training or held out.
  virtual int64_t max_micro_batch_tokens() const = 0;
  virtual int64_t max_sample_tokens() const = 0;
  /// Bytes of the mapped caches.
  virtual int64_t cache_bytes() const = 0;
  /// VmHWM of the largest Python process that this process started to make them; 0: none.
  virtual int64_t text_process_peak_bytes() const = 0;
  /// Hash over the content of the caches: the same on every rank, and after a resume.
  virtual uint64_t content_hash() const = 0;

  /// What users say in the first held-out samples that have one user turn.
  virtual const std::vector<std::string>& held_out_prompts() const = 0;

  /// Micro-batch `index` (over all ranks) of step `step` (from 1).
  virtual absl::StatusOr<MicroBatch> TrainMicroBatch(int64_t step, int64_t index) = 0;
  virtual int64_t num_held_out_micro_batches() const = 0;
  virtual absl::StatusOr<MicroBatch> HeldOutMicroBatch(int64_t index) = 0;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_TRAINING_DATA_H_
