#include "optim/torch_options.h"

#include <torch/serialize/archive.h>

#include "optim/hyper_fault.h"

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
  const std::string fault = HyperFault(rule(), values_.hyper, values_.max_unorm);
  TORCH_CHECK(fault.empty(), where, ": ", fault);
  TORCH_CHECK(!HasMomentum(algorithm_) || values_.hyper.beta1 != 0, where,
              ": momentum: got 0, want above 0; without momentum there is no state to keep, and "
              "torch::optim::SGD serves");
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
