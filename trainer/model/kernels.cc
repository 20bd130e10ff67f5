#include "trainer/model/kernels.h"

#include <cmath>

#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trainer/model/kernels.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "trainer/model/vector_io-inl.h"

HWY_BEFORE_NAMESPACE();
namespace bitshard::trainer {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Elements that one thread takes at a time: enough that starting threads does not show.
constexpr int64_t kGrainElems = 1 << 14;

int64_t RowGrain(int64_t n) { return std::max<int64_t>(1, kGrainElems / std::max<int64_t>(n, 1)); }

template <class T>
void RmsNormImpl(const RmsNormArgs<T>& a) {
  core::ParallelFor(a.rows, RowGrain(a.n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* x = a.x + row * a.n;
      T* y = a.y + row * a.n;
      const float squares = SumOverVectors(a.n, [&](auto d, int64_t i) HWY_ATTR {
        const auto v = LoadWide(d, x + i);
        return hn::Mul(v, v);
      });
      const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(a.n) + a.eps);
      a.inverse_rms[row] = inverse;
      ForEachVector(a.n, [&](auto d, int64_t i) HWY_ATTR {
        const auto v = hn::Mul(LoadWide(d, x + i), hn::Set(d, inverse));
        StoreRounded(hn::Mul(v, hn::LoadU(d, a.weight + i)), d, y + i);
      });
    }
  });
}

template <class T>
void RmsNormBackwardImpl(const RmsNormBackwardArgs<T>& a) {
  core::ParallelFor(a.rows, RowGrain(a.n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* x = a.x + row * a.n;
      const T* dy = a.dy + row * a.n;
      const T* add = a.add == nullptr ? nullptr : a.add + row * a.n;
      T* dx = a.dx + row * a.n;
      const float inverse = a.inverse_rms[row];
      const float dot = SumOverVectors(a.n, [&](auto d, int64_t i) HWY_ATTR {
        return hn::Mul(hn::Mul(LoadWide(d, dy + i), hn::LoadU(d, a.weight + i)),
                       LoadWide(d, x + i));
      });
      const float shift = dot * inverse * inverse * inverse / static_cast<float>(a.n);
      ForEachVector(a.n, [&](auto d, int64_t i) HWY_ATTR {
        auto g =
            hn::Mul(hn::Mul(LoadWide(d, dy + i), hn::LoadU(d, a.weight + i)), hn::Set(d, inverse));
        g = hn::NegMulAdd(hn::Set(d, shift), LoadWide(d, x + i), g);
        if (add != nullptr) g = hn::Add(g, LoadWide(d, add + i));
        StoreRounded(g, d, dx + i);
      });
    }
  });
}

template <class T>
void RopeImpl(const RopeArgs<T>& a) {
  const int64_t half = a.head_dim / 2;
  core::ParallelFor(a.rows, RowGrain(a.heads * a.head_dim), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* cosine = a.cosine + a.positions[row] * half;
      const float* sine = a.sine + a.positions[row] * half;
      for (int64_t head = 0; head < a.heads; ++head) {
        T* low = a.x + (row * a.heads + head) * a.head_dim;
        T* high = low + half;
        ForEachVector(half, [&](auto d, int64_t i) HWY_ATTR {
          const auto c = hn::LoadU(d, cosine + i);
          auto s = hn::LoadU(d, sine + i);
          if (a.inverse) s = hn::Neg(s);
          const auto x = LoadWide(d, low + i);
          const auto y = LoadWide(d, high + i);
          StoreRounded(hn::Sub(hn::Mul(x, c), hn::Mul(y, s)), d, low + i);
          StoreRounded(hn::Add(hn::Mul(y, c), hn::Mul(x, s)), d, high + i);
        });
      }
    }
  });
}

