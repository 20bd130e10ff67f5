#include "optim/optimizer.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "optim/step.h"
#include "quant/codebook.h"

namespace bitshard::optim {
namespace {

using torch::Tensor;

core::DType TypeOf(const Tensor& tensor) {
  if (tensor.scalar_type() == torch::kFloat) return core::DType::kFloat32;
  return tensor.scalar_type() == torch::kHalf ? core::DType::kFloat16 : core::DType::kBFloat16;
}

void CheckTensor(const Tensor& tensor, const std::string& what) {
  TORCH_CHECK(tensor.layout() == torch::kStrided, what, " is ", tensor.layout(),
              ": bitshard's optimizers take dense tensors (of an Embedding: sparse(false))");
  TORCH_CHECK(tensor.is_cpu(), what, " is on ", tensor.device(),
              ": bitshard's optimizers step tensors on the CPU");
  TORCH_CHECK(tensor.scalar_type() == torch::kFloat || tensor.scalar_type() == torch::kBFloat16 ||
                  tensor.scalar_type() == torch::kHalf,
              what, " is ", tensor.scalar_type(), ", want float32, bfloat16 or float16");
}

void CheckParameter(const Tensor& p, const std::string& where) {
  CheckTensor(p, where);
  TORCH_CHECK(at::has_internal_overlap(p) != at::MemOverlap::Yes, where,
              ": elements share memory (an expanded tensor?): they can't be stepped apart");
  CheckTensor(p.grad(), absl::StrCat(where, ": the gradient"));
  TORCH_CHECK(p.grad().sizes() == p.sizes(), where, ": the gradient's shape is ", p.grad().sizes(),
              ", the parameter's ", p.sizes());
}

// Zero state: 8-bit in its canonical form, absmax 0 and the code of 0.
std::unique_ptr<OptimizerState> MakeState(const Tensor& p, const BlockwiseOptions& options) {
  auto state = std::make_unique<OptimizerState>();
  state->owner = OptimizerState::Owner(p.getIntrusivePtr());
  const OptionValues& values = options.values();
  state->block_size(values.block_size);
  const int64_t n = p.numel();
  const int64_t blocks = (n + values.block_size - 1) / values.block_size;
  const bool quantised = values.bits == 8 && n >= values.min_8bit_size;
  const auto moment = [&](uint8_t zero_code) {
    return quantised ? torch::full({n}, zero_code, torch::kUInt8) : torch::zeros({n});
  };
  const auto absmax = [&] { return quantised ? torch::zeros({blocks}) : Tensor(); };
  const uint8_t signed_zero = quant::SignedDynamicTable().zero_code;
  const int states = NumStates(options.algorithm());
  state->state1(moment(signed_zero)).absmax1(absmax());
  if (states > 1) state->state2(moment(quant::UnsignedDynamicTable().zero_code)).absmax2(absmax());
  if (states > 2) state->state3(moment(signed_zero)).absmax3(absmax());
  return state;
}

// Master weights are there where the options ask for them and the parameter's type needs them.
void SetMaster(const Tensor& p, const BlockwiseOptions& options, OptimizerState& state) {
  if (p.scalar_type() == torch::kFloat) {
    state.master(Tensor());
  } else if (options.values().master_weights && !state.master().defined()) {
    state.master(p.detach().to(torch::kFloat).contiguous().view({-1}));
  }
}

template <class T>
T* DataOf(const Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
}

StepRun RunOf(const OptimizerState& state) {
  StepRun run;
  const bool is_8bit = state.absmax1().defined();
  const Tensor* states[] = {&state.state1(), &state.state2(), &state.state3()};
  const Tensor* absmax[] = {&state.absmax1(), &state.absmax2(), &state.absmax3()};
  for (int i = 0; i < kMaxStates; ++i) {
    run.states[i] = {.codes = is_8bit ? DataOf<uint8_t>(*states[i]) : nullptr,
                     .absmax = DataOf<float>(*absmax[i]),
                     .values = is_8bit ? nullptr : DataOf<float>(*states[i])};
  }
  run.master = DataOf<float>(state.master());
  return run;
}

// Parameters of equal hyper-parameters and types go through the block table in one pass.
struct Batch {
  StepArgs args;
  double max_unorm = 0;
  std::vector<Tensor> parameters;
  std::vector<StepRun> runs;
};

bool Fits(const StepArgs& a, const StepArgs& b) {
  return a.hyper.step == b.hyper.step && a.parameter_type == b.parameter_type &&
         a.gradient_type == b.gradient_type && a.rounding == b.rounding &&
         a.state_block == b.state_block;
}

StepArgs ArgsOf(const Tensor& p, const BlockwiseOptions& options, const OptimizerState& state) {
  const OptionValues& values = options.values();
  StepArgs args{.algorithm = options.rule(),
                .hyper = values.hyper,
                .parameter_type = TypeOf(p),
                .gradient_type = TypeOf(p.grad()),
                .seed = static_cast<uint64_t>(values.seed),
                .state_block = state.block_size()};
  args.hyper.step = state.step();
  if (values.stochastic_rounding && p.scalar_type() == torch::kBFloat16 &&
      !state.master().defined())
    args.rounding = Rounding::kStochastic;
  return args;
}

// Each tensor's max_unorm, by the pre-pass over all of them.
void LimitUpdates(Batch& batch) {
  if (batch.max_unorm == 0 || !HasUpdateNorm(batch.args.algorithm)) return;
  std::vector<BlockNorms> norms(batch.runs.size());
  RunUpdateNorms(batch.args, norms);
  for (size_t i = 0; i < norms.size(); ++i)
    batch.runs[i].update_scale = UpdateScale(batch.max_unorm, norms[i]);
}

// Parameters that are not contiguous are stepped in a contiguous copy, which is written back.
void RunBatch(Batch& batch) {
  std::vector<Tensor> contiguous, gradients;
  for (size_t i = 0; i < batch.runs.size(); ++i) {
    const Tensor& p = batch.parameters[i];
    contiguous.push_back(p.resolve_neg().contiguous());
    gradients.push_back(p.grad().resolve_neg().contiguous());
    batch.runs[i].parameter = contiguous[i].data_ptr();
    batch.runs[i].gradient = gradients[i].const_data_ptr();
    batch.runs[i].elems = p.numel();
  }
  batch.args.runs = batch.runs;
  LimitUpdates(batch);
  Step(batch.args);
  for (size_t i = 0; i < batch.runs.size(); ++i) {
    const Tensor& p = batch.parameters[i];
    if (!contiguous[i].is_same(p)) {
      // Inference tensors are stepped too, and nothing may fail any more.
      const at::AutoDispatchBelowADInplaceOrView no_checks;
      p.copy_(contiguous[i]);
    }
    // So that autograd notices, as for torch's steps.
    if (!p.is_inference()) p.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace

struct BlockwiseOptimizer::Pending {
  size_t group;
  Tensor parameter;
  int64_t number;  ///< Among all of the optimizer's parameters.
};

int64_t OptimizerState::bytes() const {
  int64_t sum = 0;
  for (const Tensor* tensor :
       {&state1(), &state2(), &state3(), &absmax1(), &absmax2(), &absmax3(), &master()}) {
    if (tensor->defined()) sum += static_cast<int64_t>(tensor->nbytes());
  }
  return sum;
}

BlockwiseOptimizer::BlockwiseOptimizer(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                                       std::unique_ptr<BlockwiseOptions> defaults)
    : Optimizer(groups, defaults->clone()), algorithm_(defaults->algorithm()) {
  defaults->Check(ClassNameOf(algorithm_));
  for (size_t group = 0; group < param_groups_.size(); ++group) OptionsOf(group);
}

std::string BlockwiseOptimizer::NameOf(size_t group) const {
  return absl::StrCat(ClassNameOf(algorithm_), ": group ", group);
}

const BlockwiseOptions& BlockwiseOptimizer::OfOwnClass(
    const torch::optim::OptimizerOptions& options, const std::string& where) const {
  const auto* own = dynamic_cast<const BlockwiseOptions*>(&options);
  TORCH_CHECK(own != nullptr, where,
              " has options of another library, want bitshard::optim::", ClassNameOf(algorithm_),
              "Options");
  TORCH_CHECK(own->algorithm() == algorithm_, where, " has options of ",
              ClassNameOf(own->algorithm()), ", want bitshard::optim::", ClassNameOf(algorithm_),
              "Options");
  return *own;
}

const BlockwiseOptions& BlockwiseOptimizer::OptionsOf(size_t group) const {
  const BlockwiseOptions& options = OfOwnClass(param_groups_[group].options(), NameOf(group));
  options.Check(NameOf(group));
  return options;
}

void BlockwiseOptimizer::add_param_group(const torch::optim::OptimizerParamGroup& group) {
  const std::string where = NameOf(param_groups_.size());
  OfOwnClass(group.has_options() ? group.options() : defaults(), where).Check(where);
  Optimizer::add_param_group(group);
}

std::vector<BlockwiseOptimizer::Pending> BlockwiseOptimizer::CheckedParameters() {
  std::vector<Pending> pending;
  int64_t number = 0;
  for (size_t group = 0; group < param_groups_.size(); ++group) {
    OptionsOf(group);
    const std::vector<Tensor>& parameters = param_groups_[group].params();
    for (size_t i = 0; i < parameters.size(); ++i, ++number) {
      const Tensor& p = parameters[i];
      if (!p.defined() || !p.grad().defined()) continue;
      const std::string where =
          absl::StrCat(ClassNameOf(algorithm_), ": parameter ", i, " of group ", group);
      CheckParameter(p, where);
      const auto state = state_.find(p.unsafeGetTensorImpl());
      if (state != state_.end()) {
        const int64_t n = static_cast<const OptimizerState&>(*state->second).state1().numel();
        TORCH_CHECK(n == p.numel(), where, " has ", p.numel(), " elements, its state ", n,
                    " (set_data with another shape?): make a new optimizer");
      }
      pending.push_back({.group = group, .parameter = p, .number = number});
    }
  }
  return pending;
}

torch::Tensor BlockwiseOptimizer::step(LossClosure closure) {
  Tensor loss;
  if (closure != nullptr) {
    const at::AutoGradMode with_graph(true);
    loss = closure();
  }
  const torch::NoGradGuard no_graph;
  std::vector<void*> gone;
  for (const auto& [key, state] : state_) {
    if (static_cast<const OptimizerState&>(*state).owner.expired()) gone.push_back(key);
  }
  for (void* key : gone) state_.erase(key);

  const std::vector<Pending> pending = CheckedParameters();
  std::vector<Batch> batches;
  size_t first_of_group = 0;
  for (size_t i = 0; i < pending.size(); ++i) {
    const Tensor& p = pending[i].parameter;
    const size_t group = pending[i].group;
    if (i > 0 && group != pending[i - 1].group) first_of_group = batches.size();
    const auto& options = static_cast<const BlockwiseOptions&>(param_groups_[group].options());
    auto& slot = state_[p.unsafeGetTensorImpl()];
    if (slot == nullptr) slot = MakeState(p, options);
    auto& state = static_cast<OptimizerState&>(*slot);
    SetMaster(p, options, state);
    state.step(state.step() + 1);
    const StepArgs args = ArgsOf(p, options, state);
    size_t batch = first_of_group;
    while (batch < batches.size() && !Fits(batches[batch].args, args)) ++batch;
    if (batch == batches.size())
      batches.push_back({.args = args, .max_unorm = options.values().max_unorm});
    StepRun run = RunOf(state);
    run.tensor = pending[i].number;
    batches[batch].parameters.push_back(p);
    batches[batch].runs.push_back(run);
  }
  for (Batch& batch : batches) RunBatch(batch);
  return loss;
}

std::string BlockwiseOptimizer::Summary() const {
  int64_t tensors[2] = {}, elems[2] = {}, bytes = 0;
  for (const auto& group : param_groups_) {
    for (const Tensor& p : group.params()) {
      const auto found = state_.find(p.unsafeGetTensorImpl());
      if (found == state_.end()) continue;
      const auto& state = static_cast<const OptimizerState&>(*found->second);
      const bool quantised = state.absmax1().defined();
      ++tensors[quantised];
      elems[quantised] += p.numel();
      bytes += state.bytes();
    }
  }
  return absl::StrCat(ClassNameOf(algorithm_), ": 8-bit state for ", tensors[1], " tensors of ",
                      elems[1], " elements, 32-bit for ", tensors[0], " of ", elems[0], "; ", bytes,
                      " bytes");
}

}  // namespace bitshard::optim
