// The parts of the DLPack 1.3 ABI that the host module reads: https://github.com/dmlc/dlpack,
// include/dlpack/dlpack.h. Tensor types publish a table of functions, `__dlpack_c_exchange_api__`, which
// describes a tensor without Python calls.
#pragma once

#include <stdint.h>

namespace fastdiff::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2, kBfloat = 4;

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Device {
  int32_t type, id;
};

// Shape and strides count elements and belong to the producer.
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Version {
  uint32_t major, minor;
};

struct ExchangeHeader {
  Version version;
  ExchangeHeader* previous;
};

struct ExchangeApi {
  ExchangeHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  // Describes a Python tensor; valid until control returns. May be null. Nonzero means failure, with a Python
  // error set.
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_work_stream;
};

}  // namespace fastdiff::dlpack
