// The kernels for the CPU behind the interface of the CUDA library, so that the same Python fills their
// arguments; threads of the system stand in for torch's pool, which no sanitizer was compiled into.
#include <thread>
#include <vector>

#include "gram_range.h"
#include "kernel.h"
#include "launch.h"

#define FD_EXPORT extern "C" __attribute__((visibility("default")))

namespace fastdiff {

namespace avx512 {
// launch.cpp names them, and the driver never chooses them.
void stage(const StageArgs&, const Walk&, int64_t, int64_t) { __builtin_trap(); }
void gram_sum(const GramArgs&, int64_t, int64_t) { __builtin_trap(); }
void gram_finish(const GramArgs&, int64_t, int64_t) { __builtin_trap(); }
}  // namespace avx512

namespace {

int64_t threads = 1;

int32_t parallel_for(int64_t begin, int64_t end, int64_t, ParallelBody body, void* context) {
  std::vector<std::thread> others;
  for (int64_t i = begin + 1; i < end; ++i) others.emplace_back(body, i, i + 1, context);
  body(begin, begin + 1, context);
  for (std::thread& other : others) other.join();
  return 0;
}

}  // namespace
}  // namespace fastdiff

FD_EXPORT void cpu_choose(int32_t isa, int64_t threads) {
  fastdiff::isa_choose(isa);
  fastdiff::threads = threads;
  fastdiff::kernel_table().parallel_for = fastdiff::parallel_for;
}

FD_EXPORT const char* fastdiff_cuda_stage(const fastdiff::StageArgs* args, int32_t, void*) {
  return fastdiff::kernel_table().stage(*args, fastdiff::threads) ? nullptr : "the threads failed";
}

FD_EXPORT const char* fastdiff_cuda_fill_noise(const fastdiff::StageArgs* args, int32_t, void*) {
  static constexpr double kOne64[1] = {1.0};
  static constexpr float kOne32[1] = {1.0f};
  fastdiff::StageArgs with_one = *args;
  with_one.coef = args->state == fastdiff::kFloat64 ? (const void*)kOne64 : (const void*)kOne32;
  return fastdiff_cuda_stage(&with_one, 0, nullptr);
}

FD_EXPORT const char* fastdiff_cuda_gram(const fastdiff::GramArgs* args, int32_t, void*) {
  return fastdiff::kernel_table().gram(*args, fastdiff::threads) ? nullptr : "the threads failed";
}

FD_EXPORT void fastdiff_cuda_versions(int32_t* driver, int32_t* runtime) { *driver = *runtime = 0; }
FD_EXPORT const char* fastdiff_cuda_targets() { return "scalar avx2"; }
FD_EXPORT uint64_t fastdiff_cuda_abi() {
  return 2 ^ (uint64_t)sizeof(fastdiff::StageArgs) << 32 ^ (uint64_t)sizeof(fastdiff::GramArgs) << 48;
}
