// For oracles in Python: runs optimizer steps on one tensor and writes what they leave.
//
//   step_tool RULE BITS STEPS N LR BETA1 BETA2 EPS WD SCALE PREFIX [P_TYPE G_TYPE MODE]
// Reads PREFIX.p [N] and PREFIX.g [STEPS, N], float32. Writes PREFIX.out: parameters [N] float32,
// then the state: 8-bit codes and absmax of each moment, or float32 moments. P_TYPE, G_TYPE:
// float32, bfloat16 or float16, to which what was read is rounded; MODE: nearest, master (whose
// float32 weights are then written last) or stochastic (seed 11, tensor 3).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "core/numeric.h"
#include "core/simd.h"
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

}  // namespace

int main(int argc, char** argv) {
  if ((argc != 12 && argc != 15) || !core::InitSimdFromEnvironment().ok()) return 2;
  const std::string rule = argv[1], prefix = argv[11];
  const bool is_8bit = std::atoi(argv[2]) == 8;
  const int64_t steps = std::atoll(argv[3]);
  const size_t n = static_cast<size_t>(std::atoll(argv[4])), blocks = (n + 255) / 256;
  const core::DType p_type = TypeOf(argc == 15 ? argv[12] : ""),
                    g_type = TypeOf(argc == 15 ? argv[13] : "");
  const std::string mode = argc == 15 ? argv[14] : "nearest";
  std::vector<float> master = Read<float>(prefix + ".p", n);
  std::vector<std::byte> p = Narrowed(p_type, master);
  const std::vector<std::byte> g =
      Narrowed(g_type, Read<float>(prefix + ".g", n * static_cast<size_t>(steps)));
  const size_t g_bytes = n * static_cast<size_t>(core::ByteSize(g_type));
  std::vector<uint8_t> codes1(n, quant::SignedDynamicTable().zero_code),
      codes2(n, quant::UnsignedDynamicTable().zero_code);
  std::vector<float> absmax1(blocks), absmax2(blocks), state1(n), state2(n);
  const optim::Algorithm algorithm = rule == "adam"    ? optim::Algorithm::kAdam
                                     : rule == "adamw" ? optim::Algorithm::kAdamW
                                                       : optim::Algorithm::kLion;
  for (int64_t step = 1; step <= steps; ++step) {
    optim::StepRun run{.parameter = p.data(),
                       .gradient = g.data() + static_cast<size_t>(step - 1) * g_bytes,
                       .elems = static_cast<int64_t>(n),
                       .master = mode == "master" ? master.data() : nullptr,
                       .tensor = 3};
    if (is_8bit) {
      run.codes1 = codes1.data();
      run.codes2 = codes2.data();
      run.absmax1 = absmax1.data();
      run.absmax2 = absmax2.data();
    } else {
      run.state1 = state1.data();
      run.state2 = state2.data();
    }
    optim::Step({.algorithm = algorithm,
                 .hyper = {.step = step,
                           .learning_rate = std::atof(argv[5]),
                           .beta1 = std::atof(argv[6]),
                           .beta2 = std::atof(argv[7]),
                           .eps = std::atof(argv[8]),
                           .weight_decay = std::atof(argv[9]),
                           .gradient_scale = std::atof(argv[10])},
                 .parameter_type = p_type,
                 .gradient_type = g_type,
                 .runs = std::span(&run, 1),
                 .rounding = mode == "stochastic" ? optim::Rounding::kStochastic
                                                  : optim::Rounding::kNearestEven,
                 .seed = 11});
  }
  std::ofstream out(prefix + ".out", std::ios::binary);
  Write(out, Widened(p_type, p));
  if (is_8bit) {
    Write(out, codes1);
    Write(out, absmax1);
    Write(out, codes2);
    Write(out, absmax2);
  } else {
    Write(out, state1);
    Write(out, state2);
  }
  if (mode == "master") Write(out, master);
  std::printf("%s\n", core::SimdTargetName().c_str());
  return out.good() ? 0 : 1;
}
