// AVX2, FMA and F16C: 8 words, 8 float32, 4 float64.
#pragma once

#include <immintrin.h>

#include "stage.h"

namespace fastdiff::FD_ISA {

struct Words {
  using I = __m256i;
  using F = __m256;
  static constexpr int kWidth = 8;

  FD_INLINE I set(uint32_t a) { return _mm256_set1_epi32((int)a); }
  FD_INLINE I set64(uint64_t a) { return _mm256_set1_epi64x((long long)a); }
  FD_INLINE I load(const uint32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  FD_INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }
  FD_INLINE I add64(I a, I b) { return _mm256_add_epi64(a, b); }
  FD_INLINE I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  FD_INLINE I and_(I a, I b) { return _mm256_and_si256(a, b); }
  FD_INLINE I xor_(I a, I b) { return _mm256_xor_si256(a, b); }
  FD_INLINE I xor3(I a, I b, I c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  template <int N>
  FD_INLINE I left(I a) {
    return _mm256_slli_epi32(a, N);
  }
  template <int N>
  FD_INLINE I right(I a) {
    return _mm256_srli_epi32(a, N);
  }
  // 64-bit lanes: products of the low words, and their high words.
  FD_INLINE I product(I a, I b) { return _mm256_mul_epu32(a, b); }
  FD_INLINE I high(I a) { return _mm256_srli_epi64(a, 32); }
  // Low words of `even` at even places and of `odd` at odd places.
  FD_INLINE I merge(I even, I odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA); }
  // Counters of the lanes, so that transpose() leaves its four vectors in memory order.
  FD_INLINE I even_blocks() { return _mm256_setr_epi64x(0, 4, 1, 5); }
  FD_INLINE I odd_blocks() { return _mm256_setr_epi64x(2, 6, 3, 7); }

  FD_INLINE F setf(float a) { return _mm256_set1_ps(a); }
  FD_INLINE F as_float(I a) { return _mm256_castsi256_ps(a); }
  FD_INLINE I as_word(F a) { return _mm256_castps_si256(a); }
  FD_INLINE F from_signed(I a) { return _mm256_cvtepi32_ps(a); }
  FD_INLINE F from_unsigned(I a) {
    // Put each half into the mantissa of a power of two. All is exact up to the last addition, which rounds
    // once.
    const F high = as_float(_mm256_or_si256(_mm256_srli_epi32(a, 16), _mm256_set1_epi32(0x53000000)));
    const F low = as_float(
        _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi32(0xFFFF)), _mm256_set1_epi32(0x4B000000)));
    return _mm256_add_ps(_mm256_sub_ps(high, _mm256_set1_ps(0x1p39f + 0x1p23f)), low);
  }
  FD_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // -(a * b + c)
  FD_INLINE F negated_fma(F a, F b, F c) { return _mm256_fnmsub_ps(a, b, c); }
  FD_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  FD_INLINE F addf(F a, F b) { return _mm256_add_ps(a, b); }
  FD_INLINE F square_root(F a) { return _mm256_sqrt_ps(a); }
  // Exchanges a and b in the lanes whose top bit is set.
  FD_INLINE void swap(I top, F& a, F& b) {
    const F change = _mm256_and_ps(_mm256_xor_ps(a, b), as_float(_mm256_srai_epi32(top, 31)));
    a = _mm256_xor_ps(a, change);
    b = _mm256_xor_ps(b, change);
  }
  FD_INLINE void storef(float* p, F a) { _mm256_storeu_ps(p, a); }
  // a ^ (b & top bit)
  FD_INLINE F flip_sign(F a, I b) {
    return _mm256_xor_ps(a, _mm256_and_ps(_mm256_castsi256_ps(b), _mm256_set1_ps(-0.0f)));
  }
  // Four vectors of lane 0, 1, 2, 3 of each block become vectors of whole blocks, inside 128-bit lanes.
  FD_INLINE void transpose(F (&z)[4]) {
    const F t0 = _mm256_unpacklo_ps(z[0], z[1]), t1 = _mm256_unpackhi_ps(z[0], z[1]);
    const F t2 = _mm256_unpacklo_ps(z[2], z[3]), t3 = _mm256_unpackhi_ps(z[2], z[3]);
    const auto pd = [](F a) __attribute__((always_inline)) { return _mm256_castps_pd(a); };
    z[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(pd(t0), pd(t2)));
    z[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(pd(t0), pd(t2)));
    z[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(pd(t1), pd(t3)));
    z[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(pd(t1), pd(t3)));
  }
  // The blocks of transpose()'s result, in the order of the lanes they came from.
  FD_INLINE void store_blocks(float* p, const F (&z)[4]) {
    for (int i = 0; i < 4; ++i) {
      _mm_storeu_ps(p + 4 * i, _mm256_castps256_ps128(z[i]));
      _mm_storeu_ps(p + 4 * (i + 4), _mm256_extractf128_ps(z[i], 1));
    }
  }
};

FD_INLINE __m256 floats_from_bfloat16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

