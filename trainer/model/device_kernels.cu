// What has no sum in it. Where rows matter a warp has one; elsewhere a thread has a pack.
#include <type_traits>

#include "core/launch.h"
#include "trainer/model/device_kernels.h"
#include "trainer/model/device_math.h"
#include "trainer/model/device_pack.h"
#include "trainer/model/device_reduce.h"

namespace bitshard::trainer {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;

// Calls body(row) with the row of this warp.
template <class Body>
__device__ void ForWarpRow(int64_t rows, Body&& body) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes;
  if (row < rows) body(row);
}

// Calls body(i) for the first element of each of this lane's packs of a row.
template <class T, class Body>
__device__ void ForEachLanePack(int64_t n, Body&& body) {
  int64_t i = int64_t{threadIdx.x % kWarpLanes} * kPack<T>;
  for (; i < n; i += int64_t{kWarpLanes} * kPack<T>) body(i);
}

// Calls body(i) with the first element of this thread's pack of n elements.
template <class T, class Body>
__device__ void ForThreadPack(int64_t n, Body&& body) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPack<T>;
  if (i < n) body(i);
}

dim3 GridOfRows(int64_t rows) { return GridFor(rows, kWarps); }
template <class T>
dim3 GridOfPacks(int64_t n) {
  return GridFor(n, int64_t{kThreads} * kPack<T>);
}

// A row's bits, copied by a warp.
template <class Bits>
__device__ void CopyRow(const Bits* from, Bits* to, int64_t n, bool aligned) {
  ForEachLanePack<Bits>(n, [&](int64_t i) {
    if (aligned && i + kPack<Bits> <= n) {
      *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
      return;
    }
    for (int64_t j = i; j < i + kPack<Bits> && j < n; ++j) to[j] = from[j];
  });
}

template <class Bits>
__global__ void __launch_bounds__(kThreads) GatherKernel(DeviceGatherArgs a, bool aligned) {
  ForWarpRow(a.rows, [&](int64_t row) {
    CopyRow(static_cast<const Bits*>(a.from) + a.index[row] * a.n,
            static_cast<Bits*>(a.out) + row * a.n, a.n, aligned);
  });
}

