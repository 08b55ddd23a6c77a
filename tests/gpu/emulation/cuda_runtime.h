// Stands in for the CUDA toolkit's header, so that g++ compiles csrc/cuda.cu for the host and its kernels run
// there.
//
// Only what that file uses is here. A thread of a kernel is one call, and the calls are made in an order that
// the tests choose; whether a barrier would be needed somewhere shows in that order changing the result.
// Where a kernel has barriers, its threads take turns between them in that order. The rest is in
// emulation.cpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
// Shared memory is an array of emulation.cpp, declared `extern` where it is used.
#define __shared__

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  uint32_t x, y, z;
  constexpr dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101 };

extern thread_local dim3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

template <class T>
T __ldg(const T* address) {
  return *address;
}

void __syncthreads();

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
const char* cudaGetErrorString(cudaError_t error);

namespace emulation {

// One launch: the kernel's symbol, its one argument as bytes, and a call that runs a thread.
struct Launch {
  void* kernel;
  dim3 grid, block;
  size_t shared;
  void* stream;
  const void* argument;
  size_t argument_size;
  std::function<void()> thread;
};

cudaError_t launch(const Launch& launch);

}  // namespace emulation

template <class Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
  const Argument* argument = (const Argument*)arguments[0];
  return emulation::launch(
      {(void*)kernel, grid, block, shared, stream, argument, sizeof(Argument), [=] { kernel(*argument); }});
}
