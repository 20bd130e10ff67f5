#include "tests/cudahost/nccl_data.h"

#include <algorithm>
#include <concepts>
#include <cstdint>

namespace cudahost::nccl {
namespace {

// What is computed with, and back: floats of 16 bits by way of float, with rounding at each step.
float Wide(__half x) { return __half2float(x); }
float Wide(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
T Wide(T x) {
  return x;
}
template <class T, class W>
T Narrow(W x) {
  if constexpr (std::same_as<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::same_as<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return static_cast<T>(x);
  }
}

template <class W>
W Add(W a, W b) {
  if constexpr (std::integral<W>) {
    W sum;
    (void)__builtin_add_overflow(a, b, &sum);
    return sum;
  } else {
    return a + b;
  }
}

template <class W>
W Times(W a, W b) {
  if constexpr (std::integral<W>) {
    W product;
    (void)__builtin_mul_overflow(a, b, &product);
    return product;
  } else {
    return a * b;
  }
}

template <class T, class F>
void Fold(const ReduceArgs& args, F f) {
  const size_t num_ranks = args.inputs.size();
  T* output = reinterpret_cast<T*>(args.output);
  for (size_t i = args.begin; i < args.end; ++i) {
    T sum{};
    for (size_t step = 1; step <= num_ranks; ++step) {
      const T* input = reinterpret_cast<const T*>(args.inputs[(args.last_rank + step) % num_ranks]);
      sum = step == 1 ? input[i] : Narrow<T>(f(Wide(sum), Wide(input[i])));
    }
    if (args.reduction == ncclAvg) {
      using W = decltype(Wide(sum));
      sum = Narrow<T>(Wide(sum) / static_cast<W>(num_ranks));
    }
    output[i - args.begin] = sum;
  }
}

template <class T>
bool ReduceAs(const ReduceArgs& args) {
  using W = decltype(Wide(T{}));
  switch (args.reduction) {
    case ncclSum:
    case ncclAvg:
      Fold<T>(args, [](W a, W b) { return Add(a, b); });
      return true;
    case ncclProd:
      Fold<T>(args, [](W a, W b) { return Times(a, b); });
      return true;
    case ncclMax:
      Fold<T>(args, [](W a, W b) { return std::max(a, b); });
      return true;
    case ncclMin:
      Fold<T>(args, [](W a, W b) { return std::min(a, b); });
      return true;
    default:
      return false;
  }
}

template <class T>
bool MultiplyAs(std::byte* data, size_t count, const void* scalar) {
  T* values = reinterpret_cast<T*>(data);
  const T factor = *static_cast<const T*>(scalar);
  for (size_t i = 0; i < count; ++i) values[i] = Narrow<T>(Times(Wide(values[i]), Wide(factor)));
  return true;
}

// Calls f with a value of the type.
template <class F>
bool WithType(ncclDataType_t type, F f) {
  switch (type) {
    case ncclInt8:
      return f(int8_t{});
    case ncclUint8:
      return f(uint8_t{});
    case ncclInt32:
      return f(int32_t{});
    case ncclUint32:
      return f(uint32_t{});
    case ncclInt64:
      return f(int64_t{});
    case ncclUint64:
      return f(uint64_t{});
    case ncclFloat16:
      return f(__half{});
    case ncclBfloat16:
      return f(__nv_bfloat16{});
    case ncclFloat32:
      return f(float{});
    case ncclFloat64:
      return f(double{});
    default:
      return false;
  }
}

}  // namespace

bool Reduce(const ReduceArgs& args) {
  return WithType(args.type, [&](auto zero) { return ReduceAs<decltype(zero)>(args); });
}

bool Multiply(std::byte* data, size_t count, ncclDataType_t type, const void* scalar) {
  return WithType(type, [&](auto zero) { return MultiplyAs<decltype(zero)>(data, count, scalar); });
}

}  // namespace cudahost::nccl
