// Inner products of a sample's vectors by the threads of a device, and what follows from them: docs/gram.md.
//
// The order of every sum is fixed by the logical index of the elements. A block of 128 threads, one for each
// lane, sums a chunk of a sample; where a sample has several chunks, one more block sums theirs. Vectors and
// sums are known by number and registers are not, so they lie in shared memory: a thread's own vectors and
// lanes, and what all threads of a block fold.
#pragma once

#include "gram_args.h"
#include "quad.h"
#include "slots.h"

namespace fastdiff {

// Lanes of a chunk, how many quads each of them adds, and how often they are folded.
constexpr int kLanes = 128, kTurns = 8, kFolds = 7;
constexpr int64_t kChunk = kLanes * kTurns * kQuad;

__host__ __device__ inline int64_t chunks_of(int64_t count) { return (count + kChunk - 1) / kChunk; }

// What the threads of a block share: vectors, by thread; lanes, by sum; scalars.
struct GramShared {
  Slots<double> vectors;
  double *lanes, *scalars;

  static int64_t bytes(const GramProgram& p, int vectors) {
    return vectors * kLanes * Slots<double>::kBytes + (p.sums * kLanes + p.sums + p.steps) * sizeof(double);
  }

  __device__ static GramShared of(const GramProgram& p, int vectors) {
    uint4* first = block_memory();
    double* lanes = (double*)(first + vectors * kLanes * Slots<double>::kBytes / sizeof(uint4));
    return {{first + threadIdx.x, kLanes}, lanes, lanes + p.sums * kLanes};
  }
};

// The larger one, or NaN where one of them is.
__device__ inline double larger(double a, double b) { return a > b || a != a ? a : b; }

__device__ inline double magnitude(double a) { return bits<double>(bits<uint64_t>(a) & ~(1ull << 63)); }

// Four products, or as many as there are elements, as one number.
__device__ inline double sum_of_quad(const double (&p)[kQuad], int64_t elements) {
  const double p1 = elements > 1 ? p[1] : 0, p2 = elements > 2 ? p[2] : 0, p3 = elements > 3 ? p[3] : 0;
  return add(add(p[0], p1), add(p2, p3));
}

// A quad of a column, whose neighbours are those in logical order; what lies past the end is 0.
__device__ inline void load_column(const GramArgs& a, const Buffer& column, const Group& group,
                                   double (&value)[kQuad]) {
  const Spot from(column, group.b, group);
  if (a.channels <= 1 && from.at_once) {
    Values<double> quad;
    load_quads<double>(from, group, quad);
    memcpy(value, quad, sizeof(value));
    return;
  }
  const int64_t pixels = a.numel / a.channels, start = group.b * column.batch_stride;
#pragma unroll
  for (int lane = 0; lane < kQuad; ++lane) {
    const int64_t element = group.i + lane;
    value[lane] = 0;
    if (element >= a.numel) continue;
    const int64_t place = a.channels <= 1 ? element : element % pixels * a.channels + element / pixels;
    value[lane] = load_as<double>(column.data, column.dtype, start + place);
  }
}

__device__ inline void load_source(const GramArgs& a, const Group& group, int source,
                                   double (&value)[kQuad]) {
  if (source < kFirstGramDraw) return load_column(a, a.column[source], group, value);
  float normal[kQuad] = {1, 1, 1, 1};
  if (source < kConstant) {
    const int64_t* draw = a.draws + group.b * a.draws_stride + 4 * (source - kFirstGramDraw);
    const int64_t seed = a.seeds[group.b * a.seeds_stride];
    normals_of_block(opaque(seed), make_draw(draw), group.i / kQuad, normal);
  }
#pragma unroll
  for (int lane = 0; lane < kQuad; ++lane) value[lane] = normal[lane];
}

// All vectors of a quad. A column that several of them use comes from the cache for all but the first.
__device__ inline void make_vectors(const GramArgs& a, const GramShared& shared, const Group& group) {
  const GramProgram& p = a.program;
  const double* number = a.numbers + group.b * a.numbers_stride;
  int term = 0;
#pragma unroll 1
  for (int v = 0; v < p.vectors; ++v) {
    // -0 + x is x for every x; a vector without terms is +0.
    const double none = p.terms[v] ? -0.0 : 0.0;
    double total[kQuad] = {none, none, none, none};
#pragma unroll 1
    for (const int end = term + p.terms[v]; term < end; ++term) {
      const double factor = __ldg(number++);
      double value[kQuad];
      load_source(a, group, p.source[term], value);
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) total[lane] = add(total[lane], mul(factor, value[lane]));
    }
    shared.vectors.put(v, 0, total);
  }
}

// Adds a quad's share to this thread's lane of every sum.
__device__ inline void add_quad(const GramArgs& a, const GramShared& shared, const Group& group) {
  const GramProgram& p = a.program;
  const double* tolerance = a.numbers + group.b * a.numbers_stride + p.tolerances;
#pragma unroll 1
  for (int s = 0; s < p.sums; ++s) {
    const SumOf& sum = p.sum[s];
    double left[kQuad], right[kQuad];
    shared.vectors.get(sum.a, 0, left);
    shared.vectors.get(sum.b, 0, right);
    if (sum.kind == kWeighted) {
      double other[kQuad];
      shared.vectors.get(sum.c, 0, other);
      const double atol = __ldg(tolerance++), rtol = __ldg(tolerance++);
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) {
        const double size = larger(magnitude(right[lane]), magnitude(other[lane]));
        left[lane] = right[lane] = divide(left[lane], larger(atol, mul(rtol, size)));
      }
    }
#pragma unroll
    for (int lane = 0; lane < kQuad; ++lane) left[lane] = mul(left[lane], right[lane]);
    double& total = shared.lanes[s * kLanes + threadIdx.x];
    total = add(total, sum_of_quad(left, a.numel - group.i));
  }
}

