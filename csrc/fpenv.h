// The floating-point environment of the calling thread: the kernels need round-to-nearest and subnormals.
#pragma once

#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace fastdiff {

#if defined(__x86_64__) || defined(_M_X64)
using FloatControl = uint32_t;
// Nearest, subnormals kept, exceptions masked.
constexpr FloatControl kExactControl = 0x1F80u, kFlushBits = 0x8040u;
static inline FloatControl get_float_control() { return _mm_getcsr(); }
static inline void set_float_control(FloatControl control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
using FloatControl = uint64_t;
constexpr FloatControl kExactControl = 0, kFlushBits = (uint64_t)1 << 24;
static inline FloatControl get_float_control() {
  FloatControl control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  return control;
}
static inline void set_float_control(FloatControl control) {
  __asm__ volatile("msr fpcr, %0" : : "r"(control));
}
#else
using FloatControl = uint32_t;
constexpr FloatControl kExactControl = 0, kFlushBits = 0;
static inline FloatControl get_float_control() { return 0; }
static inline void set_float_control(FloatControl) {}
#endif

// Exact arithmetic while it lives; the caller's settings come back after.
class ExactFloat {
 public:
  ExactFloat() : saved_(get_float_control()) { set_float_control(kExactControl); }
  ~ExactFloat() { set_float_control(saved_); }
  ExactFloat(const ExactFloat&) = delete;
  ExactFloat& operator=(const ExactFloat&) = delete;

 private:
  FloatControl saved_;
};

}  // namespace fastdiff
