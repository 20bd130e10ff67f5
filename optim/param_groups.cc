#include "optim/param_groups.h"

#include <map>
#include <memory>
#include <utility>

#include "optim/name_pattern.h"

namespace bitshard::optim {
namespace {

using NamedTensors = torch::OrderedDict<std::string, torch::Tensor>;

// The places in `names` that the pattern matches.
std::vector<size_t> PlacesOf(const ParameterOverride& wanted,
                             const std::vector<std::string>& names) {
  TORCH_CHECK(wanted.lr || wanted.weight_decay || wanted.bits || wanted.block_size,
              "ParamGroups: the pattern \"", wanted.pattern, "\" comes without a value");
  PatternMatches found = MatchNames(wanted.pattern, names);
  TORCH_CHECK(!found.places.empty(), "ParamGroups: the pattern \"", wanted.pattern, "\" ",
              NoMatchFault(found));
  return std::move(found.places);
}

void Apply(const ParameterOverride& wanted, OptionValues* values) {
  if (wanted.lr) values->hyper.learning_rate = *wanted.lr;
  if (wanted.weight_decay) values->hyper.weight_decay = *wanted.weight_decay;
  if (wanted.bits) {
    values->bits = *wanted.bits;
    values->min_8bit_size = 0;  // These tensors are named: they get what they are given.
  }
  if (wanted.block_size) values->block_size = *wanted.block_size;
}

bool Has8BitState(const torch::Tensor& parameter, const torch::optim::OptimizerParamGroup& group) {
  const OptionValues& values = static_cast<const BlockwiseOptions&>(group.options()).values();
  return values.bits == 8 && parameter.numel() >= values.min_8bit_size;
}

}  // namespace

std::vector<torch::optim::OptimizerParamGroup> ParamGroups(
    const NamedTensors& named, const BlockwiseOptions& options,
    const std::vector<ParameterOverride>& overrides) {
  std::vector<std::vector<bool>> matching(named.size(), std::vector<bool>(overrides.size()));
  for (size_t o = 0; o < overrides.size(); ++o) {
    for (const size_t place : PlacesOf(overrides[o], named.keys())) matching[place][o] = true;
  }
  std::vector<torch::optim::OptimizerParamGroup> groups;
  std::map<std::vector<bool>, size_t> group_of;  // By which of the overrides match.
  std::vector<bool> names_8bit(overrides.size());
  for (size_t place = 0; place < named.size(); ++place) {
    const auto [it, is_new] = group_of.emplace(matching[place], groups.size());
    if (is_new) {
      OptionValues values = options.values();
      for (size_t i = 0; i < overrides.size(); ++i) {
        if (matching[place][i]) Apply(overrides[i], &values);
      }
      std::unique_ptr<torch::optim::OptimizerOptions> own = options.clone();
      static_cast<BlockwiseOptions&>(*own).set_values(values);
      groups.emplace_back(std::vector<torch::Tensor>(), std::move(own));
    }
    groups[it->second].params().push_back(named[place].value());
    for (size_t o = 0; o < overrides.size(); ++o) {
      if (matching[place][o] && Has8BitState(named[place].value(), groups[it->second]))
        names_8bit[o] = true;
    }
  }
  for (size_t o = 0; o < overrides.size(); ++o) {
    TORCH_CHECK(!overrides[o].block_size || names_8bit[o], "ParamGroups: the pattern \"",
                overrides[o].pattern,
                "\": block_size: all parameters that it names have 32-bit state, which has no "
                "blocks; add bits: 8 or leave it out");
  }
  return groups;
}

}  // namespace bitshard::optim
