// From torch's tensors to the spans of bitshard's functions, and errors back.
#ifndef BITSHARD_PYTHON_TENSOR_ARGS_H_
#define BITSHARD_PYTHON_TENSOR_ARGS_H_

#include <ATen/ATen.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "core/parallel.h"
#include "quant/formats.h"

namespace bitshard::python {

/// Throws c10::Error where `status` is an error: torch makes a RuntimeError of it.
void ThrowIfError(const absl::Status& status);

/// The elements of a contiguous CPU tensor of type T.
template <class T>
std::span<const T> ReadSpan(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), static_cast<size_t>(tensor.numel())};
}
template <class T>
std::span<T> WriteSpan(const at::Tensor& tensor) {
  return {tensor.data_ptr<T>(), static_cast<size_t>(tensor.numel())};
}

/// `tensor` in one piece and as float32: itself where it is that already.
at::Tensor ContiguousFloats(const at::Tensor& tensor);

/// Throws unless `tensor` has `type`.
void CheckType(const at::Tensor& tensor, at::ScalarType type, const char* what);

/// Elements [begin, begin + n) of a contiguous tensor as float32: where they are, or converted into
/// `buffer`. Any thread.
const float* ReadFloats(const at::Tensor& tensor, int64_t begin, int64_t n,
                        std::vector<float>* buffer);

/// The other way: n floats, each rounded once to nearest even, to elements [begin, begin + n).
void WriteFloats(const float* from, int64_t n, const at::Tensor& tensor, int64_t begin);

/// Elements that are converted at a time: 128 KB of float32 a thread.
inline constexpr int64_t kPartElems = 1 << 15;

/// Calls run(begin, count, first block) for parts of whole blocks that cover n elements, each about
/// kPartElems long, from several threads. run must not throw.
template <class Run>
void ForEachPart(int64_t n, int64_t block_size, const Run& run) {
  const int64_t step = std::max<int64_t>(1, kPartElems / block_size);
  core::ParallelFor(quant::NumBlocks(n, block_size), step, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; block += step) {
      const int64_t begin = block * block_size;
      const int64_t end = std::min(n, std::min(last, block + step) * block_size);
      run(begin, end - begin, block);
    }
  });
}

/// Calls compute(target) with a contiguous tensor that has out's shape and type, and leaves in
/// `out` what it wrote there: `out` itself where that is contiguous.
template <class Compute>
void ComputeInto(const at::Tensor& out, const Compute& compute) {
  if (out.is_contiguous()) return compute(out);
  const at::Tensor target = at::empty(out.sizes(), out.options());
  compute(target);
  out.copy_(target);
}

}  // namespace bitshard::python

#endif  // BITSHARD_PYTHON_TENSOR_ARGS_H_
