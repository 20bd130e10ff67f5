#include "trainer/model/pass_input.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "core/error.h"

namespace bitshard::trainer {

absl::Status CheckBatch(const MicroBatch& batch, const ModelConfig& config,
                        const DecoderOptions& options) {
  if (batch.num_tokens() < 1 || batch.num_tokens() > options.max_tokens) {
    return core::ConfigError(
        absl::StrFormat("micro-batch of %d tokens: this decoder was made for 1 to %d",
                        batch.num_tokens(), options.max_tokens));
  }
  for (size_t s = 0; s + 1 < batch.starts.size(); ++s) {
    const int64_t tokens = batch.starts[s + 1] - batch.starts[s];
    if (tokens < 1 || tokens > options.max_sample_tokens) {
      return core::ConfigError(
          absl::StrFormat("sample %d of %d tokens: this decoder was made for 1 to %d", s, tokens,
                          options.max_sample_tokens));
    }
  }
  for (const int32_t token : batch.tokens) {
    if (token < 0 || token >= config.vocab_size) {
      return core::DataError(
          absl::StrFormat("token %d: the vocabulary has %d", token, config.vocab_size));
    }
  }
  return absl::OkStatus();
}

TrainedRows TrainedRowsOf(const MicroBatch& batch) {
  TrainedRows trained;
  for (int32_t t = 0; t < batch.num_tokens(); ++t) {
    const int32_t target = batch.targets[static_cast<size_t>(t)];
    if (target < 0) continue;
    trained.rows.push_back(t);
    trained.targets.push_back(target);
  }
  return trained;
}

void FillRope(const ModelConfig& config, int64_t positions, float* cosine, float* sine) {
  const int64_t half = config.head_dim / 2;
  const RopeScaling& scaling = config.rope_scaling;
  for (int64_t i = 0; i < half; ++i) {
    const double exponent = static_cast<double>(2 * i) / static_cast<double>(config.head_dim);
    double frequency = 1.0 / std::pow(config.rope_theta, exponent);
    if (scaling.kind == "linear") frequency /= scaling.factor;
    if (scaling.kind == "llama3") {
      const double context = static_cast<double>(scaling.original_max_position_embeddings);
      const double wavelength = 2.0 * M_PI / frequency;
      const double smooth = std::clamp((context / wavelength - scaling.low_freq_factor) /
                                           (scaling.high_freq_factor - scaling.low_freq_factor),
                                       0.0, 1.0);
      frequency = (1.0 - smooth) * frequency / scaling.factor + smooth * frequency;
    }
    const float f = static_cast<float>(frequency);
    for (int64_t p = 0; p < positions; ++p) {
      const float angle = static_cast<float>(p) * f;
      cosine[p * half + i] = std::cos(angle);
      sine[p * half + i] = std::sin(angle);
    }
  }
}

}  // namespace bitshard::trainer