template <class D>
HWY_INLINE hn::Vec<D> Sigmoid(D d, hn::Vec<D> x) {
  // exp(-x) overflows to infinity below -88, and 1 / (1 + inf) is the 0 that is wanted.
  return hn::Div(hn::Set(d, 1.0f), hn::Add(hn::Set(d, 1.0f), hn::Exp(d, hn::Neg(x))));
}

template <class T>
void SwiGluImpl(const T* gate, const T* up, T* out, int64_t n) {
  core::ParallelFor(n, kGrainElems, [&](int64_t begin, int64_t end) {
    ForEachVector(end - begin, [&](auto d, int64_t i) HWY_ATTR {
      const auto g = LoadWide(d, gate + begin + i);
      StoreRounded(hn::Mul(hn::Mul(g, Sigmoid(d, g)), LoadWide(d, up + begin + i)), d,
                   out + begin + i);
    });
  });
}

template <class T>
void SwiGluBackwardImpl(const SwiGluBackwardArgs<T>& a) {
  core::ParallelFor(a.n, kGrainElems, [&](int64_t begin, int64_t end) {
    ForEachVector(end - begin, [&](auto d, int64_t k) HWY_ATTR {
      const int64_t i = begin + k;
      const auto one = hn::Set(d, 1.0f);
      const auto g = LoadWide(d, a.gate + i);
      const auto u = LoadWide(d, a.up + i);
      const auto grad = LoadWide(d, a.d_out + i);
      const auto s = Sigmoid(d, g);
      const auto slope = hn::Mul(s, hn::Add(one, hn::Mul(g, hn::Sub(one, s))));
      StoreRounded(hn::Mul(hn::Mul(grad, u), slope), d, a.d_gate + i);
      StoreRounded(hn::Mul(grad, hn::Mul(g, s)), d, a.d_up + i);
    });
  });
}

template <class T>
void AddInPlaceImpl(T* y, const T* x, int64_t n) {
  core::ParallelFor(n, kGrainElems, [&](int64_t begin, int64_t end) {
    ForEachVector(end - begin, [&](auto d, int64_t i) HWY_ATTR {
      StoreRounded(hn::Add(LoadWide(d, y + begin + i), LoadWide(d, x + begin + i)), d,
                   y + begin + i);
    });
  });
}

template <class T>
void AddBiasImpl(T* y, const float* bias, int64_t rows, int64_t n) {
  core::ParallelFor(rows, RowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* at = y + row * n;
      ForEachVector(n, [&](auto d, int64_t i) HWY_ATTR {
        StoreRounded(hn::Add(LoadWide(d, at + i), hn::LoadU(d, bias + i)), d, at + i);
      });
    }
  });
}

template <class From, class To>
void ConvertImpl(const From* x, To* y, int64_t n) {
  core::ParallelFor(n, kGrainElems, [&](int64_t begin, int64_t end) {
    ForEachVector(end - begin, [&](auto d, int64_t i) HWY_ATTR {
      StoreRounded(LoadWide(d, x + begin + i), d, y + begin + i);
    });
  });
}

template <class T>
float MaxOf(const T* x, int64_t n) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto best = hn::Set(d, -HUGE_VALF);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) best = hn::Max(best, LoadWide(d, x + i));
  float result = hn::GetLane(hn::MaxOfLanes(d, best));
  const hn::CappedTag<float, 1> d1;
  for (; i < n; ++i) result = std::max(result, hn::GetLane(LoadWide(d1, x + i)));
  return result;
}

