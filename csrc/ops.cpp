// The ops fastdiff::stage, gram and fill_noise on the CPU, in LibTorch's stable ABI: one binary for
// torch 2.10 and later. Schemas are in fastdiff/ops/schema.py. Everything is checked again here, before
// anything is written, because the dispatcher can be called directly.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "gram_program.h"
#include "launch.h"
#include "memory.h"
#include "program.h"

namespace fastdiff {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

KernelTable* kernels = nullptr;

DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return kFloat64;
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::BFloat16:
      return kBFloat16;
    case ScalarType::Half:
      return kFloat16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, name,
                  " has a dtype that cannot be read or written; use float64, float32, bfloat16 or float16");
  return kFloat32;
}

// A tensor that takes part elementwise.
struct Operand {
  Buffer buffer;
  int64_t samples;
  std::string name;
};

// Collects the operands of a call, and checks that they fit each other.
class Operands {
 public:
  StageArgs args{};

  explicit Operands(int32_t state) { args.state = state; }

  Buffer read(const Tensor& t, std::string name) { return take(reads_, t, std::move(name), 1); }
  Buffer write(const Tensor& t, std::string name) { return take(writes_, t, std::move(name), 1); }
  Buffer write_copies(const Tensor& t, std::string name) {
    const int64_t rows = t.dim() ? t.size(0) : 0;
    args.copies = batch_ > 0 ? (int32_t)(rows / batch_) : 1;
    STD_TORCH_CHECK(t.dim() && rows == args.copies * batch_ && args.copies >= 1, name, " has ", rows,
                    " rows; it needs a whole multiple of the batch size ", batch_);
    return take(writes_, t, std::move(name), args.copies);
  }

  // Small tensors of numbers: one row for all samples, or one for each.
  template <class T>
  const T* table(const Tensor& t, const char* name, ScalarType dtype, std::vector<int64_t> row, bool shared,
                 int64_t& stride) {
    STD_TORCH_CHECK(t.is_cpu(), name, " is not on the CPU");
    STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
    STD_TORCH_CHECK(t.dim() == (int64_t)row.size() + 1, name, " has ", t.dim(), " dimensions; it needs ",
                    row.size() + 1);
    const int64_t rows = t.size(0);
    STD_TORCH_CHECK(rows == batch_ || (shared && rows == 1), name, " has ", rows, " rows for ", batch_,
                    " samples");
    int64_t numel = 1;
    for (size_t d = 0; d < row.size(); ++d) {
      STD_TORCH_CHECK(t.size((int64_t)d + 1) == row[d], name, " has size ", t.size((int64_t)d + 1),
                      " in dimension ", d + 1, "; the program needs ", row[d]);
      numel *= row[d];
    }
    STD_TORCH_CHECK(t.is_contiguous(), name, " is not contiguous");
    stride = rows == 1 ? 0 : numel;
    const int64_t bytes = rows * numel * (int64_t)t.element_size();
    tables_.push_back({{(uintptr_t)t.const_data_ptr(), 1, bytes, 0}, name});
    return (const T*)t.const_data_ptr();
  }

  // A small tensor that is written, one row for each sample; it shares memory with nothing else.
  void* result(const Tensor& t, const char* name, ScalarType dtype, int64_t row, int64_t& stride) {
    table<void>(t, name, dtype, {row}, false, stride);
    const Extent extent = tables_.back().extent;
    for (const Operand& column : reads_) {
      STD_TORCH_CHECK(!share_memory(extent, extent_of(column.buffer, column.samples, numel_)), name,
                      " overlaps ", column.name, "; give it memory of its own");
    }
    for (size_t i = 0; i + 1 < tables_.size(); ++i) {
      STD_TORCH_CHECK(!share_memory(extent, tables_[i].extent), name, " overlaps ", tables_[i].name,
                      "; give it memory of its own");
    }
    return (void*)t.const_data_ptr();
  }

