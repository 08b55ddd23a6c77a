// Normals in tiles: the vector form of normal.h.
//
// Philox runs in 64-bit lanes whose upper halves are left dirty: a 32 x 32 -> 64 bit product reads only the
// lower halves, so no lane is ever cleaned. Even and odd lanes of a vector of words are two such chains.
#pragma once

#include "vec.h"

namespace fastdiff::FD_ISA {

// The most normals asked for at once; tiles begin at its multiples.
constexpr int kNoiseTile = 512;

// Blocks whose elements do not follow each other, each with its own key.
struct Blocks {
  static constexpr int kMost = 128;
  alignas(64) uint32_t low[kMost], high[kMost], key_low[kMost], key_high[kMost];
  int size;
};

#if FD_BITS == 0

struct Key {
  int64_t seed;
};

FD_INLINE Key make_key(int64_t seed) { return {seed}; }

// Normals of elements 4 * block + [0, count); count is rounded up to whole blocks.
static void linear_normals(const Key& key, const Draw& draw, int64_t block, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 4) {
    float normal[4];
    normals_of_block(key.seed, draw, block + i / 4, normal);
    memcpy(out + i, normal, sizeof(normal));
  }
}

constexpr int kChannelGroup = 1;

[[maybe_unused]] static void channel_normals(const Key& key, const Draw& draw, int64_t block, int64_t stride,
                                             int groups, int64_t row, float* out) {
  for (int i = 0; i < groups; ++i) {
    float normal[4];
    normals_of_block(key.seed, draw, block + i * stride, normal);
    for (int j = 0; j < 4; ++j) out[j * row + i] = normal[j];
  }
}

// Four normals for every block of a list.
[[maybe_unused]] static void block_normals(const Blocks& list, const Draw& draw, float* out) {
  for (int i = 0; i < list.size; ++i) {
    uint32_t word[4] = {list.low[i], list.high[i] | draw.purpose_tensor, draw.draw, draw.sub_draw_format};
    float normal[4];
    philox(word, list.key_low[i], list.key_high[i]);
    normals_from_words(word, normal);
    memcpy(out + 4 * i, normal, sizeof(normal));
  }
}

#else

using I = Words::I;
using F = Words::F;

// N vectors that go through the same steps side by side: one chain alone would wait for its own results.
template <class V, int N>
struct Many {
  V v[N];
};
template <int N>
using Ints = Many<I, N>;
template <int N>
using Floats = Many<F, N>;

// Applies f to the vectors of its arguments, one after the other.
template <int N, class Function>
FD_INLINE auto each(Function f) {
  Many<decltype(f(0)), N> out;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) out.v[i] = f(i);
  return out;
}

template <int N>
FD_INLINE Floats<N> fmas(const Floats<N>& a, const Floats<N>& b, float c) {
  return each<N>([&](int i)
                     __attribute__((always_inline)) { return Words::fma(a.v[i], b.v[i], Words::setf(c)); });
}

template <int N>
FD_INLINE Floats<N> fmas(const Floats<N>& a, const Floats<N>& b, const Floats<N>& c) {
  return each<N>([&](int i) __attribute__((always_inline)) { return Words::fma(a.v[i], b.v[i], c.v[i]); });
}

template <int N>
FD_INLINE Floats<N> fmas(const Floats<N>& a, float b, const Floats<N>& c) {
  return each<N>([&](int i)
                     __attribute__((always_inline)) { return Words::fma(a.v[i], Words::setf(b), c.v[i]); });
}

template <int N>
FD_INLINE Floats<N> muls(const Floats<N>& a, const Floats<N>& b) {
  return each<N>([&](int i) __attribute__((always_inline)) { return Words::mul(a.v[i], b.v[i]); });
}

template <int N>
FD_INLINE Floats<N> muls(const Floats<N>& a, float b) {
  return each<N>([&](int i) __attribute__((always_inline)) { return Words::mul(a.v[i], Words::setf(b)); });
}

template <int N>
FD_INLINE Floats<N> fill(float a) {
  return each<N>([&](int) __attribute__((always_inline)) { return Words::setf(a); });
}

