#include "optim/param_groups.h"

#include <fnmatch.h>

#include <map>
#include <memory>
#include <utility>

#include "core/error.h"

namespace bitshard::optim {
namespace {

using NamedTensors = torch::OrderedDict<std::string, torch::Tensor>;

bool Matches(const ParameterOverride& wanted, const std::string& name) {
  return fnmatch(wanted.pattern.c_str(), name.c_str(), FNM_NOESCAPE) == 0;
}

void CheckOverride(const ParameterOverride& wanted, const NamedTensors& named) {
  TORCH_CHECK(wanted.lr || wanted.weight_decay || wanted.bits || wanted.block_size,
              "ParamGroups: the pattern \"", wanted.pattern, "\" comes without a value");
  std::vector<std::string> names;
  for (const auto& item : named) {
    if (Matches(wanted, item.key())) return;
    names.push_back(item.key());
  }
  const std::string nearest = core::Nearest(wanted.pattern, names);
  TORCH_CHECK(false, "ParamGroups: the pattern \"", wanted.pattern, "\" matches none of ",
              names.size(), " parameters",
              nearest.empty() ? "" : "; did you mean " + nearest + "?");
}

void Apply(const ParameterOverride& wanted, OptionValues* values) {
  if (wanted.lr) values->hyper.learning_rate = *wanted.lr;
  if (wanted.weight_decay) values->hyper.weight_decay = *wanted.weight_decay;
  if (wanted.bits) values->bits = *wanted.bits;
  if (wanted.block_size) values->block_size = *wanted.block_size;
}

}  // namespace

std::vector<torch::optim::OptimizerParamGroup> ParamGroups(
    const NamedTensors& named, const BlockwiseOptions& options,
    const std::vector<ParameterOverride>& overrides) {
  for (const ParameterOverride& wanted : overrides) CheckOverride(wanted, named);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  std::map<std::vector<bool>, size_t> group_of;  // By which of the overrides match.
  for (const auto& item : named) {
    std::vector<bool> matching;
    for (const ParameterOverride& wanted : overrides)
      matching.push_back(Matches(wanted, item.key()));
    const auto [it, is_new] = group_of.emplace(matching, groups.size());
    if (is_new) {
      OptionValues values = options.values();
      for (size_t i = 0; i < overrides.size(); ++i) {
        if (matching[i]) Apply(overrides[i], &values);
      }
      std::unique_ptr<torch::optim::OptimizerOptions> own = options.clone();
      static_cast<BlockwiseOptions&>(*own).set_values(values);
      groups.emplace_back(std::vector<torch::Tensor>(), std::move(own));
    }
    groups[it->second].params().push_back(item.value());
  }
  return groups;
}

}  // namespace bitshard::optim
