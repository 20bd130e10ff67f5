// The CPU kernels behind torch.ops.bitshard.*: names, schemas and functions, in one table for two
// libraries of operators. bitshard's own operators are defined with it (operators.cc), and
// bitsandbytes', which have the same names and schemas, get the same functions for the CPU.
#ifndef BITSHARD_PYTHON_KERNEL_TABLE_H_
#define BITSHARD_PYTHON_KERNEL_TABLE_H_

#include <torch/library.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace bitshard::python {

struct Kernel {
  const char* name;       ///< With its overload: "gemv_4bit.out".
  const char* signature;  ///< What follows the name in a schema; bitsandbytes' _ops.py, 0.50.2.
  /// Makes the function the operator's kernel for the library's dispatch key.
  void (*implement)(torch::Library& library, const char* name);
};

std::span<const Kernel> BlockwiseKernels();  ///< blockwise_ops.cc: 8-bit and 4-bit blocks
std::span<const Kernel> GemmKernels();       ///< gemm_ops.cc: products with 4-bit weights
std::span<const Kernel> Int8Kernels();       ///< int8_ops.cc: LLM.int8()
std::span<const Kernel> OptimizerKernels();  ///< optimizer_ops.cc: steps

/// Every kernel calls this first: what shows that it ran, and not something else under the same
/// name. Thread-safe.
void CountCall(const char* name);

/// Calls of each kernel since the process started, by name; kernels that never ran are missing.
std::map<std::string, int64_t> KernelCalls();

}  // namespace bitshard::python

#endif  // BITSHARD_PYTHON_KERNEL_TABLE_H_
