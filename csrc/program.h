// A program's integers decoded and checked: docs/row-format.md. Host only.
#pragma once

#include "stage.h"

namespace fastdiff {

class ProgramReader {
 public:
  ProgramReader(const int64_t* integers, int64_t count) : next_(integers), end_(integers + count) {}

  // Null when the program is sound, else what is wrong with it.
  const char* read(Program& p) {
    p = Program{};
    int64_t head[6];
    for (int64_t& value : head) value = take();
    if (head[0] < 0 || head[0] > kMaxColumns) return "it reads more than 16 columns, or fewer than none";
    if (head[1] < 0 || head[1] > kMaxDraws) return "it has more than 32 draws, or fewer than none";
    if (head[3] > kMaxCoefficients) return kTooMany;
    p.columns = (int8_t)head[0];
    p.draws = (int8_t)head[1];
    p.d_terms = (int8_t)(head[3] < 0 ? -1 : head[3]);
    p.d_bound = p.d_scale = p.c_in = -1;
    if (p.d_terms < 0 && (head[4] || head[5]))
      return "it clamps or scales a derived column that it does not have";
    read_terms(p, head[3] < 0 ? 0 : head[3], p.columns);
    if (head[4]) p.d_bound = (int8_t)coefficient(p, 0);
    if (head[5]) p.d_scale = (int8_t)coefficient(p, 0);
    const int64_t outputs = take();
    if (outputs < 0 || outputs > kMaxOutputs) return "it has more than 4 outputs, or fewer than none";
    p.outputs = (int8_t)outputs;
    for (int o = 0; o < p.outputs && !problem_; ++o) read_output(p, p.output[o]);
    if (problem_) return problem_;
    if (head[2] >= p.outputs) return "its network input is an output that it does not have";
    p.network = (int8_t)(head[2] < 0 ? -1 : head[2]);
    if (p.network >= 0) p.c_in = (int8_t)coefficient(p, 0);
    if (problem_) return problem_;
    return next_ == end_ ? nullptr : "it goes on after its last output";
  }

 private:
  static constexpr const char* kTooMany = "it has more than 64 coefficients";
  static constexpr const char* kNoSource = "it names a column or draw that it does not have";

  int64_t take() {
    if (next_ < end_) return *next_++;
    fail("it ends too early");
    return 0;
  }

  void fail(const char* problem) {
    if (!problem_) problem_ = problem;
  }

  int coefficient(Program& p, int source) {
    if (p.coefficients == kMaxCoefficients) {
      fail(kTooMany);
      return 0;
    }
    p.source[p.coefficients] = (uint8_t)source;
    return p.coefficients++;
  }

  // Terms name columns below `columns`; that index itself is the derived column where there is one.
  int64_t read_terms(Program& p, int64_t count, int64_t last) {
    if (count < 0 || count > kMaxCoefficients) fail(count < 0 ? "it counts below zero" : kTooMany);
    for (int64_t i = 0; i < count && !problem_; ++i) {
      const int64_t s = take();
      if (s < 0 || s >= last) fail(kNoSource);
      coefficient(p, s == p.columns ? kDerived : (int)s);
    }
    return count;
  }

  void read_output(Program& p, Output& out) {
    const int64_t base = take();
    if (base >= p.columns) fail(kNoSource);
    out.base = (int8_t)(base < 0 ? -1 : base);
    out.first = p.coefficients;
    out.terms = (uint8_t)read_terms(p, take(), p.columns + (p.d_terms >= 0));
    const int64_t noises = take();
    if (noises < 0 || noises > kMaxCoefficients) fail(noises < 0 ? "it counts below zero" : kTooMany);
    for (int64_t i = 0; i < noises && !problem_; ++i) {
      const int64_t r = take();
      if (r >= p.draws || r < -p.columns) fail(kNoSource);
      coefficient(p, r >= 0 ? kFirstDraw + (int)r : (int)(-1 - r));
    }
    out.noises = (uint8_t)noises;
  }

  const int64_t* next_;
  const int64_t* end_;
  const char* problem_ = nullptr;
};

inline const char* read_program(const int64_t* integers, int64_t count, Program& program) {
  return ProgramReader(integers, count).read(program);
}

}  // namespace fastdiff
