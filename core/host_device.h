// BITSHARD_HD marks a function that runs on the host and in CUDA kernels alike. This is the only
// file that asks which compiler is at work.
#ifndef BITSHARD_CORE_HOST_DEVICE_H_
#define BITSHARD_CORE_HOST_DEVICE_H_

#if defined(__CUDACC__)
#define BITSHARD_HD __host__ __device__ __forceinline__
#else
#define BITSHARD_HD inline __attribute__((always_inline))
#endif

// Unrolls the next loop in device code; host compilers decide for themselves.
#if defined(__CUDA_ARCH__)
#define BITSHARD_UNROLL _Pragma("unroll")
#else
#define BITSHARD_UNROLL
#endif

#endif  // BITSHARD_CORE_HOST_DEVICE_H_