template <class Bits>
__global__ void __launch_bounds__(kThreads) ScatterKernel(DeviceScatterArgs a, bool aligned) {
  ForWarpRow(a.rows, [&](int64_t row) {
    CopyRow(static_cast<const Bits*>(a.from) + row * a.n,
            static_cast<Bits*>(a.to) + a.index[row] * a.n, a.n, aligned);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) RopeKernel(DeviceRopeArgs a, bool aligned) {
  const int half = static_cast<int>(a.head_dim / 2);
  const int packs = (half + kPack<T> - 1) / kPack<T>;
  const int items = static_cast<int>(a.heads) * packs;
  ForWarpRow(a.rows, [&](int64_t row) {
    const int64_t angles = a.positions[row] * int64_t{half};
    const RowAccess<const float> cosine{a.cosine + angles, half, aligned};
    const RowAccess<const float> sine{a.sine + angles, half, aligned};
    T* const x = static_cast<T*>(a.x) + row * a.heads * a.head_dim;
    for (int item = static_cast<int>(threadIdx.x) % kWarpLanes; item < items; item += kWarpLanes) {
      const int64_t i = int64_t{item % packs} * kPack<T>;
      const RowAccess<T> low{x + item / packs * a.head_dim, half, aligned};
      const RowAccess<T> high{low.data + half, half, aligned};
      const Pack<T> c = LoadFloats<T>(cosine, i);
      const Pack<T> s = LoadFloats<T>(sine, i);
      Pack<T> p = low.Load(i);
      Pack<T> q = high.Load(i);
      BITSHARD_UNROLL
      for (int j = 0; j < kPack<T>; ++j) {
        const float turn = a.inverse ? -s.at[j] : s.at[j];
        const float from_low = p.at[j], from_high = q.at[j];
        p.at[j] = from_low * c.at[j] - from_high * turn;
        q.at[j] = from_high * c.at[j] + from_low * turn;
      }
      low.Store(i, p);
      high.Store(i, q);
    }
  });
}

// exp(-x) overflows to infinity, and 1 / (1 + infinity) is the 0 that is wanted.
__device__ float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

template <class T>
__global__ void __launch_bounds__(kThreads) SwiGluKernel(DeviceSwiGluArgs a, bool aligned) {
  const RowAccess<const T> gate{static_cast<const T*>(a.gate), a.n, aligned};
  const RowAccess<const T> up{static_cast<const T*>(a.up), a.n, aligned};
  const RowAccess<T> out{static_cast<T*>(a.out), a.n, aligned};
  ForThreadPack<T>(a.n, [&](int64_t i) {
    const Pack<T> g = gate.Load(i);
    Pack<T> u = up.Load(i);
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) u.at[j] = g.at[j] * Sigmoid(g.at[j]) * u.at[j];
    out.Store(i, u);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    SwiGluBackwardKernel(DeviceSwiGluBackwardArgs a, bool aligned) {
  const RowAccess<const T> gate{static_cast<const T*>(a.gate), a.n, aligned};
  const RowAccess<const T> up{static_cast<const T*>(a.up), a.n, aligned};
  const RowAccess<const T> d_out{static_cast<const T*>(a.d_out), a.n, aligned};
  const RowAccess<T> d_gate{static_cast<T*>(a.d_gate), a.n, aligned};
  const RowAccess<T> d_up{static_cast<T*>(a.d_up), a.n, aligned};
  ForThreadPack<T>(a.n, [&](int64_t i) {
    Pack<T> g = gate.Load(i);
    Pack<T> u = up.Load(i);
    const Pack<T> grad = d_out.Load(i);
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) {
      const float x = g.at[j];
      const float s = Sigmoid(x);
      const float slope = s * (1.0f + x * (1.0f - s));
      g.at[j] = grad.at[j] * u.at[j] * slope;
      u.at[j] = grad.at[j] * (x * s);
    }
    d_gate.Store(i, g);
    d_up.Store(i, u);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) AddBiasKernel(DeviceAddBiasArgs a, bool aligned) {
  const RowAccess<const float> bias{a.bias, a.n, aligned};
  ForWarpRow(a.rows, [&](int64_t row) {
    const RowAccess<T> y{static_cast<T*>(a.y) + row * a.n, a.n, aligned};
    ForEachLanePack<T>(a.n, [&](int64_t i) {
      const Pack<T> b = LoadFloats<T>(bias, i);
      Pack<T> p = y.Load(i);
      BITSHARD_UNROLL
      for (int j = 0; j < kPack<T>; ++j) p.at[j] = p.at[j] + b.at[j];
      y.Store(i, p);
    });
  });
}

// Packs of the wider type, so that both sides are read and written whole.
template <class From, class To>
__global__ void __launch_bounds__(kThreads) ConvertKernel(DeviceConvertArgs a, bool aligned) {
  const From* const x = static_cast<const From*>(a.x);
  To* const y = static_cast<To*>(a.y);
  ForThreadPack<Bf16>(a.n, [&](int64_t i) {
    if (aligned && i + kPack<Bf16> <= a.n) {
      Pack<Bf16> p;
      if constexpr (sizeof(From) == sizeof(Bf16)) {
        p = LoadPack(x + i);
      } else {
        p = LoadFloats<Bf16>(RowAccess<const float>{x, a.n, true}, i);
      }
      if constexpr (sizeof(To) == sizeof(Bf16)) {
        StorePack(y + i, p);
      } else {
        StorePack(y + i, {{p.at[0], p.at[1], p.at[2], p.at[3]}});
        StorePack(y + i + kPack<float>, {{p.at[4], p.at[5], p.at[6], p.at[7]}});
      }
      return;
    }
    for (int64_t j = i; j < i + kPack<Bf16> && j < a.n; ++j) Round(Widen(x[j]), y + j);
  });
}

}  // namespace

absl::Status DeviceGather(const DeviceGatherArgs& a) {
  return ForDeviceType("DeviceGather", a.type, [&](auto t) -> absl::Status {
    using Bits = std::conditional_t<sizeof(t) == sizeof(uint32_t), uint32_t, uint16_t>;
    if (a.rows == 0 || a.n == 0) return absl::OkStatus();
    return core::Launch("gather rows", GatherKernel<Bits>, GridOfRows(a.rows), dim3(kThreads), 0,
                        a.stream, a, AreRowsAligned<Bits>(a.n, {a.from, a.out}));
  });
}

absl::Status DeviceScatter(const DeviceScatterArgs& a) {
  return ForDeviceType("DeviceScatter", a.type, [&](auto t) -> absl::Status {
    using Bits = std::conditional_t<sizeof(t) == sizeof(uint32_t), uint32_t, uint16_t>;
    if (a.rows == 0 || a.n == 0) return absl::OkStatus();
    return core::Launch("scatter rows", ScatterKernel<Bits>, GridOfRows(a.rows), dim3(kThreads), 0,
                        a.stream, a, AreRowsAligned<Bits>(a.n, {a.from, a.to}));
  });
}

absl::Status DeviceRope(const DeviceRopeArgs& a) {
  return ForDeviceType("DeviceRope", a.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (a.rows == 0) return absl::OkStatus();
    return core::Launch("rope", RopeKernel<T>, GridOfRows(a.rows), dim3(kThreads), 0, a.stream, a,
                        AreRowsAligned<T>(a.head_dim / 2, {a.x, a.cosine, a.sine}));
  });
}

absl::Status DeviceSwiGlu(const DeviceSwiGluArgs& a) {
  return ForDeviceType("DeviceSwiGlu", a.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (a.n == 0) return absl::OkStatus();
    return core::Launch("swiglu", SwiGluKernel<T>, GridOfPacks<T>(a.n), dim3(kThreads), 0, a.stream,
                        a, ArePackAligned({a.gate, a.up, a.out}));
  });
}

absl::Status DeviceSwiGluBackward(const DeviceSwiGluBackwardArgs& a) {
  return ForDeviceType("DeviceSwiGluBackward", a.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (a.n == 0) return absl::OkStatus();
    return core::Launch("swiglu backward", SwiGluBackwardKernel<T>, GridOfPacks<T>(a.n),
                        dim3(kThreads), 0, a.stream, a,
                        ArePackAligned({a.gate, a.up, a.d_out, a.d_gate, a.d_up}));
  });
}

absl::Status DeviceAddBias(const DeviceAddBiasArgs& a) {
  return ForDeviceType("DeviceAddBias", a.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (a.rows == 0 || a.n == 0) return absl::OkStatus();
    return core::Launch("add bias", AddBiasKernel<T>, GridOfRows(a.rows), dim3(kThreads), 0,
                        a.stream, a, AreRowsAligned<T>(a.n, {a.y, a.bias}));
  });
}

absl::Status DeviceConvert(const DeviceConvertArgs& a) {
  return ForDeviceType("DeviceConvert", a.x_type, [&](auto from) {
    return ForDeviceType("DeviceConvert", a.y_type, [&](auto to) -> absl::Status {
      if (a.n == 0) return absl::OkStatus();
      return core::Launch("convert", ConvertKernel<decltype(from), decltype(to)>,
                          GridOfPacks<Bf16>(a.n), dim3(kThreads), 0, a.stream, a,
                          ArePackAligned({a.x, a.y}));
    });
  });
}

}  // namespace bitshard::trainer
