// The ops stage, fill_noise and gram in CUDA: one launch for each call, or two for a gram whose samples have
// more than one chunk, and nothing else on the stream.
//
// Every number that may change between two replays of a graph (coefficients, presence, seeds, draws) is read
// from device memory; only structure and addresses are baked into a launch.
#include <cuda_runtime.h>

#include "cuda_gram.h"
#include "cuda_stage.h"

// From so many quads in a launch on, a thread takes several: the device is busy with fewer threads.
#ifndef FD_CROWD
#define FD_CROWD (1 << 17)
#endif

namespace fastdiff {

// So that 1024 threads fit a multiprocessor, with 64 registers each.
constexpr int kMaxThreads = 128, kMinBlocks = 8;
constexpr int64_t kSharedBytes = 48 * 1024;

// Calls visit(group) for all that is this thread's: x runs through the quads of a sample, y through samples.
template <class T, class Visit>
__device__ inline void for_each_group(const StageArgs& a, Visit visit) {
  const int64_t x = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t y = (int64_t)blockIdx.y * blockDim.y + threadIdx.y;
  const int64_t x_step = (int64_t)gridDim.x * blockDim.x, y_step = (int64_t)gridDim.y * blockDim.y;
  for (int64_t b = y; b < a.batch; b += y_step) {
    for (int64_t i = x * kQuad; i < a.numel; i += x_step * kQuad * kQuads<T>) {
      visit(Group::at<T>(b, i, x_step * kQuad, a.numel));
    }
  }
}

template <class T, Drawing kDrawing>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    stage_kernel(const __grid_constant__ SlottedArgs a) {
  const Slots<T> slots = own_slots<T>();
  for_each_group<T>(a.args, [&](const Group& group) { stage<T, kDrawing>({a, slots, group}); });
}

// Draw 0 and nothing else into store 0; T is wide enough for its dtype.
template <class T, Drawing kDrawing>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    noise_kernel(const __grid_constant__ SlottedArgs a) {
  const Slots<T> slots = own_slots<T>();
  for_each_group<T>(a.args, [&](const Group& group) {
    const Work<T> work = {a, slots, group};
    draw_normals<kDrawing>(work, 0);
    Sums<T> sums;
    sums.add(work, T(1), a.spare);
    store(work, a.args.store[0], sums.total, 1);
  });
}

// A chunk for each x, samples along y.
__global__ void __launch_bounds__(kLanes, kMinBlocks) gram_kernel(const __grid_constant__ GramArgs a) {
  const GramShared shared = GramShared::of(a.program, a.program.vectors);
  for (int64_t b = blockIdx.y; b < a.batch; b += gridDim.y) {
    sum_chunk(a, shared, b, blockIdx.x);
    // Before the next sample's sums take the place of this one's.
    __syncthreads();
  }
}

// A sample for each x.
__global__ void __launch_bounds__(kLanes, kMinBlocks) parts_kernel(const __grid_constant__ GramArgs a) {
  const GramShared shared = GramShared::of(a.program, 0);
  for (int64_t b = blockIdx.x; b < a.batch; b += gridDim.x) {
    sum_parts(a, shared, b);
    __syncthreads();
  }
}

// Launching ----------------------------------------------------------------------------------------------

namespace {

constexpr int64_t kMaxGridX = 0x7FFFFFFF, kMaxGridY = 65535;

int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }
int64_t ceiling(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// Makes a device current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : wanted_(device), problem_(cudaGetDevice(&before_)) {
    if (problem_ == cudaSuccess && before_ != wanted_) problem_ = cudaSetDevice(wanted_);
  }
  ~DeviceGuard() {
    if (problem_ == cudaSuccess && before_ != wanted_) cudaSetDevice(before_);
  }
  cudaError_t problem() const { return problem_; }

 private:
  int wanted_, before_ = 0;
  cudaError_t problem_;
};

// Null, or what the runtime says went wrong.
template <class Args>
const char* run(void (*kernel)(Args), const Args& args, dim3 grid, dim3 block, size_t shared, int device,
                cudaStream_t stream) {
  void* arguments[] = {(void*)&args};
  const DeviceGuard guard(device);
  cudaError_t problem = guard.problem();
  if (problem == cudaSuccess) problem = cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
  if (problem == cudaSuccess) return nullptr;
  // So that nobody else finds this error later on.
  cudaGetLastError();
  return cudaGetErrorString(problem);
}

using Kernel = void(SlottedArgs);

