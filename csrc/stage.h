// What one launch is given (StageArgs), and the mathematics of one element: docs/row-format.md in code.
//
// Plain data and plain functions, for the host and for a device: the CPU kernels, the torch ops, the host
// module and the CUDA kernels all include this header.
#pragma once

#include "normal.h"
#include "portable.h"

namespace fastdiff {

enum DType : int32_t { kFloat64, kFloat32, kBFloat16, kFloat16, kDTypes };

constexpr int kMaxColumns = 16, kMaxOutputs = 6, kMaxDraws = 32, kMaxCoefficients = 64;
// Where a term comes from: a column, an earlier output, or a draw.
constexpr int kFirstOutput = kMaxColumns, kFirstDraw = kFirstOutput + kMaxOutputs,
              kSources = kFirstDraw + kMaxDraws;
// Element indices fill the counter's 42 bits and no more.
constexpr int64_t kMaxElements = (int64_t)1 << 42;

constexpr int64_t kItemSize[kDTypes] = {8, 4, 2, 2};

// One tensor: sample b starts batch_stride * b elements after data; inside a sample elements are dense.
struct Buffer {
  void* data;
  int64_t batch_stride;
  int32_t dtype;
};

// One combination: `terms` coefficients from `first` on, then `noises` more; then it is clamped by
// coefficient `bound` and multiplied by coefficient `scale`, unless these are -1. base is a column or an
// earlier output, or -1.
struct Output {
  int8_t base;
  uint8_t first, terms, noises;
  int8_t bound, scale;
};

// A row's structure, decoded. source[k] is what coefficient k multiplies.
struct Program {
  int8_t columns, draws, network, outputs, c_in;
  uint8_t coefficients;
  uint8_t source[kMaxCoefficients];
  Output output[kMaxOutputs];
};

// One launch. Strides count elements of their own array; a stride of 0 shares one sample's values with all.
struct StageArgs {
  int64_t batch, numel;
  // Memory order inside a sample: [numel / channels, channels] of logical [channels, numel / channels]; 1 is
  // row-major.
  int64_t channels;
  int32_t state;
  int32_t copies;
  const void* coef;
  const int64_t *present, *seeds, *draws;
  int64_t coef_stride, present_stride, seeds_stride, draws_stride;
  Program program;
  Buffer column[kMaxColumns];
  Buffer store[kMaxOutputs];
  // data is null where there is no network input; copy j of sample b starts at (j * batch + b) *
  // batch_stride.
  Buffer z;
};

// Casts
// ------------------------------------------------------------------------------------------------------

FD_HD float from_bfloat16(uint16_t h) { return bits<float>((uint32_t)h << 16); }

FD_HD uint16_t to_bfloat16(float f) {
  const uint32_t u = bits<uint32_t>(f);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0u;
  return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

FD_HD float from_float16(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7FFFu;
  if (rest >= 0x7C00u) return bits<float>(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
  // As a tiny float32 the value is 2^112 times too small; the product is exact, also for subnormals.
  return bits<float>(sign | bits<uint32_t>(mul(bits<float>(rest << 13), 0x1p112f)));
}

FD_HD uint16_t to_float16(float f) {
  const uint32_t u = bits<uint32_t>(f), sign = u >> 16 & 0x8000u, size = u & 0x7FFFFFFFu;
  if (size > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
  // 65520 and above round to infinity.
  if (size >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);
  if (size < 0x38800000u) {
    // Subnormal: adding 1/2 puts the units of 2^-24 into the lowest bits and rounds to nearest even.
    return (uint16_t)(sign | (bits<uint32_t>(add(bits<float>(size), 0.5f)) - 0x3F000000u));
  }
  return (uint16_t)(sign | ((size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)) >> 13));
}

// Element i of an array of a storage type, widened to T.
template <class T>
FD_HD T load_as(const void* data, int32_t dtype, int64_t i) {
  switch (dtype) {
    case kFloat64:
      return (T)((const double*)data)[i];
    case kFloat32:
      return (T)((const float*)data)[i];
    case kBFloat16:
      return (T)from_bfloat16(((const uint16_t*)data)[i]);
    default:
      return (T)from_float16(((const uint16_t*)data)[i]);
  }
}

FD_HD float narrow_to_float(float value) { return value; }
FD_HD float narrow_to_float(double value) { return to_float(value); }

// Round a T to a storage type; float64 goes to 16 bits by way of float32.
template <class T>
FD_HD void store_as(void* data, int32_t dtype, int64_t i, T value) {
  switch (dtype) {
    case kFloat64:
      ((double*)data)[i] = (double)value;
      return;
    case kFloat32:
      ((float*)data)[i] = narrow_to_float(value);
      return;
    case kBFloat16:
      ((uint16_t*)data)[i] = to_bfloat16(narrow_to_float(value));
      return;
    default:
      ((uint16_t*)data)[i] = to_float16(narrow_to_float(value));
      return;
  }
}

// One element
// -------------------------------------------------------------------------------------------------

// A running sum whose first addend is taken as it is: nothing is ever added to a zero.
template <class T>
struct Sum {
  T total;
  bool started;
  FD_HD_MEMBER void add(T value) {
    total = started ? fastdiff::add(total, value) : value;
    started = true;
  }
};

// What a sample's elements have in common.
template <class T>
struct SampleArgs {
  const T* coef;
  int64_t present, seed;
  const int64_t* draws;
};

template <class T>
FD_HD SampleArgs<T> sample_args(const StageArgs& a, int64_t b) {
  return {(const T*)a.coef + b * a.coef_stride, a.present ? a.present[b * a.present_stride] : -1,
          a.seeds ? a.seeds[b * a.seeds_stride] : 0, a.draws ? a.draws + b * a.draws_stride : nullptr};
}

FD_HD bool is_present(int64_t present, int k) { return (uint64_t)present >> k & 1u; }

// The logical row-major index of the element at place i of a sample's memory.
FD_HD int64_t logical_index(const StageArgs& a, int64_t i) {
  return a.channels <= 1 ? i : i % a.channels * (a.numel / a.channels) + i / a.channels;
}

// D > b gives b, D < -b gives -b, and a NaN stays.
template <class T>
FD_HD T clamp(T value, T bound) {
  return value > bound ? bound : value < -bound ? -bound : value;
}

// The value of the element at place i of sample b for source s; `made` are the outputs before this one.
template <class T>
FD_HD T source_value(const StageArgs& a, const SampleArgs<T>& sample, int64_t b, int64_t i, const T* made,
                     int s) {
  if (s >= kFirstOutput && s < kFirstDraw) return made[s - kFirstOutput];
  if (s < kFirstOutput) {
    const Buffer& column = a.column[s];
    return load_as<T>(column.data, column.dtype, b * column.batch_stride + i);
  }
  const int64_t element = logical_index(a, i);
  float normal[4];
  normals_of_block(sample.seed, make_draw(sample.draws + 4 * (s - kFirstDraw)), element >> 2, normal);
  return (T)normal[element & 3];
}

// All outputs of the element at place i of sample b, by the specification's own steps; writes them.
template <class T>
FD_HD void stage_element(const StageArgs& a, int64_t b, int64_t i) {
  const Program& p = a.program;
  const SampleArgs<T> sample = sample_args<T>(a, b);
  T value[kMaxOutputs];
  auto accumulate = [&](Sum<T>& sum, int first, int count) {
    for (int k = first; k < first + count; ++k) {
      if (!is_present(sample.present, k)) continue;
      sum.add(mul(sample.coef[k], source_value(a, sample, b, i, value, p.source[k])));
    }
  };
  for (int o = 0; o < p.outputs; ++o) {
    const Output& out = p.output[o];
    Sum<T> sum = {T(0), false};
    accumulate(sum, out.first, out.terms);
    if (out.base >= 0) sum.add(source_value(a, sample, b, i, value, out.base));
    accumulate(sum, out.first + out.terms, out.noises);
    value[o] = sum.total;
    if (out.bound >= 0 && is_present(sample.present, out.bound))
      value[o] = clamp(value[o], sample.coef[out.bound]);
    if (out.scale >= 0 && is_present(sample.present, out.scale))
      value[o] = mul(sample.coef[out.scale], value[o]);
  }
  for (int o = 0; o < p.outputs; ++o) {
    const Buffer& store = a.store[o];
    if (store.data) store_as(store.data, store.dtype, b * store.batch_stride + i, value[o]);
  }
  if (a.z.data) {
    const bool scaled = is_present(sample.present, p.c_in);
    const T w = scaled ? mul(sample.coef[p.c_in], value[p.network]) : value[p.network];
    for (int64_t j = 0; j < a.copies; ++j)
      store_as(a.z.data, a.z.dtype, (j * a.batch + b) * a.z.batch_stride + i, w);
  }
}

}  // namespace fastdiff
