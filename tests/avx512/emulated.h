// AVX-512 intrinsics computed with AVX2, so that csrc/vec_avx512.h runs on machines without AVX-512.
//
// SIMDe (https://github.com/simd-everywhere/simde, Debian's libsimde-dev) has most of them; the conversions
// that it lacks are made of halves here.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

static inline simde__m512 emulated_floats(__m256 low, __m256 high) {
  simde__m512_private r;
  r.m256[0] = low;
  r.m256[1] = high;
  return simde__m512_from_private(r);
}

static inline __m256 emulated_half(simde__m512 a, int i) { return simde__m512_to_private(a).m256[i]; }
static inline __m256d emulated_half(simde__m512d a, int i) { return simde__m512d_to_private(a).m256d[i]; }
static inline __m256i emulated_half(simde__m512i a, int i) { return simde__m512i_to_private(a).m256i[i]; }

static inline simde__m512i emulated_words(__m256i low, __m256i high) {
  simde__m512i_private r;
  r.m256i[0] = low;
  r.m256i[1] = high;
  return simde__m512i_from_private(r);
}

static inline simde__m512d emulated_doubles(__m256d low, __m256d high) {
  simde__m512d_private r;
  r.m256d[0] = low;
  r.m256d[1] = high;
  return simde__m512d_from_private(r);
}

static inline __m256i emulated_shorts(__m128i low, __m128i high) { return _mm256_set_m128i(high, low); }

static inline __m256i emulated_cvtepi32_epi16(simde__m512i a) {
  const __m256i mask = _mm256_set1_epi32(0xFFFF);
  const __m256i low = _mm256_and_si256(emulated_half(a, 0), mask),
                high = _mm256_and_si256(emulated_half(a, 1), mask);
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);
}

static inline simde__m512 emulated_cvtepu32_ps(simde__m512i a) {
  const simde__m512i_private word = simde__m512i_to_private(a);
  simde__m512_private r;
  for (int i = 0; i < 16; ++i) r.f32[i] = (float)(uint32_t)word.i32[i];
  return simde__m512_from_private(r);
}

#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepu32_ps
#undef _mm512_cvtpd_ps
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_pd
#undef _mm512_cvtps_ph
#undef _mm512_stream_pd
#undef _mm512_stream_ps
#define _mm512_cvtepi32_epi16(a) emulated_cvtepi32_epi16(a)
#define _mm512_cvtepi32_ps(a) \
  emulated_floats(_mm256_cvtepi32_ps(emulated_half(a, 0)), _mm256_cvtepi32_ps(emulated_half(a, 1)))
#define _mm512_cvtepu16_epi32(a)                                   \
  emulated_words(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)), \
                 _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)))
#define _mm512_cvtepu32_ps(a) emulated_cvtepu32_ps(a)
#define _mm512_cvtpd_ps(a) \
  _mm256_set_m128(_mm256_cvtpd_ps(emulated_half(a, 1)), _mm256_cvtpd_ps(emulated_half(a, 0)))
#define _mm512_cvtps_pd(a) \
  emulated_doubles(_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)))
#define _mm512_cvtph_ps(a) \
  emulated_floats(_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)))
#define _mm512_cvtps_ph(a, mode) \
  emulated_shorts(_mm256_cvtps_ph(emulated_half(a, 0), mode), _mm256_cvtps_ph(emulated_half(a, 1), mode))
#define _mm512_stream_pd(p, a) _mm512_storeu_pd(p, a)
#define _mm512_stream_ps(p, a) _mm512_storeu_ps(p, a)
