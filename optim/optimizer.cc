#include "optim/optimizer.h"

#include <torch/optim/serialize.h>
#include <torch/serialize/archive.h>

#include <string>

#include "optim/step.h"
#include "quant/codebook.h"

namespace bitshard::optim {
namespace {

using torch::Tensor;

template <class T>
T ReadValue(torch::serialize::InputArchive& archive, const std::string& key) {
  c10::IValue value;
  archive.read(key, value);
  return value.to<T>();
}

void WriteTensor(torch::serialize::OutputArchive& archive, const std::string& key,
                 const Tensor& tensor) {
  if (tensor.defined()) archive.write(key, tensor, /*is_buffer=*/true);
}

Tensor ReadTensor(torch::serialize::InputArchive& archive, const std::string& key) {
  Tensor tensor;
  archive.try_read(key, tensor, /*is_buffer=*/true);
  return tensor;
}

core::DType TypeOf(const Tensor& tensor, const char* what) {
  TORCH_CHECK(tensor.scalar_type() == torch::kFloat || tensor.scalar_type() == torch::kBFloat16,
              what, ": got ", tensor.scalar_type(), ", want float32 or bfloat16");
  return tensor.scalar_type() == torch::kFloat ? core::DType::kFloat32 : core::DType::kBFloat16;
}

void CheckOptions(const OptimizerOptions& o) {
  const auto [beta1, beta2] = o.betas();
  TORCH_CHECK(o.lr() >= 0, "lr: got ", o.lr(), ", want at least 0");
  TORCH_CHECK(0 <= beta1 && beta1 < 1 && 0 <= beta2 && beta2 < 1, "betas: got ", beta1, " and ",
              beta2, ", want at least 0 and below 1");
  TORCH_CHECK(o.eps() >= 0, "eps: got ", o.eps(), ", want at least 0");
  TORCH_CHECK(o.weight_decay() >= 0, "weight_decay: got ", o.weight_decay(), ", want at least 0");
  TORCH_CHECK(o.bits() == 8 || o.bits() == 32, "bits: got ", o.bits(), ", want 8 or 32");
}

// Zero state: 8-bit in its canonical form, absmax 0 and the code of 0.
std::unique_ptr<OptimizerState> MakeState(const Tensor& p, const OptimizerOptions& options,
                                          int num_states) {
  auto state = std::make_unique<OptimizerState>();
  const int64_t n = p.numel();
  if (options.bits() == 8 && n >= options.min_8bit_size()) {
    const int64_t blocks = (n + core::kBlockElems - 1) / core::kBlockElems;
    state->state1(torch::full({n}, quant::SignedDynamicTable().zero_code, torch::kUInt8));
    state->absmax1(torch::zeros({blocks}));
    if (num_states == 2) {
      state->state2(torch::full({n}, quant::UnsignedDynamicTable().zero_code, torch::kUInt8));
      state->absmax2(torch::zeros({blocks}));
    }
    return state;
  }
  state->state1(torch::zeros({n}));
  if (num_states == 2) state->state2(torch::zeros({n}));
  return state;
}

template <class T>
T* DataOf(const Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
}

// One parameter of a step. Non-contiguous ones are stepped in a contiguous copy that Finish writes
// back.
struct PendingStep {
  Tensor parameter;
  Tensor contiguous;
  Tensor gradient;
  StepRun run;
};

PendingStep Prepare(const Tensor& p, const OptimizerState& state) {
  const Tensor& gradient = p.grad();
  TORCH_CHECK(p.is_cpu() && gradient.is_cpu(), "bitshard optimizers step CPU tensors; got ",
              p.device());
  TORCH_CHECK(!gradient.is_sparse(),
              "bitshard optimizers do not take sparse gradients: use dense ones (an Embedding "
              "with sparse(false))");
  PendingStep pending{
      .parameter = p, .contiguous = p.contiguous(), .gradient = gradient.contiguous(), .run = {}};
  StepRun& run = pending.run;
  run.parameter = pending.contiguous.data_ptr();
  run.gradient = pending.gradient.const_data_ptr();
  run.elems = p.numel();
  const bool is_8bit = state.absmax1().defined();
  const Tensor* states[] = {&state.state1(), &state.state2()};
  const Tensor* absmax[] = {&state.absmax1(), &state.absmax2()};
  for (int i = 0; i < 2; ++i) {
    run.states[i] = {.codes = is_8bit ? DataOf<uint8_t>(*states[i]) : nullptr,
                     .absmax = DataOf<float>(*absmax[i]),
                     .values = is_8bit ? nullptr : DataOf<float>(*states[i])};
  }
  return pending;
}

// Steps of equal hyper-parameters and types go through the block table in one pass.
struct Batch {
  StepArgs args;
  std::vector<PendingStep> steps;
};

bool Fits(const StepArgs& a, const StepArgs& b) {
  return a.hyper.step == b.hyper.step && a.parameter_type == b.parameter_type &&
         a.gradient_type == b.gradient_type;
}

void RunBatches(std::vector<Batch>& batches) {
  for (Batch& batch : batches) {
    std::vector<StepRun> runs;
    for (const PendingStep& step : batch.steps) runs.push_back(step.run);
    batch.args.runs = runs;
    Step(batch.args);
    for (PendingStep& step : batch.steps) {
      if (!step.contiguous.is_same(step.parameter)) step.parameter.copy_(step.contiguous);
    }
  }
}

}  // namespace

OptimizerOptions::OptimizerOptions(double lr) : lr_(lr) {}

void OptimizerOptions::serialize(torch::serialize::OutputArchive& archive) const {
  archive.write("lr", c10::IValue(lr()));
  archive.write("beta1", c10::IValue(std::get<0>(betas())));
  archive.write("beta2", c10::IValue(std::get<1>(betas())));
  archive.write("eps", c10::IValue(eps()));
  archive.write("weight_decay", c10::IValue(weight_decay()));
  archive.write("bits", c10::IValue(bits()));
  archive.write("min_8bit_size", c10::IValue(min_8bit_size()));
}

void OptimizerOptions::serialize(torch::serialize::InputArchive& archive) {
  lr(ReadValue<double>(archive, "lr"));
  betas({ReadValue<double>(archive, "beta1"), ReadValue<double>(archive, "beta2")});
  eps(ReadValue<double>(archive, "eps"));
  weight_decay(ReadValue<double>(archive, "weight_decay"));
  bits(ReadValue<int64_t>(archive, "bits"));
  min_8bit_size(ReadValue<int64_t>(archive, "min_8bit_size"));
}

void OptimizerState::serialize(torch::serialize::OutputArchive& archive) const {
  archive.write("step", c10::IValue(step()));
  WriteTensor(archive, "state1", state1());
  WriteTensor(archive, "state2", state2());
  WriteTensor(archive, "absmax1", absmax1());
  WriteTensor(archive, "absmax2", absmax2());
}

void OptimizerState::serialize(torch::serialize::InputArchive& archive) {
  step(ReadValue<int64_t>(archive, "step"));
  state1(ReadTensor(archive, "state1"));
  state2(ReadTensor(archive, "state2"));
  absmax1(ReadTensor(archive, "absmax1"));
  absmax2(ReadTensor(archive, "absmax2"));
}

BlockwiseOptimizer::BlockwiseOptimizer(std::vector<torch::optim::OptimizerParamGroup> groups,
                                       const OptimizerOptions& defaults, Algorithm algorithm)
    : Optimizer(std::move(groups), std::make_unique<OptimizerOptions>(defaults)),
      algorithm_(algorithm) {
  for (const auto& group : param_groups_)
    CheckOptions(static_cast<const OptimizerOptions&>(group.options()));
}

torch::Tensor BlockwiseOptimizer::step(LossClosure closure) {
  Tensor loss;
  if (closure != nullptr) {
    const at::AutoGradMode with_graph(true);
    loss = closure();
  }
  const torch::NoGradGuard no_graph;
  for (auto& group : param_groups_) {
    const auto& options = static_cast<const OptimizerOptions&>(group.options());
    std::vector<Batch> batches;
    for (const Tensor& p : group.params()) {
      if (!p.grad().defined()) continue;
      auto& state = state_[p.unsafeGetTensorImpl()];
      if (state == nullptr) state = MakeState(p, options, NumStates(algorithm_));
      auto& own = static_cast<OptimizerState&>(*state);
      own.step(own.step() + 1);
      const StepArgs args{.algorithm = algorithm_,
                          .hyper = {.step = own.step(),
                                    .learning_rate = options.lr(),
                                    .beta1 = std::get<0>(options.betas()),
                                    .beta2 = std::get<1>(options.betas()),
                                    .eps = options.eps(),
                                    .weight_decay = options.weight_decay()},
                          .parameter_type = TypeOf(p, "parameter"),
                          .gradient_type = TypeOf(p.grad(), "gradient")};
      auto batch = batches.begin();
      while (batch != batches.end() && !Fits(batch->args, args)) ++batch;
      if (batch == batches.end())
        batch = batches.insert(batches.end(), {.args = args, .steps = {}});
      batch->steps.push_back(Prepare(p, own));
    }
    RunBatches(batches);
  }
  return loss;
}

void BlockwiseOptimizer::save(torch::serialize::OutputArchive& archive) const {
  torch::optim::serialize<OptimizerState, OptimizerOptions>(archive, *this);
}

void BlockwiseOptimizer::load(torch::serialize::InputArchive& archive) {
  torch::optim::serialize<OptimizerState, OptimizerOptions>(archive, *this);
}

}  // namespace bitshard::optim
