#include "python/tensor_args.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <string>

namespace bitshard::python {
namespace {

// A view of elements that torch can convert, without autograd: worker threads have none of the
// caller's guards.
at::Tensor Slice(const at::Tensor& tensor, int64_t begin, int64_t n) {
  char* data = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
  return at::from_blob(data + begin * static_cast<int64_t>(tensor.element_size()), {n},
                       at::TensorOptions().dtype(tensor.scalar_type()));
}

}  // namespace

void ThrowIfError(const absl::Status& status) {
  TORCH_CHECK(status.ok(), std::string(status.message()));
}

at::Tensor ContiguousFloats(const at::Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

void CheckType(const at::Tensor& tensor, at::ScalarType type, const char* what) {
  TORCH_CHECK(tensor.scalar_type() == type, what, " must be ", type, ", got ",
              tensor.scalar_type());
}

const float* ReadFloats(const at::Tensor& tensor, int64_t begin, int64_t n,
                        std::vector<float>* buffer) {
  if (tensor.scalar_type() == at::kFloat) return tensor.const_data_ptr<float>() + begin;
  const at::AutoDispatchBelowAutograd no_graph;
  buffer->resize(static_cast<size_t>(n));
  at::from_blob(buffer->data(), {n}, at::kFloat).copy_(Slice(tensor, begin, n));
  return buffer->data();
}

void WriteFloats(const float* from, int64_t n, const at::Tensor& tensor, int64_t begin) {
  const at::AutoDispatchBelowAutograd no_graph;
  Slice(tensor, begin, n).copy_(at::from_blob(const_cast<float*>(from), {n}, at::kFloat));
}

}  // namespace bitshard::python
