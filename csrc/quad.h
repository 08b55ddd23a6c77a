// Quads of neighbouring elements in the registers of one thread, moved 128 bits at a time, or 64 where a quad
// is no larger. How wide an element is decides how it moves, its dtype only what its bits mean.
//
// Device code; the tests compile it for the host, where the cuda_runtime.h of tests/gpu/emulation stands in.
#pragma once

#include <cuda_runtime.h>

#include "stage.h"

namespace fastdiff {

constexpr int kQuad = 4;
// A thread owns up to so many quads, as registers allow; what it costs to read the row is paid once for all.
template <class T>
constexpr int kQuads = sizeof(T) == 4 ? 4 : 1;

template <class T>
using Values = T[kQuads<T>][kQuad];

// The quads of one thread in sample b: `quads` of them, `step` elements apart, the first one at place i.
struct Group {
  int64_t b, i, step, numel;
  int quads;
  // No quad passes the end of the sample; only the last one may.
  bool whole;

  template <class T>
  __device__ static Group at(int64_t b, int64_t i, int64_t step, int64_t numel) {
    Group group = {b, i, step, numel, 1, false};
#pragma unroll
    for (int q = 1; q < kQuads<T>; ++q) group.quads += group.place(q) < numel;
    group.whole = group.place(group.quads - 1) + kQuad <= numel;
    return group;
  }

  __device__ int64_t place(int q) const { return i + q * step; }
};

// Calls visit(q, lane, offset) for every element there is, one after the other; offset counts from the first.
template <class Visit>
__device__ inline void for_each_element(const Group& group, Visit visit) {
#pragma unroll 1
  for (int q = 0; q < group.quads; ++q) {
#pragma unroll 1
    for (int lane = 0; lane < kQuad; ++lane) {
      if (group.place(q) + lane < group.numel) visit(q, lane, q * group.step + lane);
    }
  }
}

// Calls visit(q, lane) for every value of a thread, at compile time.
template <class T, class Visit>
__device__ inline void for_each_value(Visit visit) {
#pragma unroll
  for (int q = 0; q < kQuads<T>; ++q) {
#pragma unroll
    for (int lane = 0; lane < kQuad; ++lane) visit(q, lane);
  }
}

// Meaning ---------------------------------------------------------------------------------------------

// The conversions of stage.h in one instruction each; any NaN may become any other.
__device__ inline float widen_float16(uint16_t h) {
#ifdef __CUDA_ARCH__
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
#else
  return from_float16(h);
#endif
}

__device__ inline uint32_t pack_bfloat16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return to_bfloat16(low) | (uint32_t)to_bfloat16(high) << 16;
#endif
}

__device__ inline uint32_t pack_float16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return to_float16(low) | (uint32_t)to_float16(high) << 16;
#endif
}

// The bytes of an element, which are as many as the 32-bit words of a quad.
template <int kType>
constexpr int kItem = kType == kFloat64   ? 8
                      : kType == kFloat32 ? 4
                                          : 2;

// One element of a quad's words, as a T.
template <int kType, class T>
__device__ inline T widen(const uint32_t (&word)[kItem<kType>], int lane) {
  if constexpr (kType == kFloat64) {
    return (T)bits<double>((uint64_t)word[2 * lane + 1] << 32 | word[2 * lane]);
  } else if constexpr (kType == kFloat32) {
    return (T)bits<float>(word[lane]);
  } else {
    const uint16_t half = (uint16_t)(word[lane / 2] >> 16 * (lane % 2));
    return (T)(kType == kBFloat16 ? from_bfloat16(half) : widen_float16(half));
  }
}

// A quad rounded to a storage type; float64 goes to 16 bits by way of float32.
template <int kType, class T>
__device__ inline void narrow(const T (&value)[kQuad], uint32_t (&word)[kItem<kType>]) {
#pragma unroll
  for (int lane = 0; lane < kQuad; ++lane) {
    if constexpr (kType == kFloat64) {
      const uint64_t u = bits<uint64_t>((double)value[lane]);
      word[2 * lane] = (uint32_t)u;
      word[2 * lane + 1] = (uint32_t)(u >> 32);
    } else if constexpr (kType == kFloat32) {
      word[lane] = bits<uint32_t>(narrow_to_float(value[lane]));
    } else if (lane % 2 == 0) {
      const float low = narrow_to_float(value[lane]), high = narrow_to_float(value[lane + 1]);
      word[lane / 2] = kType == kBFloat16 ? pack_bfloat16(low, high) : pack_float16(low, high);
    }
  }
}

