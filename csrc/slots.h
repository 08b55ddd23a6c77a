// Shared memory that only its own thread touches: registers that are chosen by number.
#pragma once

#include "quad.h"

namespace fastdiff {

// The shared memory of a block.
__device__ inline uint4* block_memory() {
  extern __shared__ uint4 block_slots[];
  return block_slots;
}

// One thread's slots for all its values, 128 bits at a time; threads lie side by side.
template <class T>
struct Slots {
  static constexpr int kParts = sizeof(T) / 4, kLanes = kQuad / kParts;
  static constexpr int kBytes = kQuads<T> * kQuad * sizeof(T);
  uint4* own;
  int threads;

  __device__ uint4& part(int slot, int q, int j) const {
    return own[((slot * kQuads<T> + q) * kParts + j) * threads];
  }

  __device__ void put(int slot, int q, const T (&value)[kQuad]) const {
#pragma unroll
    for (int j = 0; j < kParts; ++j) memcpy(&part(slot, q, j), value + j * kLanes, sizeof(uint4));
  }

  __device__ void get(int slot, int q, T (&value)[kQuad]) const {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      const uint4 four = part(slot, q, j);
      memcpy(value + j * kLanes, &four, sizeof(four));
    }
  }

  __device__ T& one(int slot, int q, int lane) const {
    return ((T*)&part(slot, q, lane / kLanes))[lane % kLanes];
  }
};

// The same number, of which the compiler knows nothing: it would hold the keys of all rounds over a loop.
__device__ inline int64_t opaque(int64_t value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(value));
#endif
  return value;
}

}  // namespace fastdiff
