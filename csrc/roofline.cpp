// Sorts the streams of a launch and finds the loop that was compiled for them.
#include "roofline.h"

#include <algorithm>
#include <utility>

#ifdef FD_X86
#include <immintrin.h>
#endif

namespace fastdiff {
namespace {

constexpr int64_t kLine = 64;
// How far ahead, in bytes of a narrow array, a pass around the caches asks for what it will read.
constexpr int64_t kAhead = 512;
// Elements that the loop for any arrays reads before it overwrites the first of them.
constexpr int64_t kTile = 256;
constexpr uint64_t kEveryByte = 0x0101010101010101;

using Loop = void (*)(const Pass&);

// Loops are compiled for the numbers of arrays that launches have. Of one size: up to four reads and four
// writes. Of two: one or two reads of each, at most one wide write, which is kept, and one or two narrow ones
// of one use.
constexpr bool occurs(int ratio, int read_wide, int read, int, int kept, int, int around) {
  if (ratio == 1) return read && kept + around >= 1 && kept + around <= 4;
  return read_wide && read && !kept != !around;
}

// The most arrays of the next sort, where those before are known.
template <class... Known>
constexpr int most(int ratio, Known...) {
  constexpr int kSame[] = {0, 4, 0, 4, 0, 4, 0}, kMixed[] = {2, 2, 1, 2, 0, 2, 0};
  return (ratio == 1 ? kSame : kMixed)[sizeof...(Known)];
}

}  // namespace
}  // namespace fastdiff

#define FD_ISA scalar
#define FD_BITS 128
#define FD_TARGET
#include "roofline_loops.h"
#ifdef FD_X86
#undef FD_ISA
#undef FD_BITS
#undef FD_TARGET
#define FD_ISA avx2
#define FD_BITS 256
#define FD_TARGET __attribute__((target("avx2")))
#include "roofline_loops.h"
#endif

namespace fastdiff {
namespace {

// With the widest instructions of this machine, whichever the kernels are told to use. Wider ones than AVX2
// would not have more lines on their way.
Loop widest_loop(const Pass& pass) {
#ifdef FD_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) return avx2::find_loop(pass);
#endif
  return scalar::find_loop(pass);
}

// Whether a launch could store to it around the caches: nobody reads it, and it begins with a line.
bool goes_around(const Stream& write, const std::vector<Stream>& reads) {
  const auto same = [&](const Stream& read) { return read.data == write.data; };
  return std::none_of(reads.begin(), reads.end(), same) && (uintptr_t)write.data % kLine == 0;
}

Pass make_pass(const std::vector<Stream>& reads, const std::vector<Stream>& writes, int64_t elements,
               bool bypass) {
  Pass pass;
  pass.elements = elements;
  pass.streams = reads;
  for (Stream write : writes) {
    write.use = bypass && goes_around(write, reads) ? kAround : kKept;
    pass.streams.push_back(write);
  }
  std::stable_sort(pass.streams.begin(), pass.streams.end(), [](const Stream& a, const Stream& b) {
    return a.use != b.use ? a.use < b.use : a.item > b.item;
  });
  int64_t wide = 0;
  if (!pass.streams.empty()) pass.narrow = pass.streams[0].item;
  for (const Stream& s : pass.streams)
    pass.narrow = std::min(pass.narrow, s.item), wide = std::max(wide, s.item);
  pass.ratio = wide ? wide / pass.narrow : 1;
  for (const Stream& s : pass.streams) {
    ++pass.count[2 * s.use + (s.item == pass.narrow)];
    if (s.item != wide && s.item != pass.narrow) pass.ratio = 0;
  }
  pass.loop = widest_loop(pass);
  return pass;
}

}  // namespace

Streams::Streams(const std::vector<Stream>& reads, const std::vector<Stream>& writes, int64_t elements)
    : cached_(make_pass(reads, writes, elements, false)),
      bypassing_(make_pass(reads, writes, elements, true)) {}

}  // namespace fastdiff
