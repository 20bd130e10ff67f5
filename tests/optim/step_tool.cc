// For oracles in Python: runs optimizer steps on one tensor and writes what they leave.
//
//   step_tool PREFIX rule=adamw_8bit steps=10 n=1000 lr=1e-3 beta1=0.9 ... [unorm=1]
//   [types=bfloat16,float32]
//             [mode=nearest|master|stochastic] [state_block=256] [tables=1]
// Reads PREFIX.p [n] and PREFIX.g [steps, n], float32, and with tables=1 PREFIX.t [3, 256]. Writes
// PREFIX.out: parameters [n] float32, then each state of the rule: 8-bit codes and absmax, or
// float32; then, with mode=master, the master weights. types: of parameters and gradients, to which
// what was read is rounded. mode=stochastic: seed 11, tensor 3. "adam" is the rule with L2 decay.
// Prints the SIMD target, and for AdEMAMix a line for each step: alpha and beta3.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/numeric.h"
#include "core/simd.h"
#include "optim/optimizer_name.h"
#include "optim/step.h"
#include "quant/codebook.h"

namespace {

using namespace bitshard;  // A tool of one file.

template <class T>
std::vector<T> Read(const std::string& path, size_t n) {
  std::vector<T> data(n);
  std::ifstream(path, std::ios::binary)
      .read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(n * sizeof(T)));
  return data;
}

template <class T>
void Write(std::ofstream& out, const std::vector<T>& data) {
  out.write(reinterpret_cast<const char*>(data.data()),
            static_cast<std::streamsize>(data.size() * sizeof(T)));
}

core::DType TypeOf(const std::string& name) {
  for (const core::DType type : {core::DType::kBFloat16, core::DType::kFloat16})
    if (name == core::Name(type)) return type;
  return core::DType::kFloat32;
}

// Floats rounded to a type, as they lie in memory.
std::vector<std::byte> Narrowed(core::DType type, const std::vector<float>& x) {
  const size_t width = static_cast<size_t>(core::ByteSize(type));
  std::vector<std::byte> bytes(x.size() * width);
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t bits = type == core::DType::kFloat32    ? core::FloatBits(x[i])
                          : type == core::DType::kBFloat16 ? core::Bf16FromFloat(x[i])
                                                           : core::Fp16FromFloat(x[i]);
    std::memcpy(bytes.data() + i * width, &bits, width);
  }
  return bytes;
}

std::vector<float> Widened(core::DType type, const std::vector<std::byte>& bytes) {
  const size_t width = static_cast<size_t>(core::ByteSize(type));
  std::vector<float> x(bytes.size() / width);
  for (size_t i = 0; i < x.size(); ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, bytes.data() + i * width, width);
    x[i] = type == core::DType::kFloat32    ? core::FloatFromBits(bits)
           : type == core::DType::kBFloat16 ? core::FloatFromBf16(static_cast<uint16_t>(bits))
                                            : core::FloatFromFp16(static_cast<uint16_t>(bits));
  }
  return x;
}

using Settings = std::map<std::string, std::string>;

double Number(const Settings& settings, const std::string& key, double otherwise = 0) {
  const auto it = settings.find(key);
  return it == settings.end() ? otherwise : std::atof(it->second.c_str());
}

std::string Text(const Settings& settings, const std::string& key, const std::string& otherwise) {
  const auto it = settings.find(key);
  return it == settings.end() ? otherwise : it->second;
}

// One of a rule's states, in either form.
struct State {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  std::vector<float> values;
};

struct Tensor {
  std::vector<State> states;
  std::vector<float> master;
  std::vector<std::byte> p;

  optim::StepRun Run(bool has_master) {
    optim::StepRun run{.parameter = p.data(),
                       .elems = static_cast<int64_t>(master.size()),
                       .master = has_master ? master.data() : nullptr,
                       .tensor = 3};
    for (size_t i = 0; i < states.size(); ++i) {
      if (states[i].values.empty()) {
        run.states[i] = {.codes = states[i].codes.data(), .absmax = states[i].absmax.data()};
      } else {
        run.states[i] = {.values = states[i].values.data()};
      }
    }
    return run;
  }
};

optim::StepHyper HyperOf(const Settings& s) {
  return {.learning_rate = Number(s, "lr"),
          .beta1 = Number(s, "beta1"),
          .beta2 = Number(s, "beta2"),
          .eps = Number(s, "eps"),
          .weight_decay = Number(s, "wd"),
          .gradient_scale = Number(s, "scale", 1),
          .beta3 = Number(s, "beta3"),
          .alpha = Number(s, "alpha"),
          .alpha_steps = static_cast<int64_t>(Number(s, "alpha_steps")),
          .beta3_steps = static_cast<int64_t>(Number(s, "beta3_steps"))};
}

