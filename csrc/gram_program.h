// A gram program's integers decoded and checked: docs/gram.md. Host only.
#pragma once

#include "gram_args.h"

namespace fastdiff {

class GramProgramReader {
 public:
  GramProgramReader(const int64_t* integers, int64_t count) : next_(integers), end_(integers + count) {}

  // Null when the program is sound, else what is wrong with it. `numbers` is how many numbers it reads.
  const char* read(GramProgram& p, int64_t& columns, int64_t& draws, int64_t& numbers) {
    p = GramProgram{};
    columns = count(kMaxColumns);
    draws = count(kMaxDraws);
    p.vectors = (uint8_t)count(kMaxVectors);
    int terms = 0;
    for (int v = 0; v < p.vectors && !problem_; ++v) {
      p.terms[v] = (uint16_t)count(kMaxTerms - terms);
      for (int i = 0; i < p.terms[v] && !problem_; ++i, ++terms) p.source[terms] = source(columns, draws);
    }
    p.sums = (uint8_t)count(kMaxSums);
    if (!p.sums) fail("it sums nothing");
    int weighted = 0, constants = 0, factors = 0;
    for (int i = 0; i < p.sums && !problem_; ++i) {
      p.sum[i].kind = (int8_t)below(2);
      p.sum[i].a = (int8_t)below(p.vectors);
      p.sum[i].b = (int8_t)below(p.vectors);
      p.sum[i].c = (int8_t)(p.sum[i].kind == kWeighted ? below(p.vectors) : (take(), -1));
      weighted += p.sum[i].kind == kWeighted;
    }
    p.steps = (uint8_t)count(kMaxSteps);
    for (int i = 0; i < p.steps && !problem_; ++i) {
      Step& step = p.step[i];
      step.operation = (int8_t)below(kMax + 1);
      const bool number = step.operation == kNumber, one = number || step.operation == kSqrt;
      step.left = (int8_t)(number ? (take(), -1) : below(p.sums + i));
      step.right = (int8_t)(one ? (take(), -1) : below(p.sums + i));
      constants += number;
    }
    p.coefficients = (uint8_t)count(kMaxCoefficients);
    for (int k = 0; k < p.coefficients && !problem_; ++k) {
      p.factors[k] = (uint16_t)count(kMaxFactors - factors);
      for (int i = 0; i < p.factors[k] && !problem_; ++i)
        p.scalar[factors++] = (uint8_t)below(p.sums + p.steps);
    }
    if (!problem_ && next_ != end_) fail("it goes on after its last coefficient");
    p.tolerances = (int16_t)terms;
    p.constants = (int16_t)(terms + 2 * weighted);
    p.affine = (int16_t)(p.constants + constants);
    numbers = p.affine + p.coefficients + factors;
    return problem_;
  }

 private:
  int64_t take() {
    if (next_ < end_) return *next_++;
    fail("it ends too early");
    return 0;
  }

  void fail(const char* problem) {
    if (!problem_) problem_ = problem;
  }

  int64_t count(int64_t limit) {
    const int64_t many = take();
    if (many < 0 || many > limit) fail("it has more of something than is allowed, or fewer than none");
    return problem_ ? 0 : many;
  }

  int64_t below(int64_t limit) {
    const int64_t index = take();
    if (index < 0 || index >= limit) fail("it names something that it does not have");
    return problem_ ? 0 : index;
  }

  uint8_t source(int64_t columns, int64_t draws) {
    const int64_t s = below(columns + draws + 1);
    if (s < columns) return (uint8_t)s;
    return (uint8_t)(s < columns + draws ? kFirstGramDraw + s - columns : kConstant);
  }

  const int64_t* next_;
  const int64_t* end_;
  const char* problem_ = nullptr;
};

}  // namespace fastdiff
