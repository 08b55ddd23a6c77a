// Runs the threads of a launch on the CPU, in an order that the tests choose, and tells what was launched.
#include <dlfcn.h>
#include <pthread.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

// Sanitizers know threads of the system, and no others.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)0)
#endif

thread_local dim3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

constexpr size_t kSharedBytes = 48 * 1024;

// Nothing runs, threads by number, backwards, in random order, odd and even ones on two threads of the
// system, or only the first and last few blocks.
enum Order { kNone, kSerial, kReversed, kShuffled, kTwoThreads, kEnds };

// What was launched.
struct Launched {
  std::string kernel;
  std::vector<uint8_t> argument;
  dim3 grid, block;
  size_t shared = 0;
  void* stream = nullptr;
  int device = 0;
};

// So many launches are remembered.
constexpr size_t kRemembered = 4;

struct State {
  Order order = kSerial;
  uint64_t number = 0;
  int device = 0, devices = 1;
  cudaError_t last_error = cudaSuccess;
  int64_t launches = 0;
  // The latest first.
  std::deque<Launched> launched = std::deque<Launched>(kRemembered);
  // Kernels with barriers, as far as they are known.
  std::set<void*> waiting;
} state;

// Thrown by a thread that came to a barrier and runs alone.
struct Waits {};

}  // namespace

namespace fastdiff {
uint4 block_slots[kSharedBytes / sizeof(uint4)];
}

namespace emulation {
namespace {

uint64_t count(const dim3& d) { return (uint64_t)d.x * d.y * d.z; }

dim3 place(uint64_t i, const dim3& size) {
  return dim3((uint32_t)(i % size.x), (uint32_t)(i / size.x % size.y), (uint32_t)(i / size.x / size.y));
}

void run_thread(const Launch& l, uint64_t block, uint64_t thread) {
  blockIdx = place(block, l.grid);
  threadIdx = place(thread, l.block);
  l.thread();
}

// What a block finds in its shared memory is left over from somebody else.
void soil(size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(fastdiff::block_slots, kSharedBytes);
  memset(fastdiff::block_slots, 0xFF, bytes);
  ASAN_POISON_MEMORY_REGION((char*)fastdiff::block_slots + bytes, kSharedBytes - bytes);
}

// A block with barriers.
class Team {
 public:
  virtual ~Team() = default;
  virtual void run() = 0;
  virtual void wait() = 0;
};

// The one that a thread is of.
thread_local Team* team = nullptr;

// Its threads one at a time, each from barrier to barrier, in a given order.
class Turns final : public Team {
 public:
  Turns(const Launch& l, uint64_t block, std::vector<uint64_t> order)
      : launch_(l), block_(block), order_(std::move(order)), context_(order_.size()) {}

  void run() override {
    // As deep as kernels go; what is in it is never looked at.
    static std::vector<char> stacks(1024 * kStack);
    soil(launch_.shared);
    team = this;
    for (size_t p = 0; p < order_.size(); ++p) {
      getcontext(&context_[p]);
      context_[p].uc_stack.ss_sp = &stacks[p * kStack];
      context_[p].uc_stack.ss_size = kStack;
      context_[p].uc_link = &home_;
      makecontext(&context_[p], begin, 0);
    }
    std::vector<bool> ended(order_.size());
    for (bool some = true; some;) {
      some = false;
      for (now_ = 0; now_ < order_.size(); ++now_) {
        if (ended[now_]) continue;
        blockIdx = place(block_, launch_.grid);
        threadIdx = place(order_[now_], launch_.block);
        waits_ = false;
        swapcontext(&home_, &context_[now_]);
        ended[now_] = !waits_;
        some |= waits_;
      }
    }
    team = nullptr;
  }

  void wait() override {
    waits_ = true;
    swapcontext(&context_[now_], &home_);
  }

 private:
  static constexpr size_t kStack = 64 * 1024;

  static void begin() { ((Turns*)team)->launch_.thread(); }

  const Launch& launch_;
  const uint64_t block_;
  const std::vector<uint64_t> order_;
  std::vector<ucontext_t> context_;
  ucontext_t home_;
  size_t now_ = 0;
  bool waits_ = false;
};

// Its threads all at once, each a thread of the system.
class AtOnce final : public Team {
 public:
  AtOnce(const Launch& l, uint64_t block) : launch_(l), block_(block) {
    pthread_barrier_init(&barrier_, nullptr, (unsigned)count(l.block));
  }
  ~AtOnce() { pthread_barrier_destroy(&barrier_); }

  void run() override {
    soil(launch_.shared);
    std::vector<std::thread> all;
    for (uint64_t t = 0; t < count(launch_.block); ++t) {
      all.emplace_back([this, t] {
        team = this;
        run_thread(launch_, block_, t);
      });
    }
    for (std::thread& one : all) one.join();
  }

  void wait() override { pthread_barrier_wait(&barrier_); }

