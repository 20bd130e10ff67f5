// A warp has a row, so that the sample's stream is found once for all of it. A lane
// takes the eight elements that one random number decides on; where such groups do not begin with
// the rows, it draws the number again for each element.
#include "core/launch.h"
#include "trainer/model/device_kernels.h"
#include "trainer/model/device_pack.h"
#include "trainer/model/device_reduce.h"

namespace bitshard::trainer {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;

// Which elements of a row are kept.
struct RowMask {
  uint64_t stream;
  int64_t first;  // The row's first element in its sample.
  uint32_t threshold;

  // Bit k: element i + k, of a group.
  __device__ uint32_t Group(int64_t i) const {
    return DropoutKept(stream, (first + i) / kDropoutElems, threshold);
  }
  __device__ bool Kept(int64_t i) const {
    return (Group(i) >> ((first + i) % kDropoutElems) & 1u) != 0;
  }
};

template <bool kAdd, class T>
__device__ void DropGroup(const T* x, T* y, uint32_t kept, float scale) {
  BITSHARD_UNROLL
  for (int part = 0; part < kDropoutElems; part += kPack<T>) {
    Pack<T> p = LoadPack(x + part);
    Pack<T> out = {};
    if constexpr (kAdd) out = LoadPack(y + part);
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) {
      const float scaled = p.at[j] * scale;
      if ((kept >> (part + j) & 1u) != 0) out.at[j] = kAdd ? out.at[j] + scaled : scaled;
    }
    StorePack(y + part, out);
  }
}

template <class T, bool kAdd>
__global__ void __launch_bounds__(kThreads) DropoutKernel(DeviceDropoutArgs a, bool aligned) {
  const float scale = DropoutScale(a.key);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes;
  if (row >= a.rows) return;
  const RowMask mask = {.stream = DropoutStream(a.key, a.sample_ids[row]),
                        .first = a.positions[row] * a.n,
                        .threshold = DropoutThreshold(a.key)};
  const T* const x = static_cast<const T*>(a.x) + row * a.n;
  T* const y = static_cast<T*>(a.y) + row * a.n;
  if (aligned) {
    for (int64_t i = int64_t{lane} * kDropoutElems; i < a.n; i += kWarpLanes * kDropoutElems) {
      DropGroup<kAdd>(x + i, y + i, mask.Group(i), scale);
    }
    return;
  }
  for (int64_t i = lane; i < a.n; i += kWarpLanes) {
    const bool kept = mask.Kept(i);
    const float scaled = Widen(x[i]) * scale;
    if (!kAdd) {
      Round(kept ? scaled : 0.0f, y + i);
    } else if (kept) {
      Round(Widen(y[i]) + scaled, y + i);
    }
  }
}

template <bool kAdd>
absl::Status Drop(const char* function, const char* name, const DeviceDropoutArgs& a) {
  return ForDeviceType(function, a.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (a.rows == 0) return absl::OkStatus();
    const bool aligned = a.n % kDropoutElems == 0 && ArePackAligned({a.x, a.y});
    return core::Launch(name, DropoutKernel<T, kAdd>, GridFor(a.rows, kWarps), dim3(kThreads), 0,
                        a.stream, a, aligned);
  });
}

}  // namespace

absl::Status DeviceDropout(const DeviceDropoutArgs& args) {
  return Drop<false>("DeviceDropout", "dropout", args);
}

absl::Status DeviceAddDropout(const DeviceDropoutArgs& args) {
  return Drop<true>("DeviceAddDropout", "add dropout", args);
}

}  // namespace bitshard::trainer