// Folds the lanes of every sum in halves, down to the first one.
__device__ inline void fold_lanes(const GramProgram& p, const GramShared& shared) {
#pragma unroll 1
  for (int fold = kFolds - 1; fold >= 0; --fold) {
    const int width = 1 << fold;
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < p.sums * width; i += kLanes) {
      double* left = shared.lanes + (i >> fold) * kLanes + (i & (width - 1));
      *left = add(*left, left[width]);
    }
  }
  __syncthreads();
}

__device__ inline double take_step(const Step& step, const double* scalars, double number) {
  if (step.operation == kNumber) return number;
  const double left = scalars[step.left];
  if (step.operation == kSqrt) return square_root(left);
  const double right = scalars[step.right];
  switch (step.operation) {
    case kAdd:
      return add(left, right);
    case kSub:
      return add(left, -right);
    case kMul:
      return mul(left, right);
    case kDiv:
      return divide(left, right);
    default:
      return larger(left, right);
  }
}

// Coefficient k: a number, and scalars times numbers; rounded to the state type.
__device__ inline void write_coefficient(const GramArgs& a, int64_t b, int k, const double* scalars) {
  const GramProgram& p = a.program;
  int factor = 0;
  for (int before = 0; before < k; ++before) factor += p.factors[before];
  const double* number = a.numbers + b * a.numbers_stride + p.affine + k + factor;
  double total = __ldg(number++);
#pragma unroll 1
  for (const int end = factor + p.factors[k]; factor < end; ++factor) {
    total = add(total, mul(__ldg(number++), scalars[p.scalar[factor]]));
  }
  const int64_t at = b * a.coef_stride + k;
  if (a.state == kFloat64) {
    ((double*)a.coef)[at] = total;
  } else {
    ((float*)a.coef)[at] = to_float(total);
  }
}

// The scalars and coefficients of sample b, whose sums stand in the first lanes.
__device__ inline void finish(const GramArgs& a, const GramShared& shared, int64_t b) {
  const GramProgram& p = a.program;
  const int thread = threadIdx.x, scalars = p.sums + p.steps;
  if (thread < p.sums) shared.scalars[thread] = shared.lanes[thread * kLanes];
  __syncthreads();
  if (thread == 0) {
    const double* number = a.numbers + b * a.numbers_stride + p.constants;
#pragma unroll 1
    for (int i = 0; i < p.steps; ++i) {
      const double constant = p.step[i].operation == kNumber ? __ldg(number++) : 0.0;
      shared.scalars[p.sums + i] = take_step(p.step[i], shared.scalars, constant);
    }
  }
  __syncthreads();
  if (thread < scalars) a.scalars[b * a.scalars_stride + thread] = shared.scalars[thread];
  if (a.coef && thread < p.coefficients) write_coefficient(a, b, thread, shared.scalars);
}

// Chunk `chunk` of sample b, which is the whole sample or one of its parts.
__device__ inline void sum_chunk(const GramArgs& a, const GramShared& shared, int64_t b, int64_t chunk) {
  const GramProgram& p = a.program;
  const int thread = threadIdx.x;
  for (int s = 0; s < p.sums; ++s) shared.lanes[s * kLanes + thread] = 0;
#pragma unroll 1
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t first = chunk * kChunk + (turn * kLanes + thread) * kQuad;
    // A quad that is not there would add +0 to a lane, which is never -0.
    if (first >= a.numel) break;
    const Group group = {b, first, 0, a.numel, 1, first + kQuad <= a.numel};
    make_vectors(a, shared, group);
    add_quad(a, shared, group);
  }
  fold_lanes(p, shared);
  if (!a.parts) {
    finish(a, shared, b);
  } else if (thread < p.sums) {
    a.parts[(b * p.sums + thread) * chunks_of(a.numel) + chunk] = shared.lanes[thread * kLanes];
  }
}

// The parts of sample b, summed as if they were elements, until there is one.
__device__ inline void sum_parts(const GramArgs& a, const GramShared& shared, int64_t b) {
  const GramProgram& p = a.program;
  const int thread = threadIdx.x;
  const int64_t parts = chunks_of(a.numel);
  for (int64_t count = parts; count > 1; count = chunks_of(count)) {
    for (int64_t chunk = 0; chunk < chunks_of(count); ++chunk) {
#pragma unroll 1
      for (int s = 0; s < p.sums; ++s) {
        const double* part = a.parts + (b * p.sums + s) * parts;
        double total = 0;
#pragma unroll 1
        for (int turn = 0; turn < kTurns; ++turn) {
          const int64_t first = chunk * kChunk + (turn * kLanes + thread) * kQuad;
          if (first >= count) break;
          double value[kQuad];
#pragma unroll
          for (int i = 0; i < kQuad; ++i) value[i] = first + i < count ? part[first + i] : 0;
          total = add(total, sum_of_quad(value, kQuad));
        }
        shared.lanes[s * kLanes + thread] = total;
      }
      fold_lanes(p, shared);
      // In the place of parts that all threads have read.
      if (thread < p.sums) a.parts[(b * p.sums + thread) * parts + chunk] = shared.lanes[thread * kLanes];
      __syncthreads();
    }
  }
  finish(a, shared, b);
}

}  // namespace fastdiff
