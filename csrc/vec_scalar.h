// One lane: the floor for any machine. Loops are left to the compiler's vectoriser.
#pragma once

#include "stage.h"

namespace fastdiff::FD_ISA {

template <class T>
struct State {
  using V = T;
  static constexpr int kWidth = 1;
  FD_INLINE V set(T a) { return a; }
  FD_INLINE V load(const T* p) { return *p; }
  FD_INLINE void store(T* p, V a) { *p = a; }
  FD_INLINE void stream(T* p, V a) { *p = a; }
  FD_INLINE V mul(V a, V b) { return fastdiff::mul(a, b); }
  FD_INLINE V add(V a, V b) { return fastdiff::add(a, b); }
  FD_INLINE V clamp(V a, V bound) { return fastdiff::clamp(a, bound); }
  template <int D>
  FD_INLINE V load_as(const void* p) {
    return fastdiff::load_as<T>(p, D, 0);
  }
  template <int D, bool kStream>
  FD_INLINE void store_as(void* p, V a, V b) {
    fastdiff::store_as(p, D, 0, a);
    fastdiff::store_as(p, D, 1, b);
  }
};

}  // namespace fastdiff::FD_ISA