// Samples of few quads share a block.
template <class T>
const char* launch(Kernel* kernel, const StageArgs& a, int device, cudaStream_t stream) {
  if (a.batch == 0 || a.numel == 0) return nullptr;
  const SlottedArgs slotted = give_slots(a);
  const int64_t quads = ceiling(a.numel, kQuad), slots = slots_of(slotted);
  const int64_t columns = ceiling(quads, quads * a.batch >= FD_CROWD ? kQuads<T> : 1);
  int threads = kMaxThreads, x = 1;
  while (threads * slots * Slots<T>::kBytes > kSharedBytes) threads /= 2;
  while (x < threads && x < columns) x *= 2;
  const dim3 block(x, threads / x);
  const int64_t wide = ceiling(columns, block.x), high = ceiling(a.batch, block.y);
  const dim3 grid(at_most(wide, kMaxGridX), at_most(high, kMaxGridY));
  return run(kernel, slotted, grid, block, threads * slots * Slots<T>::kBytes, device, stream);
}

Drawing drawing(const StageArgs& a) { return a.channels > 1 ? kDrawsByChannel : kDrawsByRow; }

template <class T>
const char* stage_as(const StageArgs& a, int device, cudaStream_t stream) {
  static Kernel* const kernels[] = {stage_kernel<T, kNoDraws>, stage_kernel<T, kDrawsByRow>,
                                    stage_kernel<T, kDrawsByChannel>};
  return launch<T>(kernels[a.program.draws ? drawing(a) : kNoDraws], a, device, stream);
}

template <class T>
const char* fill_noise_as(const StageArgs& a, int device, cudaStream_t stream) {
  static Kernel* const kernels[] = {nullptr, noise_kernel<T, kDrawsByRow>, noise_kernel<T, kDrawsByChannel>};
  return launch<T>(kernels[drawing(a)], a, device, stream);
}

const char* gram(const GramArgs& a, int device, cudaStream_t stream) {
  if (a.batch == 0) return nullptr;
  const GramProgram& p = a.program;
  const int64_t chunks = chunks_of(a.numel);
  // A sample without elements has sums too.
  const dim3 grid(chunks > 1 ? chunks : 1, at_most(a.batch, kMaxGridY));
  const char* problem = run(gram_kernel, a, grid, kLanes, GramShared::bytes(p, p.vectors), device, stream);
  if (problem || chunks <= 1) return problem;
  return run(parts_kernel, a, at_most(a.batch, kMaxGridX), kLanes, GramShared::bytes(p, 0), device, stream);
}

}  // namespace
}  // namespace fastdiff

#define FD_EXPORT extern "C" __attribute__((visibility("default")))

// Arguments are checked by the caller. Each returns null, or a sentence of the CUDA runtime that lives as
// long as the library; `stream` is one of `device`.
FD_EXPORT const char* fastdiff_cuda_stage(const fastdiff::StageArgs* args, int32_t device, void* stream) {
  using namespace fastdiff;
  const cudaStream_t on = (cudaStream_t)stream;
  return args->state == kFloat64 ? stage_as<double>(*args, device, on) : stage_as<float>(*args, device, on);
}

// Fills store 0; the program of `args` is that of one draw.
FD_EXPORT const char* fastdiff_cuda_fill_noise(const fastdiff::StageArgs* args, int32_t device,
                                               void* stream) {
  using namespace fastdiff;
  const cudaStream_t on = (cudaStream_t)stream;
  return args->state == kFloat64 ? fill_noise_as<double>(*args, device, on)
                                 : fill_noise_as<float>(*args, device, on);
}

// Sums, scalars and coefficients; `parts` has room for the sums of all chunks where a sample has several.
FD_EXPORT const char* fastdiff_cuda_gram(const fastdiff::GramArgs* args, int32_t device, void* stream) {
  return fastdiff::gram(*args, device, (cudaStream_t)stream);
}

// Versions as 1000 * major + 10 * minor; the driver's is 0 where there is none. Touches no device.
FD_EXPORT void fastdiff_cuda_versions(int32_t* driver, int32_t* runtime) {
  if (cudaDriverGetVersion(driver) != cudaSuccess) *driver = 0;
  if (cudaRuntimeGetVersion(runtime) != cudaSuccess) *runtime = 0;
}

// What this file was compiled for, such as "sm_75 sm_80 compute_120".
FD_EXPORT const char* fastdiff_cuda_targets() { return FD_CUDA_TARGETS; }

// Changes with the layout of the arguments, so that callers of another build are refused.
FD_EXPORT uint64_t fastdiff_cuda_abi() {
  return 2 ^ (uint64_t)sizeof(fastdiff::StageArgs) << 32 ^ (uint64_t)sizeof(fastdiff::GramArgs) << 48;
}
