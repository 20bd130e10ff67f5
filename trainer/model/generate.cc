#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/model/decoder_of.h"
#include "trainer/model/kernels.h"
#include "trainer/model/pass_input.h"

namespace bitshard::trainer {

// Keys and values of every sequence: for each layer [sequences, capacity, kv_heads * head_dim].
template <class T>
struct DecoderOf<T>::KvCache {
  std::vector<T> k, v;
  std::vector<int64_t> lengths;  // Tokens of each sequence in the cache.
  int64_t capacity = 0, row = 0;
  std::vector<float> cosine, sine;  // [capacity, head_dim / 2]

  T* At(std::vector<T>* data, int64_t layer, int64_t sequence, int64_t token) {
    const int64_t sequences = static_cast<int64_t>(lengths.size());
    return data->data() + ((layer * sequences + sequence) * capacity + token) * row;
  }
};

// The most likely token; `row` of w_.logits.
template <class T>
int32_t DecoderOf<T>::Pick(int64_t row) const {
  std::vector<float> logits(static_cast<size_t>(config_.vocab_size));
  Convert(w_.logits + row * config_.vocab_size, logits.data(), config_.vocab_size);
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Runs the prompt as one sample and keeps its keys and values. With activation checkpointing a
// block's are gone when the next one runs, so they are copied block by block.
template <class T>
absl::Status DecoderOf<T>::Prefill(std::span<const float> parameters,
                                   const std::vector<int32_t>& prompt, KvCache* cache,
                                   int64_t sequence, int32_t* next) {
  MicroBatch batch{.tokens = prompt,
                   .targets = std::vector<int32_t>(prompt.size(), -1),
                   .starts = {0, static_cast<int32_t>(prompt.size())},
                   .sample_ids = {0}};
  BITSHARD_RETURN_IF_ERROR(CheckPass(batch, parameters));
  const Pass pass{.batch = &batch,
                  .parameters = parameters,
                  .padded_rows = PadRows(batch.num_tokens(), kRowsMultiple)};
  const size_t bytes = static_cast<size_t>(pass.tokens() * cache->row) * sizeof(T);
  Embed(pass);
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    BlockForward(pass, layer, true);
    std::memcpy(cache->At(&cache->k, layer, sequence, 0), w_.block(layer).k, bytes);
    std::memcpy(cache->At(&cache->v, layer, sequence, 0), w_.block(layer).v, bytes);
  }
  cache->lengths[static_cast<size_t>(sequence)] = pass.tokens();
  LogitRows({static_cast<int32_t>(pass.tokens() - 1)}, 0, 1);
  *next = Pick(0);
  return absl::OkStatus();
}

// One token of each sequence: row i of the batch continues sequences[i].
template <class T>
void DecoderOf<T>::DecodeBlock(const Pass& pass, int64_t layer,
                               const std::vector<int64_t>& sequences, KvCache* cache) {
  const SavedBlock<T>& s = w_.block(layer);
  const int64_t rows = pass.rows();
  const int64_t q_row = config_.num_attention_heads * config_.head_dim;
  QkvForward(pass, layer, s);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t sequence = sequences[static_cast<size_t>(i)];
    const int64_t length = cache->lengths[static_cast<size_t>(sequence)];
    const size_t bytes = static_cast<size_t>(cache->row) * sizeof(T);
    std::memcpy(cache->At(&cache->k, layer, sequence, length), s.k + i * cache->row, bytes);
    std::memcpy(cache->At(&cache->v, layer, sequence, length), s.v + i * cache->row, bytes);
    DecodeAttention(DecodeAttentionArgs<T>{.shape = AttentionOf(pass, s).shape,
                                           .q = s.q + i * q_row,
                                           .k = cache->At(&cache->k, layer, sequence, 0),
                                           .v = cache->At(&cache->v, layer, sequence, 0),
                                           .out = s.attention + i * q_row,
                                           .length = length + 1});
  }
  MlpForward(pass, layer, true);
}

