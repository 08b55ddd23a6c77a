// The loops over one tile: plain arrays of the state type in, and nothing else. An array may be the very same
// memory as the output.
#pragma once

#include "vec.h"

namespace fastdiff::FD_ISA {

// Terms summed by one loop; longer sums go in steps.
constexpr int kTerms = 8;

template <class T, int D>
static void widen(T* out, const void* in, int64_t n) {
  using S = State<T>;
  const char* p = (const char*)in;
  int64_t i = 0;
  for (; i + S::kWidth <= n; i += S::kWidth) S::store(out + i, S::template load_as<D>(p + i * kItemSize[D]));
  for (; i < n; ++i) out[i] = load_as<T>(in, D, i);
}

// out = c * in, rounded to storage type D.
template <class T, int D, bool kStream>
static void narrow(void* out, const T* in, T c, int64_t n) {
  using S = State<T>;
  char* p = (char*)out;
  const typename S::V factor = S::set(c);
  constexpr int64_t kStep = 2 * S::kWidth;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    const typename S::V low = S::mul(factor, S::load(in + i)),
                        high = S::mul(factor, S::load(in + i + S::kWidth));
    S::template store_as<D, kStream>(p + i * kItemSize[D], low, high);
  }
  for (; i < n; ++i) store_as(out, D, i, mul(c, in[i]));
}

// out = c[0] * in[0] + c[1] * in[1] + ..., from left to right.
template <class T, int N>
static void combine(T* out, const T* const* in, const T* c, int64_t n) {
  using S = State<T>;
  typename S::V factor[N];
  const T* p[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    factor[j] = S::set(c[j]);
    p[j] = in[j];
  }
  int64_t i = 0;
#pragma GCC ivdep
  for (; i + S::kWidth <= n; i += S::kWidth) {
    typename S::V sum = S::mul(factor[0], S::load(p[0] + i));
#pragma GCC unroll 8
    for (int j = 1; j < N; ++j) sum = S::add(sum, S::mul(factor[j], S::load(p[j] + i)));
    S::store(out + i, sum);
  }
  for (; i < n; ++i) {
    T sum = mul(c[0], p[0][i]);
    for (int j = 1; j < N; ++j) sum = add(sum, mul(c[j], p[j][i]));
    out[i] = sum;
  }
}

template <class T>
static void clamp_all(T* data, T bound, int64_t n) {
  using S = State<T>;
  const typename S::V limit = S::set(bound);
  int64_t i = 0;
  for (; i + S::kWidth <= n; i += S::kWidth) S::store(data + i, S::clamp(S::load(data + i), limit));
  for (; i < n; ++i) data[i] = clamp(data[i], bound);
}

template <class T>
using Widen = void (*)(T*, const void*, int64_t);
template <class T>
using Narrow = void (*)(void*, const T*, T, int64_t);
template <class T>
using Combine = void (*)(T*, const T* const*, const T*, int64_t);

// The storage type that is the state type itself.
template <class T>
constexpr int kOwnType = sizeof(T) == 8 ? kFloat64 : kFloat32;
// By storage type; a state of 32 bits has no columns of 64.
template <class T>
constexpr Widen<T> kWiden[kDTypes] = {widen<T, kOwnType<T>>, widen<T, kFloat32>, widen<T, kBFloat16>,
                                      widen<T, kFloat16>};
template <class T, bool kStream>
constexpr Narrow<T> kNarrow[kDTypes] = {narrow<T, kOwnType<T>, kStream>, narrow<T, kFloat32, kStream>,
                                        narrow<T, kBFloat16, kStream>, narrow<T, kFloat16, kStream>};
template <class T>
constexpr Combine<T> kCombine[kTerms + 1] = {nullptr,       combine<T, 1>, combine<T, 2>,
                                             combine<T, 3>, combine<T, 4>, combine<T, 5>,
                                             combine<T, 6>, combine<T, 7>, combine<T, 8>};

}  // namespace fastdiff::FD_ISA