template <class T>
void CrossEntropyImpl(const CrossEntropyArgs<T>& a) {
  core::ParallelFor(a.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* logits = a.logits + row * a.vocab;
      const int64_t target = a.targets[row];
      const float top = MaxOf(logits, a.vocab);
      const hn::CappedTag<float, 1> d1;
      const float picked = hn::GetLane(LoadWide(d1, logits + target));
      const float sum = SumOverVectors(a.vocab, [&](auto d, int64_t i) HWY_ATTR {
        return hn::Exp(d, hn::Sub(LoadWide(d, logits + i), hn::Set(d, top)));
      });
      a.nats[row] = std::log(static_cast<double>(sum)) + static_cast<double>(top) -
                    static_cast<double>(picked);
      if (!a.gradient) continue;
      const float scale = a.loss_scale / sum;
      ForEachVector(a.vocab, [&](auto d, int64_t i) HWY_ATTR {
        const auto p = hn::Exp(d, hn::Sub(LoadWide(d, logits + i), hn::Set(d, top)));
        StoreRounded(hn::Mul(p, hn::Set(d, scale)), d, logits + i);
      });
      const float at_target = std::exp(picked - top) * scale - a.loss_scale;
      StoreRounded(hn::Set(d1, at_target), d1, logits + target);
    }
  });
}