  void finish() {
    args.batch = batch_;
    args.numel = numel_;
    args.channels = layout_ == kChannelsLast ? sizes_[1] : 1;
    STD_TORCH_CHECK(numel_ <= kMaxElements, "a sample has ", numel_,
                    " elements; the noise counter ends at 2**42");
    for (size_t i = 0; i < writes_.size(); ++i) check_overlap(i);
  }

  int64_t batch() const { return batch_; }

 private:
  struct Table {
    Extent extent;
    const char* name;
  };

  Buffer take(std::vector<Operand>& list, const Tensor& t, std::string name, int64_t copies) {
    STD_TORCH_CHECK(t.is_cpu(), name, " is not on the CPU");
    STD_TORCH_CHECK(t.dim() >= 1, name, " has no dimensions; the first one is the batch");
    const DType dtype = dtype_of(t, name.c_str());
    STD_TORCH_CHECK(dtype != kFloat64 || args.state == kFloat64, name, " is float64 and coef float32");
    check_shape(t, name, copies);
    join_layout(t, name);
    const int64_t samples = t.size(0), step = samples > 1 ? t.stride(0) : numel_;
    STD_TORCH_CHECK(numel_ == 0 || step >= numel_, name, " has samples that overlap each other");
    const Buffer buffer{const_cast<void*>(t.const_data_ptr()), step, dtype};
    list.push_back({buffer, samples, std::move(name)});
    return buffer;
  }

  void check_shape(const Tensor& t, const std::string& name, int64_t copies) {
    const auto sizes = t.sizes();
    if (batch_ < 0) {
      sizes_.assign(sizes.begin(), sizes.end());
      batch_ = sizes_[0];
      numel_ = 1;
      for (size_t d = 1; d < sizes_.size(); ++d) numel_ *= sizes_[d];
      return;
    }
    bool same = sizes.size() == sizes_.size() && sizes[0] == copies * batch_;
    for (size_t d = 1; same && d < sizes_.size(); ++d) same = sizes[d] == sizes_[d];
    STD_TORCH_CHECK(same, name, " has another shape than the first tensor of the call");
  }

  void join_layout(const Tensor& t, const std::string& name) {
    if (t.numel() == 0) return;
    const Layout own = layout_of(t.sizes().data() + 1, t.strides().data() + 1, (int)t.dim() - 1);
    STD_TORCH_CHECK(own != kNotDense, name, " has samples that are neither row-major nor channels last");
    if (own == kEitherLayout) return;
    STD_TORCH_CHECK(layout_ == kEitherLayout || layout_ == own, name,
                    " has another memory format than the others");
    layout_ = own;
  }

  void check_overlap(size_t index) const {
    const Operand& out = writes_[index];
    const Extent extent = extent_of(out.buffer, out.samples, numel_);
    auto refuse = [&](const std::string& other) {
      STD_TORCH_CHECK(false, out.name, " overlaps ", other,
                      "; it may be a column in place, or memory of its own");
    };
    for (const Operand& column : reads_) {
      const bool same = column.samples == out.samples && same_memory(out.buffer, column.buffer, out.samples);
      if (!same && share_memory(extent, extent_of(column.buffer, column.samples, numel_)))
        refuse(column.name);
    }
    for (size_t i = 0; i < index; ++i) {
      if (share_memory(extent, extent_of(writes_[i].buffer, writes_[i].samples, numel_)))
        refuse(writes_[i].name);
    }
    for (const Table& table : tables_) {
      if (share_memory(extent, table.extent)) refuse(table.name);
    }
  }

  int64_t batch_ = -1, numel_ = 0;
  std::vector<int64_t> sizes_;
  Layout layout_ = kEitherLayout;
  std::vector<Operand> reads_, writes_;
  std::vector<Table> tables_;
};

