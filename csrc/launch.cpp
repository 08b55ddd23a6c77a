// Chooses the instruction set, decides how a launch walks memory, and splits it between threads.
#include "launch.h"

#include <unistd.h>

#include <atomic>
#include <vector>

#include "gram_range.h"
#include "kernel.h"

namespace fastdiff {

struct Kernels {
  StageRange stage;
  GramSum gram_sum;
  GramFinish gram_finish;
};

#define FD_DECLARE(isa)                                                            \
  namespace isa {                                                                  \
  void stage(const StageArgs& args, const Walk& walk, int64_t begin, int64_t end); \
  void gram_sum(const GramArgs& args, int64_t begin, int64_t end);                 \
  void gram_finish(const GramArgs& args, int64_t begin, int64_t end);              \
  constexpr Kernels kernels = {stage, gram_sum, gram_finish};                      \
  }
FD_DECLARE(scalar)
#ifdef FD_X86
FD_DECLARE(avx2)
FD_DECLARE(avx512)
#endif

namespace {

// Fewer elements than this are not worth waking a thread for.
constexpr int64_t kUnit = 16384;
// From here on samples hold whole tiles, and noise is drawn faster sample by sample than through lists of
// blocks.
constexpr int64_t kFlatNoise = 512;

// A launch that moves more than this gains by short tiles, one that moves less loses (measured on Zen 3).
constexpr int64_t kNearBytes = 16 << 20;

struct Isa {
  const char* name;
  Kernels kernels;
};

struct Isas {
  Isa isa[3];
  int count = 0;
  // Chosen anew while other threads launch, which then run one or the other: both give the same bits.
  std::atomic<int> chosen{0};

  Isas() {
    push("scalar", scalar::kernels);
#ifdef FD_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      push("avx2", avx2::kernels);
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        push("avx512", avx512::kernels);
      }
    }
#endif
    chosen = count - 1;
  }

  void push(const char* name, const Kernels& kernels) { isa[count++] = {name, kernels}; }

  const Kernels& kernels() const { return isa[chosen.load(std::memory_order_relaxed)].kernels; }
};

Isas& isas() {
  static Isas all;
  return all;
}

int64_t cache_bytes() {
  static const int64_t bytes = [] {
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
    const long size = 0;
#endif
    return size > 0 ? (int64_t)size : (int64_t)32 << 20;
  }();
  return bytes;
}

int64_t bytes_moved(const StageArgs& a) {
  int64_t item = a.z.data ? a.copies * kItemSize[a.z.dtype] : 0;
  for (int c = 0; c < a.program.columns; ++c) item += kItemSize[a.column[c].dtype];
  for (int o = 0; o < a.program.outputs; ++o) item += a.store[o].data ? kItemSize[a.store[o].dtype] : 0;
  return item * a.batch * a.numel;
}

bool dense(const StageArgs& a, const Buffer& buffer) {
  return !buffer.data || buffer.batch_stride == a.numel;
}

Walk plan_walk(const StageArgs& a) {
  bool flat =
      a.batch > 1 && a.coef_stride == 0 && a.present_stride == 0 && a.draws_stride == 0 && dense(a, a.z);
  if (a.program.draws && a.numel >= kFlatNoise) flat = false;
  for (int c = 0; c < a.program.columns; ++c) flat = flat && dense(a, a.column[c]);
  for (int o = 0; o < a.program.outputs; ++o) flat = flat && dense(a, a.store[o]);
  const int64_t bytes = bytes_moved(a);
  return {flat, bytes > cache_bytes(), bytes > kNearBytes};
}

struct Split {
  const StageArgs& args;
  const Walk walk;
  const StageRange stage;
  const int64_t chunks;

  // The first element of chunk i: a boundary inside a sample is a multiple of kAlign, so that noise tiles
  // stay whole.
  int64_t start(int64_t i) const {
    const int64_t total = args.batch * args.numel, at = total / chunks * i + total % chunks * i / chunks;
    const int64_t inside = walk.flat ? at : at % args.numel;
    return i == chunks ? total : at - inside % kAlign;
  }
};

void run_chunks(int64_t begin, int64_t end, void* context) {
  const Split& split = *(const Split*)context;
  split.stage(split.args, split.walk, split.start(begin), split.start(end));
}

bool stage(const StageArgs& args, int64_t threads) {
  const int64_t total = args.batch * args.numel;
  if (total == 0) return true;
  const StageRange kernel = isas().kernels().stage;
  const int64_t units = (total + kUnit - 1) / kUnit;
  const ParallelFor parallel_for = kernel_table().parallel_for;
  const int64_t chunks = parallel_for && threads > 1 ? (units < threads ? units : threads) : 1;
  Split split{args, plan_walk(args), kernel, chunks};
  if (chunks > 1) return parallel_for(0, chunks, 1, run_chunks, &split) == 0;
  run_chunks(0, chunks, &split);
  return true;
}

// Calls body(begin, end, context) for all of [0, count), on as many threads as are worth it.
bool in_parallel(int64_t count, bool worth, int64_t threads, ParallelBody body, void* context) {
  const ParallelFor parallel_for = kernel_table().parallel_for;
  if (parallel_for && threads > 1 && count > 1 && worth) return parallel_for(0, count, 1, body, context) == 0;
  body(0, count, context);
  return true;
}

struct GramWork {
  const GramArgs& args;
  const Kernels& kernels;
};

void sum_chunks(int64_t begin, int64_t end, void* context) {
  const GramWork& work = *(const GramWork*)context;
  work.kernels.gram_sum(work.args, begin, end);
}

bool gram(const GramArgs& given, int64_t threads) {
  GramArgs args = given;
  const int64_t chunks = gram_chunks(args.numel), count = args.batch * chunks;
  if (count == 0) return true;
  // Kept from call to call: a step does not allocate.
  static thread_local std::vector<double> parts;
  if (chunks > 1) {
    if ((int64_t)parts.size() < count * args.program.sums) parts.resize((size_t)(count * args.program.sums));
    args.parts = parts.data();
  }
  GramWork work{args, isas().kernels()};
  if (!in_parallel(count, args.batch * args.numel > kUnit, threads, sum_chunks, &work)) return false;
  work.kernels.gram_finish(args, 0, args.batch);
  return true;
}

}  // namespace

KernelTable& kernel_table() {
  static KernelTable table = {kKernelAbi, stage, gram, nullptr};
  return table;
}

int isa_count() { return isas().count; }
const char* isa_name(int i) { return isas().isa[i].name; }
int isa_chosen() { return isas().chosen; }
void isa_choose(int i) { isas().chosen = i; }

}  // namespace fastdiff
