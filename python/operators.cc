// Defines torch.ops.bitshard.* and hands the kernels to bitsandbytes' operators.
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/simd.h"
#include "python/kernel_table.h"
#include "python/tensor_args.h"

namespace bitshard::python {
namespace {

struct Calls {
  std::mutex mutex;
  std::map<std::string, int64_t> by_name;
};

// Kernels may run while static objects are destroyed: never destroyed itself.
Calls& AllCalls() {
  static Calls& calls = *new Calls;
  return calls;
}

std::vector<Kernel> AllKernels() {
  std::vector<Kernel> all;
  for (const auto part : {BlockwiseKernels(), GemmKernels(), Int8Kernels(), OptimizerKernels()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

c10::Dict<std::string, int64_t> KernelCallsOp() {
  c10::Dict<std::string, int64_t> out;
  for (const auto& [name, calls] : KernelCalls()) out.insert(name, calls);
  return out;
}

std::vector<std::string> KernelNamesOp() {
  std::vector<std::string> names;
  for (const Kernel& kernel : AllKernels()) names.emplace_back(kernel.name);
  return names;
}

// The SIMD target that the kernels use, after BITSHARD_SIMD in the environment.
std::string SimdTargetOp() {
  ThrowIfError(core::InitSimdFromEnvironment());
  return core::SimdTargetName();
}

// Drops what torch says, once a process, of the first kernel that replaces another, and hands on
// every other warning.
class SilentReplacement : public c10::WarningHandler {
 public:
  explicit SilentReplacement(c10::WarningHandler* others) : others_(others) {}
  void process(const c10::Warning& warning) override {
    if (warning.msg().rfind("Warning only once for all operators", 0) == 0) return;
    others_->process(warning);
  }

 private:
  c10::WarningHandler* others_;
};

// Makes our kernels those of bitsandbytes' operators for the CPU: of the operators named, and until
// the process ends.
void ImplementBitsandbytes(const std::vector<std::string>& names) {
  SilentReplacement silent(c10::WarningUtils::get_warning_handler());
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  static torch::Library& library = *new torch::Library(torch::Library::IMPL, "bitsandbytes",
                                                       c10::DispatchKey::CPU, __FILE__, __LINE__);
  for (const Kernel& kernel : AllKernels()) {
    if (std::find(names.begin(), names.end(), kernel.name) != names.end())
      kernel.implement(library, kernel.name);
  }
}

}  // namespace

void CountCall(const char* name) {
  Calls& calls = AllCalls();
  const std::lock_guard lock(calls.mutex);
  ++calls.by_name[name];
}

std::map<std::string, int64_t> KernelCalls() {
  Calls& calls = AllCalls();
  const std::lock_guard lock(calls.mutex);
  return calls.by_name;
}

}  // namespace bitshard::python

TORCH_LIBRARY(bitshard, library) {
  for (const auto& kernel : bitshard::python::AllKernels())
    library.def(absl::StrCat(kernel.name, kernel.signature).c_str());
  library.def("kernel_calls() -> Dict(str, int)", TORCH_FN(bitshard::python::KernelCallsOp));
  library.def("kernel_names() -> str[]", TORCH_FN(bitshard::python::KernelNamesOp));
  library.def("simd_target() -> str", TORCH_FN(bitshard::python::SimdTargetOp));
  library.def("implement_bitsandbytes(str[] names) -> ()",
              TORCH_FN(bitshard::python::ImplementBitsandbytes));
}

TORCH_LIBRARY_IMPL(bitshard, CPU, library) {
  for (const auto& kernel : bitshard::python::AllKernels()) kernel.implement(library, kernel.name);
}
