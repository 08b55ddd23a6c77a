#include "loop.h"

#include <stdexcept>

namespace fastdiff {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check_buffer(const Buffer& buffer, const StageArgs& a, int64_t samples, const std::string& name) {
  if (!buffer.data && a.batch * a.numel > 0) refuse(name + " has a null address");
  if (buffer.dtype == kFloat64 && a.state != kFloat64) refuse(name + " is float64 and the state float32");
  if (samples > 1 && buffer.batch_stride < a.numel) refuse(name + " has samples that overlap each other");
}

struct Written {
  Buffer buffer;
  int64_t samples;
  std::string name;
};

std::vector<Written> written_by(const StageArgs& a) {
  std::vector<Written> written;
  for (int o = 0; o < a.program.outputs; ++o) {
    if (a.store[o].data) written.push_back({a.store[o], a.batch, "store " + std::to_string(o)});
  }
  if (a.z.data) written.push_back({a.z, a.copies * a.batch, "z"});
  return written;
}

// Whether writing `out` while reading `column` is allowed: apart, or in place.
bool compatible(const Buffer& out, int64_t samples, const Buffer& column, const StageArgs& a) {
  if (samples == a.batch && same_memory(out, column, samples)) return true;
  return !share_memory(extent_of(out, samples, a.numel), extent_of(column, a.batch, a.numel));
}

void check_draws(const StageArgs& a) {
  constexpr int64_t kWords[4] = {8, 16, 32, 24};
  const int64_t samples = a.draws_stride ? a.batch : 1;
  for (int64_t b = 0; b < samples; ++b) {
    for (int i = 0; i < 4 * a.program.draws; ++i) {
      const int64_t word = a.draws[b * a.draws_stride + i];
      if (word < 0 || word >= (int64_t)1 << kWords[i % 4]) refuse("a draw has a word outside its range");
    }
  }
}

constexpr dlpack::DataType kDlpackTypes[kDTypes] = {
    {dlpack::kFloat, 64, 1}, {dlpack::kFloat, 32, 1}, {dlpack::kBfloat, 16, 1}, {dlpack::kFloat, 16, 1}};

DType dtype_of(const dlpack::DataType& type) {
  if (type.code == dlpack::kBfloat) return kBFloat16;
  return type.bits == 64 ? kFloat64 : type.bits == 32 ? kFloat32 : kFloat16;
}

}  // namespace

Loop::Loop(int64_t batch, int64_t numel, int64_t channels, DType state, int64_t threads, const int64_t* seeds)
    : threads(threads), batch_(batch), numel_(numel), channels_(channels), state_(state), seeds_(seeds) {
  if (batch < 0 || numel < 0 || numel > kMaxElements)
    refuse("batch or numel is negative, or numel above 2**42");
  if (channels < 1 || (numel && numel % channels)) refuse("channels must divide numel; 1 is row-major");
  if (state != kFloat32 && state != kFloat64) refuse("the state must be float32 or float64");
  for (int64_t b = 0; seeds && b < batch; ++b) {
    if (seeds[b] < 0) refuse("a seed is negative");
  }
}

StageArgs Loop::blank() const {
  StageArgs a{};
  a.batch = batch_;
  a.numel = numel_;
  a.channels = channels_;
  a.state = state_;
  a.seeds = seeds_;
  a.seeds_stride = 1;
  return a;
}

