#include "trainer/training_data.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/status_macros.h"
#include "trainer/data/packing.h"
#include "trainer/data/sampler.h"
#include "trainer/data/token_cache.h"

namespace bitshard::trainer {
namespace {

Packs PackSamples(const Config& config, std::vector<int64_t> lengths) {
  return config.data.sample_packing ? PackBestFitDecreasing(lengths, config.data.sequence_len)
                                    : OneSampleAPack(static_cast<int64_t>(lengths.size()));
}

int64_t LongestPack(const Packs& packs, const std::vector<int64_t>& lengths) {
  int64_t longest = 0;
  for (int64_t p = 0; p < packs.num_packs(); ++p) {
    int64_t tokens = 0;
    for (const int64_t s : packs.pack(p)) tokens += lengths[static_cast<size_t>(s)];
    longest = std::max(longest, tokens);
  }
  return longest;
}

// A rank later than the one before it, so that one speaks for all who wait for the same process.
double LockTimeout(const Config& config, int rank) {
  return config.comm.timeout_seconds + std::min(rank, 20);
}

class CachedData : public TrainingData {
 public:
  static absl::StatusOr<std::unique_ptr<CachedData>> Prepare(const DataRequest& request) {
    const Config& config = *request.config;
    auto data = std::make_unique<CachedData>();
    data->batch_ = config.batch;
    BITSHARD_ASSIGN_OR_RETURN(data->train_, data->Cache(request, config.data.datasets));
    BITSHARD_ASSIGN_OR_RETURN(data->held_out_, data->Cache(request, config.data.test_datasets));
    for (const TokenCache* cache : {data->train_.get(), data->held_out_.get()}) {
      if (cache == nullptr || cache->vocab_size() <= request.model->vocab_size) continue;
      return core::DataError(absl::StrFormat(
          "%s: tokens up to %d, but the model's vocabulary has %d: the tokenizer "
          "does not belong to the model",
          core::Escaped(cache->path(), 4096), cache->vocab_size() - 1, request.model->vocab_size));
    }
    data->Pack(config);
    return data;
  }

  const DataSummary& summary() const override { return summary_; }
  int64_t total_steps() const override { return total_steps_; }
  double EpochAfter(int64_t step) const override { return sampler_->EpochAfter(step); }
  int64_t max_micro_batch_tokens() const override { return max_micro_batch_tokens_; }
  int64_t max_sample_tokens() const override {
    return std::max(train_->max_sample_tokens(),
                    held_out_ == nullptr ? 0 : held_out_->max_sample_tokens());
  }
  int64_t cache_bytes() const override {
    return train_->bytes() + (held_out_ == nullptr ? 0 : held_out_->bytes());
  }
  int64_t text_process_peak_bytes() const override { return text_process_peak_bytes_; }
  uint64_t content_hash() const override {
    core::Hasher hasher;
    hasher.UpdateInt(static_cast<int64_t>(train_->content_hash()));
    hasher.UpdateInt(held_out_ == nullptr ? 0 : static_cast<int64_t>(held_out_->content_hash()));
    return hasher.Digest();
  }
  const std::vector<std::string>& held_out_prompts() const override {
    static const auto* const none = new std::vector<std::string>();
    return held_out_ == nullptr ? *none : held_out_->notes().prompts;
  }

  absl::StatusOr<MicroBatch> TrainMicroBatch(int64_t step, int64_t index) override {
    return BuildMicroBatch(*train_, train_packs_, sampler_->MicroBatchPacks(step, index));
  }
  int64_t num_held_out_micro_batches() const override {
    return (held_out_packs_.num_packs() + batch_.micro_batch_size - 1) / batch_.micro_batch_size;
  }
  absl::StatusOr<MicroBatch> HeldOutMicroBatch(int64_t index) override {
    return BuildMicroBatch(
        *held_out_, held_out_packs_,
        SequentialMicroBatchPacks(held_out_packs_.num_packs(), batch_.micro_batch_size, index));
  }

