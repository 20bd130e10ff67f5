// What torch::save and torch::load do with an optimizer: options and states in the order of groups
// and parameters. LibTorch's own layout names states by addresses; so equal optimizers would not
// give equal files, and a wrong file would be found out late.
#include <torch/serialize/archive.h>
#include <torch/types.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "optim/optimizer.h"

namespace bitshard::optim {
namespace {

using torch::Tensor;
using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

constexpr char kFormat[] = "bitshard.optim.1";

template <class T>
T ReadValue(InputArchive& archive, const std::string& key) {
  c10::IValue value;
  TORCH_CHECK(archive.try_read(key, value), "optimizer archive: \"", key, "\" is missing");
  return value.to<T>();
}

InputArchive ReadArchive(InputArchive& archive, const std::string& key) {
  InputArchive inner;
  TORCH_CHECK(archive.try_read(key, inner), "optimizer archive: \"", key, "\" is missing");
  return inner;
}

void WriteTensor(OutputArchive& archive, const std::string& key, const Tensor& tensor) {
  if (tensor.defined()) archive.write(key, tensor, /*is_buffer=*/true);
}

Tensor ReadTensor(InputArchive& archive, const std::string& key) {
  Tensor tensor;
  archive.try_read(key, tensor, /*is_buffer=*/true);
  return tensor;
}

bool Is(const Tensor& tensor, torch::ScalarType type, int64_t n) {
  return tensor.defined() && tensor.is_cpu() && tensor.is_contiguous() && tensor.dim() == 1 &&
         tensor.scalar_type() == type && tensor.numel() == n;
}

// Moments that the rule has are whole, all of one width, and the others are not there.
void CheckState(const OptimizerState& state, const Tensor& p, int num_states,
                const std::string& where) {
  const int64_t n = p.numel();
  TORCH_CHECK(state.state1().defined() && state.state1().numel() == n, where,
              ": the archive's state is of ", state.state1().defined() ? state.state1().numel() : 0,
              " elements, the parameter has ", n, ": was it saved for another model?");
  const int64_t block = state.block_size();
  TORCH_CHECK(block == 64 || block == 128 || block == 256, where, ": blocks of ", block,
              " elements in the archive, want 64, 128 or 256");
  TORCH_CHECK(state.step() >= 0, where, ": step ", state.step(), " in the archive");
  const bool quantised = state.absmax1().defined();
  const Tensor* moments[] = {&state.state1(), &state.state2(), &state.state3()};
  const Tensor* scales[] = {&state.absmax1(), &state.absmax2(), &state.absmax3()};
  for (int i = 0; i < 3; ++i) {
    const bool fits = i < num_states
                          ? Is(*moments[i], quantised ? torch::kUInt8 : torch::kFloat, n) &&
                                (quantised ? Is(*scales[i], torch::kFloat, (n + block - 1) / block)
                                           : !scales[i]->defined())
                          : !moments[i]->defined() && !scales[i]->defined();
    TORCH_CHECK(fits, where, ": the archive's state ", i + 1, " is not what the rule needs");
  }
  TORCH_CHECK(!state.master().defined() || Is(state.master(), torch::kFloat, n), where,
              ": the archive's master weights are not float32 [", n, "]");
}

}  // namespace

void OptimizerState::serialize(OutputArchive& archive) const {
  archive.write("step", c10::IValue(step()));
  archive.write("block_size", c10::IValue(block_size()));
  WriteTensor(archive, "state1", state1());
  WriteTensor(archive, "state2", state2());
  WriteTensor(archive, "state3", state3());
  WriteTensor(archive, "absmax1", absmax1());
  WriteTensor(archive, "absmax2", absmax2());
  WriteTensor(archive, "absmax3", absmax3());
  WriteTensor(archive, "master", master());
}

void OptimizerState::serialize(InputArchive& archive) {
  step(ReadValue<int64_t>(archive, "step"));
  block_size(ReadValue<int64_t>(archive, "block_size"));
  state1(ReadTensor(archive, "state1"));
  state2(ReadTensor(archive, "state2"));
  state3(ReadTensor(archive, "state3"));
  absmax1(ReadTensor(archive, "absmax1"));
  absmax2(ReadTensor(archive, "absmax2"));
  absmax3(ReadTensor(archive, "absmax3"));
  master(ReadTensor(archive, "master"));
}

void BlockwiseOptimizer::save(OutputArchive& archive) const {
  archive.write("format", c10::IValue(kFormat));
  archive.write("algorithm", c10::IValue(ClassNameOf(algorithm_)));
  archive.write("groups", c10::IValue(static_cast<int64_t>(param_groups_.size())));
  for (size_t group = 0; group < param_groups_.size(); ++group) {
    const std::vector<Tensor>& parameters = param_groups_[group].params();
    OutputArchive group_archive(archive.compilation_unit());
    OutputArchive options_archive(archive.compilation_unit());
    OptionsOf(group).serialize(options_archive);
    group_archive.write("options", options_archive);
    group_archive.write("parameters", c10::IValue(static_cast<int64_t>(parameters.size())));
    for (size_t i = 0; i < parameters.size(); ++i) {
      const auto state = state_.find(parameters[i].unsafeGetTensorImpl());
      if (state == state_.end()) continue;
      OutputArchive state_archive(archive.compilation_unit());
      state->second->serialize(state_archive);
      group_archive.write(absl::StrCat("state", i), state_archive);
    }
    archive.write(absl::StrCat("group", group), group_archive);
  }
}

void BlockwiseOptimizer::load(InputArchive& archive) {
  const std::string self = ClassNameOf(algorithm_);
  c10::IValue format;
  TORCH_CHECK(
      archive.try_read("format", format) && format.isString() && format.toStringRef() == kFormat,
      self,
      ": the archive holds no optimizer of this bitshard; was it saved from one of "
      "torch::optim's, or from a model?");
  const std::string algorithm = ReadValue<std::string>(archive, "algorithm");
  TORCH_CHECK(algorithm == self, self, ": the archive was saved from ", algorithm);
  const int64_t groups = ReadValue<int64_t>(archive, "groups");
  TORCH_CHECK(groups == static_cast<int64_t>(param_groups_.size()), self, ": the archive has ",
              groups, " parameter groups, the optimizer ", param_groups_.size());

  std::vector<OptionValues> options;
  std::vector<std::pair<void*, std::unique_ptr<OptimizerState>>> states;
  for (size_t group = 0; group < param_groups_.size(); ++group) {
    const std::string where = NameOf(group);
    const std::vector<Tensor>& parameters = param_groups_[group].params();
    InputArchive group_archive = ReadArchive(archive, absl::StrCat("group", group));
    const int64_t count = ReadValue<int64_t>(group_archive, "parameters");
    TORCH_CHECK(count == static_cast<int64_t>(parameters.size()), where, ": the archive has ",
                count, " parameters, the optimizer ", parameters.size());
    InputArchive options_archive = ReadArchive(group_archive, "options");
    // Whatever they have become: they are replaced.
    const auto loaded = OfOwnClass(param_groups_[group].options(), where).clone();
    loaded->serialize(options_archive);
    const auto& checked = static_cast<const BlockwiseOptions&>(*loaded);
    checked.Check(absl::StrCat(where, " of the archive"));
    options.push_back(checked.values());
    for (size_t i = 0; i < parameters.size(); ++i) {
      InputArchive state_archive;
      std::unique_ptr<OptimizerState> state;
      if (group_archive.try_read(absl::StrCat("state", i), state_archive)) {
        state = std::make_unique<OptimizerState>();
        state->serialize(state_archive);
        state->owner = OptimizerState::Owner(parameters[i].getIntrusivePtr());
        CheckState(*state, parameters[i], NumStates(algorithm_),
                   absl::StrCat(self, ": parameter ", i, " of group ", group));
      }
      states.emplace_back(parameters[i].unsafeGetTensorImpl(), std::move(state));
    }
  }
  for (size_t group = 0; group < param_groups_.size(); ++group)
    static_cast<BlockwiseOptions&>(param_groups_[group].options()).set_values(options[group]);
  state_.clear();
  for (auto& [parameter, state] : states) {
    if (state != nullptr) state_[parameter] = std::move(state);
  }
}

}  // namespace bitshard::optim
