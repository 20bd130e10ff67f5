#include "trainer/model/dropout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "core/rng.h"
#include "trainer/model/adapter.h"
#include "trainer/model/decoder.h"
#include "trainer/process_memory.h"

namespace bitshard::trainer {
namespace {

constexpr float kProbability = 0.25f;  // A quarter of 65536 and 1 / 0.75 are without doubt.

MicroBatch BatchOf(const std::vector<std::vector<int32_t>>& samples,
                   const std::vector<int64_t>& ids) {
  MicroBatch batch{.starts = {0}};
  for (size_t s = 0; s < samples.size(); ++s) {
    const std::vector<int32_t>& tokens = samples[s];
    for (size_t i = 0; i < tokens.size(); ++i) {
      batch.tokens.push_back(tokens[i]);
      batch.targets.push_back(i + 1 < tokens.size() ? tokens[i + 1] : -1);
    }
    batch.sample_ids.push_back(ids[s]);
    batch.starts.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  return batch;
}

std::vector<float> DropOnes(const DropoutKey& key, const MicroBatch& batch, int64_t n) {
  std::vector<float> x(batch.tokens.size() * static_cast<size_t>(n), 1.0f), y(x.size());
  Dropout(key, batch, x.data(), n, y.data());
  return y;
}

TEST(Dropout, ZeroesTheShareAskedForAndScalesTheRest) {
  const MicroBatch batch =
      BatchOf({std::vector<int32_t>(150), std::vector<int32_t>(106)}, {7, 300000});
  const int64_t n = 1001;  // No multiple of the generator's eight.
  for (const float p : {0.1f, kProbability, 0.5f}) {
    const std::vector<float> y = DropOnes({.seed = 3, .step = 5, .probability = p}, batch, n);
    double zeros = 0;
    for (const float v : y) {
      ASSERT_TRUE(v == 0 || v == 1.0f / (1.0f - p)) << v;
      zeros += v == 0;
    }
    // Five standard deviations of a binomial share, and the 2^-16 by which p is rounded.
    const double count = static_cast<double>(y.size());
    const double bound = 5 * std::sqrt(p * (1 - p) / count) + 1.0 / 65536;
    EXPECT_NEAR(zeros / count, p, bound);
  }
}

TEST(Dropout, MaskBelongsToTheSampleAndToSeedStepLayerAndModule) {
  const int64_t n = 100;
  const DropoutKey key{.seed = 3, .step = 5, .layer = 2, .module = 1, .probability = 0.5f};
  const std::vector<int32_t> a(9), b(30), c(4);
  const std::vector<float> alone = DropOnes(key, BatchOf({b}, {11}), n);
  const std::vector<float> packed = DropOnes(key, BatchOf({a, b, c}, {10, 11, 12}), n);
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), packed.begin() + 9 * n));
  const auto differs = [&](auto change) {
    DropoutKey other = key;
    change(&other);
    return DropOnes(other, BatchOf({b}, {11}), n) != alone;
  };
  EXPECT_TRUE(differs([](DropoutKey* k) { k->seed = 4; }));
  EXPECT_TRUE(differs([](DropoutKey* k) { k->step = 6; }));
  EXPECT_TRUE(differs([](DropoutKey* k) { k->layer = 3; }));
  EXPECT_TRUE(differs([](DropoutKey* k) { k->module = 2; }));
  EXPECT_NE(DropOnes(key, BatchOf({b}, {13}), n), alone);
}

TEST(Dropout, BackwardAddsUnderTheSameMask) {
  const MicroBatch batch = BatchOf({std::vector<int32_t>(20)}, {1});
  const DropoutKey key{.seed = 1, .step = 2, .probability = kProbability};
  const std::vector<float> mask = DropOnes(key, batch, 50);
  std::vector<float> x(mask.size(), 3.0f), y(mask.size(), 10.0f);
  AddDropout(key, batch, x.data(), 50, y.data());
  for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], mask[i] == 0 ? 10.0f : 10.0f + 4.0f);
}

// A random model that exists in memory alone.
class RandomWeights : public io::WeightSource {
 public:
  RandomWeights() {
    config_.vocab_size = 60;
    config_.hidden_size = 32;
    config_.intermediate_size = 48;
    config_.num_hidden_layers = 2;
    config_.num_attention_heads = 4;
    config_.num_key_value_heads = 2;
    config_.head_dim = 8;
    config_.max_position_embeddings = 64;
    config_.tie_word_embeddings = true;
    Add("model.embed_tokens.weight", {60, 32});
    Add("model.norm.weight", {32});
    for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      Add(prefix + "input_layernorm.weight", {32});
      Add(prefix + "post_attention_layernorm.weight", {32});
      for (int m = 0; m < kNumModules; ++m) {
        const LinearShape shape = ShapeOf(config_, static_cast<Module>(m));
        Add(LinearName(layer, static_cast<Module>(m)) + ".weight", {shape.out, shape.in});
      }
    }
    std::ranges::sort(infos_, {}, &io::WeightInfo::name);
  }
  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return path_; }
  const std::vector<io::WeightInfo>& tensors() const override { return infos_; }
  absl::Status Read(const std::string& name, std::span<float> out) const override {
    return ReadRows(name, 0, out);
  }
  absl::Status ReadRows(const std::string& name, int64_t row, std::span<float> out) const override {
    const bool norm = absl::StrContains(name, "norm");
    const int64_t columns = norm ? 1 : FindInfo(name).shape[1];
    const uint64_t key = std::hash<std::string>()(name);
    for (size_t i = 0; i < out.size(); ++i) {
      const uint64_t element = static_cast<uint64_t>(row * columns) + i;
      const float uniform = core::UniformFloat(core::Philox(key, element, 0).word[0]) - 0.5f;
      out[i] = norm ? 1.0f + 0.2f * uniform : 0.8f * uniform;
    }
    return absl::OkStatus();
  }

 private:
  void Add(const std::string& name, std::vector<int64_t> shape) {
    infos_.push_back({.name = name, .shape = std::move(shape), .stored_as = "F32"});
  }
  const io::WeightInfo& FindInfo(const std::string& name) const {
    for (const io::WeightInfo& info : infos_) {
      if (info.name == name) return info;
    }
    return infos_.front();
  }
  ModelConfig config_;
  std::string path_ = "memory";
  std::vector<io::WeightInfo> infos_;
};

