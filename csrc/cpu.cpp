// The CPU kernel, compiled once per instruction set (see vec.h).
//
// A sample is walked in tiles that stay in the first-level cache. Per tile: columns of another type are
// widened into scratch, noise is drawn into scratch, and then every combination is one short loop over plain
// arrays of the state type. Two facts keep those loops few: a base is a term with coefficient 1, as one times
// x is x, bit for bit; and a long sum splits anywhere, as one times a partial sum is that partial sum.
//
// With channels last, neighbours in memory come from different Philox blocks, and the four normals of a block
// lie a row of channels apart. There noise is drawn for rectangles of some positions and channels, so that
// all four are used, and then each row of the rectangle is a tile.
#include "cpu_blocks.h"
#include "cpu_loops.h"
#include "fpenv.h"
#include "kernel.h"
#include "scratch.h"

namespace fastdiff::FD_ISA {

constexpr int64_t kSlotBytes = 2048;
constexpr int kPartial = kSources, kSlots = kPartial + 1;

template <class T>
constexpr int64_t kTile = kSlotBytes / sizeof(T);

// A combination as a sample sees it: its present terms, the base among them with coefficient 1.
template <class T>
struct Terms {
  int count;
  T c[kMaxCoefficients + 1];
  uint8_t source[kMaxCoefficients + 1];

  void push(T coefficient, int s) {
    c[count] = coefficient;
    source[count++] = (uint8_t)s;
  }
};

// Columns that were widened, noise, outputs and partial sums of one tile; and a list of blocks to draw.
struct StageScratch {
  alignas(64) char slots[kSlots][kSlotBytes];
  Listed list;
};

template <class T>
class Launch {
 public:
  Launch(const StageArgs& args, const Walk& walk)
      : a(args),
        p(args.program),
        walk(walk),
        positions(args.numel / args.channels),
        slots(scratch<StageScratch>().slots),
        list(scratch<StageScratch>().list) {
    order_outputs();
    shared = args.coef_stride == 0 && args.present_stride == 0;
  }

  // Elements [begin, end) of sample b.
  void run(int64_t b, int64_t begin, int64_t end) {
    enter_sample(b);
    const int64_t first = (begin + a.channels - 1) / a.channels, last = end / a.channels;
    if (walk.flat || a.channels <= 1 || !(used >> kFirstDraw) || last <= first) {
      tiles(b, begin, end);
      return;
    }
    tiles(b, begin, first * a.channels);
    // Rectangles begin at whole blocks, where channels do; where they do not, longer ones waste fewer lanes.
    const int64_t least = positions % 4 ? 8 : 4, fitting = kTile<T> / a.channels & -4;
    const int64_t height = fitting > least ? fitting : least;
    for (int64_t position = first; position < last;) {
      const int64_t start = position & -4, stop = start + height < last ? start + height : last;
      rectangles(b, position, (int)(stop - position));
      position = stop;
    }
    tiles(b, last * a.channels, end);
  }

 private:
  const StageArgs& a;
  const Program& p;
  const Walk walk;
  const int64_t positions;
  char (&slots)[kSlots][kSlotBytes];
  Listed& list;
  bool shared, entered = false;
  // Outputs that anyone wants, each after those that it reads, and so ordered that none overwrites a column
  // which a later one reads, where that is possible; `direct` marks those that go straight to their buffer.
  int wanted = 0;
  uint8_t order[kMaxOutputs];
  bool direct[kMaxOutputs];

  SampleArgs<T> sample;
  uint64_t used;
  Terms<T> result[kMaxOutputs];
  T c_in;
  Key key;
  const T* source[kSources];

  T* slot(int s) { return (T*)slots[s]; }

  // Elements [begin, end) of sample b, in the order of memory.
  void tiles(int64_t b, int64_t begin, int64_t end) {
    const int64_t part = walk.far ? kTile<T> / 4 : kTile<T>;
    for (int64_t i = begin; i < end; i += kTile<T>) {
      const int64_t n = end - i < kTile<T> ? end - i : kTile<T>;
      for (uint64_t rest = used >> kFirstDraw << kFirstDraw; rest; rest &= rest - 1)
        draw(__builtin_ctzll(rest), b, i, n);
      for (int64_t done = 0; done < n; done += part) {
        tile(b, i + done, n - done < part ? n - done : part);
        // The noise of the next part.
        for (uint64_t rest = used >> kFirstDraw << kFirstDraw; rest; rest &= rest - 1)
          source[__builtin_ctzll(rest)] += part;
      }
    }
  }