template <class T>
absl::StatusOr<std::vector<std::vector<int32_t>>> DecoderOf<T>::Generate(
    const std::vector<std::vector<int32_t>>& prompts, std::span<const float> parameters,
    const GenerateOptions& options) {
  if (static_cast<int64_t>(prompts.size()) > std::min(kLogitRows, options_.max_tokens)) {
    return core::ConfigError(absl::StrFormat("%d prompts at a time: at most %d", prompts.size(),
                                             std::min(kLogitRows, options_.max_tokens)));
  }
  std::vector<std::vector<int32_t>> answers(prompts.size());
  std::vector<int32_t> next(prompts.size());
  KvCache cache;
  for (const auto& prompt : prompts)
    cache.capacity = std::max(cache.capacity, static_cast<int64_t>(prompt.size()));
  cache.capacity += options.max_new_tokens;
  cache.row = config_.num_key_value_heads * config_.head_dim;
  cache.lengths.resize(prompts.size());
  const size_t elems =
      static_cast<size_t>(config_.num_hidden_layers * static_cast<int64_t>(prompts.size()) *
                          cache.capacity * cache.row);
  cache.k.resize(elems);
  cache.v.resize(elems);
  cache.cosine.resize(static_cast<size_t>(cache.capacity * config_.head_dim / 2));
  cache.sine.resize(cache.cosine.size());
  FillRope(config_, cache.capacity, cache.cosine.data(), cache.sine.data());
  const auto stopped = [&]() -> absl::Status {
    if (!options.stop_requested || !options.stop_requested()) return absl::OkStatus();
    return core::InterruptedError("asked to stop while answering prompts");
  };
  for (size_t i = 0; i < prompts.size(); ++i) {
    BITSHARD_RETURN_IF_ERROR(stopped());
    BITSHARD_RETURN_IF_ERROR(
        Prefill(parameters, prompts[i], &cache, static_cast<int64_t>(i), &next[i]));
  }
  const auto ends = [&](int32_t token) {
    const auto has = [token](const auto& list) {
      return std::find(list.begin(), list.end(), token) != list.end();
    };
    return has(config_.eos_token_ids) || has(options.stop_tokens);
  };
  for (int64_t index = 1; index <= options.max_new_tokens; ++index) {
    BITSHARD_RETURN_IF_ERROR(stopped());
    MicroBatch batch{.starts = {0}};
    std::vector<int64_t> running;
    for (size_t i = 0; i < prompts.size(); ++i) {
      if (static_cast<int64_t>(answers[i].size()) + 1 != index || ends(next[i])) continue;
      answers[i].push_back(next[i]);
      running.push_back(static_cast<int64_t>(i));
      batch.tokens.push_back(next[i]);
      batch.starts.push_back(static_cast<int32_t>(batch.tokens.size()));
    }
    if (running.empty() || index == options.max_new_tokens) break;
    DecodeStep({.batch = &batch, .parameters = parameters}, running, &cache);
    for (size_t row = 0; row < running.size(); ++row) {
      next[static_cast<size_t>(running[row])] = Pick(static_cast<int64_t>(row));
    }
  }
  return answers;
}

// Logits of the next token of each running sequence.
template <class T>
void DecoderOf<T>::DecodeStep(const Pass& pass, const std::vector<int64_t>& sequences,
                              KvCache* cache) {
  Embed(pass);
  float* const cosine = std::exchange(w_.cosine, cache->cosine.data());
  float* const sine = std::exchange(w_.sine, cache->sine.data());
  std::vector<int32_t> rows;
  for (size_t i = 0; i < sequences.size(); ++i) {
    w_.positions[i] = static_cast<int32_t>(cache->lengths[static_cast<size_t>(sequences[i])]);
    rows.push_back(static_cast<int32_t>(i));
  }
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer)
    DecodeBlock(pass, layer, sequences, cache);
  for (const int64_t sequence : sequences) ++cache->lengths[static_cast<size_t>(sequence)];
  w_.cosine = cosine;
  w_.sine = sine;
  LogitRows(rows, 0, pass.rows());
}

template class DecoderOf<float>;
template class DecoderOf<hwy::bfloat16_t>;

}  // namespace bitshard::trainer
