#include "trainer/runtime_memory.h"

#include <hwy/base.h>

#include <algorithm>
#include <vector>

#include "core/status_macros.h"
#include "trainer/model/adapter.h"
#include "trainer/model/matmul.h"
#include "trainer/model/workspace.h"
#include "trainer/process_memory.h"

namespace bitshard::trainer {
namespace {

// Packing buffers stop growing with the width of the vocabulary long before this, and with the rows
// of a batch soon after.
constexpr int64_t kMostRows = 1024;
constexpr int64_t kMostVocabulary = 8192;

// x [rows, in], a weight [out, in] and y [rows, out]: forward, and backward to x.
template <class T>
void RunLinear(int64_t rows, int64_t out, int64_t in) {
  std::vector<T> x(static_cast<size_t>(rows * in)), w(static_cast<size_t>(out * in)),
      y(static_cast<size_t>(rows * out));
  const Matrix<T> xs(x.data(), rows, in), ws(w.data(), out, in), ys(y.data(), rows, out);
  MatMul(MatMulArgs<T>{.a = xs, .b = ws.Transposed(), .out = ys});
  MatMul(MatMulArgs<T>{.a = ys, .b = ws, .out = xs});
}

// The adapter's own products: z = x A^T, and the gradients of A and B.
template <class T>
void RunAdapter(int64_t rows, int64_t r, const LinearShape& shape) {
  RunLinear<T>(rows, r, shape.in);
  RunLinear<T>(rows, shape.out, r);
  std::vector<T> z(static_cast<size_t>(rows * r)),
      x(static_cast<size_t>(rows * std::max(shape.in, shape.out))),
      gradient(static_cast<size_t>(r * std::max(shape.in, shape.out)));
  const Matrix<T> zs(z.data(), rows, r);
  MatMul(MatMulArgs<T>{.a = zs.Transposed(),
                       .b = Matrix<T>(x.data(), rows, shape.in),
                       .out = Matrix<T>(gradient.data(), r, shape.in)});
  MatMul(MatMulArgs<T>{.a = Matrix<T>(x.data(), rows, shape.out).Transposed(),
                       .b = zs,
                       .out = Matrix<T>(gradient.data(), shape.out, r)});
}

template <class T>
void RunProducts(const ModelConfig& config, const DecoderOptions& options) {
  const int64_t rows =
      PadRows(std::clamp(options.max_tokens, int64_t{1}, kMostRows), kRowsMultiple);
  for (int m = 0; m < kNumModules; ++m) {
    const LinearShape shape = ShapeOf(config, static_cast<Module>(m));
    RunLinear<T>(rows, shape.out, shape.in);
    if (options.lora.r > 0) RunAdapter<T>(rows, options.lora.r, shape);
  }
  RunLinear<T>(kLogitRows, std::min(config.vocab_size, kMostVocabulary), config.hidden_size);
}

}  // namespace

absl::StatusOr<int64_t> MeasureRuntimeBytes(const ModelConfig& config,
                                            const DecoderOptions& options) {
  if (options.compute == ActivationType::kFloat32) {
    RunProducts<float>(config, options);
  } else {
    RunProducts<hwy::bfloat16_t>(config, options);
  }
  ReturnFreedMemory();
  BITSHARD_ASSIGN_OR_RETURN(const ProcessMemory memory, ReadProcessMemory());
  return memory.rss_bytes;
}

}  // namespace bitshard::trainer
