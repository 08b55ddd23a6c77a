// What the memory allows: the streams of a launch, with nothing computed. For benchmarks.
#pragma once

#include <cstdint>
#include <vector>

namespace fastdiff {

// What is done to an array: it is read, overwritten through the caches, or overwritten around them.
enum Use { kReads, kKept, kAround };

// A dense array of `item` bytes for each element.
struct Stream {
  char* data;
  int64_t item;
  Use use = kReads;
};

// One pass over all arrays.
struct Pass {
  // By use and then by size, wide elements first. Where all have one size, they are narrow.
  std::vector<Stream> streams;
  // Wide and narrow ones of each use.
  int count[6] = {};
  // Bytes of a narrow element, and how many narrow ones a wide one is; 0 if there are more than two sizes.
  int64_t narrow = 1, ratio = 1;
  int64_t elements = 0;
  void (*loop)(const Pass& pass) = nullptr;
};

// Everything that one launch reads and overwrites.
class Streams {
 public:
  Streams(const std::vector<Stream>& reads, const std::vector<Stream>& writes, int64_t elements);

  // Reads every byte once and overwrites every byte once, side by side as a launch on one thread does. With
  // `bypass`, arrays that are only written go around the caches.
  void touch(bool bypass) const {
    const Pass& pass = bypass ? bypassing_ : cached_;
    pass.loop(pass);
  }

 private:
  Pass cached_, bypassing_;
};

}  // namespace fastdiff
