// The arithmetic of the stand-in's reductions.
#ifndef BITSHARD_TESTS_CUDAHOST_NCCL_DATA_H_
#define BITSHARD_TESTS_CUDAHOST_NCCL_DATA_H_

#include <nccl.h>

#include <cstddef>
#include <vector>

namespace cudahost::nccl {

struct ReduceArgs {
  std::vector<const std::byte*> inputs;  // By rank.
  std::byte* output = nullptr;
  size_t begin = 0;  // Elements of the inputs.
  size_t end = 0;
  // The rank whose value comes last, as a ring does it: first that of the rank after it. So sums of
  // floats have neither the order of the ranks nor one order for all elements, and nobody relies on
  // either.
  size_t last_rank = 0;
  ncclDataType_t type = ncclFloat32;
  ncclRedOp_t reduction = ncclSum;
};

// output[i - begin] = reduction over the inputs of element i; a 16-bit float is rounded after each
// addition. False: the type or the reduction is not known.
bool Reduce(const ReduceArgs& args);

// data[i] *= *scalar
bool Multiply(std::byte* data, size_t count, ncclDataType_t type, const void* scalar);

}  // namespace cudahost::nccl

#endif  // BITSHARD_TESTS_CUDAHOST_NCCL_DATA_H_
