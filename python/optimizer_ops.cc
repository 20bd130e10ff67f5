// Steps of bitsandbytes' optimizers. The arithmetic is optim/step.h's; here are names, tensors and
// tables.
#include <array>
#include <cmath>
#include <optional>

#include "optim/step.h"
#include "python/kernel_table.h"
#include "python/tensor_args.h"
#include "quant/codebook.h"

namespace bitshard::python {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

optim::Algorithm AlgorithmOf(c10::string_view name) {
  using optim::Algorithm;
  if (name == "adam") return Algorithm::kAdamW;  // Decay is decoupled under this name too.
  if (name == "lamb") return Algorithm::kLamb;
  if (name == "lars") return Algorithm::kLars;
  if (name == "lion") return Algorithm::kLion;
  if (name == "momentum") return Algorithm::kSgd;
  if (name == "rmsprop") return Algorithm::kRmsProp;
  if (name == "adagrad") return Algorithm::kAdagrad;
  if (name == "ademamix") return Algorithm::kAdEmaMix;
  TORCH_CHECK(false, "unknown optimizer '", name,
              "': want adam, lamb, lars, lion, momentum, rmsprop, adagrad or ademamix");
}

core::DType TypeOf(at::ScalarType type) {
  if (type == at::kFloat) return core::DType::kFloat32;
  return type == at::kHalf ? core::DType::kFloat16 : core::DType::kBFloat16;
}

// The type in which a parameter or gradient is stepped: its own, or float32 for other floating
// point types, as in bitsandbytes.
at::ScalarType StepTypeOf(const Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  return type == at::kBFloat16 || type == at::kHalf ? type : at::kFloat;
}

// A tensor that the step changes: in one piece and of one type, and copied back where it was not.
class InPlace {
 public:
  InPlace(const Tensor& tensor, at::ScalarType type, int64_t elems, const char* what)
      : tensor_(tensor), contiguous_(tensor.contiguous()) {
    if (type == at::kFloat) {
      TORCH_CHECK(tensor.is_floating_point(), what, " must be a floating point tensor, got ",
                  tensor.scalar_type());
      contiguous_ = contiguous_.to(at::kFloat);
    } else {
      CheckType(tensor, type, what);
    }
    TORCH_CHECK(tensor.numel() == elems, what, " has ", tensor.numel(), " elements, want ", elems);
  }
  void* data() const { return contiguous_.data_ptr(); }
  template <class T>
  T* data() const {
    return contiguous_.data_ptr<T>();
  }
  void CopyBack() const {
    if (!contiguous_.is_same(tensor_)) tensor_.copy_(contiguous_);
  }

 private:
  Tensor tensor_;
  Tensor contiguous_;
};

// A caller's code table; the dynamic one, which has faster code, is nullptr.
class Table {
 public:
  Table(const Tensor& values, const quant::CodeTable& dynamic) {
    const Tensor floats = ContiguousFloats(values);
    if (quant::SameValues(dynamic, ReadSpan<float>(floats))) return;
    absl::StatusOr<quant::CodeTable> made = quant::MakeCodeTable(ReadSpan<float>(floats));
    ThrowIfError(made.status());
    own_ = *made;
  }
  const quant::CodeTable* get() const { return own_.has_value() ? &*own_ : nullptr; }

 private:
  std::optional<quant::CodeTable> own_;
};

// The states of a rule as bitsandbytes keeps them: state1 holds the first and, one after the other,
// the third; state2 the second.
struct StateTensors {
  InPlace first;
  std::optional<InPlace> second;
};

StateTensors MakeStates(int num_states, at::ScalarType type, int64_t elems, const Tensor& state1,
                        const MaybeTensor& state2, const char* names[2]) {
  StateTensors out{InPlace(state1, type, num_states == 3 ? 2 * elems : elems, names[0]), {}};
  TORCH_CHECK(num_states == 1 || state2.has_value(), names[1], " is missing");
  if (num_states > 1) out.second.emplace(*state2, type, elems, names[1]);
  return out;
}

void CopyBack(const StateTensors& states) {
  states.first.CopyBack();
  if (states.second.has_value()) states.second->CopyBack();
}

// Part i of the states: `elems` values of type T.
template <class T>
T* StateData(const StateTensors& states, int i, int64_t elems) {
  if (i == 1) return states.second->data<T>();
  return states.first.data<T>() + (i == 2 ? elems : 0);
}

// |u| over the whole tensor, and what it does to the step.
void LimitUpdate(double max_unorm, double param_norm, const optim::StepArgs& args,
                 optim::StepRun& run, double* update_squares) {
  if (max_unorm <= 0 || !optim::HasUpdateNorm(args.algorithm)) return;
  optim::BlockNorms total;
  optim::RunUpdateNorms(args, {&total, 1});
  if (param_norm >= 0) total.parameter = param_norm * param_norm;
  run.update_scale = optim::UpdateScale(max_unorm, total);
  *update_squares = total.update;
}

void RunStep(const optim::StepArgs& args) {
  const std::string fault = optim::StepArgsFault(args);
  TORCH_CHECK(fault.empty(), fault);
  optim::Step(args);
}

// The scalars of both operators, in the order of their schemas.
optim::StepHyper HyperOf(double beta1, double beta2, double beta3, double alpha, double eps,
                         double weight_decay, int64_t step, double lr, double gnorm_scale) {
  return {.step = step,
          .learning_rate = lr,
          .beta1 = beta1,
          .beta2 = beta2,
          .eps = eps,
          .weight_decay = weight_decay,
          .gradient_scale = gnorm_scale,
          .beta3 = beta3,
          .alpha = alpha};
}

// What both operators have beside state. `args` refers to `run`: not to be copied.
struct Operands {
  Operands(c10::string_view name, const Tensor& g, const Tensor& p, const optim::StepHyper& hyper)
      : parameter(p, StepTypeOf(p), p.numel(), "p"),
        gradient(g, StepTypeOf(g), p.numel(), "g"),
        run{.parameter = parameter.data(), .gradient = gradient.data(), .elems = p.numel()},
        args{.algorithm = AlgorithmOf(name),
             .hyper = hyper,
             .parameter_type = TypeOf(StepTypeOf(p)),
             .gradient_type = TypeOf(StepTypeOf(g)),
             .runs = {&run, 1}},
        num_states(optim::NumStates(args.algorithm)) {}
  Operands(const Operands&) = delete;
  Operands& operator=(const Operands&) = delete;

