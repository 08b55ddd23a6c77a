// The seam between the units compiled per instruction set and what calls them.
#pragma once

#include "stage.h"

namespace fastdiff {

// How a launch walks its memory, decided once by plan_walk().
struct Walk {
  // All samples share coefficients and lie one after another: they are walked as one long sample.
  bool flat;
  // The tensors do not fit in the last-level cache: outputs that are not read here bypass it.
  bool stream;
  // They come from far off: short tiles keep more of them on their way at a time.
  bool far;
};

// Runs the elements [begin, end) of the launch, counted through all samples (or through the flat one); a
// boundary inside a sample is a multiple of kAlign elements.
using StageRange = void (*)(const StageArgs& args, const Walk& walk, int64_t begin, int64_t end);

// Boundaries between threads: no smaller than a tile of either state type.
constexpr int64_t kAlign = 512;

}  // namespace fastdiff
