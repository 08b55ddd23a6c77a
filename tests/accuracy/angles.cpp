// The largest errors of cos_sin() over every angle, in ulp: of the angle that float32 holds, then of the exact one.
//
// A quadrant's angles are the first one's, swapped and signed, and those below zero mirror those above: 2^29 remain.
#include <math.h>
#include <stdio.h>

#include "normal.h"

static double error(float found, double exact) {
  const float size = fabsf((float)exact);
  return exact == 0 ? 0 : fabs(found - exact) / ((double)nextafterf(size, INFINITY) - (double)size);
}

int main() {
  double cos_worst[2] = {0, 0}, sin_worst[2] = {0, 0};
  for (int32_t word = 0; word < 1 << 29; ++word) {
    float cosine, sine;
    fastdiff::cos_sin((uint32_t)word, cosine, sine);
    const double turns[2] = {(double)(float)word, (double)word};
    for (int k = 0; k < 2; ++k) {
      const double angle = M_PI * (turns[k] * 0x1p-31);
      cos_worst[k] = fmax(cos_worst[k], error(cosine, cos(angle)));
      sin_worst[k] = fmax(sin_worst[k], error(sine, sin(angle)));
    }
  }
  printf("%.3f %.3f %.3f %.3f\n", cos_worst[0], sin_worst[0], cos_worst[1], sin_worst[1]);
}
