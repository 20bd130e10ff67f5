// For oracles in Python: runs optimizer steps on one tensor and writes what they leave.
//
//   step_tool RULE BITS STEPS N LR BETA1 BETA2 EPS WD SCALE PREFIX
// Reads PREFIX.p [N] and PREFIX.g [STEPS, N], float32. Writes PREFIX.out: parameters [N] float32,
// then the state: 8-bit codes and absmax of each moment, or float32 moments.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "core/simd.h"
#include "optim/step.h"
#include "quant/codebook.h"

namespace {

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

}  // namespace

int main(int argc, char** argv) {
  using namespace bitshard;  // A tool of one function.
  if (argc != 12 || !core::InitSimdFromEnvironment().ok()) return 2;
  const std::string rule = argv[1], prefix = argv[11];
  const bool is_8bit = std::atoi(argv[2]) == 8;
  const int64_t steps = std::atoll(argv[3]);
  const size_t n = static_cast<size_t>(std::atoll(argv[4])), blocks = (n + 255) / 256;
  std::vector<float> p = Read<float>(prefix + ".p", n);
  const std::vector<float> g = Read<float>(prefix + ".g", n * static_cast<size_t>(steps));
  std::vector<uint8_t> codes1(n, quant::SignedDynamicTable().zero_code),
      codes2(n, quant::UnsignedDynamicTable().zero_code);
  std::vector<float> absmax1(blocks), absmax2(blocks), state1(n), state2(n);
  const optim::Algorithm algorithm = rule == "adam"    ? optim::Algorithm::kAdam
                                     : rule == "adamw" ? optim::Algorithm::kAdamW
                                                       : optim::Algorithm::kLion;
  for (int64_t step = 1; step <= steps; ++step) {
    optim::StepRun run{.parameter = p.data(),
                       .gradient = g.data() + static_cast<size_t>(step - 1) * n,
                       .elems = static_cast<int64_t>(n)};
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
                 .runs = std::span(&run, 1)});
  }
  std::ofstream out(prefix + ".out", std::ios::binary);
  Write(out, p);
  if (is_8bit) {
    Write(out, codes1);
    Write(out, absmax1);
    Write(out, codes2);
    Write(out, absmax2);
  } else {
    Write(out, state1);
    Write(out, state2);
  }
  std::printf("%s\n", core::SimdTargetName().c_str());
  return out.good() ? 0 : 1;
}