  InPlace parameter;
  InPlace gradient;
  optim::StepRun run;
  optim::StepArgs args;
  int num_states;
};

void Update32Bit(c10::string_view name, const Tensor& g, const Tensor& p, const Tensor& state1,
                 const MaybeTensor& state2, const MaybeTensor& unorm_vec, double max_unorm,
                 double param_norm, double beta1, double beta2, double beta3, double alpha,
                 double eps, double weight_decay, int64_t step, double lr, double gnorm_scale,
                 bool /*skip_zeros: as on bitsandbytes' CPU path, no element is skipped*/) {
  CountCall("optimizer_update_32bit");
  Operands of(name, g, p,
              HyperOf(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale));
  const int64_t n = of.run.elems;
  const char* names[] = {"state1", "state2"};
  const StateTensors states = MakeStates(of.num_states, at::kFloat, n, state1, state2, names);
  for (int i = 0; i < of.num_states; ++i) of.run.states[i].values = StateData<float>(states, i, n);
  double update_squares = 0;
  LimitUpdate(max_unorm, param_norm, of.args, of.run, &update_squares);
  if (max_unorm > 0 && unorm_vec.has_value()) unorm_vec->fill_(update_squares);
  RunStep(of.args);
  of.parameter.CopyBack();
  CopyBack(states);
}

void Update8Bit(c10::string_view name, const Tensor& g, const Tensor& p, const Tensor& state1,
                const MaybeTensor& state2, double beta1, double beta2, double beta3, double alpha,
                double eps, int64_t step, double lr, const Tensor& qmap1, const MaybeTensor& qmap2,
                const Tensor& absmax1, const MaybeTensor& absmax2, double weight_decay,
                double gnorm_scale, bool /*skip_zeros*/) {
  CountCall("optimizer_update_8bit_blockwise");
  Operands of(name, g, p,
              HyperOf(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale));
  const int64_t n = of.run.elems, blocks = of.run.num_blocks();
  const char* code_names[] = {"state1", "state2"};
  const char* scale_names[] = {"absmax1", "absmax2"};
  const StateTensors codes = MakeStates(of.num_states, at::kByte, n, state1, state2, code_names);
  const StateTensors scales =
      MakeStates(of.num_states, at::kFloat, blocks, absmax1, absmax2, scale_names);
  TORCH_CHECK(of.num_states == 1 || qmap2.has_value(), "qmap2 is missing");
  const Table table1(qmap1, quant::SignedDynamicTable());
  const Table table2(of.num_states == 1 ? qmap1 : *qmap2, quant::UnsignedDynamicTable());
  for (int i = 0; i < of.num_states; ++i) {
    of.run.states[i].codes = StateData<uint8_t>(codes, i, n);
    of.run.states[i].absmax = StateData<float>(scales, i, blocks);
    of.args.tables[i] = optim::IsSignedState(i) ? table1.get() : table2.get();
  }
  // bitsandbytes' operator has no max_unorm: LAMB and LARS, which are nothing without it, get their
  // classes' default.
  double update_squares = 0;
  LimitUpdate(optim::DefaultsOf(of.args.algorithm).max_unorm, -1, of.args, of.run, &update_squares);
  RunStep(of.args);
  of.parameter.CopyBack();
  CopyBack(codes);
  CopyBack(scales);
}

constexpr std::array<Kernel, 2> kKernels = {{
    {"optimizer_update_32bit",
     "(str optimizer_name, Tensor(a0!) g, Tensor(a1!) p, Tensor(a2!) state1, "
     "Tensor(a3!)? state2, Tensor(a4!)? unorm_vec, float max_unorm, float param_norm, "
     "float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, "
     "int step, float lr, float gnorm_scale, bool skip_zeros=False) -> ()",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(Update32Bit)); }},
    {"optimizer_update_8bit_blockwise",
     "(str optimizer_name, Tensor(a0!) g, Tensor(a1!) p, Tensor(a2!) state1, "
     "Tensor(a3!)? state2, float beta1, float beta2, float beta3, float alpha, float eps, "
     "int step, float lr, Tensor(a4!) qmap1, Tensor(a5!)? qmap2, Tensor(a6!) absmax1, "
     "Tensor(a7!)? absmax2, float weight_decay, float gnorm_scale, bool skip_zeros=False) -> ()",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(Update8Bit)); }},
}};

}  // namespace

std::span<const Kernel> OptimizerKernels() { return kKernels; }

}  // namespace bitshard::python