template <int N>
FD_INLINE Floats<N> radii(const Ints<N>& word) {
  const auto u = each<N>([&](int i) __attribute__((always_inline)) {
    const F whole = Words::from_unsigned(word.v[i]);
    return Words::as_word(Words::fma(whole, Words::setf(kWordScale), Words::setf(kWordHalf)));
  });
  const auto exponent = each<N>([&](int i) __attribute__((always_inline)) {
    return Words::and_(Words::sub(u.v[i], Words::set(kLogSplit)), Words::set(kExponentMask));
  });
  const auto f = each<N>([&](int i) __attribute__((always_inline)) {
    return Words::addf(Words::as_float(Words::sub(u.v[i], exponent.v[i])), Words::setf(-1.0f));
  });
  const auto s = muls(f, f);
  auto r = fmas(fill<N>(kLogEven[0]), s, kLogEven[1]);
  auto t = fmas(fill<N>(kLogOdd[0]), s, kLogOdd[1]);
  r = fmas(r, s, kLogEven[2]);
  t = fmas(t, s, kLogOdd[2]);
  r = fmas(r, s, kLogEven[3]);
  r = fmas(t, f, r);
  r = fmas(r, f, kLogTail[0]);
  r = fmas(r, f, kLogTail[1]);
  r = fmas(r, s, f);
  // Exact rewritings: the exponent's scale is a power of two and moves to the constant; -2 x is (-x) + (-x).
  return each<N>([&](int i) __attribute__((always_inline)) {
    const F scaled = Words::from_signed(exponent.v[i]);
    const F half = Words::negated_fma(scaled, Words::setf(kExponentScale * kLn2), r.v[i]);
    return Words::square_root(Words::addf(half, half));
  });
}

// r times the cosine and the sine of 2 pi word / 2^32.
template <int N>
FD_INLINE void turn(const Floats<N>& radius, const Ints<N>& word, Floats<N>& cosine, Floats<N>& sine) {
  const auto turned = each<N>(
      [&](int i) __attribute__((always_inline)) { return Words::add(word.v[i], Words::set(kEighthTurn)); });
  // word - (quadrant << 30), by clearing the two quadrant bits of the turned word
  const auto offset = each<N>([&](int i) __attribute__((always_inline)) {
    const I inside = Words::and_(turned.v[i], Words::set(kQuarterTurn - 1));
    return Words::from_signed(Words::sub(inside, Words::set(kEighthTurn)));
  });
  const auto t = muls(offset, kTurnScale);
  const auto s = muls(t, t);
  auto c = fmas(fill<N>(kCos[0]), s, kCos[1]);
  auto p = fmas(fill<N>(kSin[0]), s, kSin[1]);
  c = fmas(c, s, kCos[2]);
  p = fmas(p, s, kSin[2]);
  c = fmas(c, s, kCos[3]);
  c = fmas(c, s, kCos[4]);
  const auto d = fmas(muls(p, s), t, muls(t, kPi));
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    const I next = Words::add(turned.v[i], Words::set(kQuarterTurn));
    F even = c.v[i], odd = d.v[i];
    Words::swap(Words::left<1>(turned.v[i]), even, odd);
    cosine.v[i] = Words::mul(radius.v[i], Words::flip_sign(even, next));
    sine.v[i] = Words::mul(radius.v[i], Words::flip_sign(odd, turned.v[i]));
  }
}

// Normals from words: `pairs` times four vectors of words 0, 1, 2, 3 of as many blocks, to four vectors of
// lanes 0, 1, 2, 3 of these blocks.
template <class Store>
FD_INLINE void box_muller(const I* word, int pairs, Store store) {
  for (int pair = 0; pair < pairs; ++pair, word += 4) {
    const Ints<2> radius_words = {{word[0], word[2]}}, angle_words = {{word[1], word[3]}};
    Floats<2> cosine, sine;
    turn(radii(radius_words), angle_words, cosine, sine);
    F z[4] = {cosine.v[0], sine.v[0], cosine.v[1], sine.v[1]};
    store(pair, z);
  }
}