// Moving ----------------------------------------------------------------------------------------------

// Where a group's first element lies in one row of a buffer, and whether its quads can be moved at once.
struct Spot {
  void* data;
  int64_t at;
  int32_t dtype;
  bool at_once;

  __device__ Spot(const Buffer& buffer, int64_t row, const Group& group)
      : data(buffer.data), at(row * buffer.batch_stride + group.i), dtype(buffer.dtype) {
    const int item = dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2;
    // A step between quads keeps their alignment.
    at_once = group.whole && ((uintptr_t)data + at * item) % (item == 2 ? 8 : 16) == 0;
  }
};

// All quads are under way before the first is waited for.
template <int kType, class T>
__device__ inline void load_quads(const Spot& from, const Group& group, Values<T>& value) {
  const char* first = (const char*)from.data + from.at * kItem<kType>;
  // What no quad fills is zero: a compiler may carry a register without a value through a whole loop.
  uint32_t word[kQuads<T>][kItem<kType>] = {};
#pragma unroll
  for (int q = 0; q < kQuads<T>; ++q) {
    if (q >= group.quads) continue;
    const char* quad = first + q * group.step * kItem<kType>;
    if constexpr (kItem<kType> == 2) {
      const uint2 two = *(const uint2*)quad;
      memcpy(word[q], &two, sizeof(two));
    } else {
#pragma unroll
      for (int j = 0; j < kItem<kType>; j += 4) {
        const uint4 four = *(const uint4*)(quad + 4 * j);
        memcpy(word[q] + j, &four, sizeof(four));
      }
    }
  }
  for_each_value<T>([&](int q, int lane) {
    if (q < group.quads) value[q][lane] = widen<kType, T>(word[q], lane);
  });
}

template <int kType, class T>
__device__ inline void store_quads(const Spot& to, const Group& group, const Values<T>& value) {
  char* first = (char*)to.data + to.at * kItem<kType>;
#pragma unroll
  for (int q = 0; q < kQuads<T>; ++q) {
    if (q >= group.quads) continue;
    char* quad = first + q * group.step * kItem<kType>;
    uint32_t word[kItem<kType>];
    narrow<kType>(value[q], word);
    if constexpr (kItem<kType> == 2) {
      *(uint2*)quad = uint2{word[0], word[1]};
    } else {
#pragma unroll
      for (int j = 0; j < kItem<kType>; j += 4) {
        *(uint4*)(quad + 4 * j) = uint4{word[j], word[j + 1], word[j + 2], word[j + 3]};
      }
    }
  }
}

// Quads of whatever storage type; a float32 state has no float64 tensors.
template <class T>
__device__ inline void load_quads(const Spot& from, const Group& group, Values<T>& value) {
  switch (from.dtype) {
    case kFloat32:
      return load_quads<kFloat32, T>(from, group, value);
    case kBFloat16:
      return load_quads<kBFloat16, T>(from, group, value);
    case kFloat16:
      return load_quads<kFloat16, T>(from, group, value);
    default:
      if constexpr (sizeof(T) == 8) load_quads<kFloat64, T>(from, group, value);
  }
}

template <class T>
__device__ inline void store_quads(const Spot& to, const Group& group, const Values<T>& value) {
  switch (to.dtype) {
    case kFloat32:
      return store_quads<kFloat32, T>(to, group, value);
    case kBFloat16:
      return store_quads<kBFloat16, T>(to, group, value);
    case kFloat16:
      return store_quads<kFloat16, T>(to, group, value);
    default:
      if constexpr (sizeof(T) == 8) store_quads<kFloat64, T>(to, group, value);
  }
}

}  // namespace fastdiff
