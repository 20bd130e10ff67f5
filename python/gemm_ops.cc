// Products with a 4-bit weight. The weight is decoded to float32 in panels of some rows, so that
// all of it is never there at once; the sums are float32, and each result is rounded once.
#include <array>
#include <numeric>
#include <optional>

#include "python/blockwise_ops.h"
#include "python/kernel_table.h"
#include "python/tensor_args.h"
#include "quant/codebook.h"

namespace bitshard::python {
namespace {

using at::Tensor;

// Elements of a panel: 4 MB of float32.
constexpr int64_t kPanelElems = 1 << 20;

// Rows of a [*, depth] weight that make about kPanelElems and end at a block's end.
int64_t PanelRows(int64_t depth, int64_t block_size) {
  const int64_t unit = block_size / std::gcd(depth, block_size);
  return std::max<int64_t>(1, kPanelElems / depth / unit) * unit;
}

// a [m, depth] float32 times the transpose of the weight [rows, depth]; bias [rows] or undefined.
Tensor MultiplyPanels(const Tensor& a, const Packed4Bit& weight, int64_t rows, int64_t depth,
                      const Tensor& bias) {
  const Tensor out = at::empty({a.size(0), rows}, at::kFloat);
  const int64_t step = PanelRows(depth, weight.block_size);
  const Tensor panel = at::empty({std::min(step, rows), depth}, at::kFloat);
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t count = std::min(step, rows - row);
    const int64_t first = row * depth;
    ForEachPart(count * depth, weight.block_size, [&](int64_t begin, int64_t elems, int64_t) {
      DequantizePart(weight, first + begin, elems, panel.data_ptr<float>() + begin);
    });
    Tensor part = out.narrow(1, row, count);
    at::mm_out(part, a, panel.narrow(0, 0, count).t());
  }
  if (bias.defined()) out.add_(bias.to(at::kFloat));
  return out;
}

// y = A W^T + bias in A's type.
Tensor Multiply(const Tensor& a, const Packed4Bit& weight, at::IntArrayRef shape,
                const Tensor& bias) {
  const int64_t depth = shape[1];
  std::vector<int64_t> out_shape = a.sizes().vec();
  out_shape.back() = shape[0];
  const Tensor rows = ContiguousFloats(a).reshape({-1, depth});
  return MultiplyPanels(rows, weight, shape[0], depth, bias).to(a.scalar_type()).reshape(out_shape);
}

void CheckShapes(const Tensor& a, at::IntArrayRef shape) {
  TORCH_CHECK(shape.size() == 2, "shapeB must be 2D [N, K], got ", shape);
  TORCH_CHECK(shape[0] >= 0 && shape[1] >= 1, "shapeB has no elements in a row: ", shape);
  TORCH_CHECK(a.dim() >= 1 && a.size(-1) == shape[1], "A inner dim must match shapeB: A is ",
              a.sizes(), ", shapeB ", shape);
  TORCH_CHECK(a.scalar_type() == at::kFloat || a.scalar_type() == at::kHalf ||
                  a.scalar_type() == at::kBFloat16,
              "A must be float16, bfloat16, or float32, got ", a.scalar_type());
}

Tensor Gemm4Bit(const Tensor& a, const Tensor& b, at::IntArrayRef shape, const Tensor& absmax,
                int64_t block_size, c10::string_view quant_type, const std::optional<Tensor>& bias,
                const std::optional<Tensor>& absmax_8bit, const std::optional<Tensor>& absmax_code,
                const std::optional<Tensor>& absmax_offset) {
  CountCall("gemm_4bit");
  CheckShapes(a, shape);
  Tensor scales = absmax;
  if (absmax_8bit.has_value()) {
    TORCH_CHECK(absmax_code.has_value() && absmax_offset.has_value(),
                "absmax_code and absmax_offset required when absmax_8bit is provided");
    scales = NestedAbsmax(*absmax_8bit, absmax, *absmax_code, *absmax_offset);
  }
  if (bias.has_value())
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == shape[0], "bias must be 1D of length N (",
                shape[0], "), got ", bias->sizes());
  return Multiply(
      a, MakePacked4Bit(b, scales, block_size, TypeOf4Bit(quant_type), shape[0] * shape[1]), shape,
      bias.value_or(Tensor()));
}

Tensor MultiplyByTable(const Tensor& a, const Tensor& b, at::IntArrayRef shape,
                       const Tensor& absmax, const Tensor& code, int64_t block_size) {
  CheckShapes(a, shape);
  TORCH_CHECK(code.numel() == quant::kTableSize4, "code has ", code.numel(), " entries, want ",
              quant::kTableSize4);
  // The second entry is NF4's second lowest value, or FP4's lowest positive one.
  const bool fp4 = ContiguousFloats(code).const_data_ptr<float>()[1] > 0.0f;
  const quant::Type4Bit type = fp4 ? quant::Type4Bit::kFp4 : quant::Type4Bit::kNf4;
  return Multiply(a, MakePacked4Bit(b, absmax, block_size, type, shape[0] * shape[1]), shape, {});
}

Tensor Gemv4Bit(const Tensor& a, const Tensor& b, at::IntArrayRef shape, const Tensor& absmax,
                const Tensor& code, int64_t block_size) {
  CountCall("gemv_4bit");
  return MultiplyByTable(a, b, shape, absmax, code, block_size);
}

void Gemv4BitOut(const Tensor& a, const Tensor& b, at::IntArrayRef shape, const Tensor& absmax,
                 const Tensor& code, int64_t block_size, const Tensor& out) {
  CountCall("gemv_4bit.out");
  const Tensor product = MultiplyByTable(a, b, shape, absmax, code, block_size);
  TORCH_CHECK(out.sizes() == product.sizes(), "Expected out.shape == ", product.sizes(), ", got ",
              out.sizes());
  TORCH_CHECK(out.scalar_type() == a.scalar_type(), "Expected out.dtype == ", a.scalar_type(),
              ", got ", out.scalar_type());
  out.copy_(product);
}

constexpr std::array<Kernel, 3> kKernels = {{
    {"gemm_4bit",
     "(Tensor A, Tensor B, int[] shapeB, Tensor absmax, int blocksize, str quant_type, "
     "Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, "
     "Tensor? absmax_offset=None) -> Tensor",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(Gemm4Bit)); }},
    {"gemv_4bit",
     "(Tensor A, Tensor B, int[] shapeB, Tensor absmax, Tensor code, int blocksize) -> Tensor",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(Gemv4Bit)); }},
    {"gemv_4bit.out",
     "(Tensor A, Tensor B, int[] shapeB, Tensor absmax, Tensor code, int blocksize, Tensor! out)"
     " -> ()",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(Gemv4BitOut)); }},
}};

}  // namespace

std::span<const Kernel> GemmKernels() { return kKernels; }

}  // namespace bitshard::python