// Rounded to nearest even, in the upper halves; a NaN becomes all ones, which is one too.
FD_INLINE __m256i round_to_bfloat16(__m256 f) {
  const __m256i u = _mm256_castps_si256(f);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7FFF)), odd);
  return _mm256_or_si256(rounded, _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q)));
}

FD_INLINE __m128i bfloat16_from_floats(__m256 f) {
  const __m256i h = _mm256_srli_epi32(round_to_bfloat16(f), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}

FD_INLINE __m256i bfloat16_from_floats(__m256 a, __m256 b) {
  const __m256i low = _mm256_srli_epi32(round_to_bfloat16(a), 16),
                high = _mm256_srli_epi32(round_to_bfloat16(b), 16);
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);
}

FD_INLINE __m128i float16_from_floats(__m256 f) { return _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT); }

template <class T>
struct State;

template <>
struct State<float> {
  using V = __m256;
  static constexpr int kWidth = 8;
  FD_INLINE V set(float a) { return _mm256_set1_ps(a); }
  FD_INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
  FD_INLINE void store(float* p, V a) { _mm256_storeu_ps(p, a); }
  FD_INLINE void stream(float* p, V a) { _mm256_stream_ps(p, a); }
  FD_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  FD_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
  FD_INLINE V clamp(V a, V bound) {
    const V low = _mm256_xor_ps(bound, _mm256_set1_ps(-0.0f));
    const V raised = _mm256_blendv_ps(a, low, _mm256_cmp_ps(a, low, _CMP_LT_OQ));
    return _mm256_blendv_ps(raised, bound, _mm256_cmp_ps(a, bound, _CMP_GT_OQ));
  }
  template <int D>
  FD_INLINE V load_as(const void* p) {
    if constexpr (D == kFloat32) return _mm256_loadu_ps((const float*)p);
    const __m128i h = _mm_loadu_si128((const __m128i*)p);
    if constexpr (D == kBFloat16) return floats_from_bfloat16(h);
    return _mm256_cvtph_ps(h);
  }
  // Two vectors, one after the other.
  template <int D, bool kStream>
  FD_INLINE void store_as(void* p, V a, V b) {
    if constexpr (D == kFloat32) {
      kStream ? _mm256_stream_ps((float*)p, a) : _mm256_storeu_ps((float*)p, a);
      kStream ? _mm256_stream_ps((float*)p + 8, b) : _mm256_storeu_ps((float*)p + 8, b);
    } else {
      const __m256i h = D == kBFloat16 ? bfloat16_from_floats(a, b)
                                       : _mm256_set_m128i(float16_from_floats(b), float16_from_floats(a));
      kStream ? _mm256_stream_si256((__m256i*)p, h) : _mm256_storeu_si256((__m256i*)p, h);
    }
  }
};

template <>
struct State<double> {
  using V = __m256d;
  static constexpr int kWidth = 4;
  FD_INLINE V set(double a) { return _mm256_set1_pd(a); }
  FD_INLINE V load(const double* p) { return _mm256_loadu_pd(p); }
  FD_INLINE void store(double* p, V a) { _mm256_storeu_pd(p, a); }
  FD_INLINE void stream(double* p, V a) { _mm256_stream_pd(p, a); }
  FD_INLINE V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  FD_INLINE V add(V a, V b) { return _mm256_add_pd(a, b); }
  FD_INLINE V clamp(V a, V bound) {
    const V low = _mm256_xor_pd(bound, _mm256_set1_pd(-0.0));
    const V raised = _mm256_blendv_pd(a, low, _mm256_cmp_pd(a, low, _CMP_LT_OQ));
    return _mm256_blendv_pd(raised, bound, _mm256_cmp_pd(a, bound, _CMP_GT_OQ));
  }
  template <int D>
  FD_INLINE V load_as(const void* p) {
    if constexpr (D == kFloat64) return _mm256_loadu_pd((const double*)p);
    if constexpr (D == kFloat32) return _mm256_cvtps_pd(_mm_loadu_ps((const float*)p));
    const __m128i h = _mm_loadl_epi64((const __m128i*)p);
    if constexpr (D == kFloat16) return _mm256_cvtps_pd(_mm_cvtph_ps(h));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(h), 16)));
  }
  // Two vectors, one after the other.
  template <int D, bool kStream>
  FD_INLINE void store_as(void* p, V a, V b) {
    if constexpr (D == kFloat64) {
      kStream ? _mm256_stream_pd((double*)p, a) : _mm256_storeu_pd((double*)p, a);
      kStream ? _mm256_stream_pd((double*)p + 4, b) : _mm256_storeu_pd((double*)p + 4, b);
      return;
    }
    const __m256 f = _mm256_set_m128(_mm256_cvtpd_ps(b), _mm256_cvtpd_ps(a));
    if constexpr (D == kFloat32) {
      kStream ? _mm256_stream_ps((float*)p, f) : _mm256_storeu_ps((float*)p, f);
    } else {
      const __m128i h = D == kBFloat16 ? bfloat16_from_floats(f) : float16_from_floats(f);
      kStream ? _mm_stream_si128((__m128i*)p, h) : _mm_storeu_si128((__m128i*)p, h);
    }
  }
};

}  // namespace fastdiff::FD_ISA
