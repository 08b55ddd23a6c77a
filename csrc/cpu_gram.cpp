// The gram on the CPU, compiled once per instruction set (see vec.h): docs/gram.md.
//
// A chunk of 4,096 elements is walked in turns of 512, one quad for each of 128 lanes, so that vectors and
// lanes stay in the first-level caches. Per turn: columns are widened, normals drawn, every vector is one
// short sum, and every product is folded into its lanes. The order of sums is that of the logical index,
// whatever the layout.
#include <cmath>

#include "cpu_loops.h"
#include "cpu_noise.h"
#include "fpenv.h"
#include "gram_args.h"
#include "gram_range.h"
#include "scratch.h"

namespace fastdiff::FD_ISA {

constexpr int kLanes = kGramLanes, kTurn = 4 * kLanes;
static_assert(kTurn <= kNoiseTile, "a turn's normals are one tile");

struct GramScratch {
  GramScratch() {
    for (double& value : one) value = 1;
  }
  alignas(64) double column[kMaxColumns][kTurn], draw[kMaxDraws][kTurn], one[kTurn];
  alignas(64) double vector[kMaxVectors][kTurn], partial[kTurn], weighed[kTurn];
  alignas(64) double lane[kMaxSums][kLanes];
  alignas(64) float normal[kTurn];
};

static inline double larger(double a, double b) { return a > b || a != a ? a : b; }

// `n` elements of a sample's column from logical index `first` on, widened.
static const double* load_column(const GramArgs& a, int c, int64_t b, int64_t first, int64_t n, double* out) {
  const Buffer& column = a.column[c];
  const char* sample = (const char*)column.data + b * column.batch_stride * kItemSize[column.dtype];
  if (a.channels <= 1) {
    const char* at = sample + first * kItemSize[column.dtype];
    if (column.dtype == kFloat64) return (const double*)at;
    kWiden<double>[column.dtype](out, at, n);
    return out;
  }
  const int64_t pixels = a.numel / a.channels;
  int64_t channel = first / pixels, pixel = first % pixels;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = load_as<double>(sample, column.dtype, pixel * a.channels + channel);
    if (++pixel == pixels) {
      pixel = 0;
      ++channel;
    }
  }
  return out;
}

// The sum of `terms` coefficients times sources, from left to right; in `out`, unless it is a source as it
// is: one times x is x, bit for bit.
static const double* make_vector(double* out, double* partial, const double* const* source,
                                 const uint8_t* name, const double* c, int terms, int64_t n) {
  if (terms == 1 && c[0] == 1) return source[name[0]];
  if (!terms) {
    memset(out, 0, (size_t)n * sizeof(double));
    return out;
  }
  const double* in[kTerms];
  double factor[kTerms];
  for (int done = 0, held = 0; done < terms;) {
    for (; held < kTerms && done < terms; ++held, ++done) {
      in[held] = source[name[done]];
      factor[held] = c[done];
    }
    double* to = done == terms ? out : partial;
    kCombine<double>[held](to, in, factor, n);
    in[0] = to;
    factor[0] = 1;
    held = 1;
  }
  return out;
}

// Four values of which nothing is known of their alignment; the compiler has instructions for them, or makes
// do.
typedef double Four __attribute__((vector_size(32), aligned(8), may_alias));
#ifdef __clang__
#define FD_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef long long Places __attribute__((vector_size(32)));
#define FD_PICK(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

// Adds the quads of n products u * v to their lanes; what is missing in the last quad is +0.
static void add_to_lanes(double* lane, const double* u, const double* v, int64_t n) {
  int64_t q = 0;
  for (; 4 * q + 16 <= n; q += 4) {
    const Four *left = (const Four*)(u + 4 * q), *right = (const Four*)(v + 4 * q);
    const Four a = left[0] * right[0], b = left[1] * right[1], c = left[2] * right[2], d = left[3] * right[3];
    // Neighbours of a and b, then of c and d: first and second pair of each quad.
    const Four ab = FD_PICK(a, b, 0, 4, 2, 6) + FD_PICK(a, b, 1, 5, 3, 7);
    const Four cd = FD_PICK(c, d, 0, 4, 2, 6) + FD_PICK(c, d, 1, 5, 3, 7);
    Four& four = *(Four*)(lane + q);
    four += FD_PICK(ab, cd, 0, 1, 4, 5) + FD_PICK(ab, cd, 2, 3, 6, 7);
  }
  for (; 4 * q < n; ++q) {
    double p[4] = {};
    for (int64_t i = 4 * q; i < n && i < 4 * q + 4; ++i) p[i - 4 * q] = mul(u[i], v[i]);
    lane[q] = add(lane[q], add(add(p[0], p[1]), add(p[2], p[3])));
  }
}

static double fold(double* lane) {
  for (int half = kLanes / 2; half; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] = add(lane[l], lane[l + half]);
  }
  return lane[0];
}

// A vector weighed by two others, whose squares are summed.
static void weigh(const SumOf& sum, const double* const* vector, const double* tolerance, double* out,
                  int64_t n) {
  const double *u = vector[sum.a], *v = vector[sum.b], *w = vector[sum.c];
  for (int64_t i = 0; i < n; ++i) {
    const double size = larger(std::fabs(v[i]), std::fabs(w[i]));
    out[i] = u[i] / larger(tolerance[0], mul(tolerance[1], size));
  }
}

