// What g++ needs to compile a .cu file of the project: the wrappers that cmake/CudaHost.cmake
// generates include this first, and then the file. The real CUDA headers declare the types and the
// runtime; what nvcc itself would define stands here and in tests/cudahost/device_functions.h.
//
// Not here, so that it fails to compile: <<<>>>, bare __shared__ variables, cooperative groups,
// approximate functions whose bits differ by device (__expf, rsqrtf), __activemask, inline PTX.
#ifndef BITSHARD_TESTS_CUDAHOST_CUDAHOST_H_
#define BITSHARD_TESTS_CUDAHOST_CUDAHOST_H_

#if defined(__CUDACC__)
#error "tests/cudahost/cudahost.h is for host compilers"
#endif

#include <cuda_runtime.h>
#include <device_launch_parameters.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>

#include "tests/cudahost/check.h"
#include "tests/cudahost/launch.h"
#include "tests/cudahost/sched.h"

// A bare __shared__ variable would silently be one for each thread.
#undef __shared__
#define __shared__ _Pragma("GCC error \"declare shared memory with BITSHARD_SHARED\"")
#undef __launch_bounds__
#define __launch_bounds__(...)
// What a kernel calls becomes a part of it, as with nvcc. The compiler then sees which of a
// thread's own variables nobody else can reach, and calls no check for those.
#if defined(__SANITIZE_THREAD__)
#undef __global__
#define __global__ __attribute__((flatten))
#endif
#undef __forceinline__
#define __forceinline__ inline __attribute__((always_inline))

#define BITSHARD_SHARED(type, name) \
  type& name = ::cudahost::SharedVariable<type, decltype([] {})>(#name)
#define BITSHARD_DYN_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(::cudahost::DynamicSharedData())
#define BITSHARD_LAUNCH_KERNEL(name, ...) ::cudahost::LaunchKernelEx(name, __VA_ARGS__)
#define cudaLaunchKernelEx(...) ::cudahost::LaunchKernelEx("", __VA_ARGS__)

// The shim's own accesses are not the kernel's.
#define CUDAHOST_UNCHECKED __attribute__((noinline, no_sanitize("thread")))

namespace cudahost {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kChecked = true;
#else
inline constexpr bool kChecked = false;
#endif

template <class... P>
struct KernelCall {
  void (*kernel)(P...);
  std::tuple<std::decay_t<P>...> args;

  // The arguments are copied from host memory, as a launch does.
  template <size_t... kIndex>
  CUDAHOST_UNCHECKED void Run(std::index_sequence<kIndex...>) const {
    kernel(std::get<kIndex>(args)...);
  }
  CUDAHOST_UNCHECKED static void RunThread(const void* call) {
    static_cast<const KernelCall*>(call)->Run(std::index_sequence_for<P...>());
  }
};

template <class... P, class... A>
cudaError_t LaunchKernelEx(const char* name, const cudaLaunchConfig_t* config, void (*kernel)(P...),
                           A&&... args) {
  if (config->numAttrs != 0) return cudaErrorNotSupported;
  return EnqueueGrid(config->stream, kChecked,
                     {.name = name,
                      .kernel = reinterpret_cast<const void*>(kernel),
                      .grid = config->gridDim,
                      .block = config->blockDim,
                      .dynamic_shared_bytes = config->dynamicSmemBytes,
                      .thread = KernelCall<P...>::RunThread,
                      .args = std::make_shared<const KernelCall<P...>>(
                          KernelCall<P...>{kernel, {std::forward<A>(args)...}})});
}

// `Tag` is another type for each declaration in the source.
template <class T, class Tag>
CUDAHOST_UNCHECKED T& SharedVariable(const char* name) {
  static constinit SharedSlot slot;
  slot.name = name;
  return *reinterpret_cast<T*>(SharedData(&slot, sizeof(T)));
}

template <class T>
uint64_t ToBits(const T& value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T FromBits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
CUDAHOST_UNCHECKED T Shuffle(WarpOp op, unsigned mask, T value, uint32_t operand, int width,
                             Site site) {
  return FromBits<T>(WarpCollective({.op = op,
                                     .mask = mask,
                                     .value = ToBits(value),
                                     .operand = operand,
                                     .width = width,
                                     .site = site}));
}

inline CUDAHOST_UNCHECKED uint64_t VoteOfWarp(WarpOp op, unsigned mask, int predicate, Site site) {
  return WarpCollective({.op = op, .mask = mask, .value = predicate != 0, .site = site});
}

inline CUDAHOST_UNCHECKED void SyncWarp(unsigned mask, Site site) {
  WarpCollective({.op = WarpOp::kSync, .mask = mask, .site = site});
}

}  // namespace cudahost

// Where in the source a collective stands.
#define CUDAHOST_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDAHOST_SITE) {
  cudahost::Barrier(cudahost::Vote::kNone, false, {file, line});
}
inline int __syncthreads_or(int predicate, CUDAHOST_SITE) {
  return cudahost::Barrier(cudahost::Vote::kOr, predicate != 0, {file, line});
}
inline int __syncthreads_and(int predicate, CUDAHOST_SITE) {
  return cudahost::Barrier(cudahost::Vote::kAnd, predicate != 0, {file, line});
}
inline int __syncthreads_count(int predicate, CUDAHOST_SITE) {
  return cudahost::Barrier(cudahost::Vote::kCount, predicate != 0, {file, line});
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, CUDAHOST_SITE) {
  cudahost::SyncWarp(mask, {file, line});
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDAHOST_SITE) {
  return cudahost::Shuffle(cudahost::WarpOp::kShuffle, mask, value, static_cast<uint32_t>(lane),
                           width, {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDAHOST_SITE) {
  return cudahost::Shuffle(cudahost::WarpOp::kUp, mask, value, delta, width, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDAHOST_SITE) {
  return cudahost::Shuffle(cudahost::WarpOp::kDown, mask, value, delta, width, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDAHOST_SITE) {
  return cudahost::Shuffle(cudahost::WarpOp::kXor, mask, value, static_cast<uint32_t>(lanes), width,
                           {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDAHOST_SITE) {
  return static_cast<unsigned>(
      cudahost::VoteOfWarp(cudahost::WarpOp::kBallot, mask, predicate, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, CUDAHOST_SITE) {
  return cudahost::VoteOfWarp(cudahost::WarpOp::kAny, mask, predicate, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDAHOST_SITE) {
  return cudahost::VoteOfWarp(cudahost::WarpOp::kAll, mask, predicate, {file, line}) != 0;
}

#include "tests/cudahost/device_functions.h"

#undef CUDAHOST_SITE

#endif  // BITSHARD_TESTS_CUDAHOST_CUDAHOST_H_
