// LLM.int8(). The arithmetic is quant/int8.h's; here are types, shapes and outlier columns.
#include <array>
#include <optional>

#include "core/check.h"
#include "python/kernel_table.h"
#include "python/tensor_args.h"
#include "quant/int8.h"

namespace bitshard::python {
namespace {

using at::ScalarType;
using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using MaybeType = std::optional<ScalarType>;

// A tensor as rows of its last dimension.
quant::MatrixSize SizeOf(const Tensor& tensor) {
  TORCH_CHECK(tensor.dim() >= 1, "A must have at least one dimension");
  const int64_t cols = tensor.size(-1);
  return {.rows = cols == 0 ? 0 : tensor.numel() / cols, .cols = cols};
}

Tensor RowsOf(const Tensor& tensor) {
  const quant::MatrixSize size = SizeOf(tensor);
  return tensor.reshape({size.rows, size.cols});
}

// --- quantisation ---

// x [rows, cols] of any float type, contiguous; limit as the threshold of QuantizeRowsInt8.
std::tuple<Tensor, Tensor> QuantizeRows(const Tensor& x, float limit) {
  const quant::MatrixSize size = SizeOf(x);
  const Tensor q = at::empty({size.rows, size.cols}, at::kChar);
  const Tensor stats = at::empty({size.rows}, at::kFloat);
  ForEachPart(x.numel(), std::max<int64_t>(size.cols, 1),
              [&](int64_t begin, int64_t count, int64_t row) {
                std::vector<float> buffer;
                const size_t rows = static_cast<size_t>(count / size.cols);
                const size_t elems = static_cast<size_t>(count);
                const absl::Status status = quant::QuantizeRowsInt8(
                    {ReadFloats(x, begin, count, &buffer), elems},
                    {.rows = count / size.cols, .cols = size.cols}, limit,
                    {q.data_ptr<int8_t>() + begin, elems}, {stats.data_ptr<float>() + row, rows});
                BITSHARD_CHECK(status.ok()) << status;
              });
  return {q, stats};
}

// The threshold rounded to x's type, as torch compares a tensor with a number; 0 where there is
// none.
float LimitOf(const Tensor& x, double threshold) {
  if (threshold <= 0) return 0.0f;
  return at::scalar_tensor(threshold, x.options()).to(at::kFloat).item<float>();
}

// Columns of x [rows, cols] with an outlier, ascending.
Tensor OutlierColumns(const Tensor& x, double threshold) {
  return x.abs().ge(threshold).any(0).nonzero().flatten();
}

struct QuantizedRows {
  Tensor q;
  Tensor stats;
  MaybeTensor outlier_cols;
};

// a [rows, cols], contiguous.
QuantizedRows QuantizeWithOutliers(const Tensor& a, double threshold) {
  auto [q, stats] = QuantizeRows(a, LimitOf(a, threshold));
  if (threshold <= 0) return {q, stats, std::nullopt};
  const Tensor columns = OutlierColumns(a, threshold);
  if (columns.numel() > 0) q.index_fill_(1, columns, 0);
  return {q, stats, columns};
}

Tensor FloatRows(const Tensor& a) {
  TORCH_CHECK(a.is_floating_point(), "A must be a floating point tensor, got ", a.scalar_type());
  return RowsOf(a).contiguous();
}

std::tuple<Tensor, Tensor, MaybeTensor> VectorwiseQuant(const Tensor& a, double threshold) {
  CountCall("int8_vectorwise_quant");
  QuantizedRows rows = QuantizeWithOutliers(FloatRows(a), threshold);
  return {rows.q.reshape(a.sizes()), rows.stats, rows.outlier_cols};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, MaybeTensor> DoubleQuant(const Tensor& a,
                                                                    double threshold) {
  CountCall("int8_double_quant");
  const Tensor x = FloatRows(a);
  QuantizedRows rows = QuantizeWithOutliers(x, threshold);
  const auto [columns, column_stats] = QuantizeRows(x.t().contiguous(), LimitOf(x, threshold));
  return {rows.q.reshape(a.sizes()), columns.t().contiguous().reshape(a.sizes()), rows.stats,
          column_stats, rows.outlier_cols};
}

// q [rows, cols] int8 and stats of its rows to float32.
Tensor DequantizeRows(const Tensor& q, const Tensor& stats) {
  CheckType(q, at::kChar, "A");
  const Tensor rows = RowsOf(q).contiguous();
  const Tensor out = at::empty(rows.sizes(), at::kFloat);
  ThrowIfError(quant::DequantizeRowsInt8(ReadSpan<int8_t>(rows), SizeOf(rows),
                                         ReadSpan<float>(ContiguousFloats(stats)),
                                         WriteSpan<float>(out)));
  return out;
}

Tensor VectorwiseDequant(const Tensor& a, const Tensor& stats) {
  CountCall("int8_vectorwise_dequant");
  return DequantizeRows(a, stats).reshape(a.sizes());
}

// --- products ---

std::vector<int64_t> ProductShape(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.dim() >= 1 && b.dim() == 2 && a.size(-1) == b.size(1),
              "int8 product: A [*, K] and B [N, K] don't fit together: ", a.sizes(), " and ",
              b.sizes());
  std::vector<int64_t> shape = a.sizes().vec();
  shape.back() = b.size(0);
  return shape;
}

// a [m, k] and b [n, k] int8 to int32 [m, n], in `out`.
void MultiplyTo(const Tensor& a, const Tensor& b, const Tensor& out) {
  CheckType(a, at::kChar, "A");
  CheckType(b, at::kChar, "B");
  const Tensor left = a.contiguous();
  const Tensor right = b.contiguous();
  const int64_t cols = b.size(0);
  ThrowIfError(quant::MultiplyInt8({.a = ReadSpan<int8_t>(left),
                                    .b = ReadSpan<int8_t>(right),
                                    .rows = cols == 0 ? 0 : out.numel() / cols,
                                    .cols = cols,
                                    .depth = b.size(1),
                                    .out = WriteSpan<int32_t>(out)}));
}

Tensor LinearMatmul(const Tensor& a, const Tensor& b) {
  CountCall("int8_linear_matmul");
  const Tensor out = at::empty(ProductShape(a, b), at::kInt);
  MultiplyTo(a, b, out);
  return out;
}

void LinearMatmulOut(const Tensor& a, const Tensor& b, const Tensor& out) {
  CountCall("int8_linear_matmul.out");
  const std::vector<int64_t> shape = ProductShape(a, b);
  TORCH_CHECK(out.sizes() == at::IntArrayRef(shape),
              "Expected out.shape == ", at::IntArrayRef(shape), ", got ", out.sizes());
  CheckType(out, at::kInt, "out");
  ComputeInto(out, [&](const Tensor& target) { MultiplyTo(a, b, target); });
}

// product [*, n] int32 to float32 of the same shape.
Tensor DequantizeProduct(const Tensor& product, const Tensor& row_stats, const Tensor& col_stats,
                         const MaybeTensor& bias) {
  CheckType(product, at::kInt, "A");
  CheckType(row_stats, at::kFloat, "row_stats");
  CheckType(col_stats, at::kFloat, "col_stats");
  const Tensor counts = product.contiguous();
  const Tensor left = row_stats.contiguous();
  const Tensor right = col_stats.contiguous();
  const Tensor addend = bias.has_value() ? ContiguousFloats(*bias) : at::empty({0}, at::kFloat);
  const Tensor out = at::empty(product.sizes(), at::kFloat);
  ThrowIfError(quant::DequantizeInt8Product({.product = ReadSpan<int32_t>(counts),
                                             .row_stats = ReadSpan<float>(left),
                                             .col_stats = ReadSpan<float>(right),
                                             .bias = ReadSpan<float>(addend),
                                             .out = WriteSpan<float>(out)}));
  return out;
}

Tensor MmDequant(const Tensor& a, const Tensor& row_stats, const Tensor& col_stats, MaybeType dtype,
                 const MaybeTensor& bias) {
  CountCall("int8_mm_dequant");
  return DequantizeProduct(a, row_stats, col_stats, bias).to(dtype.value_or(at::kHalf));
}

// Both in one, in float32.
Tensor MultiplyScaled(const Tensor& a, const Tensor& b, const Tensor& row_stats,
                      const Tensor& col_stats, const MaybeTensor& bias) {
  const Tensor product = at::empty(ProductShape(a, b), at::kInt);
  MultiplyTo(a, b, product);
  return DequantizeProduct(product, row_stats, col_stats, bias);
}

Tensor ScaledMm(const Tensor& a, const Tensor& b, const Tensor& row_stats, const Tensor& col_stats,
                const MaybeTensor& bias, MaybeType dtype) {
  CountCall("int8_scaled_mm");
  return MultiplyScaled(a, b, row_stats, col_stats, bias).to(dtype.value_or(at::kHalf));
}

// The outlier columns in A's own precision, the others in int8; added in float32 and rounded once.
std::tuple<Tensor, MaybeTensor> MixedScaledMm(const Tensor& a, const Tensor& ca, const Tensor& cb,
                                              const Tensor& sca, const Tensor& scb,
                                              const MaybeTensor& outlier_cols,
                                              const MaybeTensor& bias) {
  CountCall("int8_mixed_scaled_mm");
  Tensor out = MultiplyScaled(ca, cb, sca, scb, bias);
  Tensor outliers = at::empty({0}, a.options());
  if (outlier_cols.has_value()) outliers = RowsOf(a).index_select(1, *outlier_cols);
  if (outliers.numel() > 0) {
    const Tensor weight =
        DequantizeRows(cb.index_select(1, *outlier_cols), scb).to(a.scalar_type());
    RowsOf(out).addmm_(outliers.to(at::kFloat), weight.to(at::kFloat).t());
  }
  return {out.to(a.scalar_type()), outliers};
}

constexpr std::array<Kernel, 8> kKernels = {{
    {"int8_vectorwise_quant", "(Tensor A, float threshold=0.0) -> (Tensor, Tensor, Tensor?)",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(VectorwiseQuant)); }},
    {"int8_double_quant",
     "(Tensor A, float threshold=0.0) -> (Tensor, Tensor, Tensor, Tensor, Tensor?)",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(DoubleQuant)); }},
    {"int8_vectorwise_dequant", "(Tensor A, Tensor stats) -> Tensor",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(VectorwiseDequant)); }},
    {"int8_linear_matmul", "(Tensor A, Tensor B) -> Tensor",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(LinearMatmul)); }},
    {"int8_linear_matmul.out", "(Tensor A, Tensor B, Tensor! out) -> ()",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(LinearMatmulOut)); }},
    {"int8_mm_dequant",
     "(Tensor A, Tensor row_stats, Tensor col_stats, ScalarType? dtype=None, Tensor? bias=None)"
     " -> Tensor",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(MmDequant)); }},
    {"int8_scaled_mm",
     "(Tensor A, Tensor B, Tensor row_stats, Tensor col_stats, Tensor? bias=None, "
     "ScalarType? dtype=None) -> Tensor",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(ScaledMm)); }},
    {"int8_mixed_scaled_mm",
     "(Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB, Tensor? outlier_cols=None, "
     "Tensor? bias=None) -> (Tensor, Tensor?)",
     [](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(MixedScaledMm)); }},
}};

}  // namespace

std::span<const Kernel> Int8Kernels() { return kKernels; }

}  // namespace bitshard::python