 private:
  absl::StatusOr<std::unique_ptr<TokenCache>> Cache(const DataRequest& request,
                                                    const std::vector<DatasetOptions>& datasets) {
    if (datasets.empty()) return std::unique_ptr<TokenCache>();
    const Config& config = *request.config;
    TokenCacheSpec spec{.python = request.python,
                        .caller = absl::StrCat("rank ", request.rank),
                        .lock_timeout_seconds = LockTimeout(config, request.rank),
                        .cache_directory = request.cache_directory,
                        .tokenizer = request.tokenizer,
                        .datasets = datasets,
                        .sequence_len = config.data.sequence_len,
                        .excess_length = config.data.excess_length,
                        .train_on_inputs = config.data.train_on_inputs,
                        .on_progress = request.on_progress};
    BITSHARD_ASSIGN_OR_RETURN(PreparedCache prepared, PrepareTokenCache(spec));
    text_process_peak_bytes_ = std::max(text_process_peak_bytes_, prepared.text_process_peak_bytes);
    return std::move(prepared.cache);
  }

  void Pack(const Config& config) {
    const std::vector<int64_t> lengths = train_->SampleLengths();
    train_packs_ = PackSamples(config, lengths);
    int64_t longest = LongestPack(train_packs_, lengths);
    if (held_out_ != nullptr) {
      std::vector<int64_t> held_out = held_out_->SampleLengths();
      if (config.eval.max_samples > 0) {
        held_out.resize(std::min(held_out.size(), static_cast<size_t>(config.eval.max_samples)));
      }
      held_out_packs_ = PackSamples(config, held_out);
      longest = std::max(longest, LongestPack(held_out_packs_, held_out));
      summary_.held_out_samples = static_cast<int64_t>(held_out.size());
      for (const int64_t length : held_out) summary_.held_out_tokens += length;
    }
    max_micro_batch_tokens_ = longest * config.batch.micro_batch_size;
    sampler_ = std::make_unique<PackSampler>(
        SamplerOptions{.seed = static_cast<uint64_t>(config.compute.seed),
                       .num_packs = train_packs_.num_packs(),
                       .micro_batch_size = config.batch.micro_batch_size,
                       .global_batch_size = config.batch.global_batch_size});
    total_steps_ = config.batch.max_steps >= 0 ? config.batch.max_steps
                                               : sampler_->StepsForEpochs(config.batch.num_epochs);
    summary_.train_samples = train_->num_samples();
    summary_.train_tokens = train_->num_tokens();
    summary_.train_trained_tokens = train_->num_trained();
    summary_.packs = train_packs_.num_packs();
    summary_.dropped = train_->notes().dropped_too_long + train_->notes().dropped_untrained;
    summary_.truncated = train_->notes().truncated;
    summary_.fill = static_cast<double>(summary_.train_tokens) /
                    static_cast<double>(summary_.packs * config.data.sequence_len);
  }

  BatchOptions batch_;
  std::unique_ptr<TokenCache> train_, held_out_;
  Packs train_packs_, held_out_packs_;
  std::unique_ptr<PackSampler> sampler_;
  DataSummary summary_;
  int64_t total_steps_ = 0;
  int64_t max_micro_batch_tokens_ = 0;
  int64_t text_process_peak_bytes_ = 0;
};

// Nodes with folders of their own may hold other files under the same names.
absl::Status CheckSameOnAllRanks(const TrainingData& data, comm::Communicator* comm) {
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<std::string> hashes,
                            comm->GatherStrings(core::HexDigest(data.content_hash()), "data"));
  absl::Status mine;
  if (hashes[static_cast<size_t>(comm->rank())] != hashes[0]) {
    mine = core::DataError(
        absl::StrCat("the prepared data on ", comm->host_name(), " differs from rank 0's (",
                     hashes[static_cast<size_t>(comm->rank())], ", want ", hashes[0],
                     "): give every node the same data files and tokenizer"));
  }
  return comm->AgreeOnStatus(mine);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TrainingData>> TrainingData::Open(const DataRequest& request,
                                                                 comm::Communicator* comm) {
  auto data = CachedData::Prepare(request);
  // The process that hangs may be a rank: it would not come to agree.
  if (core::KindOf(data.status()) == core::ErrorKind::kPeer) return data.status();
  BITSHARD_RETURN_IF_ERROR(comm->AgreeOnStatus(data.status()));
  BITSHARD_RETURN_IF_ERROR(CheckSameOnAllRanks(**data, comm));
  return *std::move(data);
}

}  // namespace bitshard::trainer
