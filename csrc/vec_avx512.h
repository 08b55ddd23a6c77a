// AVX-512 F, BW, DQ and VL: 16 words, 16 float32, 8 float64.
#pragma once

#include <immintrin.h>

#include "stage.h"

namespace fastdiff::FD_ISA {

struct Words {
  using I = __m512i;
  using F = __m512;
  static constexpr int kWidth = 16;

  FD_INLINE I set(uint32_t a) { return _mm512_set1_epi32((int)a); }
  FD_INLINE I set64(uint64_t a) { return _mm512_set1_epi64((long long)a); }
  FD_INLINE I load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  FD_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
  FD_INLINE I add64(I a, I b) { return _mm512_add_epi64(a, b); }
  FD_INLINE I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  FD_INLINE I and_(I a, I b) { return _mm512_and_si512(a, b); }
  FD_INLINE I xor_(I a, I b) { return _mm512_xor_si512(a, b); }
  FD_INLINE I xor3(I a, I b, I c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  template <int N>
  FD_INLINE I left(I a) {
    return _mm512_slli_epi32(a, N);
  }
  template <int N>
  FD_INLINE I right(I a) {
    return _mm512_srli_epi32(a, N);
  }
  // 64-bit lanes: products of the low words, and their high words.
  FD_INLINE I product(I a, I b) { return _mm512_mul_epu32(a, b); }
  FD_INLINE I high(I a) { return _mm512_srli_epi64(a, 32); }
  // Low words of `even` at even places and of `odd` at odd places.
  FD_INLINE I merge(I even, I odd) {
    return _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
  }
  // Counters of the lanes, so that transpose() leaves its four vectors in memory order: lane 4 l + k has
  // block 4 k + l.
  FD_INLINE I even_blocks() { return _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11); }
  FD_INLINE I odd_blocks() { return _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15); }

  FD_INLINE F setf(float a) { return _mm512_set1_ps(a); }
  FD_INLINE F as_float(I a) { return _mm512_castsi512_ps(a); }
  FD_INLINE I as_word(F a) { return _mm512_castps_si512(a); }
  FD_INLINE F from_signed(I a) { return _mm512_cvtepi32_ps(a); }
  FD_INLINE F from_unsigned(I a) { return _mm512_cvtepu32_ps(a); }
  FD_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // -(a * b + c)
  FD_INLINE F negated_fma(F a, F b, F c) { return _mm512_fnmsub_ps(a, b, c); }
  FD_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  FD_INLINE F addf(F a, F b) { return _mm512_add_ps(a, b); }
  FD_INLINE F square_root(F a) { return _mm512_sqrt_ps(a); }
  // Exchanges a and b in the lanes whose top bit is set.
  FD_INLINE void swap(I top, F& a, F& b) {
    const __mmask16 which = _mm512_movepi32_mask(top);
    const F old = a;
    a = _mm512_mask_blend_ps(which, a, b);
    b = _mm512_mask_blend_ps(which, b, old);
  }
  FD_INLINE void storef(float* p, F a) { _mm512_storeu_ps(p, a); }
  // a ^ (b & top bit)
  FD_INLINE F flip_sign(F a, I b) {
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(a), b, _mm512_set1_epi32((int)kSignBit), 0x78));
  }
  // Four vectors of lane 0, 1, 2, 3 of each block become vectors of whole blocks, inside 128-bit lanes.
  FD_INLINE void transpose(F (&z)[4]) {
    const F t0 = _mm512_unpacklo_ps(z[0], z[1]), t1 = _mm512_unpackhi_ps(z[0], z[1]);
    const F t2 = _mm512_unpacklo_ps(z[2], z[3]), t3 = _mm512_unpackhi_ps(z[2], z[3]);
    const auto pd = [](F a) __attribute__((always_inline)) { return _mm512_castps_pd(a); };
    z[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t0), pd(t2)));
    z[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t0), pd(t2)));
    z[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t1), pd(t3)));
    z[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t1), pd(t3)));
  }
  // The blocks of transpose()'s result, in the order of the lanes they came from.
  FD_INLINE void store_blocks(float* p, const F (&z)[4]) {
    for (int i = 0; i < 4; ++i) {
      _mm_storeu_ps(p + 4 * i, _mm512_extractf32x4_ps(z[i], 0));
      _mm_storeu_ps(p + 4 * (i + 4), _mm512_extractf32x4_ps(z[i], 1));
      _mm_storeu_ps(p + 4 * (i + 8), _mm512_extractf32x4_ps(z[i], 2));
      _mm_storeu_ps(p + 4 * (i + 12), _mm512_extractf32x4_ps(z[i], 3));
    }
  }
};