  // All channels of `rows` positions.
  void rectangles(int64_t b, int64_t position, int rows) {
    const int fitting = (int)(kTile<T> / rows);
    const int most = fitting < a.channels ? fitting & -kChannelGroup : (int)a.channels;
    for (int64_t channel = 0; channel < a.channels; channel += most) {
      const int width = (int)(a.channels - channel < most ? a.channels - channel : most);
      for (uint64_t rest = used >> kFirstDraw << kFirstDraw; rest; rest &= rest - 1) {
        const int s = __builtin_ctzll(rest);
        const Draw draw = make_draw(sample.draws + 4 * (s - kFirstDraw));
        float* out = noise(s);
        rectangle_normals(list, key, draw, sample.seed, position, rows, positions, channel, width, out);
        finish_noise(s, out, rows * width);
      }
      // Rows of all channels follow each other in memory.
      const int together = width == a.channels ? rows : 1;
      for (int row = 0; row < rows; row += together) {
        for (uint64_t rest = used >> kFirstDraw << kFirstDraw; rest; rest &= rest - 1) {
          const int s = __builtin_ctzll(rest);
          source[s] = slot(s) + row * width;
        }
        tile(b, (position + row) * a.channels + channel, together * width);
      }
    }
  }

  // Where a draw's float32 normals go, and what makes them a source of the state type.
  float* noise(int s) { return (float*)slots[sizeof(T) == 4 ? s : kPartial]; }
  void finish_noise(int s, const float* normals, int64_t n) {
    if (sizeof(T) == 8) kWiden<T>[kFloat32](slot(s), normals, n);
    source[s] = slot(s);
  }

  static uint64_t bit(int s) { return (uint64_t)1 << s; }

  // Whether output o has a source for which `test` holds.
  template <class Test>
  bool any_source(int o, Test test) const {
    const Output& out = p.output[o];
    if (out.base >= 0 && test(out.base)) return true;
    for (int k = out.first; k < out.first + out.terms + out.noises; ++k) {
      if (test(p.source[k])) return true;
    }
    return false;
  }

  // Whether output o reads straight from the memory that a store to `target` overwrites.
  bool reads(int o, const Buffer& target) const {
    return any_source(o, [&](int s) {
      return s < kFirstOutput && a.column[s].data == target.data && a.column[s].dtype == a.state;
    });
  }

  bool needs(int o, int earlier) const {
    return any_source(o, [&](int s) { return s == kFirstOutput + earlier; });
  }

  void order_outputs() {
    bool is_wanted[kMaxOutputs] = {};
    for (int o = p.outputs - 1; o >= 0; --o) {
      is_wanted[o] = a.store[o].data || (a.z.data && o == p.network);
      for (int later = o + 1; later < p.outputs; ++later)
        is_wanted[o] = is_wanted[o] || (is_wanted[later] && needs(later, o));
    }
    uint8_t left[kMaxOutputs];
    int count = 0;
    for (int o = 0; o < p.outputs; ++o) {
      if (is_wanted[o]) left[count++] = (uint8_t)o;
    }
    while (count) {
      // The first one left reads none of the others.
      int pick = 0;
      bool safe = false;
      for (int i = 0; i < count && !safe; ++i) {
        safe = true;
        for (int j = 0; j < i; ++j) safe = safe && !needs(left[i], left[j]);
        for (int j = 0; j < count; ++j) safe = safe && (i == j || !reads(left[j], a.store[left[i]]));
        if (safe) pick = i;
      }
      const Buffer& store = a.store[left[pick]];
      direct[left[pick]] = safe && store.data && store.dtype == a.state;
      order[wanted++] = left[pick];
      for (--count; pick < count; ++pick) left[pick] = left[pick + 1];
    }
  }

  void gather(Terms<T>& terms, int first, int count) {
    for (int k = first; k < first + count; ++k) {
      if (is_present(sample.present, k)) terms.push(sample.coef[k], p.source[k]);
    }
  }

  void enter_sample(int64_t b) {
    sample = sample_args<T>(a, b);
    if (p.draws) key = make_key(sample.seed);
    if (entered && shared) return;
    entered = true;
    used = 0;
    auto mark = [&](const Terms<T>& terms) {
      for (int j = 0; j < terms.count; ++j) used |= bit(terms.source[j]);
    };
    for (int i = 0; i < wanted; ++i) {
      const Output& out = p.output[order[i]];
      Terms<T>& terms = result[order[i]];
      terms.count = 0;
      gather(terms, out.first, out.terms);
      if (out.base >= 0) terms.push(T(1), out.base);
      gather(terms, out.first + out.terms, out.noises);
      mark(terms);
    }
    c_in = a.z.data && is_present(sample.present, p.c_in) ? sample.coef[p.c_in] : T(1);
  }

  void sum(const Terms<T>& terms, T* out, int64_t n) {
    if (!terms.count) {
      memset(out, 0, (size_t)n * sizeof(T));
      return;
    }
    const T* in[kTerms];
    T c[kTerms];
    int done = 0, held = 0;
    while (done < terms.count) {
      for (; held < kTerms && done < terms.count; ++held, ++done) {
        in[held] = source[terms.source[done]];
        c[held] = terms.c[done];
      }
      // A partial sum stays in scratch: `out` may be a column that the next step reads.
      T* to = done == terms.count ? out : slot(kPartial);
      kCombine<T>[held](to, in, c, n);
      in[0] = to;
      c[0] = T(1);
      held = 1;
    }
  }

