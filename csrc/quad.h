// Quads of neighbouring elements in the registers of one thread: a quad moves at once where its address
// allows it, element by element where it does not. How wide an element is decides how it moves, its dtype
// only what its bits mean.
//
// Device code; the tests compile it for the host, where the cuda_runtime.h of tests/gpu/emulation stands in.
#pragma once

#include <cuda_runtime.h>

#include "stage.h"

namespace fastdiff {

constexpr int kQuad = 4;
// A thread owns up to so many quads, in 8 registers; what it costs to read the row is paid once for all.
template <class T>
constexpr int kQuads = 8 / sizeof(T);
// The 32-bit words that hold a quad of T, or of anything narrower.
template <class T>
constexpr int kWords = sizeof(T);

template <class T>
using Values = T[kQuads<T>][kQuad];
template <class T>
using Words = uint32_t[kQuads<T>][kWords<T>];

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
  __device__ bool has(int q, int lane) const { return q < quads && place(q) + lane < numel; }
};

// Moving ----------------------------------------------------------------------------------------------

// One quad of items of kItem bytes, 128 bits at a time, or 64 where it is no larger.
template <int kItem>
__device__ inline void load_quad(const char* from, uint32_t* word) {
  if constexpr (kItem == 2) {
    const uint2 both = *(const uint2*)from;
    memcpy(word, &both, sizeof(both));
  } else {
#pragma unroll
    for (int j = 0; j < kItem / 4; ++j) {
      const uint4 four = ((const uint4*)from)[j];
      memcpy(word + 4 * j, &four, sizeof(four));
    }
  }
}

template <int kItem>
__device__ inline void store_quad(char* to, const uint32_t* word) {
  if constexpr (kItem == 2) {
    *(uint2*)to = uint2{word[0], word[1]};
  } else {
#pragma unroll
    for (int j = 0; j < kItem / 4; ++j) {
      ((uint4*)to)[j] = uint4{word[4 * j], word[4 * j + 1], word[4 * j + 2], word[4 * j + 3]};
    }
  }
}

// Lane's 16 bits of the word that two lanes share.
__device__ inline uint16_t half_of(uint32_t word, int lane) { return (uint16_t)(word >> 16 * (lane % 2)); }

// One item of a quad.
template <int kItem>
__device__ inline void load_item(const char* from, int lane, uint32_t* word) {
  if constexpr (kItem == 2) {
    word[lane / 2] |= (uint32_t)((const uint16_t*)from)[lane] << 16 * (lane % 2);
  } else {
#pragma unroll
    for (int j = lane * kItem / 4; j < (lane + 1) * kItem / 4; ++j) word[j] = ((const uint32_t*)from)[j];
  }
}

template <int kItem>
__device__ inline void store_item(char* to, int lane, const uint32_t* word) {
  if constexpr (kItem == 2) {
    ((uint16_t*)to)[lane] = half_of(word[lane / 2], lane);
  } else {
#pragma unroll
    for (int j = lane * kItem / 4; j < (lane + 1) * kItem / 4; ++j) ((uint32_t*)to)[j] = word[j];
  }
}

// Whether whole quads at this address can be moved at once; a step between quads keeps their alignment.
template <int kItem>
__device__ inline bool moves_at_once(const Group& group, const char* first) {
  constexpr int kWidth = kQuad * kItem < 16 ? kQuad * kItem : 16;
  return (uintptr_t)first % kWidth == 0 && group.whole;
}

template <int kItem, class T>
__device__ inline void load_items(const char* first, const Group& group, Words<T>& word) {
  const int64_t pitch = group.step * kItem;
  const bool at_once = moves_at_once<kItem>(group, first);
#pragma unroll
  for (int q = 0; q < kQuads<T>; ++q) {
    if (q >= group.quads) continue;
    if (at_once) {
      load_quad<kItem>(first + q * pitch, word[q]);
      continue;
    }
#pragma unroll
    for (int lane = 0; lane < kQuad; ++lane) {
      if (group.has(q, lane)) load_item<kItem>(first + q * pitch, lane, word[q]);
    }
  }
}