class DecoderDropout : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { ApplyMallocPolicy(); }  // As the program does.
  std::unique_ptr<Decoder> Make(double dropout, bool checkpointing = true) {
    DecoderOptions options;
    options.load_in_4bit = false;
    options.lora = {.r = 4, .alpha = 8, .dropout = dropout};
    options.activation_checkpointing = checkpointing;
    options.max_tokens = batch_.num_tokens();
    options.max_sample_tokens = batch_.num_tokens();
    auto decoder = Decoder::Create(source_, options);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    return *std::move(decoder);
  }
  // Both matrices of every adapter are random: with B = 0, as training starts, half of the formula
  // would not show.
  std::vector<float> Parameters(const Decoder& decoder) {
    std::vector<float> parameters(static_cast<size_t>(decoder.adapter_layout().padded_elems()));
    for (const core::FlatTensor& tensor : decoder.adapter_layout().tensors()) {
      for (int64_t e = tensor.offset(); e < tensor.offset() + tensor.numel; ++e) {
        parameters[static_cast<size_t>(e)] =
            core::UniformFloat(core::Philox(5, static_cast<uint64_t>(e), 0).word[0]) - 0.5f;
      }
    }
    return parameters;
  }
  double Loss(Decoder* decoder, const std::vector<float>& parameters, int64_t step,
              std::vector<float>* gradients = nullptr) {
    std::vector<float> unused(parameters.size());
    const auto sum =
        decoder->ForwardBackward(batch_,
                                 {.parameters = parameters,
                                  .gradients = gradients == nullptr ? unused : *gradients,
                                  .seed = 17,
                                  .step = step},
                                 [](int64_t) { return absl::OkStatus(); });
    EXPECT_TRUE(sum.ok()) << sum.status();
    return sum.ok() ? sum->nats : 0;
  }

  RandomWeights source_;
  MicroBatch batch_ =
      BatchOf({{5, 9, 33, 7, 2, 51, 14, 44, 3, 17}, {11, 4, 4, 57, 20, 21, 22}}, {100, 101});
};

// Central differences of the loss under the step's mask, along each tensor's own gradient: the
// derivative in that direction is the gradient's length. Another mask in recomputation or backward,
// or a scale that is left out once, changes it by tens of percent.
TEST_F(DecoderDropout, GradientIsThatOfTheLossUnderTheSameMask) {
  for (const bool checkpointing : {true, false}) {
    const std::unique_ptr<Decoder> decoder = Make(0.3, checkpointing);
    const std::vector<float> parameters = Parameters(*decoder);
    std::vector<float> gradients(parameters.size());
    Loss(decoder.get(), parameters, 1, &gradients);
    for (const core::FlatTensor& tensor : decoder->adapter_layout().tensors()) {
      double squares = 0;
      for (int64_t e = tensor.offset(); e < tensor.offset() + tensor.numel; ++e)
        squares += std::pow(gradients[static_cast<size_t>(e)], 2);
      const double length = std::sqrt(squares);
      // The loss is a float32 pass: about 1e-5 of noise. A shift that changes it by 2e-2 makes that
      // 1e-3 of the derivative; the third-order term is of the same size.
      const double shift = 1e-2 / std::max(length, 1e-3);
      std::vector<float> up = parameters, down = parameters;
      for (int64_t e = tensor.offset(); e < tensor.offset() + tensor.numel; ++e) {
        const size_t i = static_cast<size_t>(e);
        up[i] += static_cast<float>(shift * gradients[i] / length);
        down[i] -= static_cast<float>(shift * gradients[i] / length);
      }
      const double derivative =
          (Loss(decoder.get(), up, 1) - Loss(decoder.get(), down, 1)) / (2 * shift);
      EXPECT_NEAR(derivative, length, 0.02 * length) << tensor.name;
    }
  }
}

TEST_F(DecoderDropout, RecomputedActivationsHaveTheMaskOfTheFirstPass) {
  const std::unique_ptr<Decoder> recomputed = Make(0.3, true), kept = Make(0.3, false);
  const std::vector<float> parameters = Parameters(*kept);
  std::vector<float> a(parameters.size()), b(parameters.size());
  EXPECT_EQ(Loss(recomputed.get(), parameters, 1, &a), Loss(kept.get(), parameters, 1, &b));
  EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float)));
}

TEST_F(DecoderDropout, EvaluationHasNone) {
  const std::unique_ptr<Decoder> dropping = Make(0.3), plain = Make(0);
  const std::vector<float> parameters = Parameters(*plain);
  const auto evaluated = dropping->Evaluate(batch_, parameters, {});
  const auto wanted = plain->Evaluate(batch_, parameters, {});
  ASSERT_TRUE(evaluated.ok() && wanted.ok());
  EXPECT_EQ(evaluated->nats, wanted->nats);
  const double trained = Loss(dropping.get(), parameters, 1);
  EXPECT_NE(trained, wanted->nats);
  EXPECT_NE(trained, Loss(dropping.get(), parameters, 2)) << "every step has its own mask";
  EXPECT_EQ(trained, Loss(dropping.get(), parameters, 1));
}

}  // namespace
}  // namespace bitshard::trainer
