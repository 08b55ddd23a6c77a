// What the memory allows: the streams of a launch, with nothing computed. For benchmarks.
#pragma once

#include <cstdint>
#include <vector>

namespace fastdiff {

// A dense array of `item` bytes for each element.
struct Stream {
  char* data;
  int64_t item;
};

// Everything that one launch reads and overwrites.
struct Streams {
  std::vector<Stream> reads, writes;
  int64_t elements;

  // Reads every byte once and overwrites every byte once, in tiles, as a launch on one thread does. With `bypass`,
  // arrays that are only written go around the caches.
  void touch(bool bypass) const;
};

}  // namespace fastdiff