template <int N>
FD_INLINE void philox_rounds(I (&w)[N][4], const I (*low)[kPhiloxRounds], const I (*high)[kPhiloxRounds],
                             int keys, int first) {
  const I m0 = Words::set64(kPhiloxMultiplier0), m1 = Words::set64(kPhiloxMultiplier1);
#pragma GCC unroll 16
  for (int round = first; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const I p0 = Words::product(w[i][0], m0), p1 = Words::product(w[i][2], m1);
      w[i][0] = Words::xor3(Words::high(p1), w[i][1], low[i % keys][round]);
      w[i][2] = Words::xor3(Words::high(p0), w[i][3], high[i % keys][round]);
      w[i][1] = p1;
      w[i][3] = p0;
    }
  }
}

// The round keys of one sample, in every 64-bit lane.
struct Key {
  I low[kPhiloxRounds], high[kPhiloxRounds];
  uint32_t low_word, high_word;
};

FD_INLINE Key make_key(int64_t seed) {
  Key key;
  key.low_word = (uint32_t)seed;
  key.high_word = (uint32_t)((uint64_t)seed >> 32);
  for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
    key.low[round] = Words::set64(key.low_word + round * kPhiloxWeyl0);
    key.high[round] = Words::set64(key.high_word + round * kPhiloxWeyl1);
  }
  return key;
}

// Where only the block's low word varies, half of the first two rounds is the same for all: done once, on
// scalars.
struct Start {
  uint64_t round0_high, round1_low, round1_high, round2_low;
};

FD_INLINE Start make_start(const Key& key, const Draw& draw, uint32_t block_high) {
  const uint64_t p1 = (uint64_t)kPhiloxMultiplier1 * draw.draw;
  const uint32_t w0 = (uint32_t)(p1 >> 32) ^ (block_high | draw.purpose_tensor) ^ key.low_word;
  const uint64_t p0 = (uint64_t)kPhiloxMultiplier0 * w0;
  return {draw.sub_draw_format ^ key.high_word, (uint32_t)p1 ^ (key.low_word + kPhiloxWeyl0),
          (uint32_t)(p0 >> 32) ^ (key.high_word + kPhiloxWeyl1), (uint32_t)p0};
}

template <int N>
FD_INLINE void philox_from(const Start& start, const Key& key, const I (&block)[N], I (&w)[N][4]) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    const I q = Words::product(block[i], Words::set64(kPhiloxMultiplier0));
    const I second = Words::xor_(Words::high(q), Words::set64(start.round0_high));
    const I p1 = Words::product(second, Words::set64(kPhiloxMultiplier1));
    w[i][0] = Words::xor_(Words::high(p1), Words::set64(start.round1_low));
    w[i][1] = p1;
    w[i][2] = Words::xor_(q, Words::set64(start.round1_high));
    w[i][3] = Words::set64(start.round2_low);
  }
  philox_rounds(w, &key.low, &key.high, 1, 2);
}

// Words of P pairs of chains, from block `at` on.
template <int P>
FD_INLINE void words_of_pairs(const Start& start, const Key& key, I& at, I* word) {
  I blocks[2 * P], w[2 * P][4];
#pragma GCC unroll 4
  for (int pair = 0; pair < P; ++pair) {
    blocks[2 * pair] = Words::add64(at, Words::even_blocks());
    blocks[2 * pair + 1] = Words::add64(at, Words::odd_blocks());
    at = Words::add64(at, Words::set64(Words::kWidth));
  }
  philox_from(start, key, blocks, w);
#pragma GCC unroll 16
  for (int i = 0; i < 4 * P; ++i) word[i] = Words::merge(w[i / 4 * 2][i % 4], w[i / 4 * 2 + 1][i % 4]);
}