 private:
  const Launch& launch_;
  const uint64_t block_;
  pthread_barrier_t barrier_;
};

// Blocks and threads of a kernel with barriers in the chosen order; a block at a time.
void run_teams(const Launch& l) {
  std::mt19937_64 random(state.number);
  auto ordered = [&](uint64_t size) {
    std::vector<uint64_t> order(size);
    std::iota(order.begin(), order.end(), 0);
    if (state.order == kReversed) std::reverse(order.begin(), order.end());
    if (state.order == kShuffled) std::shuffle(order.begin(), order.end(), random);
    return order;
  };
  const uint64_t blocks = count(l.grid);
  for (uint64_t block : ordered(blocks)) {
    if (state.order == kEnds && block >= state.number && block + state.number < blocks) continue;
    if (kSanitized || state.order == kTwoThreads) {
      AtOnce(l, block).run();
    } else {
      Turns(l, block, ordered(count(l.block))).run();
    }
  }
}

void run_block(const Launch& l, uint64_t block, bool backwards) {
  soil(l.shared);
  const uint64_t threads = count(l.block);
  for (uint64_t t = 0; t < threads; ++t) run_thread(l, block, backwards ? threads - 1 - t : t);
}

void run_shuffled(const Launch& l) {
  soil(l.shared);
  const uint64_t threads = count(l.block);
  std::vector<uint64_t> order(count(l.grid) * threads);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(state.number));
  for (uint64_t i : order) run_thread(l, i / threads, i % threads);
}

void run_two_threads(const Launch& l) {
  soil(l.shared);
  std::atomic<bool> waits = false;
  auto half = [&](uint64_t first) {
    try {
      for (uint64_t b = 0; b < count(l.grid); ++b) {
        for (uint64_t t = first; t < count(l.block); t += 2) run_thread(l, b, t);
      }
    } catch (const Waits&) {
      waits = true;
    }
  };
  std::thread odd(half, 1);
  half(0);
  odd.join();
  if (waits) throw Waits{};
}

void run_ends(const Launch& l) {
  const uint64_t blocks = count(l.grid), some = std::min(state.number, blocks);
  for (uint64_t b = 0; b < some; ++b) run_block(l, b, false);
  for (uint64_t b = std::max(some, blocks - some); b < blocks; ++b) run_block(l, b, false);
}

void run_alone(const Launch& l) {
  const uint64_t blocks = count(l.grid);
  switch (state.order) {
    case kNone:
      return;
    case kSerial:
      for (uint64_t b = 0; b < blocks; ++b) run_block(l, b, false);
      return;
    case kReversed:
      for (uint64_t b = blocks; b-- > 0;) run_block(l, b, true);
      return;
    case kShuffled:
      return run_shuffled(l);
    case kTwoThreads:
      return run_two_threads(l);
    case kEnds:
      return run_ends(l);
  }
}

// A kernel that turns out to have barriers begins anew: what a thread did before its first one can be done
// twice.
void run(const Launch& l) {
  if (state.order != kNone && state.waiting.count(l.kernel)) return run_teams(l);
  try {
    run_alone(l);
  } catch (const Waits&) {
    state.waiting.insert(l.kernel);
    run_teams(l);
  }
}

}  // namespace

cudaError_t launch(const Launch& l) {
  const bool fits = count(l.block) >= 1 && count(l.block) <= 1024 && count(l.grid) >= 1 &&
                    l.grid.x <= 0x7FFFFFFFu && l.grid.y <= 65535 && l.grid.z <= 65535 &&
                    l.shared <= kSharedBytes;
  if (!fits) return state.last_error = cudaErrorInvalidConfiguration;
  Dl_info info;
  const char* name = dladdr(l.kernel, &info) && info.dli_sname ? info.dli_sname : "";
  const uint8_t* argument = (const uint8_t*)l.argument;
  state.launched.pop_back();
  state.launched.push_front({name,
                             {argument, argument + l.argument_size},
                             gridDim = l.grid,
                             blockDim = l.block,
                             l.shared,
                             l.stream,
                             state.device});
  ++state.launches;
  run(l);
  return cudaSuccess;
}

}  // namespace emulation

void __syncthreads() {
  if (!emulation::team) throw Waits{};
  emulation::team->wait();
}

cudaError_t cudaGetDevice(int* device) {
  *device = state.device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= state.devices) return state.last_error = cudaErrorInvalidDevice;
  state.device = device;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(state.last_error, cudaSuccess); }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
  }
  return "unknown error";
}

// What the tests set and ask.
extern "C" {

struct LaunchRecord {
  int64_t launches;
  const char* kernel;
  uint32_t grid[3], block[3];
  uint64_t shared;
  const uint8_t* argument;
  uint64_t argument_size;
  void* stream;
  int32_t device, current_device, error;
};

void emulation_order(int32_t order, uint64_t number) {
  state.order = (Order)order;
  state.number = number;
}

void emulation_devices(int32_t count) { state.devices = count; }

// The launch before so many others.
void emulation_launched(LaunchRecord* r, int32_t ago) {
  const Launched& l = state.launched.at(ago);
  *r = {state.launches,
        l.kernel.c_str(),
        {l.grid.x, l.grid.y, l.grid.z},
        {l.block.x, l.block.y, l.block.z},
        l.shared,
        l.argument.data(),
        l.argument.size(),
        l.stream,
        l.device,
        state.device,
        state.last_error};
}
}
