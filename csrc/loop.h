// The eager sampling loop: all rows of a run prepared once, so that a step is one call.
#pragma once

#include <string>
#include <vector>

#include "dlpack_abi.h"
#include "launch.h"
#include "memory.h"
#include "program.h"

namespace fastdiff {

// A tensor that a row reads: a buffer of the run, or a branch of the network's output.
struct LoopSource {
  Buffer buffer;
  int branch;  // -1 for a buffer
};

struct LoopRow {
  StageArgs args;
  int branches;
  int8_t branch[kMaxColumns];
};

// What the network returns for one branch: [batch, ...] with any batch stride.
struct Expected {
  dlpack::DataType dtype;
  std::vector<int64_t> shape, strides;
};

class Loop {
 public:
  Loop(int64_t batch, int64_t numel, int64_t channels, DType state, int64_t threads, const int64_t* seeds);

  // Each raises std::invalid_argument when something does not fit.
  void add_row(const std::vector<int64_t>& program, StageArgs args, const std::vector<LoopSource>& sources);
  void expect(DType dtype, std::vector<int64_t> shape, std::vector<int64_t> strides);

  // Whether these network outputs are what the next row needs; if so its arguments, ready to run.
  bool prepare(const dlpack::Tensor* outputs, int64_t count, StageArgs& args) const;
  StageArgs blank() const;
  int64_t size() const { return (int64_t)rows_.size(); }
  int64_t elements() const { return batch_ * numel_; }

  int64_t index = 0;
  int64_t threads;
  // A row is running, perhaps without the interpreter lock.
  bool busy = false;

 private:
  bool matches(const dlpack::Tensor& tensor, int64_t rows) const;

  int64_t batch_, numel_, channels_;
  DType state_;
  const int64_t* seeds_;
  Expected expected_;
  std::vector<LoopRow> rows_;
};

}  // namespace fastdiff
