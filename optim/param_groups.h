// Parameter groups by name: options that differ for parameters whose names match a pattern.
//
//   auto options = bitshard::optim::AdamWOptions(1e-3).weight_decay(0.1);
//   bitshard::optim::AdamW optimizer(
//       bitshard::optim::ParamGroups(model->named_parameters(), options,
//                                    {{.pattern = "*.bias", .weight_decay = 0},
//                                     {.pattern = "embedding.*", .bits = 32}}),
//       options);
#ifndef BITSHARD_OPTIM_PARAM_GROUPS_H_
#define BITSHARD_OPTIM_PARAM_GROUPS_H_

#include <torch/optim/optimizer.h>
#include <torch/ordered_dict.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "optim/torch_options.h"

namespace bitshard::optim {

struct ParameterOverride {
  std::string pattern;  ///< Of whole names: optim/name_pattern.h.
  std::optional<double> lr = {};
  std::optional<double> weight_decay = {};
  std::optional<int64_t> bits = {};  ///< Whatever the tensor's size.
  std::optional<int64_t> block_size = {};
};

/// All of `named`: one group of `options` for the parameters that no pattern matches, and one for
/// each combination of patterns that some parameter matches, in order of first appearance. Where
/// several match, the last one that gives a value decides.
/// The parameters are those of `named`, not copies; they may be of any shape and type.
/// Errors: c10::Error - a pattern that matches no name (with the nearest), an override without a
/// value, or with a block size where no parameter that it names gets 8-bit state. Values out of
/// range are found out where an optimizer is made with the groups.
std::vector<torch::optim::OptimizerParamGroup> ParamGroups(
    const torch::OrderedDict<std::string, torch::Tensor>& named, const BlockwiseOptions& options,
    const std::vector<ParameterOverride>& overrides);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_PARAM_GROUPS_H_
