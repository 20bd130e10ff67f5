// What an optimizer is told, and what that means for each tensor: how its state is held and with
// which hyper-parameters it is stepped. Tensors that agree in the latter form a group, which is
// stepped by one call.
//
//   BITSHARD_ASSIGN_OR_RETURN(
//       const auto groups, optim::TensorGroups::Create(layout, {.name = name, .overrides = {
//           {.pattern = "*.lora_B.*", .bits = 32, .learning_rate_factor = 16}}}));
//   optim::StepArgs args = groups.ArgsOf(g, {.step = 1, .learning_rate = 1e-3});
//
// Threads: a value; safe.
#ifndef BITSHARD_OPTIM_TENSOR_GROUPS_H_
#define BITSHARD_OPTIM_TENSOR_GROUPS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/flat_layout.h"
#include "optim/optimizer_name.h"
#include "optim/step.h"

namespace bitshard::optim {

/// What is different for the tensors that a pattern names; what is not given stays.
struct TensorOverride {
  std::string pattern;                         ///< Of whole names: optim/name_pattern.h.
  std::optional<int64_t> bits;                 ///< Of the state, 8 or 32, whatever its size.
  std::optional<int64_t> block_size;           ///< Elements that share an absmax: 64, 128 or 256.
  std::optional<double> learning_rate_factor;  ///< Multiplies each step's rate; at least 0.
  std::optional<double> weight_decay;          ///< At least 0.
};

struct OptimizerSettings {
  OptimizerName name;
  // As in StepHyper, whose ranges HyperFault holds. Not given: the rule's default,
  // DefaultsOf(name.algorithm).
  std::optional<double> beta1;
  std::optional<double> beta2;
  std::optional<double> eps;
  std::optional<double> weight_decay;
  std::optional<double> max_unorm;  ///< See UpdateScale in optim/step.h; 0: no limit.
  // Of AdEMAMix.
  std::optional<double> beta3;
  std::optional<double> alpha;
  int64_t alpha_steps = 0;
  int64_t beta3_steps = 0;
  int64_t min_8bit_size = 4096;  ///< Tensors with fewer elements keep float32 state.
  /// Of several that say something else about one tensor, the last counts.
  std::vector<TensorOverride> overrides;
};

/// How the state of a tensor is held.
struct StateForm {
  bool is_8bit = true;
  int64_t state_block = core::kBlockElems;  ///< Elements that share an absmax. 32-bit: 256.
  int64_t absmax_per_block() const { return core::kBlockElems / state_block; }
  friend bool operator==(const StateForm&, const StateForm&) = default;
};

/// Tensors that are held and stepped alike.
struct StateShare {
  StateForm form;
  double learning_rate_factor = 1;
  double weight_decay = 0;
  int64_t tensors = 0;
  int64_t elems = 0;  ///< Of the tensors, padding left out.
};

/// What is the same for all tensors in one step.
struct StepMoment {
  int64_t step = 1;  ///< From 1.
  double learning_rate = 0;
  double gradient_scale = 1;
};

class TensorGroups {
 public:
  /// Errors: kConfig for a value out of range (HyperFault), a max_unorm that the rule has no use
  /// for, and an override that matches no tensor (with the nearest name) or changes nothing.
  static absl::StatusOr<TensorGroups> Create(const core::FlatLayout& layout,
                                             const OptimizerSettings& settings);

  int64_t num_groups() const { return static_cast<int64_t>(groups_.size()); }
  int64_t GroupOf(int64_t tensor) const { return group_of_[static_cast<size_t>(tensor)]; }
  /// By tensor.
  const std::vector<StateForm>& forms() const { return forms_; }
  /// Whether all groups can be stepped: to be asked before anything is changed. Errors: kConfig - a
  /// learning rate or gradient scale that is NaN or infinite (of a tensor, if times its factor), a
  /// learning rate below 0, a step below 1.
  absl::Status CheckMoment(const StepMoment& moment) const;
  /// Everything but the runs, for float32 parameters and gradients. `group` is in [0,
  /// num_groups()).
  StepArgs ArgsOf(int64_t group, const StepMoment& moment) const;
  /// 0 where there is no limit, so that no pre-pass is needed.
  double max_unorm() const { return max_unorm_; }
  /// What is held and stepped how, in the order in which the layout has it first.
  std::vector<StateShare> Shares(const core::FlatLayout& layout) const;

 private:
  struct Group {
    double learning_rate_factor = 1;
    double weight_decay = 0;
    int64_t state_block = core::kBlockElems;
    friend bool operator==(const Group&, const Group&) = default;
  };

  absl::Status SetHyper(const OptimizerSettings& settings);
  void SetGroups(const std::vector<Group>& wanted);

  Algorithm algorithm_ = Algorithm::kAdamW;
  StepHyper hyper_;
  double max_unorm_ = 0;
  std::vector<Group> groups_;
  std::vector<int64_t> group_of_;  // By tensor.
  std::vector<StateForm> forms_;   // By tensor.
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_TENSOR_GROUPS_H_
