// The seam between the gram's units compiled per instruction set and what calls them.
#pragma once

#include "gram_args.h"

namespace fastdiff {

constexpr int kGramLanes = 128;
constexpr int64_t kGramChunk = 4 * kGramLanes * 8;

// How many chunks a sample has.
static inline int64_t gram_chunks(int64_t numel) { return (numel + kGramChunk - 1) / kGramChunk; }

// Sums the chunks [begin, end), counted through all samples, to the scalars of a sample of one chunk or to
// parts.
using GramSum = void (*)(const GramArgs& args, int64_t begin, int64_t end);
// Folds the parts of the samples [begin, end), and makes what follows from their sums.
using GramFinish = void (*)(const GramArgs& args, int64_t begin, int64_t end);

}  // namespace fastdiff
