// Runs a CPU kernel on a few elements far inside a sample too large to allocate, and prints what it writes.
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "kernel.h"
#include "program.h"

namespace fastdiff::FD_ISA {
void stage(const StageArgs& args, const Walk& walk, int64_t begin, int64_t end);
}

// Arguments: elements in the sample, channels (1: row-major), first place, number of places.
int main(int, char** argv) {
  using namespace fastdiff;
  const int64_t numel = atoll(argv[1]), channels = atoll(argv[2]), begin = atoll(argv[3]),
                count = atoll(argv[4]);
  static const int64_t program[] = {0, 1, -1, -1, 0, 0, 1, -1, 0, 1, 0};
  static const int64_t seed = 1234567890123456789, draw[4] = {1, 2, 3, 4};
  static const float one = 1.0f;
  std::vector<float> out((size_t)count);
  StageArgs args{};
  if (read_program(program, sizeof(program) / sizeof(*program), args.program)) return 1;
  args.batch = 1;
  args.numel = numel;
  args.channels = channels;
  args.state = kFloat32;
  args.coef = &one;
  args.seeds = &seed;
  args.draws = draw;
  args.store[0] = {(void*)((uintptr_t)out.data() - (uintptr_t)begin * sizeof(float)), numel, kFloat32};
  FD_ISA::stage(args, Walk{false, false}, begin, begin + count);
  for (const float value : out) printf("%a\n", value);
}
