// Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
#pragma once

#include <stdint.h>

#include "portable.h"

namespace fastdiff {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// The four 32-bit words of one counter, in place.
FD_HD void philox(uint32_t (&word)[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = (uint64_t)kPhiloxMultiplier0 * word[0];
    const uint64_t p1 = (uint64_t)kPhiloxMultiplier1 * word[2];
    word[0] = (uint32_t)(p1 >> 32) ^ word[1] ^ key0;
    word[1] = (uint32_t)p1;
    word[2] = (uint32_t)(p0 >> 32) ^ word[3] ^ key1;
    word[3] = (uint32_t)p0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

}  // namespace fastdiff
