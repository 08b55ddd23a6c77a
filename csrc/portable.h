// What differs between host and device compilers: function marks, and operations that round exactly once.
//
// Every translation unit that computes includes this header, so that none can be built with flags that
// change results. On the host a plain `*` or `+` rounds once because contraction is switched off; on a device
// the intrinsics say it.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "fastdiff is bit exact: build it without -ffast-math"
#endif

#ifdef __CUDACC__
// nvcc compiles these for the device alone.
#define FD_HD __device__ static inline
#define FD_HD_MEMBER __device__
// Device code does not see the arrays of the host.
#define FD_TABLE static __device__ constexpr
#else
#define FD_HD static inline
#define FD_HD_MEMBER
#define FD_TABLE constexpr
#endif

namespace fastdiff {

#ifdef __CUDA_ARCH__
FD_HD float mul(float a, float b) { return __fmul_rn(a, b); }
FD_HD float add(float a, float b) { return __fadd_rn(a, b); }
FD_HD double mul(double a, double b) { return __dmul_rn(a, b); }
FD_HD double add(double a, double b) { return __dadd_rn(a, b); }
FD_HD float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
FD_HD float square_root(float a) { return __fsqrt_rn(a); }
FD_HD double divide(double a, double b) { return __ddiv_rn(a, b); }
FD_HD double square_root(double a) { return __dsqrt_rn(a); }
FD_HD float to_float(uint32_t a) { return __uint2float_rn(a); }
FD_HD float to_float(int32_t a) { return __int2float_rn(a); }
FD_HD float to_float(double a) { return __double2float_rn(a); }
#else
FD_HD float mul(float a, float b) { return a * b; }
FD_HD float add(float a, float b) { return a + b; }
FD_HD double mul(double a, double b) { return a * b; }
FD_HD double add(double a, double b) { return a + b; }
FD_HD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FD_HD float square_root(float a) { return __builtin_sqrtf(a); }
FD_HD double divide(double a, double b) { return a / b; }
FD_HD double square_root(double a) { return __builtin_sqrt(a); }
FD_HD float to_float(uint32_t a) { return (float)a; }
FD_HD float to_float(int32_t a) { return (float)a; }
FD_HD float to_float(double a) { return (float)a; }
#endif

// The same bits as another type.
template <class To, class From>
FD_HD To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace fastdiff
