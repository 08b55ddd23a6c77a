// Kernels for the test of the PTX executor: what nvcc makes of loops, branches, tables, shared memory and structs.
#include <cuda_bf16.h>
#include <stdint.h>

struct Recipe {
  const float* x;
  float* y;
  int64_t count;
  float scale[4];
  int steps[3];
};

// Chooses by a table, loops by a count that differs between threads, divides 64-bit integers.
extern "C" __global__ void branches(const Recipe recipe) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= recipe.count) return;
  float v = recipe.x[i];
  switch (i * 7 / 3 % 5) {
    case 0: v = __fmul_rn(v, recipe.scale[0]); break;
    case 1: v = __fadd_rn(v, recipe.scale[1]); break;
    case 2: v = __fmaf_rn(v, recipe.scale[2], recipe.scale[3]); break;
    case 3: v = __fsqrt_rn(fabsf(v)); break;
    default: v = __fdiv_rn(v, 3.0f);
  }
  for (int step = 0; step < (int)(i % recipe.steps[2]); ++step) v = __fadd_rn(v, 1.0f);
  recipe.y[i] = v;
}

// Quads as 128 bits, rounded to bfloat16 on the way.
extern "C" __global__ void quads(const float4* x, uint2* y, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float4 v = x[i];
  __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y), high = __floats2bfloat162_rn(v.z, v.w);
  y[i] = make_uint2(*(uint32_t*)&low, *(uint32_t*)&high);
}

// Sums of blocks of 128 in a fixed order, through shuffles and shared memory.
extern "C" __global__ void sums(const double* x, double* y, int count) {
  __shared__ double warps[4];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  double v = i < count ? x[i] : 0.0;
  for (int step = 16; step > 0; step /= 2) v = __dadd_rn(v, __shfl_down_sync(~0u, v, step));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = __dadd_rn(__dadd_rn(warps[0], warps[1]), __dadd_rn(warps[2], warps[3]));
}

// Plain operators: nvcc contracts them unless it is told not to.
extern "C" __global__ void contractible(const float* x, float* y, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) y[i] = x[i] * x[i] + 1.0f;
}
