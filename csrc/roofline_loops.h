// The loops of the roofline, included once per instruction set with FD_ISA, FD_BITS and FD_TARGET defined.
//
// What limits such a loop in memory is how many lines the processor has asked for at once, and in the caches
// how many instructions it spends on a line. So there is one loop for each number of arrays, with nothing in
// it but loads and stores: one line of each array of narrow elements, and as many of each wide one as hold
// the same elements.

namespace fastdiff::FD_ISA {
namespace {

#define FD_INNER FD_TARGET __attribute__((always_inline)) inline

typedef uint64_t Lanes __attribute__((vector_size(FD_BITS / 8)));
// The same anywhere in memory.
typedef uint64_t Unaligned __attribute__((vector_size(FD_BITS / 8), aligned(1), may_alias));

FD_INNER void store_around(char* to, const Lanes& value) {
#if !defined(FD_X86)
  *(Unaligned*)to = value;
#elif FD_BITS == 256
  _mm256_stream_si256((__m256i*)to, (__m256i)value);
#else
  _mm_stream_si128((__m128i*)to, (__m128i)value);
#endif
}

template <Use use>
FD_INNER void touch_lanes(char* data, Lanes& seen) {
  if (use == kReads) seen |= *(const Unaligned*)data;
  if (use == kKept) *(Unaligned*)data = seen;
  if (use == kAround) store_around(data, seen);
}

// Folds, as compilers disagree on which loops they unroll.
template <Use use, size_t... I>
FD_INNER void touch_line(char* data, Lanes& seen, std::index_sequence<I...>) {
  (touch_lanes<use>(data + I * sizeof(Lanes), seen), ...);
}

template <Use use>
FD_INNER void touch_line(char* data, Lanes& seen) {
  touch_line<use>(data, seen, std::make_index_sequence<kLine / sizeof(Lanes)>());
}

template <Use use>
FD_INNER void touch_bytes(char* data, int64_t bytes, Lanes& seen) {
  int64_t at = 0;
  for (; at + kLine <= bytes; at += kLine) touch_line<use>(data + at, seen);
  for (; at < bytes; ++at) {
    if (use == kReads) seen |= kEveryByte * (uint8_t)data[at];
    if (use != kReads) data[at] = (char)seen[0];
  }
}

// Any arrays, from element `first` on. Slower, as it looks up everything.
FD_TARGET void finish(const Pass& pass, int64_t first) {
  for (; first < pass.elements; first += kTile) {
    const int64_t count = pass.elements - first < kTile ? pass.elements - first : kTile;
    Lanes seen = {};
    for (const Stream& s : pass.streams) {
      char* data = s.data + first * s.item;
      if (s.use == kReads) touch_bytes<kReads>(data, count * s.item, seen);
      if (s.use == kKept) touch_bytes<kKept>(data, count * s.item, seen);
      if (s.use == kAround) touch_bytes<kAround>(data, count * s.item, seen);
    }
  }
#ifdef FD_X86
  _mm_sfence();
#endif
}

FD_TARGET void touch_any(const Pass& pass) { finish(pass, 0); }

// Lines I of some arrays that have K of them side by side for each line of narrow elements, the first at
// `at`.
template <Use use, int64_t K, size_t... I>
FD_INNER void touch_lines(char* const* data, int64_t at, Lanes& seen, std::index_sequence<I...>) {
  (touch_line<use>(data[I / K] + at * K + I % K * kLine, seen), ...);
}

template <int64_t K, size_t... I>
FD_INNER void ask_for_lines(char* const* data, int64_t at, std::index_sequence<I...>) {
  (__builtin_prefetch(data[I / K] + (at + kAhead) * K + I % K * kLine), ...);
}

template <int Arrays, int K>
using LinesOf = std::make_index_sequence<Arrays * K>;

// As many arrays as Pass.count says, in its order; a wide element is K narrow ones.
template <int K, int RW, int RN, int CW, int CN, int AW, int AN>
FD_TARGET void touch(const Pass& pass) {
  constexpr int kKeptAt = RW + RN, kAroundAt = kKeptAt + CW + CN, kArrays = kAroundAt + AW + AN;
  char* data[kArrays];
  for (int i = 0; i < kArrays; ++i) data[i] = pass.streams[i].data;
  char* const* kept = data + kKeptAt;
  char* const* around = data + kAroundAt;
  const int64_t item = pass.narrow, bytes = pass.elements * item & -kLine;
  for (int64_t at = 0; at < bytes; at += kLine) {
    Lanes seen = {};
    if (AW + AN) {
      ask_for_lines<K>(data, at, LinesOf<RW, K>());
      ask_for_lines<1>(data + RW, at, LinesOf<RN, 1>());
    }
    touch_lines<kReads, K>(data, at, seen, LinesOf<RW, K>());
    touch_lines<kReads, 1>(data + RW, at, seen, LinesOf<RN, 1>());
    touch_lines<kKept, K>(kept, at, seen, LinesOf<CW, K>());
    touch_lines<kKept, 1>(kept + CW, at, seen, LinesOf<CN, 1>());
    touch_lines<kAround, K>(around, at, seen, LinesOf<AW, K>());
    touch_lines<kAround, 1>(around + AW, at, seen, LinesOf<AN, 1>());
  }
  finish(pass, bytes / item);
}

// The loop whose numbers begin with `Known`.
template <int... Known>
Loop find(const int* rest);

template <int... Known, int... Next>
Loop find_next(const int* rest, std::integer_sequence<int, Next...>) {
  Loop found = nullptr;
  (void)((*rest == Next && (found = find<Known..., Next>(rest + 1), true)) || ...);
  return found;
}

template <int... Known>
Loop find(const int* rest) {
  if constexpr (sizeof...(Known) < 7) {
    return find_next<Known...>(rest, std::make_integer_sequence<int, most(Known...) + 1>());
  } else if constexpr (occurs(Known...)) {
    return touch<Known...>;
  }
  return nullptr;
}

Loop find_loop(const Pass& pass) {
  const Loop found = pass.ratio == 1   ? find<1>(pass.count)
                     : pass.ratio == 2 ? find<2>(pass.count)
                     : pass.ratio == 4 ? find<4>(pass.count)
                                       : nullptr;
  return found ? found : touch_any;
}

#undef FD_INNER

}  // namespace
}  // namespace fastdiff::FD_ISA