FD_INLINE __m512 floats_from_bfloat16(__m256i h) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

FD_INLINE __m256i bfloat16_from_floats(__m512 f) {
  const __m512i u = _mm512_castps_si512(f);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, _mm512_set1_epi32(0x7FC0)));
}

template <class T>
struct State;

template <>
struct State<float> {
  using V = __m512;
  static constexpr int kWidth = 16;
  FD_INLINE V set(float a) { return _mm512_set1_ps(a); }
  FD_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
  FD_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a); }
  FD_INLINE void stream(float* p, V a) { _mm512_stream_ps(p, a); }
  FD_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  FD_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
  FD_INLINE V clamp(V a, V bound) {
    const V low = _mm512_xor_ps(bound, _mm512_set1_ps(-0.0f));
    const V raised = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, low, _CMP_LT_OQ), a, low);
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, bound, _CMP_GT_OQ), raised, bound);
  }
  template <int D>
  FD_INLINE V load_as(const void* p) {
    if constexpr (D == kFloat32) return _mm512_loadu_ps((const float*)p);
    const __m256i h = _mm256_loadu_si256((const __m256i*)p);
    if constexpr (D == kBFloat16) return floats_from_bfloat16(h);
    return _mm512_cvtph_ps(h);
  }
  template <int D, bool kStream>
  FD_INLINE void store_one(void* p, V a) {
    if constexpr (D == kFloat32) {
      kStream ? _mm512_stream_ps((float*)p, a) : _mm512_storeu_ps((float*)p, a);
    } else {
      const __m256i h =
          D == kBFloat16 ? bfloat16_from_floats(a) : _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
      kStream ? _mm256_stream_si256((__m256i*)p, h) : _mm256_storeu_si256((__m256i*)p, h);
    }
  }
  // Two vectors, one after the other.
  template <int D, bool kStream>
  FD_INLINE void store_as(void* p, V a, V b) {
    store_one<D, kStream>(p, a);
    store_one<D, kStream>((char*)p + kWidth * kItemSize[D], b);
  }
};

template <>
struct State<double> {
  using V = __m512d;
  static constexpr int kWidth = 8;
  FD_INLINE V set(double a) { return _mm512_set1_pd(a); }
  FD_INLINE V load(const double* p) { return _mm512_loadu_pd(p); }
  FD_INLINE void store(double* p, V a) { _mm512_storeu_pd(p, a); }
  FD_INLINE void stream(double* p, V a) { _mm512_stream_pd(p, a); }
  FD_INLINE V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  FD_INLINE V add(V a, V b) { return _mm512_add_pd(a, b); }
  FD_INLINE V clamp(V a, V bound) {
    const V low = _mm512_xor_pd(bound, _mm512_set1_pd(-0.0));
    const V raised = _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, low, _CMP_LT_OQ), a, low);
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, bound, _CMP_GT_OQ), raised, bound);
  }
  template <int D>
  FD_INLINE V load_as(const void* p) {
    if constexpr (D == kFloat64) return _mm512_loadu_pd((const double*)p);
    if constexpr (D == kFloat32) return _mm512_cvtps_pd(_mm256_loadu_ps((const float*)p));
    const __m128i h = _mm_loadu_si128((const __m128i*)p);
    if constexpr (D == kFloat16) return _mm512_cvtps_pd(_mm256_cvtph_ps(h));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)));
  }
  template <int D, bool kStream>
  FD_INLINE void store_one(void* p, V a) {
    if constexpr (D == kFloat64) {
      kStream ? _mm512_stream_pd((double*)p, a) : _mm512_storeu_pd((double*)p, a);
      return;
    }
    const __m256 f = _mm512_cvtpd_ps(a);
    if constexpr (D == kFloat32) {
      kStream ? _mm256_stream_ps((float*)p, f) : _mm256_storeu_ps((float*)p, f);
    } else {
      const __m128i h = D == kBFloat16
                            ? _mm256_castsi256_si128(bfloat16_from_floats(_mm512_castps256_ps512(f)))
                            : _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT);
      kStream ? _mm_stream_si128((__m128i*)p, h) : _mm_storeu_si128((__m128i*)p, h);
    }
  }
  // Two vectors, one after the other.
  template <int D, bool kStream>
  FD_INLINE void store_as(void* p, V a, V b) {
    store_one<D, kStream>(p, a);
    store_one<D, kStream>((char*)p + kWidth * kItemSize[D], b);
  }
};

}  // namespace fastdiff::FD_ISA
