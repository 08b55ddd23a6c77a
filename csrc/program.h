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
    int64_t head[4];
    for (int64_t& value : head) value = take();
    if (head[0] < 0 || head[0] > kMaxColumns) return "it reads more than 16 columns, or fewer than none";
    if (head[1] < 0 || head[1] > kMaxDraws) return "it has more than 32 draws, or fewer than none";
    if (head[3] < 0 || head[3] > kMaxOutputs) return "it has more than 6 outputs, or fewer than none";
    p.columns = (int8_t)head[0];
    p.draws = (int8_t)head[1];
    p.c_in = -1;
    // An output reads the outputs before it, which are those that are counted so far.
    for (int64_t o = 0; o < head[3] && !problem_; ++o, ++p.outputs) read_output(p, p.output[o]);
    if (problem_) return problem_;
    if (head[2] >= p.outputs) return "its network input is an output that it does not have";
    p.network = (int8_t)(head[2] < 0 ? -1 : head[2]);
    if (p.network >= 0) p.c_in = (int8_t)coefficient(p, 0);
    if (problem_) return problem_;
    return next_ == end_ ? nullptr : "it goes on after its last output";
  }

 private:
  static constexpr const char* kTooMany = "it has more than 64 coefficients";
  static constexpr const char* kNoSource = "it names a column, draw or earlier output that it does not have";

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

  // Columns come first, then the outputs so far.
  int source(const Program& p, int64_t s) {
    if (s < 0 || s >= p.columns + p.outputs) fail(kNoSource);
    return (int)(s < p.columns ? s : kFirstOutput + s - p.columns);
  }

  int64_t count() {
    const int64_t many = take();
    if (many < 0 || many > kMaxCoefficients) fail(many < 0 ? "it counts below zero" : kTooMany);
    return many;
  }

  void read_output(Program& p, Output& out) {
    const int64_t base = take();
    out.base = (int8_t)(base < 0 ? -1 : source(p, base));
    out.first = p.coefficients;
    const int64_t terms = count();
    for (int64_t i = 0; i < terms && !problem_; ++i) coefficient(p, source(p, take()));
    const int64_t noises = count();
    for (int64_t i = 0; i < noises && !problem_; ++i) {
      const int64_t r = take();
      if (r >= p.draws || r < -p.columns) fail(kNoSource);
      coefficient(p, r >= 0 ? kFirstDraw + (int)r : (int)(-1 - r));
    }
    out.terms = (uint8_t)terms;
    out.noises = (uint8_t)noises;
    const bool clamps = take() != 0, scales = take() != 0;
    out.bound = (int8_t)(clamps ? coefficient(p, 0) : -1);
    out.scale = (int8_t)(scales ? coefficient(p, 0) : -1);
  }

  const int64_t* next_;
  const int64_t* end_;
  const char* problem_ = nullptr;
};

inline const char* read_program(const int64_t* integers, int64_t count, Program& program) {
  return ProgramReader(integers, count).read(program);
}

}  // namespace fastdiff