void check_draws(const int64_t* draws, int64_t count) {
  constexpr int64_t kWords[4] = {8, 16, 32, 24};
  for (int64_t i = 0; i < 4 * count; ++i) {
    STD_TORCH_CHECK(
        draws[i] >= 0 && draws[i] < (int64_t)1 << kWords[i % 4],
        "draws has a word outside the 8, 16, 32 and 24 bits of purpose, tensor, draw and sub_draw");
  }
}

void check_seeds(const int64_t* seeds, int64_t count) {
  for (int64_t i = 0; i < count; ++i) STD_TORCH_CHECK(seeds[i] >= 0, "a seed is negative");
}

void launch(const StageArgs& args) {
  STD_TORCH_CHECK(kernels != nullptr,
                  "the CPU kernels are not connected; import fastdiff.backends.cpu first");
  STD_TORCH_CHECK(kernels->stage(args, torch::stable::get_num_threads()), "torch's thread pool failed");
}

void stage(std::vector<Tensor> columns, Tensor coef, std::optional<Tensor> present,
           std::optional<Tensor> seeds, std::optional<Tensor> draws, std::vector<int64_t> program,
           std::optional<Tensor> w0, std::optional<Tensor> w1, std::optional<Tensor> w2,
           std::optional<Tensor> w3, std::optional<Tensor> w4, std::optional<Tensor> w5,
           std::optional<Tensor> z) {
  const DType state = dtype_of(coef, "coef");
  STD_TORCH_CHECK(state == kFloat32 || state == kFloat64, "coef must be float32 or float64, the state type");
  Operands operands(state);
  StageArgs& args = operands.args;
  Program& p = args.program;
  const char* problem = read_program(program.data(), (int64_t)program.size(), p);
  STD_TORCH_CHECK(!problem, "program is malformed: ", problem ? problem : "");
  STD_TORCH_CHECK(p.columns == (int64_t)columns.size(), columns.size(),
                  " columns were given; the program reads ", (int)p.columns);
  for (int c = 0; c < p.columns; ++c)
    args.column[c] = operands.read(columns[c], "column " + std::to_string(c));
  const std::optional<Tensor>* stores[kMaxOutputs] = {&w0, &w1, &w2, &w3, &w4, &w5};
  for (int o = 0; o < kMaxOutputs; ++o) {
    if (!*stores[o]) continue;
    STD_TORCH_CHECK(o < p.outputs, "w", o, " was given; the program has ", (int)p.outputs, " outputs");
    args.store[o] = operands.write(**stores[o], "w" + std::to_string(o));
  }
  STD_TORCH_CHECK(operands.batch() >= 0,
                  "neither a column nor a store was given, so the batch size is unknown");
  if (z) {
    STD_TORCH_CHECK(p.network >= 0, "z was given; the program makes no network input");
    args.z = operands.write_copies(*z, "z");
  }
  const ScalarType real = state == kFloat64 ? ScalarType::Double : ScalarType::Float;
  args.coef = operands.table<void>(coef, "coef", real, {p.coefficients}, true, args.coef_stride);
  if (present) {
    args.present =
        operands.table<int64_t>(*present, "present", ScalarType::Long, {}, true, args.present_stride);
  }
  if (p.draws) {
    STD_TORCH_CHECK(seeds && draws, "the program draws noise: seeds and draws are needed");
    args.seeds = operands.table<int64_t>(*seeds, "seeds", ScalarType::Long, {}, false, args.seeds_stride);
    args.draws =
        operands.table<int64_t>(*draws, "draws", ScalarType::Long, {p.draws, 4}, true, args.draws_stride);
    check_seeds(args.seeds, seeds->size(0));
    check_draws(args.draws, draws->size(0) * p.draws);
  }
  operands.finish();
  launch(args);
}

