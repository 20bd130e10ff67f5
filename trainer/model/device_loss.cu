// A block of threads has a row. Each thread keeps the maximum and the sum of exponentials of what
// it has read (Milakov and Gimelshein, 2018); the block then combines them in a fixed tree.
#include <cmath>

#include "core/launch.h"
#include "trainer/model/device_loss.h"
#include "trainer/model/device_math.h"
#include "trainer/model/device_pack.h"
#include "trainer/model/device_reduce.h"

namespace bitshard::trainer {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
// Below every logit that is finite, and a difference to it is finite or infinity, never NaN.
constexpr float kLowest = -3.402823466e38f;

// sum = sum of exp(x - top) over some logits.
struct Softmax {
  float top;
  float sum;
};

__device__ Softmax Combine(const Softmax& a, const Softmax& b) {
  const float top = core::MaxFloat(a.top, b.top);
  return {top, a.sum * Exp(a.top - top) + b.sum * Exp(b.top - top)};
}

__device__ Softmax CombineLanes(Softmax s) {
  for (int offset = kWarpLanes / 2; offset > 0; offset /= 2) {
    s = Combine(s, {__shfl_xor_sync(kWholeWarp, s.top, offset),
                    __shfl_xor_sync(kWholeWarp, s.sum, offset)});
  }
  return s;
}

using Partials = core::SharedArray<Softmax, kWarps>;

// Of the whole row, in every thread.
__device__ Softmax CombineBlock(Softmax mine, Partials* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  mine = CombineLanes(mine);
  if (lane == 0) scratch->at[threadIdx.x / kWarpLanes] = mine;
  __syncthreads();
  return CombineLanes(lane < kWarps ? scratch->at[lane] : Softmax{kLowest, 0.0f});
}

template <class T>
__device__ Softmax ReadRow(const RowAccess<const T>& logits) {
  Softmax s = {kLowest, 0.0f};
  for (int64_t i = int64_t{threadIdx.x} * kPack<T>; i < logits.n; i += kThreads * kPack<T>) {
    const Pack<T> p = logits.Load(i);
    float top = s.top;
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) {
      if (i + j < logits.n) top = core::MaxFloat(p.at[j], top);
    }
    float sum = s.sum * Exp(s.top - top);
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) {
      if (i + j < logits.n) sum += Exp(p.at[j] - top);
    }
    s = {top, sum};
  }
  return s;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    CrossEntropyKernel(DeviceCrossEntropyArgs a, bool aligned) {
  BITSHARD_SHARED(Partials, partials);
  const int64_t row = blockIdx.x;
  T* const data = static_cast<T*>(a.logits) + row * a.vocab;
  const int64_t target = a.targets[row];
  const float picked = Widen(data[target]);
  // After this every thread has read its target's logit.
  const Softmax s = CombineBlock(ReadRow<T>({data, a.vocab, aligned}), &partials);
  if (threadIdx.x == 0) {
    a.nats[row] =
        Log(static_cast<double>(s.sum)) + static_cast<double>(s.top) - static_cast<double>(picked);
  }
  if (!a.gradient) return;
  const float scale = a.loss_scale / s.sum;
  const RowAccess<T> logits{data, a.vocab, aligned};
  for (int64_t i = int64_t{threadIdx.x} * kPack<T>; i < a.vocab; i += kThreads * kPack<T>) {
    Pack<T> p = logits.Load(i);
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) {
      const float softmax = Exp(p.at[j] - s.top) * scale;
      p.at[j] = i + j == target ? softmax - a.loss_scale : softmax;
    }
    logits.Store(i, p);
  }
}

}  // namespace

absl::Status DeviceCrossEntropy(const DeviceCrossEntropyArgs& a) {
  return ForDeviceType("DeviceCrossEntropy", a.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (a.rows == 0) return absl::OkStatus();
    return core::Launch("cross entropy", CrossEntropyKernel<T>, GridFor(a.rows, 1), dim3(kThreads),
                        0, a.stream, a, AreRowsAligned<T>(a.vocab, {a.logits}));
  });
}

}  // namespace bitshard::trainer
