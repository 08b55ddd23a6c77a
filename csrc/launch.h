// One launch on all its threads, and the table through which the torch ops reach it.
#pragma once

#include "gram_args.h"
#include "stage.h"

namespace fastdiff {

// torch's own thread pool, as its stable C interface has it; returns nonzero on failure. A second pool in the
// process would fight the first one for the cores.
using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, ParallelBody body, void* context);

// Shared by the host module, which owns it, and the op library, which is handed its address.
struct KernelTable {
  uint64_t abi;
  // False if the thread pool failed; what was written is then unknown.
  bool (*stage)(const StageArgs& args, int64_t threads);
  // The same; `parts` of the arguments is not looked at.
  bool (*gram)(const GramArgs& args, int64_t threads);
  // Null until the op library sets it; without it everything runs on the calling thread.
  ParallelFor parallel_for;
};

// Changes whenever the arguments or this table do, so that two files of different builds refuse each other.
constexpr uint64_t kKernelAbi = 2 ^ (uint64_t)sizeof(StageArgs) << 32 ^ (uint64_t)sizeof(GramArgs) << 48;

KernelTable& kernel_table();

// The instruction sets this machine can run, slowest first; the last is chosen at start.
int isa_count();
const char* isa_name(int i);
int isa_chosen();
void isa_choose(int i);

}  // namespace fastdiff
