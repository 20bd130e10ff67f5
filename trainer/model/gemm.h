// Products of large float32 matrices: what nearly all of a QLoRA step's time goes into.
//
// Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 2008, with
// one difference: b is packed into panels that stay in the second-level cache, a is read where it
// lies. In a QLoRA step b is a weight that was just dequantised and a has few rows, so packing a
// as well (as BLAS libraries do) costs more than it saves.
#ifndef BITSHARD_TRAINER_MODEL_GEMM_H_
#define BITSHARD_TRAINER_MODEL_GEMM_H_

#include "trainer/model/matmul.h"

namespace bitshard::trainer {

/// Whether Gemm takes this product and is the faster way: a and out row-major, beta 0 or 1, no side
/// so short that memory is the limit.
bool GemmTakes(const MatMulArgs<float>& args);

/// out = alpha * a b + beta * out. Threads: core::NumThreads(). Numerics: an element of out is a
/// chain of fused multiply-adds over k, cut where k alone decides: its bits depend on its row of a
/// and its column of b, not on the other rows and columns or the number of threads.
void Gemm(const MatMulArgs<float>& args);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_GEMM_H_
