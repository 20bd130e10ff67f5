#include "optim/tensor_groups.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "optim/hyper_fault.h"
#include "optim/name_pattern.h"

namespace bitshard::optim {
namespace {

bool IsBlockSize(int64_t elems) { return elems == 64 || elems == 128 || elems == 256; }

std::string StartOf(const TensorOverride& override) {
  return absl::StrCat("optimizer override \"", core::Escaped(override.pattern), "\": ");
}

absl::Status CheckValues(const TensorOverride& o) {
  const std::string what = StartOf(o);
  if (!o.bits && !o.block_size && !o.learning_rate_factor && !o.weight_decay) {
    return core::ConfigError(
        what + "changes nothing; want bits, block_size, learning_rate or weight_decay");
  }
  if (o.bits && *o.bits != 8 && *o.bits != 32)
    return core::ConfigError(absl::StrCat(what, "bits: got ", *o.bits, ", want 8 or 32"));
  if (o.block_size && !IsBlockSize(*o.block_size)) {
    return core::ConfigError(
        absl::StrCat(what, "block_size: got ", *o.block_size, ", want 64, 128 or 256"));
  }
  const std::string rate = core::RangeFault(o.learning_rate_factor.value_or(1), kFactorRange);
  if (!rate.empty()) return core::ConfigError(what + "learning_rate_factor: " + rate);
  const std::string decay = core::RangeFault(o.weight_decay.value_or(0), kFactorRange);
  return decay.empty() ? absl::OkStatus() : core::ConfigError(what + "weight_decay: " + decay);
}

// The tensors that the pattern matches.
absl::StatusOr<std::vector<size_t>> MatchesOf(const TensorOverride& override,
                                              std::span<const std::string> names) {
  PatternMatches found = MatchNames(override.pattern, names);
  if (found.places.empty() && !names.empty())
    return core::ConfigError(StartOf(override) + NoMatchFault(found));
  return std::move(found.places);
}

}  // namespace

absl::Status TensorGroups::SetHyper(const OptimizerSettings& settings) {
  algorithm_ = settings.name.algorithm;
  const RuleDefaults defaults = DefaultsOf(algorithm_);
  hyper_ = {.beta1 = settings.beta1.value_or(defaults.beta1),
            .beta2 = settings.beta2.value_or(defaults.beta2),
            .eps = settings.eps.value_or(defaults.eps),
            .weight_decay = settings.weight_decay.value_or(defaults.weight_decay),
            .beta3 = settings.beta3.value_or(StepHyper().beta3),
            .alpha = settings.alpha.value_or(StepHyper().alpha),
            .alpha_steps = settings.alpha_steps,
            .beta3_steps = settings.beta3_steps};
  max_unorm_ = settings.max_unorm.value_or(defaults.max_unorm);
  const std::string fault = HyperFault(algorithm_, hyper_, max_unorm_);
  if (!fault.empty()) return core::ConfigError("optimizer settings: " + fault);
  if (max_unorm_ > 0 && !HasUpdateNorm(algorithm_))
    return core::ConfigError("max_unorm: this optimizer's update has no norm to limit; want 0");
  return absl::OkStatus();
}

// Tensors that are stepped alike become one group.
void TensorGroups::SetGroups(const std::vector<Group>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    Group group = wanted[i];
    if (forms_[i].is_8bit) {
      forms_[i].state_block = group.state_block;
    } else {
      group.state_block = forms_[i].state_block;
    }
    const auto found = std::find(groups_.begin(), groups_.end(), group);
    group_of_.push_back(found - groups_.begin());
    if (found == groups_.end()) groups_.push_back(group);
  }
}

absl::StatusOr<TensorGroups> TensorGroups::Create(const core::FlatLayout& layout,
                                                  const OptimizerSettings& settings) {
  TensorGroups made;
  BITSHARD_RETURN_IF_ERROR(made.SetHyper(settings));
  std::vector<std::string> names;
  for (const core::FlatTensor& tensor : layout.tensors()) {
    names.push_back(tensor.name);
    const bool is_8bit = settings.name.bits == 8 && tensor.numel >= settings.min_8bit_size;
    made.forms_.push_back({.is_8bit = is_8bit});
  }
  std::vector<Group> wanted(made.forms_.size(), {.weight_decay = made.hyper_.weight_decay});
  std::vector<std::vector<size_t>> matches;
  for (const TensorOverride& override : settings.overrides) {
    BITSHARD_RETURN_IF_ERROR(CheckValues(override));
    BITSHARD_ASSIGN_OR_RETURN(const std::vector<size_t> matched, MatchesOf(override, names));
    for (const size_t i : matched) {
      Group& group = wanted[i];
      if (override.bits) made.forms_[i].is_8bit = *override.bits == 8;
      group.state_block = override.block_size.value_or(group.state_block);
      group.learning_rate_factor =
          override.learning_rate_factor.value_or(group.learning_rate_factor);
      group.weight_decay = override.weight_decay.value_or(group.weight_decay);
    }
    matches.push_back(matched);
  }
  for (size_t o = 0; o < matches.size(); ++o) {
    const bool any_8bit = std::any_of(matches[o].begin(), matches[o].end(),
                                      [&](size_t i) { return made.forms_[i].is_8bit; });
    if (!settings.overrides[o].block_size || matches[o].empty() || any_8bit) continue;
    return core::ConfigError(StartOf(settings.overrides[o]) +
                             "block_size: all tensors that it names have 32-bit state, which has "
                             "no blocks; add bits: 8 or leave it out");
  }
  made.SetGroups(wanted);
  return made;
}

absl::Status TensorGroups::CheckMoment(const StepMoment& moment) const {
  // As it was given, before any tensor's factor.
  const std::string rate = core::RangeFault(moment.learning_rate, kFactorRange);
  if (!rate.empty()) return core::ConfigError("optimizer step: lr: " + rate);
  for (int64_t group = 0; group < num_groups(); ++group) {
    const std::string fault = HyperFault(algorithm_, ArgsOf(group, moment).hyper, max_unorm_);
    if (!fault.empty()) return core::ConfigError("optimizer step: " + fault);
  }
  return absl::OkStatus();
}

StepArgs TensorGroups::ArgsOf(int64_t group, const StepMoment& moment) const {
  const Group& of = groups_[static_cast<size_t>(group)];
  StepArgs args{.algorithm = algorithm_, .hyper = hyper_, .state_block = of.state_block};
  args.hyper.step = moment.step;
  args.hyper.learning_rate = moment.learning_rate * of.learning_rate_factor;
  args.hyper.weight_decay = of.weight_decay;
  args.hyper.gradient_scale = moment.gradient_scale;
  return args;
}

std::vector<StateShare> TensorGroups::Shares(const core::FlatLayout& layout) const {
  std::vector<StateShare> shares;
  for (size_t i = 0; i < forms_.size(); ++i) {
    const Group& group = groups_[static_cast<size_t>(group_of_[i])];
    const auto is_same = [&](const StateShare& share) {
      return share.form == forms_[i] && share.learning_rate_factor == group.learning_rate_factor &&
             share.weight_decay == group.weight_decay;
    };
    auto share = std::find_if(shares.begin(), shares.end(), is_same);
    if (share == shares.end()) {
      share = shares.insert(share, {.form = forms_[i],
                                    .learning_rate_factor = group.learning_rate_factor,
                                    .weight_decay = group.weight_decay});
    }
    share->tensors += 1;
    share->elems += layout.tensors()[i].numel;
  }
  return shares;
}

}  // namespace bitshard::optim
