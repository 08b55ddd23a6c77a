// What one call of a gram is given: docs/gram.md. Plain data, for the host and for a device.
#pragma once

#include "stage.h"

namespace fastdiff {

constexpr int kMaxVectors = 6, kMaxSums = 21, kMaxSteps = 64;
constexpr int kMaxTerms = 256, kMaxFactors = 512;
// Where a term comes from: a column, a draw, or the constant.
constexpr int kFirstGramDraw = kMaxColumns, kConstant = kFirstGramDraw + kMaxDraws;

enum SumKind : int8_t { kInner, kWeighted };
enum Operation : int8_t { kNumber, kAdd, kSub, kMul, kDiv, kSqrt, kMax };

// A sum over elements: of vectors a and b, or of a weighted by b and c.
struct SumOf {
  int8_t kind, a, b, c;
};

// Arithmetic on two scalars: first the sums, then what earlier steps made.
struct Step {
  int8_t operation, left, right;
};

// A gram's structure. `source` names the terms of one vector after the other, `scalar` those of one
// coefficient after the other. The numbers are the coefficients of all terms, and where the others begin is
// said here: two for each weighted sum, one for each step that is a number, and for each coefficient 1 +
// factors.
struct GramProgram {
  uint8_t vectors, sums, steps, coefficients;
  uint16_t terms[kMaxVectors];
  uint8_t source[kMaxTerms];
  SumOf sum[kMaxSums];
  Step step[kMaxSteps];
  uint16_t factors[kMaxCoefficients];
  uint8_t scalar[kMaxFactors];
  int16_t tolerances, constants, affine;
};

// One call. Strides count elements of their own array; a stride of 0 shares one sample's values with all.
struct GramArgs {
  int64_t batch, numel;
  // As in StageArgs.
  int64_t channels;
  int32_t state;
  const double* numbers;
  const int64_t *seeds, *draws;
  int64_t numbers_stride, seeds_stride, draws_stride;
  // In the state type; null where nobody wants coefficients.
  void* coef;
  // All scalars of each sample: sums, then steps.
  double* scalars;
  int64_t coef_stride, scalars_stride;
  // [batch, sums, chunks] where a sample has more than one chunk, else null.
  double* parts;
  GramProgram program;
  Buffer column[kMaxColumns];
};

}  // namespace fastdiff
