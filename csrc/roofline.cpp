#include "roofline.h"

#include <string.h>

#ifdef FD_X86
#include <emmintrin.h>
#define FD_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define FD_CLONES
#endif

namespace fastdiff {

namespace {

// Elements that are read before the first of them is written: the fastest choice measured, where stores bypass
// the caches and where they do not.
constexpr int64_t kBypassTile = 256, kCachedTile = 1024;

// 32 bytes anywhere in memory.
typedef uint64_t Lanes __attribute__((vector_size(32)));
typedef uint64_t Unaligned __attribute__((vector_size(32), aligned(1), may_alias));
constexpr int64_t kLanes = sizeof(Lanes);

#define FD_READ(at, i) *(const Unaligned*)(data[i] + (at))

// Up to four arrays side by side, so that the memory has as much to do at once as in a launch.
FD_CLONES void read_all(const char* const* data, int arrays, int64_t bytes, Lanes* seen) {
  Lanes sum[4] = {};
  int64_t at = 0;
  if (arrays == 1) {
    for (; at + kLanes <= bytes; at += kLanes) sum[0] |= FD_READ(at, 0);
  } else if (arrays == 2) {
    for (; at + kLanes <= bytes; at += kLanes) sum[0] |= FD_READ(at, 0), sum[1] |= FD_READ(at, 1);
  } else if (arrays == 3) {
    for (; at + kLanes <= bytes; at += kLanes) {
      sum[0] |= FD_READ(at, 0), sum[1] |= FD_READ(at, 1), sum[2] |= FD_READ(at, 2);
    }
  } else {
    for (; at + kLanes <= bytes; at += kLanes) {
      sum[0] |= FD_READ(at, 0), sum[1] |= FD_READ(at, 1), sum[2] |= FD_READ(at, 2), sum[3] |= FD_READ(at, 3);
    }
  }
  for (; at < bytes; ++at) {
    for (int i = 0; i < arrays; ++i) sum[i][0] |= (uint64_t)(uint8_t)data[i][at];
  }
  *seen |= sum[0] | sum[1] | sum[2] | sum[3];
}

FD_CLONES void write_all(char* data, int64_t bytes, const Lanes* seen) {
  const Lanes value = *seen;
  int64_t at = 0;
  for (; at + kLanes <= bytes; at += kLanes) *(Unaligned*)(data + at) = value;
  memcpy(data + at, &value, (size_t)(bytes - at));
}

void write_around(char* data, int64_t bytes, const Lanes* seen) {
#ifdef FD_X86
  if (((uintptr_t)data & 15) == 0) {
    __m128i half[2];
    memcpy(half, seen, sizeof(half));
    int64_t at = 0;
    for (; at + kLanes <= bytes; at += kLanes) {
      _mm_stream_si128((__m128i*)(data + at), half[0]);
      _mm_stream_si128((__m128i*)(data + at + 16), half[1]);
    }
    return write_all(data + at, bytes - at, seen);
  }
#endif
  write_all(data, bytes, seen);
}

// Arrays of one item size, at most four.
struct Group {
  int64_t item;
  int arrays;
  char* data[4];
};

std::vector<Group> grouped(const std::vector<Stream>& streams) {
  std::vector<Group> groups;
  for (const Stream& stream : streams) {
    if (groups.empty() || groups.back().item != stream.item || groups.back().arrays == 4) {
      groups.push_back({stream.item, 0, {}});
    }
    groups.back().data[groups.back().arrays++] = stream.data;
  }
  return groups;
}

}  // namespace

void Streams::touch(bool bypass) const {
  std::vector<bool> around;
  for (const Stream& write : writes) {
    bool only_written = true;
    for (const Stream& read : reads) only_written = only_written && read.data != write.data;
    around.push_back(bypass && only_written);
  }
  const std::vector<Group> groups = grouped(reads);
  const int64_t tile = bypass ? kBypassTile : kCachedTile;
  for (int64_t first = 0; first < elements; first += tile) {
    const int64_t count = elements - first < tile ? elements - first : tile;
    Lanes seen = {};
    for (const Group& group : groups) {
      const char* data[4];
      for (int i = 0; i < group.arrays; ++i) data[i] = group.data[i] + first * group.item;
      read_all(data, group.arrays, count * group.item, &seen);
    }
    for (size_t i = 0; i < writes.size(); ++i) {
      (around[i] ? write_around : write_all)(writes[i].data + first * writes[i].item, count * writes[i].item, &seen);
    }
  }
#ifdef FD_X86
  _mm_sfence();
#endif
}

}  // namespace fastdiff
