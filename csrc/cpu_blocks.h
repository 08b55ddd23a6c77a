// Normals where elements do not follow each other: samples smaller than a tile, and channels last.
//
// Their Philox blocks are collected one by one and computed many at a time.
#pragma once

#include "cpu_noise.h"

namespace fastdiff::FD_ISA {

// Elements of consecutive places in memory that come from one Philox block.
struct Piece {
  int16_t place, stride;
  uint8_t lane, count;
};

// Blocks to compute, and the piece that each is for.
struct Listed {
  Blocks blocks;
  Piece piece[Blocks::kMost];
};

// Computes a list's normals and puts each where its element lies.
static void flush(Listed& list, const Draw& draw, float* out) {
  alignas(64) float normal[4 * Blocks::kMost];
  block_normals(list.blocks, draw, normal);
  for (int i = 0; i < list.blocks.size; ++i) {
    const Piece& piece = list.piece[i];
    for (int j = 0; j < piece.count; ++j)
      out[piece.place + j * piece.stride] = normal[4 * i + piece.lane + j];
  }
  list.blocks.size = 0;
}

// `count` elements from logical index `element` on, to places place, place + stride, ... of the tile.
static void list_run(Listed& list, const Draw& draw, int64_t seed, int64_t element, int64_t count,
                     int64_t place, int64_t stride, float* out) {
  while (count > 0) {
    const int lane = (int)(element & 3);
    const int64_t block = element >> 2, room = 4 - lane, taken = count < room ? count : room;
    const int i = list.blocks.size++;
    list.blocks.low[i] = (uint32_t)block;
    list.blocks.high[i] = (uint32_t)(block >> 32);
    list.blocks.key_low[i] = (uint32_t)seed;
    list.blocks.key_high[i] = (uint32_t)((uint64_t)seed >> 32);
    list.piece[i] = {(int16_t)place, (int16_t)stride, (uint8_t)lane, (uint8_t)taken};
    if (list.blocks.size == Blocks::kMost) flush(list, draw, out);
    element += taken;
    count -= taken;
    place += taken * stride;
  }
}

// Places [first, first + count) of one sample's memory, which is [positions, channels], to out[place ..).
static void list_channels(Listed& list, const Draw& draw, int64_t seed, int64_t first, int64_t count,
                          int64_t channels, int64_t positions, int64_t place, float* out) {
  int64_t channel = channels == 1 ? 0 : first % channels, position = channels == 1 ? first : first / channels;
  const int64_t rounds = channels == 1 ? count : count / channels, rest = count - rounds * channels;
  const int64_t most = rounds ? channels : rest;
  for (int64_t offset = 0; offset < most; ++offset) {
    const int64_t run = rounds + (offset < rest);
    list_run(list, draw, seed, channel * positions + position, run, place + offset, channels, out);
    if (++channel == channels) {
      channel = 0;
      ++position;
    }
  }
}

// From this many consecutive elements on, linear_normals() wastes little of what it rounds up to.
constexpr int kLongRun = 64;

// A rectangle of one sample's memory, which is [positions, channels]: `rows` positions from `position` on, of
// `width` channels from `channel` on, row by row to `out`.
static void rectangle_normals(Listed& list, const Key& key, const Draw& draw, int64_t seed, int64_t position,
                              int rows, int64_t positions, int64_t channel, int width, float* out) {
  int done = 0;
  // Where every channel begins with a new block, four rows of the rectangle are the lanes of one block each.
  if (rows % 4 == 0 && positions % 4 == 0 && position % 4 == 0) {
    const int groups = width / kChannelGroup;
    for (int row = 0; row < rows; row += 4) {
      const int64_t block = (channel * positions + position + row) >> 2;
      channel_normals(key, draw, block, positions >> 2, groups, width, out + row * width);
    }
    done = groups * kChannelGroup;
    // Few channels: each is a long run of consecutive elements.
    for (; rows >= kLongRun && done < width; ++done) {
      alignas(64) float run[kNoiseTile];
      const int64_t block = ((channel + done) * positions + position) >> 2;
      // linear_normals() does not carry into the high word.
      if ((uint32_t)block > UINT32_MAX - kNoiseTile) break;
      linear_normals(key, draw, block, rows, run);
      for (int row = 0; row < rows; ++row) out[row * width + done] = run[row];
    }
  }
  list.blocks.size = 0;
  for (; done < width; ++done)
    list_run(list, draw, seed, (channel + done) * positions + position, rows, done, width, out);
  flush(list, draw, out);
}

}  // namespace fastdiff::FD_ISA