void Loop::add_row(const std::vector<int64_t>& program, StageArgs args,
                   const std::vector<LoopSource>& sources) {
  LoopRow row{args, 0, {}};
  StageArgs& a = row.args;
  Program& p = a.program;
  if (const char* problem = read_program(program.data(), (int64_t)program.size(), p)) refuse(problem);
  if (p.columns != (int64_t)sources.size())
    refuse("the program reads another number of columns than were given");
  if (p.coefficients && !a.coef) refuse("the row has coefficients and coef is null");
  if (p.draws && !(a.draws && a.seeds)) refuse("the row draws noise: seeds and draws are needed");
  if (p.draws) check_draws(a);
  if (a.z.data && p.network < 0) refuse("z was given; the program makes no network input");
  if (a.z.data && a.copies < 1) refuse("copies must be at least 1");
  for (int o = p.outputs; o < kMaxOutputs; ++o) {
    if (a.store[o].data) refuse("more stores were given than the program has outputs");
  }
  const std::vector<Written> written = written_by(a);
  for (size_t i = 0; i < written.size(); ++i) {
    const Written& out = written[i];
    check_buffer(out.buffer, a, out.samples, out.name);
    for (size_t j = 0; j < i; ++j) {
      const Written& other = written[j];
      if (share_memory(extent_of(out.buffer, out.samples, a.numel),
                       extent_of(other.buffer, other.samples, a.numel))) {
        refuse(out.name + " overlaps " + other.name);
      }
    }
  }
  for (int c = 0; c < p.columns; ++c) {
    row.branch[c] = (int8_t)sources[c].branch;
    if (sources[c].branch >= 0) {
      if (sources[c].branch >= kMaxColumns) refuse("a branch index is too large");
      if (sources[c].branch >= row.branches) row.branches = sources[c].branch + 1;
      continue;
    }
    a.column[c] = sources[c].buffer;
    check_buffer(a.column[c], a, a.batch, "source " + std::to_string(c));
    for (const Written& out : written) {
      if (!compatible(out.buffer, out.samples, a.column[c], a)) {
        refuse(out.name + " overlaps source " + std::to_string(c) + " without being the same memory");
      }
    }
  }
  rows_.push_back(row);
}

void Loop::expect(DType dtype, std::vector<int64_t> shape, std::vector<int64_t> strides) {
  if (shape.empty() || shape.size() != strides.size() || shape[0] != batch_)
    refuse("shape must be [batch, ...]");
  if (dtype == kFloat64 && state_ != kFloat64) refuse("a float64 network needs a float64 state");
  const Layout own = layout_of(shape.data() + 1, strides.data() + 1, (int)shape.size() - 1);
  const bool fits = own == kEitherLayout || own == (channels_ > 1 ? kChannelsLast : kRowMajor);
  if (batch_ * numel_ > 0 && !fits) refuse("the network's output has another memory format than the run");
  expected_ = {kDlpackTypes[dtype], std::move(shape), std::move(strides)};
}

bool Loop::matches(const dlpack::Tensor& t, int64_t rows) const {
  const Expected& e = expected_;
  if (e.shape.empty()) return false;
  if (t.ndim != (int64_t)e.shape.size() || t.shape[0] != rows || t.device.type != dlpack::kCpu) return false;
  if (t.dtype.code != e.dtype.code || t.dtype.bits != e.dtype.bits || t.dtype.lanes != 1) return false;
  if (rows > 1 && t.strides[0] < numel_) return false;
  for (size_t d = 1; d < e.shape.size(); ++d) {
    if (t.shape[d] != e.shape[d]) return false;
    if (t.strides[d] != e.strides[d] && e.shape[d] != 1) return false;
  }
  return true;
}

bool Loop::prepare(const dlpack::Tensor* outputs, int64_t count, StageArgs& args) const {
  if (index >= size()) return false;
  const LoopRow& row = rows_[index];
  const bool stacked = count == 1 && row.branches > 1;
  if (!stacked && count != row.branches) return false;
  for (int64_t i = 0; i < count; ++i) {
    if (!matches(outputs[i], stacked ? row.branches * batch_ : batch_)) return false;
  }
  args = row.args;
  for (int c = 0; c < args.program.columns; ++c) {
    const int branch = row.branch[c];
    if (branch < 0) continue;
    const dlpack::Tensor& t = outputs[stacked ? 0 : branch];
    const int64_t stride = t.shape[0] > 1 ? t.strides[0] : numel_;
    const int32_t dtype = dtype_of(t.dtype);
    char* data = (char*)t.data + t.byte_offset + (stacked ? branch * batch_ * stride * kItemSize[dtype] : 0);
    args.column[c] = {data, stride, dtype};
    for (int o = 0; o < args.program.outputs; ++o) {
      if (args.store[o].data && !compatible(args.store[o], batch_, args.column[c], args)) return false;
    }
    if (args.z.data && !compatible(args.z, args.copies * batch_, args.column[c], args)) return false;
  }
  return true;
}

}  // namespace fastdiff