void gram(std::vector<Tensor> columns, Tensor numbers, std::optional<Tensor> seeds,
          std::optional<Tensor> draws, std::vector<int64_t> program, std::optional<Tensor> coef,
          Tensor scalars) {
  GramArgs args{};
  GramProgram& p = args.program;
  int64_t read = 0, drawn = 0, needed = 0;
  const char* problem =
      GramProgramReader(program.data(), (int64_t)program.size()).read(p, read, drawn, needed);
  STD_TORCH_CHECK(!problem, "gram program is malformed: ", problem ? problem : "");
  STD_TORCH_CHECK(read == (int64_t)columns.size() && read, columns.size(),
                  " columns were given; the program reads ", read, ", and needs at least one");
  // Any column widens to float64.
  Operands operands(kFloat64);
  for (int64_t c = 0; c < read; ++c)
    args.column[c] = operands.read(columns[c], "column " + std::to_string(c));
  const ScalarType wide = ScalarType::Double;
  args.numbers = operands.table<double>(numbers, "numbers", wide, {needed}, true, args.numbers_stride);
  if (drawn) {
    STD_TORCH_CHECK(seeds && draws, "the program draws noise: seeds and draws are needed");
    args.seeds = operands.table<int64_t>(*seeds, "seeds", ScalarType::Long, {}, false, args.seeds_stride);
    args.draws =
        operands.table<int64_t>(*draws, "draws", ScalarType::Long, {drawn, 4}, true, args.draws_stride);
    check_seeds(args.seeds, seeds->size(0));
    check_draws(args.draws, draws->size(0) * drawn);
  }
  operands.finish();
  args.batch = operands.args.batch;
  args.numel = operands.args.numel;
  args.channels = operands.args.channels;
  STD_TORCH_CHECK(!args.batch || args.numel, "a sample has no elements, so there is nothing to sum");
  args.scalars = (double*)operands.result(scalars, "scalars", wide, p.sums + p.steps, args.scalars_stride);
  if (coef) {
    args.state = dtype_of(*coef, "coef");
    STD_TORCH_CHECK(args.state == kFloat32 || args.state == kFloat64, "coef must be float32 or float64");
    args.coef = operands.result(*coef, "coef", coef->scalar_type(), p.coefficients, args.coef_stride);
  }
  STD_TORCH_CHECK(kernels != nullptr,
                  "the CPU kernels are not connected; import fastdiff.backends.cpu first");
  STD_TORCH_CHECK(kernels->gram(args, torch::stable::get_num_threads()), "torch's thread pool failed");
}

// A draw alone is the row w = 1 * xi, because 1 * x is x, bit for bit.
void fill_noise(Tensor out, Tensor seeds, Tensor draws) {
  static constexpr double kOne64[1] = {1.0};
  static constexpr float kOne32[1] = {1.0f};
  static constexpr int64_t kProgram[] = {0, 1, -1, 1, -1, 0, 1, 0, 0, 0};
  const DType state = dtype_of(out, "out") == kFloat64 ? kFloat64 : kFloat32;
  Operands operands(state);
  StageArgs& args = operands.args;
  read_program(kProgram, sizeof(kProgram) / sizeof(*kProgram), args.program);
  args.store[0] = operands.write(out, "out");
  args.coef = state == kFloat64 ? (const void*)kOne64 : (const void*)kOne32;
  args.seeds = operands.table<int64_t>(seeds, "seeds", ScalarType::Long, {}, false, args.seeds_stride);
  args.draws = operands.table<int64_t>(draws, "draws", ScalarType::Long, {4}, true, args.draws_stride);
  check_seeds(args.seeds, seeds.size(0));
  check_draws(args.draws, draws.size(0));
  operands.finish();
  launch(args);
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("stage", TORCH_BOX(&fastdiff::stage));
  library.impl("gram", TORCH_BOX(&fastdiff::gram));
  library.impl("fill_noise", TORCH_BOX(&fastdiff::fill_noise));
}

// Joins this library and the host module: kernels from there, torch's thread pool from here. False if the two
// files are of different builds.
extern "C" __attribute__((visibility("default"))) bool fastdiff_connect(fastdiff::KernelTable* table) {
  if (table->abi != fastdiff::kKernelAbi) return false;
  table->parallel_for = torch_parallel_for;
  fastdiff::kernels = table;
  return true;
}
