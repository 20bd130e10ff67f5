#include "optim/torch_options.h"

#include <torch/serialize/archive.h>

namespace bitshard::optim {
namespace {

// The archive's key of every value there is: one list for writing and reading.
template <class Values, class Body>
void ForEachValue(Values& v, Body&& body) {
  body("lr", v.hyper.learning_rate);
  body("beta1", v.hyper.beta1);
  body("beta2", v.hyper.beta2);
  body("beta3", v.hyper.beta3);
  body("eps", v.hyper.eps);
  body("weight_decay", v.hyper.weight_decay);
  body("alpha", v.hyper.alpha);
  body("alpha_steps", v.hyper.alpha_steps);
  body("beta3_steps", v.hyper.beta3_steps);
  body("max_unorm", v.max_unorm);
  body("bits", v.bits);
  body("min_8bit_size", v.min_8bit_size);
  body("block_size", v.block_size);
  body("decoupled_weight_decay", v.decoupled_weight_decay);
  body("master_weights", v.master_weights);
  body("stochastic_rounding", v.stochastic_rounding);
  body("seed", v.seed);
}

bool IsDecay(double beta) { return 0 <= beta && beta < 1; }

}  // namespace

BlockwiseOptions::BlockwiseOptions(Algorithm algorithm) : algorithm_(algorithm) {
  const RuleDefaults defaults = DefaultsOf(algorithm);
  values_.hyper.learning_rate = defaults.learning_rate;
  values_.hyper.beta1 = defaults.beta1;
  values_.hyper.beta2 = defaults.beta2;
  values_.hyper.eps = defaults.eps;
  values_.hyper.weight_decay = defaults.weight_decay;
  values_.max_unorm = defaults.max_unorm;
}

Algorithm BlockwiseOptions::rule() const {
  return values_.decoupled_weight_decay ? Algorithm::kAdamW : algorithm_;
}

void BlockwiseOptions::serialize(torch::serialize::OutputArchive& archive) const {
  ForEachValue(values_,
               [&](const char* key, const auto& value) { archive.write(key, c10::IValue(value)); });
}

void BlockwiseOptions::serialize(torch::serialize::InputArchive& archive) {
  ForEachValue(values_, [&](const char* key, auto& value) {
    c10::IValue read;
    TORCH_CHECK(archive.try_read(key, read), "optimizer archive: the options have no ", key,
                ": it was not written by this version of bitshard");
    value = read.to<std::decay_t<decltype(value)>>();
  });
}

void BlockwiseOptions::Check(const std::string& where) const {
  const StepHyper& h = values_.hyper;
  TORCH_CHECK(h.learning_rate >= 0, where, ": lr: got ", h.learning_rate, ", want at least 0");
  TORCH_CHECK(h.eps >= 0, where, ": eps: got ", h.eps, ", want at least 0");
  TORCH_CHECK(h.weight_decay >= 0, where, ": weight_decay: got ", h.weight_decay,
              ", want at least 0");
  TORCH_CHECK(values_.max_unorm >= 0, where, ": max_unorm: got ", values_.max_unorm,
              ", want at least 0");
  if (algorithm_ == Algorithm::kSgd || algorithm_ == Algorithm::kLars) {
    TORCH_CHECK(0 < h.beta1 && h.beta1 < 1, where, ": momentum: got ", h.beta1,
                ", want above 0 and below 1; without momentum there is no state to keep, and "
                "torch::optim::SGD serves");
  } else {
    TORCH_CHECK(IsDecay(h.beta1) && IsDecay(h.beta2) && IsDecay(h.beta3), where,
                ": betas (or alpha of RMSprop): got ", h.beta1, ", ", h.beta2, " and ", h.beta3,
                ", want at least 0 and below 1");
  }
  TORCH_CHECK(h.alpha_steps >= 0 && h.beta3_steps >= 0, where, ": t_alpha and t_beta3: got ",
              h.alpha_steps, " and ", h.beta3_steps, ", want at least 0");
  TORCH_CHECK(h.beta3_steps == 0 || (h.beta1 > 0 && h.beta3 > 0), where, ": t_beta3: got ",
              h.beta3_steps, " with a beta of 0, from which nothing can grow");
  TORCH_CHECK(values_.bits == 8 || values_.bits == 32, where, ": bits: got ", values_.bits,
              ", want 8 or 32");
  TORCH_CHECK(values_.block_size == 64 || values_.block_size == 128 || values_.block_size == 256,
              where, ": block_size: got ", values_.block_size, ", want 64, 128 or 256");
  TORCH_CHECK(!(values_.master_weights && values_.stochastic_rounding), where,
              ": master_weights beside stochastic_rounding: want one of them");
}

const char* ClassNameOf(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kAdam:
      return "Adam";
    case Algorithm::kAdamW:
      break;
    case Algorithm::kLion:
      return "Lion";
    case Algorithm::kLamb:
      return "LAMB";
    case Algorithm::kLars:
      return "LARS";
    case Algorithm::kRmsProp:
      return "RMSprop";
    case Algorithm::kAdagrad:
      return "Adagrad";
    case Algorithm::kSgd:
      return "SGD";
    case Algorithm::kAdEmaMix:
      return "AdEMAMix";
  }
  return "AdamW";
}

}  // namespace bitshard::optim
