// A row of up to 1024 elements has a warp (the heads of q and k), a longer one a block of threads.
// The second reading of a row finds it in the cache.
#include <cmath>

#include "core/launch.h"
#include "trainer/model/device_kernels.h"
#include "trainer/model/device_pack.h"
#include "trainer/model/device_reduce.h"

namespace bitshard::trainer {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxWarpElems = 1024;

// The kTeam threads that share a row: a warp or the whole block.
template <int kTeam>
struct Team {
  static constexpr int kRowsPerCta = kThreads / kTeam;
  using Scratch = core::SharedArray<float, kThreads / kWarpLanes>;
  Scratch* scratch;

  __device__ int member() const { return static_cast<int>(threadIdx.x) % kTeam; }
  __device__ int64_t row() const { return int64_t{blockIdx.x} * kRowsPerCta + threadIdx.x / kTeam; }

  // Once in a kernel: there is one scratch.
  __device__ float Sum(float x) const {
    if constexpr (kTeam == kWarpLanes) {
      return SumOfLanes(x, kWarpLanes);
    } else {
      return SumOfBlock(x, scratch);
    }
  }
  // Calls body(i) for the first element of each of this thread's packs of a row.
  template <class T, class Body>
  __device__ void ForEachPack(int64_t n, Body&& body) const {
    for (int64_t i = int64_t{member()} * kPack<T>; i < n; i += int64_t{kTeam} * kPack<T>) body(i);
  }
};

template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads) RmsNormKernel(DeviceRmsNormArgs a, bool aligned) {
  BITSHARD_SHARED(typename Team<kTeam>::Scratch, scratch);
  const Team<kTeam> team{&scratch};
  const RowAccess<const float> weight{a.weight, a.n, aligned};
  const int64_t row = team.row();
  if (row >= a.rows) return;
  const RowAccess<const T> x{static_cast<const T*>(a.x) + row * a.n, a.n, aligned};
  const RowAccess<T> y{static_cast<T*>(a.y) + row * a.n, a.n, aligned};
  float squares = 0.0f;
  team.template ForEachPack<T>(a.n, [&](int64_t i) {
    const Pack<T> p = x.Load(i);
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) squares = fmaf(p.at[j], p.at[j], squares);
  });
  const float inverse = 1.0f / sqrtf(team.Sum(squares) / static_cast<float>(a.n) + a.eps);
  if (team.member() == 0) a.inverse_rms[row] = inverse;
  team.template ForEachPack<T>(a.n, [&](int64_t i) {
    Pack<T> p = x.Load(i);
    const Pack<T> w = LoadFloats<T>(weight, i);
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) p.at[j] = p.at[j] * inverse * w.at[j];
    y.Store(i, p);
  });
}

template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads)
    RmsNormBackwardKernel(DeviceRmsNormBackwardArgs a, bool aligned) {
  BITSHARD_SHARED(typename Team<kTeam>::Scratch, scratch);
  const Team<kTeam> team{&scratch};
  const RowAccess<const float> weight{a.weight, a.n, aligned};
  const int64_t row = team.row();
  if (row >= a.rows) return;
  const RowAccess<const T> x{static_cast<const T*>(a.x) + row * a.n, a.n, aligned};
  const RowAccess<const T> dy{static_cast<const T*>(a.dy) + row * a.n, a.n, aligned};
  const RowAccess<const T> add{static_cast<const T*>(a.add) + row * a.n, a.n, aligned};
  const RowAccess<T> dx{static_cast<T*>(a.dx) + row * a.n, a.n, aligned};
  const float inverse = a.inverse_rms[row];
  float dot = 0.0f;
  team.template ForEachPack<T>(a.n, [&](int64_t i) {
    const Pack<T> p = x.Load(i);
    const Pack<T> g = dy.Load(i);
    const Pack<T> w = LoadFloats<T>(weight, i);
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) dot = fmaf(g.at[j] * w.at[j], p.at[j], dot);
  });
  const float shift = team.Sum(dot) * inverse * inverse * inverse / static_cast<float>(a.n);
  team.template ForEachPack<T>(a.n, [&](int64_t i) {
    const Pack<T> p = x.Load(i);
    const Pack<T> w = LoadFloats<T>(weight, i);
    Pack<T> g = dy.Load(i);
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) {
      g.at[j] = fmaf(-shift, p.at[j], g.at[j] * w.at[j] * inverse);
    }
    if (a.add != nullptr) {
      const Pack<T> more = add.Load(i);
      BITSHARD_UNROLL
      for (int j = 0; j < kPack<T>; ++j) g.at[j] = g.at[j] + more.at[j];
    }
    dx.Store(i, g);
  });
}

}  // namespace

absl::Status DeviceRmsNorm(const DeviceRmsNormArgs& a) {
  return ForDeviceType("DeviceRmsNorm", a.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (a.rows == 0) return absl::OkStatus();
    const bool aligned = AreRowsAligned<T>(a.n, {a.x, a.weight, a.y});
    const bool warps = a.n <= kMaxWarpElems;
    return core::Launch("rms norm",
                        warps ? RmsNormKernel<T, kWarpLanes> : RmsNormKernel<T, kThreads>,
                        GridFor(a.rows, warps ? Team<kWarpLanes>::kRowsPerCta : 1), dim3(kThreads),
                        0, a.stream, a, aligned);
  });
}

absl::Status DeviceRmsNormBackward(const DeviceRmsNormBackwardArgs& a) {
  return ForDeviceType("DeviceRmsNormBackward", a.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (a.rows == 0) return absl::OkStatus();
    const bool aligned = AreRowsAligned<T>(a.n, {a.x, a.weight, a.dy, a.add, a.dx});
    const bool warps = a.n <= kMaxWarpElems;
    return core::Launch(
        "rms norm backward",
        warps ? RmsNormBackwardKernel<T, kWarpLanes> : RmsNormBackwardKernel<T, kThreads>,
        GridFor(a.rows, warps ? Team<kWarpLanes>::kRowsPerCta : 1), dim3(kThreads), 0, a.stream, a,
        aligned);
  });
}

}  // namespace bitshard::trainer
