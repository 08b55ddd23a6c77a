// Standard normals from 32-bit words by Box and Muller, "A note on the generation of random normal deviates",
// 1958.
//
// Only fma, mul, add, square root and integer operations, each rounded once, so that every backend gives the
// same bits. Constants and their accuracy: docs/noise.md.
#pragma once

#include "philox.h"
#include "portable.h"

namespace fastdiff {

constexpr int kNoiseFormat = 1;

constexpr float kWordScale = 0x1p-32f, kWordHalf = 0x1p-33f;
// log(1 + f) - f over f*f: even and odd powers run as two interleaved chains, the tail joins them.
FD_TABLE float kLogEven[4] = {-0x1.0aep-3f, -0x1.f19968p-4f, -0x1.55b362p-3f, -0x1.fffe02p-3f};
FD_TABLE float kLogOdd[3] = {0x1.208p-3f, 0x1.1e574p-3f, 0x1.99d8b2p-3f};
FD_TABLE float kLogTail[2] = {0x1.5554fap-2f, -0.5f};
constexpr float kLn2 = 0x1.62e43p-1f;
constexpr uint32_t kLogSplit = 0x3F2AAAABu, kExponentMask = 0xFF800000u;
constexpr float kExponentScale = 0x1p-23f;
// cos(pi t) in powers of t*t, and (sin(pi t) - pi t) / t^3; t in [-1/4, 1/4].
FD_TABLE float kCos[5] = {0x1.d9ep-3f, -0x1.55c4p+0f, 0x1.03c1ap+2f, -0x1.3bd3ccp+2f, 1.0f};
FD_TABLE float kSin[3] = {-0x1.31p-1f, 0x1.4672fcp+1f, -0x1.4abbfep+2f};
constexpr float kPi = 0x1.921fb6p+1f;
constexpr uint32_t kEighthTurn = 0x20000000u, kQuarterTurn = 0x40000000u, kSignBit = 0x80000000u;
constexpr float kTurnScale = 0x1p-31f;

// sqrt(-2 log u), u = (word + 1/2) / 2^32.
FD_HD float radius(uint32_t word) {
  const uint32_t u = bits<uint32_t>(fma(to_float(word), kWordScale, kWordHalf));
  const uint32_t exponent = (u - kLogSplit) & kExponentMask;
  const float f = add(bits<float>(u - exponent), -1.0f);
  const float i = mul(to_float((int32_t)exponent), kExponentScale);
  const float s = mul(f, f);
  float r = kLogEven[0], t = kLogOdd[0];
  r = fma(r, s, kLogEven[1]);
  t = fma(t, s, kLogOdd[1]);
  r = fma(r, s, kLogEven[2]);
  t = fma(t, s, kLogOdd[2]);
  r = fma(r, s, kLogEven[3]);
  r = fma(t, f, r);
  r = fma(r, f, kLogTail[0]);
  r = fma(r, f, kLogTail[1]);
  r = fma(r, s, f);
  return square_root(mul(fma(i, kLn2, r), -2.0f));
}

// Cosine and sine of 2 pi word / 2^32.
FD_HD void cos_sin(uint32_t word, float& cosine, float& sine) {
  const uint32_t turned = word + kEighthTurn;
  const uint32_t quadrant = turned >> 30;
  const float t = mul(to_float((int32_t)(word - (quadrant << 30))), kTurnScale);
  const float s = mul(t, t);
  float c = kCos[0], p = kSin[0];
  c = fma(c, s, kCos[1]);
  c = fma(c, s, kCos[2]);
  c = fma(c, s, kCos[3]);
  c = fma(c, s, kCos[4]);
  p = fma(p, s, kSin[1]);
  p = fma(p, s, kSin[2]);
  const float d = fma(mul(p, s), t, mul(kPi, t));
  const bool swapped = quadrant & 1;
  cosine = bits<float>(bits<uint32_t>(swapped ? d : c) ^ ((turned + kQuarterTurn) & kSignBit));
  sine = bits<float>(bits<uint32_t>(swapped ? c : d) ^ (turned & kSignBit));
}

// Four normals from the four words of one counter: words 0 and 2 are radii, words 1 and 3 angles.
FD_HD void normals_from_words(const uint32_t (&word)[4], float (&normal)[4]) {
  for (int pair = 0; pair < 4; pair += 2) {
    const float r = radius(word[pair]);
    float cosine, sine;
    cos_sin(word[pair + 1], cosine, sine);
    normal[pair] = mul(r, cosine);
    normal[pair + 1] = mul(r, sine);
  }
}

// What identifies one normal tensor, with the words of its counter that do not depend on the element.
struct Draw {
  uint32_t purpose_tensor, draw, sub_draw_format;
};

// A draw from its four integers: purpose, tensor, draw, sub_draw.
FD_HD Draw make_draw(const int64_t* four) {
  return {(uint32_t)four[0] << 8 | (uint32_t)four[1] << 16, (uint32_t)four[2],
          (uint32_t)four[3] | (uint32_t)kNoiseFormat << 24};
}

// The normals of elements 4*block .. 4*block + 3 of a sample.
FD_HD void normals_of_block(int64_t seed, const Draw& draw, int64_t block, float (&normal)[4]) {
  uint32_t word[4] = {(uint32_t)block, (uint32_t)(block >> 32) | draw.purpose_tensor, draw.draw,
                      draw.sub_draw_format};
  philox(word, (uint32_t)seed, (uint32_t)((uint64_t)seed >> 32));
  normals_from_words(word, normal);
}

// The normal of one element: for layouts whose neighbours belong to different blocks.
FD_HD float normal_of_element(int64_t seed, const Draw& draw, int64_t element) {
  const uint64_t block = (uint64_t)element >> 2;
  uint32_t word[4] = {(uint32_t)block, (uint32_t)(block >> 32) | draw.purpose_tensor, draw.draw,
                      draw.sub_draw_format};
  philox(word, (uint32_t)seed, (uint32_t)((uint64_t)seed >> 32));
  const bool second_pair = element & 2, odd = element & 1;
  float cosine, sine;
  cos_sin(second_pair ? word[3] : word[1], cosine, sine);
  return mul(radius(second_pair ? word[2] : word[0]), odd ? sine : cosine);
}

}  // namespace fastdiff