// The sums of one chunk of sample b, to out[0], out[stride], ...
static void sum_chunk(const GramArgs& a, int64_t b, int64_t chunk, double* out, int64_t stride) {
  const GramProgram& p = a.program;
  GramScratch& s = scratch<GramScratch>();
  const double* numbers = a.numbers + b * a.numbers_stride;
  memset(s.lane, 0, p.sums * sizeof(s.lane[0]));
  int terms = 0;
  for (int v = 0; v < p.vectors; ++v) terms += p.terms[v];
  uint64_t used = 0;
  for (int k = 0; k < terms; ++k) used |= (uint64_t)1 << p.source[k];
  const int64_t seed = a.seeds ? a.seeds[b * a.seeds_stride] : 0;
  const Key key = make_key(seed);
  const int64_t end = (chunk + 1) * kGramChunk < a.numel ? (chunk + 1) * kGramChunk : a.numel;
  for (int64_t first = chunk * kGramChunk; first < end; first += kTurn) {
    const int64_t n = end - first < kTurn ? end - first : kTurn;
    const double* source[kConstant + 1];
    source[kConstant] = s.one;
    for (uint64_t rest = used & (((uint64_t)1 << kConstant) - 1); rest; rest &= rest - 1) {
      const int place = __builtin_ctzll(rest);
      if (place < kFirstGramDraw) {
        source[place] = load_column(a, place, b, first, n, s.column[place]);
        continue;
      }
      const int d = place - kFirstGramDraw;
      const Draw draw = make_draw(a.draws + b * a.draws_stride + 4 * d);
      linear_normals(key, draw, first >> 2, n, s.normal);
      kWiden<double>[kFloat32](s.draw[d], s.normal, n);
      source[place] = s.draw[d];
    }
    const uint8_t* name = p.source;
    const double *c = numbers, *vector[kMaxVectors];
    for (int v = 0; v < p.vectors; name += p.terms[v], c += p.terms[v], ++v)
      vector[v] = make_vector(s.vector[v], s.partial, source, name, c, p.terms[v], n);
    const double* tolerance = numbers + p.tolerances;
    for (int i = 0; i < p.sums; ++i) {
      const SumOf& sum = p.sum[i];
      const double *left = vector[sum.a], *right = vector[sum.b];
      if (sum.kind == kWeighted) {
        weigh(sum, vector, tolerance, s.weighed, n);
        tolerance += 2;
        left = right = s.weighed;
      }
      add_to_lanes(s.lane[i], left, right, n);
    }
  }
  for (int i = 0; i < p.sums; ++i) out[i * stride] = fold(s.lane[i]);
}

// The sum of `count` numbers in the same order, which they are overwritten by.
static double sum_parts(double* part, int64_t count, GramScratch& s) {
  do {
    const int64_t chunks = (count + kGramChunk - 1) / kGramChunk;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      double* lane = s.lane[0];
      memset(lane, 0, sizeof(s.lane[0]));
      const int64_t end = (chunk + 1) * kGramChunk < count ? (chunk + 1) * kGramChunk : count;
      for (int64_t first = chunk * kGramChunk; first < end; first += kTurn) {
        const int64_t n = end - first < kTurn ? end - first : kTurn;
        add_to_lanes(lane, part + first, s.one, n);
      }
      part[chunk] = fold(lane);
    }
    count = chunks;
  } while (count > 1);
  return part[0];
}

static double step_of(const Step& step, const double* scalar, const double*& number) {
  const double a = step.left >= 0 ? scalar[step.left] : 0, b = step.right >= 0 ? scalar[step.right] : 0;
  switch (step.operation) {
    case kNumber:
      return *number++;
    case kAdd:
      return add(a, b);
    case kSub:
      return a - b;
    case kMul:
      return mul(a, b);
    case kDiv:
      return a / b;
    case kSqrt:
      return std::sqrt(a);
    default:
      return larger(a, b);
  }
}

// Folds the parts of sample b, and makes what follows from its sums.
static void finish_sample(const GramArgs& a, int64_t b, int64_t chunks) {
  const GramProgram& p = a.program;
  const double* numbers = a.numbers + b * a.numbers_stride;
  double* scalar = a.scalars + b * a.scalars_stride;
  if (chunks > 1) {
    for (int i = 0; i < p.sums; ++i)
      scalar[i] = sum_parts(a.parts + (b * p.sums + i) * chunks, chunks, scratch<GramScratch>());
  }
  const double* number = numbers + p.constants;
  for (int i = 0; i < p.steps; ++i) scalar[p.sums + i] = step_of(p.step[i], scalar, number);
  if (!a.coef) return;
  number = numbers + p.affine;
  const uint8_t* name = p.scalar;
  for (int k = 0; k < p.coefficients; ++k) {
    double total = *number++;
    for (int j = 0; j < p.factors[k]; ++j) total = add(total, mul(*number++, scalar[*name++]));
    store_as<double>(a.coef, a.state, b * a.coef_stride + k, total);
  }
}

void gram_sum(const GramArgs& a, int64_t begin, int64_t end) {
  const ExactFloat exact;
  const int64_t chunks = gram_chunks(a.numel);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / chunks, chunk = i % chunks;
    if (chunks == 1) {
      sum_chunk(a, b, 0, a.scalars + b * a.scalars_stride, 1);
    } else {
      sum_chunk(a, b, chunk, a.parts + b * a.program.sums * chunks + chunk, chunks);
    }
  }
}

void gram_finish(const GramArgs& a, int64_t begin, int64_t end) {
  const ExactFloat exact;
  for (int64_t b = begin; b < end; ++b) finish_sample(a, b, gram_chunks(a.numel));
}

}  // namespace fastdiff::FD_ISA