// Normals of elements 4 * block + [0, count), at most a tile; count is rounded up to whole pairs of chains.
// The low word of the block does not overflow on the way, because `block` is a multiple of a tile's.
static void linear_normals(const Key& key, const Draw& draw, int64_t block, int64_t count, float* out) {
  constexpr int64_t kPair = 4 * Words::kWidth;
  const Start start = make_start(key, draw, (uint32_t)(block >> 32));
  // Words and normals are computed in separate loops, each with few enough values to stay in registers.
  I word[4 * kNoiseTile / kPair];
  I at = Words::set64((uint32_t)block);
  const int pairs = (int)((count + kPair - 1) / kPair);
  int done = 0;
  for (; done + 3 <= pairs; done += 3) words_of_pairs<3>(start, key, at, word + 4 * done);
  for (; done < pairs; ++done) words_of_pairs<1>(start, key, at, word + 4 * done);
  box_muller(word, pairs, [=](int pair, F(&z)[4]) __attribute__((always_inline)) {
    Words::transpose(z);
    for (int j = 0; j < 4; ++j) Words::storef(out + pair * kPair + j * Words::kWidth, z[j]);
  });
}

// How many blocks channel_normals() takes at once.
constexpr int kChannelGroup = Words::kWidth;

// Normals of whole blocks that lie `stride` apart, as many as a vector has lanes, times `groups`: lane j of
// block i goes to out[j * row + i].
[[maybe_unused]] static void channel_normals(const Key& key, const Draw& draw, int64_t block, int64_t stride,
                                             int groups, int64_t row, float* out) {
  const I draw_word = Words::set64(draw.draw), format = Words::set64(draw.sub_draw_format);
  I word[kNoiseTile / Words::kWidth];
  for (int group = 0; group < groups; ++group) {
    alignas(64) uint32_t low[Words::kWidth], high[Words::kWidth];
    for (int i = 0; i < Words::kWidth; ++i, block += stride) {
      low[i] = (uint32_t)block;
      high[i] = (uint32_t)(block >> 32) | draw.purpose_tensor;
    }
    const I first = Words::load(low), second = Words::load(high);
    I w[2][4] = {{first, second, draw_word, format},
                 {Words::high(first), Words::high(second), draw_word, format}};
    philox_rounds(w, &key.low, &key.high, 1, 0);
    for (int j = 0; j < 4; ++j) word[4 * group + j] = Words::merge(w[0][j], w[1][j]);
  }
  box_muller(word, groups, [=](int group, F(&z)[4]) __attribute__((always_inline)) {
    for (int j = 0; j < 4; ++j) Words::storef(out + j * row + group * Words::kWidth, z[j]);
  });
}

// Four normals for every block of a list, to whole vectors of blocks.
[[maybe_unused]] static void block_normals(const Blocks& list, const Draw& draw, float* out) {
  const I draw_word = Words::set64(draw.draw), format = Words::set64(draw.sub_draw_format);
  I word[4 * Blocks::kMost / Words::kWidth];
  int pairs = 0;
  for (int i = 0; i < list.size; i += Words::kWidth, ++pairs) {
    const I block = Words::load(list.low + i), key_low = Words::load(list.key_low + i);
    const I second = Words::add(Words::load(list.high + i), Words::set(draw.purpose_tensor));
    const I key_high = Words::load(list.key_high + i);
    I low[2][kPhiloxRounds], high[2][kPhiloxRounds];
#pragma GCC unroll 16
    for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
      low[0][round] = Words::add(key_low, Words::set(round * kPhiloxWeyl0));
      high[0][round] = Words::add(key_high, Words::set(round * kPhiloxWeyl1));
      low[1][round] = Words::high(low[0][round]);
      high[1][round] = Words::high(high[0][round]);
    }
    I w[2][4] = {{block, second, draw_word, format},
                 {Words::high(block), Words::high(second), draw_word, format}};
    philox_rounds(w, low, high, 2, 0);
    for (int j = 0; j < 4; ++j) word[4 * pairs + j] = Words::merge(w[0][j], w[1][j]);
  }
  box_muller(word, pairs, [=](int pair, F(&z)[4]) __attribute__((always_inline)) {
    Words::transpose(z);
    Words::store_blocks(out + pair * 4 * Words::kWidth, z);
  });
}

#endif

}  // namespace fastdiff::FD_ISA