// The step with the pre-pass that max_unorm asks for.
void StepLimited(optim::StepArgs args, optim::StepRun run, double max_unorm) {
  args.runs = std::span(&run, 1);
  if (max_unorm > 0) {
    optim::BlockNorms whole;
    optim::RunUpdateNorms(args, {&whole, 1});
    run.update_scale = optim::UpdateScale(max_unorm, whole);
  }
  optim::Step(args);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || !core::InitSimdFromEnvironment().ok()) return 2;
  const std::string prefix = argv[1];
  Settings s;
  for (int i = 2; i < argc; ++i) {
    const std::string arg = argv[i];
    s[arg.substr(0, arg.find('='))] = arg.substr(arg.find('=') + 1);
  }
  const std::string rule = Text(s, "rule", "");
  const auto name = optim::ParseOptimizerName(rule);
  if (!name.ok()) return 1;
  const std::string types = Text(s, "types", "float32,float32"), mode = Text(s, "mode", "nearest");
  const core::DType p_type = TypeOf(types.substr(0, types.find(','))),
                    g_type = TypeOf(types.substr(types.find(',') + 1));
  const size_t n = static_cast<size_t>(Number(s, "n")),
               steps = static_cast<size_t>(Number(s, "steps"));
  const int64_t state_block = static_cast<int64_t>(Number(s, "state_block", 256));
  std::vector<quant::CodeTable> tables = {
      quant::SignedDynamicTable(), quant::UnsignedDynamicTable(), quant::SignedDynamicTable()};
  const bool has_tables = Number(s, "tables") == 1;
  if (has_tables) {
    const std::vector<float> values = Read<float>(prefix + ".t", 3 * 256);
    for (size_t i = 0; i < 3; ++i)
      tables[i] = quant::MakeCodeTable(std::span(values).subspan(i * 256, 256)).value();
  }

  Tensor tensor{.states = {}, .master = Read<float>(prefix + ".p", n), .p = {}};
  tensor.p = Narrowed(p_type, tensor.master);
  const optim::Algorithm algorithm =
      rule.starts_with("adam_") ? optim::Algorithm::kAdam : name->algorithm;
  for (size_t i = 0; i < static_cast<size_t>(optim::NumStates(algorithm)); ++i) {
    State state;
    if (name->bits == 8) {
      state.codes.assign(n, tables[i].zero_code);
      state.absmax.assign(
          (n + static_cast<size_t>(state_block) - 1) / static_cast<size_t>(state_block), 0.0f);
    } else {
      state.values.assign(n, 0.0f);
    }
    tensor.states.push_back(std::move(state));
  }
  const std::vector<std::byte> g = Narrowed(g_type, Read<float>(prefix + ".g", n * steps));
  std::printf("%s\n", core::SimdTargetName().c_str());
  optim::StepRun run = tensor.Run(mode == "master");
  optim::StepArgs args{.algorithm = algorithm,
                       .hyper = HyperOf(s),
                       .parameter_type = p_type,
                       .gradient_type = g_type,
                       .rounding = mode == "stochastic" ? optim::Rounding::kStochastic
                                                        : optim::Rounding::kNearestEven,
                       .seed = 11,
                       .state_block = state_block};
  for (size_t i = 0; i < 3 && has_tables; ++i) args.tables[i] = &tables[i];
  for (size_t step = 0; step < steps; ++step) {
    args.hyper.step = static_cast<int64_t>(step) + 1;
    run.gradient = g.data() + step * n * static_cast<size_t>(core::ByteSize(g_type));
    StepLimited(args, run, Number(s, "unorm"));
    if (algorithm == optim::Algorithm::kAdEmaMix) {
      std::printf("%.17g %.17g\n", optim::AdEmaMixAlpha(args.hyper),
                  optim::AdEmaMixBeta3(args.hyper));
    }
  }

  std::ofstream out(prefix + ".out", std::ios::binary);
  Write(out, Widened(p_type, tensor.p));
  for (const State& state : tensor.states) {
    Write(out, state.codes);
    Write(out, state.absmax);
    Write(out, state.values);
  }
  if (mode == "master") Write(out, tensor.master);
  return out.good() ? 0 : 1;
}