  void draw(int s, int64_t b, int64_t i, int64_t n) {
    const Draw draw = make_draw(sample.draws + 4 * (s - kFirstDraw));
    float* out = noise(s);
    if (!walk.flat && a.channels <= 1) {
      linear_normals(key, draw, i >> 2, n, out);
    } else {
      list.blocks.size = 0;
      // Flat: sample b is the whole batch, and `i` counts through the samples.
      int64_t index = walk.flat ? i / a.numel : b, first = walk.flat ? i % a.numel : i;
      for (int64_t place = 0; place < n; ++index, first = 0) {
        const int64_t count = a.numel - first < n - place ? a.numel - first : n - place;
        const int64_t seed = a.seeds[index * a.seeds_stride];
        list_channels(list, draw, seed, first, count, a.channels, positions, place, out);
        place += count;
      }
      flush(list, draw, out);
    }
    finish_noise(s, out, n);
  }

  // Output o into `out`, which may be a column that it reads.
  void make(int o, T* out, int64_t n) {
    const Output& output = p.output[o];
    sum(result[o], out, n);
    if (output.bound >= 0 && is_present(sample.present, output.bound))
      clamp_all(out, sample.coef[output.bound], n);
    if (output.scale >= 0 && is_present(sample.present, output.scale)) {
      const T* in = out;
      kCombine<T>[1](out, &in, sample.coef + output.scale, n);
    }
    source[kFirstOutput + o] = out;
  }

  void write(const Buffer& to, int64_t first, const T* from, T c, int64_t n) {
    char* out = (char*)to.data + first * kItemSize[to.dtype];
    const bool stream = walk.stream && ((uintptr_t)out & 63) == 0;
    (stream ? kNarrow<T, true> : kNarrow<T, false>)[to.dtype](out, from, c, n);
  }

  // Asks for memory that will be read soon; past the end it does no harm.
  static void prefetch(const char* at, int64_t bytes) {
    for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch(at + k);
  }

  // Elements [i, i + n) of sample b, whose noise is drawn already.
  void tile(int64_t b, int64_t i, int64_t n) {
    for (uint64_t rest = used & (bit(kFirstOutput) - 1); rest; rest &= rest - 1) {
      const int s = __builtin_ctzll(rest);
      const Buffer& column = a.column[s];
      const char* at = (const char*)column.data + (b * column.batch_stride + i) * kItemSize[column.dtype];
      source[s] = (const T*)at;
      if (walk.stream) prefetch(at + n * kItemSize[column.dtype], n * kItemSize[column.dtype]);
      if (column.dtype == a.state) continue;
      kWiden<T>[column.dtype](slot(s), at, n);
      source[s] = slot(s);
    }
    for (int j = 0; j < wanted; ++j) {
      const int o = order[j];
      const Buffer& store = a.store[o];
      make(o, direct[o] ? (T*)store.data + b * store.batch_stride + i : slot(kFirstOutput + o), n);
    }
    for (int j = 0; j < wanted; ++j) {
      const int o = order[j];
      const Buffer& store = a.store[o];
      if (store.data && !direct[o])
        write(store, b * store.batch_stride + i, source[kFirstOutput + o], T(1), n);
    }
    if (a.z.data) write_copies(b, i, source[kFirstOutput + p.network], n);
  }

  void write_copies(int64_t b, int64_t i, const T* from, int64_t n) {
    const int64_t size = kItemSize[a.z.dtype];
    auto first = [&](int64_t copy) { return (copy * a.batch + b) * a.z.batch_stride + i; };
    write(a.z, first(0), from, c_in, n);
    for (int64_t copy = 1; copy < a.copies; ++copy) {
      if (walk.stream) {
        write(a.z, first(copy), from, c_in, n);
      } else {
        memcpy((char*)a.z.data + first(copy) * size, (const char*)a.z.data + first(0) * size,
               (size_t)(n * size));
      }
    }
  }
};

// Samples of fewer elements than this, each with its own coefficients, go element by element.
constexpr int64_t kTiny = 4;

template <class T>
static void stage_range(const StageArgs& a, const Walk& walk, int64_t begin, int64_t end) {
  if (!walk.flat && a.numel < kTiny) {
    for (int64_t at = begin; at < end; ++at) stage_element<T>(a, at / a.numel, at % a.numel);
    return;
  }
  Launch<T> launch(a, walk);
  if (walk.flat) {
    launch.run(0, begin, end);
    return;
  }
  for (int64_t at = begin; at < end;) {
    const int64_t b = at / a.numel, first = at % a.numel;
    const int64_t count = a.numel - first < end - at ? a.numel - first : end - at;
    launch.run(b, first, first + count);
    at += count;
  }
}

void stage(const StageArgs& a, const Walk& walk, int64_t begin, int64_t end) {
  const ExactFloat exact;
  (a.state == kFloat64 ? stage_range<double> : stage_range<float>)(a, walk, begin, end);
#if FD_BITS
  if (walk.stream) _mm_sfence();
#endif
}

}  // namespace fastdiff::FD_ISA