template <int kItem, class T>
__device__ inline void store_items(char* first, const Group& group, const Words<T>& word) {
  const int64_t pitch = group.step * kItem;
  const bool at_once = moves_at_once<kItem>(group, first);
#pragma unroll
  for (int q = 0; q < kQuads<T>; ++q) {
    if (q >= group.quads) continue;
    if (at_once) {
      store_quad<kItem>(first + q * pitch, word[q]);
      continue;
    }
#pragma unroll
    for (int lane = 0; lane < kQuad; ++lane) {
      if (group.has(q, lane)) store_item<kItem>(first + q * pitch, lane, word[q]);
    }
  }
}

// Words that are not read become zeros. A float32 state has no float64 tensors.
template <class T>
__device__ inline void load(const Buffer& from, const Group& group, Words<T>& word) {
  const int64_t at = group.b * from.batch_stride + group.i;
  const char* data = (const char*)from.data;
  memset(word, 0, sizeof(word));
  if (from.dtype >= kBFloat16) {
    load_items<2, T>(data + at * 2, group, word);
  } else if (sizeof(T) == 4 || from.dtype == kFloat32) {
    load_items<4, T>(data + at * 4, group, word);
  } else {
    load_items<sizeof(T), T>(data + at * 8, group, word);
  }
}

// Row `row` of the buffer is that of the group's sample, or of one of its copies.
template <class T>
__device__ inline void store(const Buffer& to, int64_t row, const Group& group, const Words<T>& word) {
  const int64_t at = row * to.batch_stride + group.i;
  char* data = (char*)to.data;
  if (to.dtype >= kBFloat16) {
    store_items<2, T>(data + at * 2, group, word);
  } else if (sizeof(T) == 4 || to.dtype == kFloat32) {
    store_items<4, T>(data + at * 4, group, word);
  } else {
    store_items<sizeof(T), T>(data + at * 8, group, word);
  }
}

// Meaning ----------------------------------------------------------------------------------------------

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

// Calls visit(q, lane) for every value of a thread, at compile time.
template <class T, class Visit>
__device__ inline void for_each_value(Visit visit) {
#pragma unroll
  for (int q = 0; q < kQuads<T>; ++q) {
#pragma unroll
    for (int lane = 0; lane < kQuad; ++lane) visit(q, lane);
  }
}

// The words of a storage type as T.
template <class T>
__device__ inline void widen(int32_t dtype, const Words<T>& word, Values<T>& value) {
  if (dtype == kFloat32) {
    for_each_value<T>([&](int q, int lane) { value[q][lane] = (T)bits<float>(word[q][lane]); });
  } else if (dtype == kBFloat16) {
    for_each_value<T>(
        [&](int q, int lane) { value[q][lane] = (T)from_bfloat16(half_of(word[q][lane / 2], lane)); });
  } else if (sizeof(T) == 4 || dtype == kFloat16) {
    for_each_value<T>(
        [&](int q, int lane) { value[q][lane] = (T)widen_float16(half_of(word[q][lane / 2], lane)); });
  } else if constexpr (sizeof(T) == 8) {
    for_each_value<T>([&](int q, int lane) {
      value[q][lane] = bits<double>((uint64_t)word[q][2 * lane + 1] << 32 | word[q][2 * lane]);
    });
  }
}

// T rounded to a storage type; float64 goes to 16 bits by way of float32.
template <class T>
__device__ inline void narrow(int32_t dtype, const Values<T>& value, Words<T>& word) {
  memset(word, 0, sizeof(word));
  auto at = [&](int q, int lane) { return narrow_to_float(value[q][lane]); };
  if (dtype == kBFloat16) {
    for_each_value<T>([&](int q, int lane) {
      if (lane % 2) word[q][lane / 2] = pack_bfloat16(at(q, lane - 1), at(q, lane));
    });
  } else if (dtype == kFloat16) {
    for_each_value<T>([&](int q, int lane) {
      if (lane % 2) word[q][lane / 2] = pack_float16(at(q, lane - 1), at(q, lane));
    });
  } else if (sizeof(T) == 4 || dtype == kFloat32) {
    for_each_value<T>([&](int q, int lane) { word[q][lane] = bits<uint32_t>(at(q, lane)); });
  } else if constexpr (sizeof(T) == 8) {
    for_each_value<T>([&](int q, int lane) {
      word[q][2 * lane] = (uint32_t)bits<uint64_t>(value[q][lane]);
      word[q][2 * lane + 1] = (uint32_t)(bits<uint64_t>(value[q][lane]) >> 32);
    });
  }
}

}  // namespace fastdiff
