// Runs the threads of a launch on the CPU, in an order that the tests choose, and tells what was launched.
#include <dlfcn.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

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

struct State {
  Order order = kSerial;
  uint64_t number = 0;
  int device = 0, devices = 1;
  cudaError_t last_error = cudaSuccess;
  int64_t launches = 0;
  std::string kernel;
  std::vector<uint8_t> argument;
  dim3 grid, block;
  size_t shared = 0;
  void* stream = nullptr;
  int launch_device = 0;
} state;

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
  auto half = [&](uint64_t first) {
    for (uint64_t b = 0; b < count(l.grid); ++b) {
      for (uint64_t t = first; t < count(l.block); t += 2) run_thread(l, b, t);
    }
  };
  std::thread odd(half, 1);
  half(0);
  odd.join();
}

void run_ends(const Launch& l) {
  const uint64_t blocks = count(l.grid), some = std::min(state.number, blocks);
  for (uint64_t b = 0; b < some; ++b) run_block(l, b, false);
  for (uint64_t b = std::max(some, blocks - some); b < blocks; ++b) run_block(l, b, false);
}

void run(const Launch& l) {
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

}  // namespace

cudaError_t launch(const Launch& l) {
  const bool fits = count(l.block) >= 1 && count(l.block) <= 1024 && count(l.grid) >= 1 &&
                    l.grid.x <= 0x7FFFFFFFu && l.grid.y <= 65535 && l.grid.z <= 65535 &&
                    l.shared <= kSharedBytes;
  if (!fits) return state.last_error = cudaErrorInvalidConfiguration;
  Dl_info info;
  state.kernel = dladdr(l.kernel, &info) && info.dli_sname ? info.dli_sname : "";
  state.argument.assign((const uint8_t*)l.argument, (const uint8_t*)l.argument + l.argument_size);
  state.grid = gridDim = l.grid;
  state.block = blockDim = l.block;
  state.shared = l.shared;
  state.stream = l.stream;
  state.launch_device = state.device;
  ++state.launches;
  run(l);
  return cudaSuccess;
}

}  // namespace emulation

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

void emulation_launched(LaunchRecord* r) {
  *r = {state.launches,
        state.kernel.c_str(),
        {state.grid.x, state.grid.y, state.grid.z},
        {state.block.x, state.block.y, state.block.z},
        state.shared,
        state.argument.data(),
        state.argument.size(),
        state.stream,
        state.launch_device,
        state.device,
        state.last_error};
}
}