void RmsNormF32(const RmsNormArgs<float>& a) { RmsNormImpl(a); }
void RmsNormBf16(const RmsNormArgs<hwy::bfloat16_t>& a) { RmsNormImpl(a); }
void RmsNormBackwardF32(const RmsNormBackwardArgs<float>& a) { RmsNormBackwardImpl(a); }
void RmsNormBackwardBf16(const RmsNormBackwardArgs<hwy::bfloat16_t>& a) { RmsNormBackwardImpl(a); }
void RopeF32(const RopeArgs<float>& a) { RopeImpl(a); }
void RopeBf16(const RopeArgs<hwy::bfloat16_t>& a) { RopeImpl(a); }
void SwiGluF32(const float* g, const float* u, float* o, int64_t n) { SwiGluImpl(g, u, o, n); }
void SwiGluBf16(const hwy::bfloat16_t* g, const hwy::bfloat16_t* u, hwy::bfloat16_t* o, int64_t n) {
  SwiGluImpl(g, u, o, n);
}
void SwiGluBackwardF32(const SwiGluBackwardArgs<float>& a) { SwiGluBackwardImpl(a); }
void SwiGluBackwardBf16(const SwiGluBackwardArgs<hwy::bfloat16_t>& a) { SwiGluBackwardImpl(a); }
void AddInPlaceF32(float* y, const float* x, int64_t n) { AddInPlaceImpl(y, x, n); }
void AddInPlaceBf16(hwy::bfloat16_t* y, const hwy::bfloat16_t* x, int64_t n) {
  AddInPlaceImpl(y, x, n);
}
void AddBiasF32(float* y, const float* b, int64_t rows, int64_t n) { AddBiasImpl(y, b, rows, n); }
void AddBiasBf16(hwy::bfloat16_t* y, const float* b, int64_t rows, int64_t n) {
  AddBiasImpl(y, b, rows, n);
}
void ConvertF32F32(const float* x, float* y, int64_t n) { ConvertImpl(x, y, n); }
void ConvertF32Bf16(const float* x, hwy::bfloat16_t* y, int64_t n) { ConvertImpl(x, y, n); }
void ConvertBf16F32(const hwy::bfloat16_t* x, float* y, int64_t n) { ConvertImpl(x, y, n); }
void CrossEntropyF32(const CrossEntropyArgs<float>& a) { CrossEntropyImpl(a); }
void CrossEntropyBf16(const CrossEntropyArgs<hwy::bfloat16_t>& a) { CrossEntropyImpl(a); }

}  // namespace HWY_NAMESPACE
}  // namespace bitshard::trainer
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bitshard::trainer {
HWY_EXPORT(RmsNormF32);
HWY_EXPORT(RmsNormBf16);
HWY_EXPORT(RmsNormBackwardF32);
HWY_EXPORT(RmsNormBackwardBf16);
HWY_EXPORT(RopeF32);
HWY_EXPORT(RopeBf16);
HWY_EXPORT(SwiGluF32);
HWY_EXPORT(SwiGluBf16);
HWY_EXPORT(SwiGluBackwardF32);
HWY_EXPORT(SwiGluBackwardBf16);
HWY_EXPORT(AddInPlaceF32);
HWY_EXPORT(AddInPlaceBf16);
HWY_EXPORT(AddBiasF32);
HWY_EXPORT(AddBiasBf16);
HWY_EXPORT(ConvertF32F32);
HWY_EXPORT(ConvertF32Bf16);
HWY_EXPORT(ConvertBf16F32);
HWY_EXPORT(CrossEntropyF32);
HWY_EXPORT(CrossEntropyBf16);

void RmsNorm(const RmsNormArgs<float>& a) { HWY_DYNAMIC_DISPATCH(RmsNormF32)(a); }
void RmsNorm(const RmsNormArgs<hwy::bfloat16_t>& a) { HWY_DYNAMIC_DISPATCH(RmsNormBf16)(a); }
void RmsNormBackward(const RmsNormBackwardArgs<float>& a) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackwardF32)(a);
}
void RmsNormBackward(const RmsNormBackwardArgs<hwy::bfloat16_t>& a) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackwardBf16)(a);
}
void Rope(const RopeArgs<float>& a) { HWY_DYNAMIC_DISPATCH(RopeF32)(a); }
void Rope(const RopeArgs<hwy::bfloat16_t>& a) { HWY_DYNAMIC_DISPATCH(RopeBf16)(a); }
void SwiGlu(const float* g, const float* u, float* o, int64_t n) {
  HWY_DYNAMIC_DISPATCH(SwiGluF32)(g, u, o, n);
}
void SwiGlu(const hwy::bfloat16_t* g, const hwy::bfloat16_t* u, hwy::bfloat16_t* o, int64_t n) {
  HWY_DYNAMIC_DISPATCH(SwiGluBf16)(g, u, o, n);
}
void SwiGluBackward(const SwiGluBackwardArgs<float>& a) {
  HWY_DYNAMIC_DISPATCH(SwiGluBackwardF32)(a);
}
void SwiGluBackward(const SwiGluBackwardArgs<hwy::bfloat16_t>& a) {
  HWY_DYNAMIC_DISPATCH(SwiGluBackwardBf16)(a);
}
void AddInPlace(float* y, const float* x, int64_t n) {
  HWY_DYNAMIC_DISPATCH(AddInPlaceF32)(y, x, n);
}
void AddInPlace(hwy::bfloat16_t* y, const hwy::bfloat16_t* x, int64_t n) {
  HWY_DYNAMIC_DISPATCH(AddInPlaceBf16)(y, x, n);
}
void AddBias(float* y, const float* b, int64_t rows, int64_t n) {
  HWY_DYNAMIC_DISPATCH(AddBiasF32)(y, b, rows, n);
}
void AddBias(hwy::bfloat16_t* y, const float* b, int64_t rows, int64_t n) {
  HWY_DYNAMIC_DISPATCH(AddBiasBf16)(y, b, rows, n);
}
void Convert(const float* x, float* y, int64_t n) { HWY_DYNAMIC_DISPATCH(ConvertF32F32)(x, y, n); }
void Convert(const float* x, hwy::bfloat16_t* y, int64_t n) {
  HWY_DYNAMIC_DISPATCH(ConvertF32Bf16)(x, y, n);
}
void Convert(const hwy::bfloat16_t* x, float* y, int64_t n) {
  HWY_DYNAMIC_DISPATCH(ConvertBf16F32)(x, y, n);
}
void CrossEntropy(const CrossEntropyArgs<float>& a) { HWY_DYNAMIC_DISPATCH(CrossEntropyF32)(a); }
void CrossEntropy(const CrossEntropyArgs<hwy::bfloat16_t>& a) {
  HWY_DYNAMIC_DISPATCH(CrossEntropyBf16)(a);
}

}  // namespace bitshard::trainer
#endif  // HWY_ONCE
