// Which bytes two tensors share, and how a sample's elements lie: the same rules as fastdiff/rows/layout.py.
// Host only.
#pragma once

#include "stage.h"

namespace fastdiff {

// `samples` pieces of `size` bytes, `step` bytes apart.
struct Extent {
  uintptr_t start;
  int64_t samples, size, step;

  uintptr_t end() const { return start + (samples - 1) * step + size; }
};

inline Extent extent_of(const Buffer& buffer, int64_t samples, int64_t numel) {
  const int64_t item = kItemSize[buffer.dtype];
  return {(uintptr_t)buffer.data, samples, numel * item, buffer.batch_stride * item};
}

// Whether any byte belongs to both; exact, interleaved batches included.
inline bool share_memory(const Extent& a, const Extent& b) {
  if (!a.samples || !b.samples || !a.size || !b.size) return false;
  if (a.start >= b.end() || b.start >= a.end()) return false;
  int64_t i = 0, j = 0;
  while (i < a.samples && j < b.samples) {
    const uintptr_t left = a.start + i * a.step, right = b.start + j * b.step;
    if (left + a.size <= right) {
      ++i;
    } else if (right + b.size <= left) {
      ++j;
    } else {
      return true;
    }
  }
  return false;
}

// Whether two buffers are element for element the same memory.
inline bool same_memory(const Buffer& a, const Buffer& b, int64_t samples) {
  return a.data == b.data && a.dtype == b.dtype && (samples == 1 || a.batch_stride == b.batch_stride);
}

enum Layout { kNotDense, kRowMajor, kChannelsLast, kEitherLayout };

// Whether sizes order[0], order[1], ... are dense, the last one fastest.
inline bool is_dense(const int64_t* sizes, const int64_t* strides, const int* order, int dims) {
  int64_t expected = 1;
  for (int d = dims - 1; d >= 0; --d) {
    const int64_t size = sizes[order[d]];
    if (size == 1) continue;
    if (strides[order[d]] != expected) return false;
    expected *= size;
  }
  return true;
}

constexpr int kMaxDims = 64;

// The layout of one sample, from its sizes and strides (the batch left out); channels come first among the
// sizes.
inline Layout layout_of(const int64_t* sizes, const int64_t* strides, int dims) {
  if (dims > kMaxDims) return kNotDense;
  int row_major[kMaxDims] = {}, channels_last[kMaxDims] = {};
  for (int d = 0; d < dims; ++d) {
    row_major[d] = d;
    channels_last[d] = d + 1 < dims ? d + 1 : 0;
  }
  const bool rows = is_dense(sizes, strides, row_major, dims);
  const bool channels = (dims == 3 || dims == 4) && is_dense(sizes, strides, channels_last, dims);
  return rows && channels ? kEitherLayout : rows ? kRowMajor : channels ? kChannelsLast : kNotDense;
}

}  // namespace fastdiff
