#include "trainer/model/matmul.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <vector>

#include "core/check.h"
#include "trainer/model/gemm.h"

namespace bitshard::trainer {
namespace {

at::Tensor View(void* data, at::ScalarType type, int64_t rows, int64_t columns, int64_t row_stride,
                int64_t column_stride) {
  return at::from_blob(data, {rows, columns}, {row_stride, column_stride},
                       at::TensorOptions().dtype(type));
}

template <class T>
at::Tensor View(const Matrix<T>& m, at::ScalarType type) {
  return View(m.data, type, m.rows, m.columns, m.row_stride, m.column_stride);
}

template <class T>
void Run(const MatMulArgs<T>& args, at::ScalarType type) {
  BITSHARD_DCHECK(args.a.columns == args.b.rows && args.a.rows == args.out.rows &&
                  args.b.columns == args.out.columns);
  if (args.out.rows == 0 || args.out.columns == 0) return;
  const c10::InferenceMode no_graph;
  at::Tensor out = View(args.out, type);
  const at::Tensor a = View(args.a, type);
  const at::Tensor b = View(args.b, type);
  if (args.beta == 0 && args.alpha == 1) {
    at::mm_out(out, a, b);
  } else {
    at::addmm_out(out, out, a, b, args.beta, args.alpha);
  }
}

}  // namespace

void MatMul(const MatMulArgs<float>& args) {
  if (GemmTakes(args)) {
    Gemm(args);
  } else {
    Run(args, at::kFloat);
  }
}
void MatMul(const MatMulArgs<hwy::bfloat16_t>& args) { Run(args, at::kBFloat16); }

}  // namespace bitshard::trainer
