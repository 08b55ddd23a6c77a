// What a thread works in and keeps from call to call, because it is too much for a small stack.
#pragma once

#include <memory>

namespace fastdiff {

template <class T>
static T& scratch() {
  static thread_local const std::unique_ptr<T> own(new T);
  return *own;
}

}  // namespace fastdiff
