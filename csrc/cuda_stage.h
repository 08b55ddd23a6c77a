// A row computed by the threads of a device, each for the few quads of elements that it owns.
//
// A thread loads all columns of its elements before it stores any output, which makes writing in place safe.
// A row's terms name columns and outputs by number and registers have none, so these lie in shared memory, in
// slots that only their own thread touches: no barrier, no bank conflict, and one kernel serves every row.
#pragma once

#include "slots.h"

namespace fastdiff {

enum Drawing { kNoDraws, kDrawsByRow, kDrawsByChannel };

// A launch as kernels read it: a source or base that is an output stands in the program by its slot. Slots
// are the columns, then the outputs that later ones read, then one for what is on its way: the normals of a
// draw, or an output that leaves element by element.
struct SlottedArgs {
  StageArgs args;
  // -1 where no later output reads this one.
  int8_t slot[kMaxOutputs];
  int8_t spare;
};

inline bool is_output(int source) { return source >= kFirstOutput && source < kFirstDraw; }

inline bool is_read(const Program& p, int output) {
  bool found = false;
  for (int k = 0; k < p.coefficients; ++k) found |= p.source[k] == kFirstOutput + output;
  for (int o = 0; o < p.outputs; ++o) found |= p.output[o].base == kFirstOutput + output;
  return found;
}

inline SlottedArgs give_slots(const StageArgs& args) {
  SlottedArgs found = {args, {}, 0};
  Program& p = found.args.program;
  int8_t next = p.columns;
  for (int o = 0; o < p.outputs; ++o) found.slot[o] = is_read(p, o) ? next++ : -1;
  found.spare = next;
  for (int k = 0; k < p.coefficients; ++k) {
    if (is_output(p.source[k])) p.source[k] = (uint8_t)found.slot[p.source[k] - kFirstOutput];
  }
  for (int o = 0; o < p.outputs; ++o) {
    int8_t& base = p.output[o].base;
    if (is_output(base)) base = found.slot[base - kFirstOutput];
  }
  return found;
}

inline int slots_of(const SlottedArgs& a) { return a.spare + 1; }

template <class T>
__device__ inline Slots<T> own_slots() {
  return {block_memory() + (threadIdx.y * blockDim.x + threadIdx.x), (int)(blockDim.x * blockDim.y)};
}

// What a thread works on. What its sample has of its own is read where it is needed: registers are few.
template <class T>
struct Work {
  const SlottedArgs& slotted;
  const Slots<T>& slots;
  const Group& group;

  __device__ const StageArgs& args() const { return slotted.args; }
  __device__ SampleArgs<T> sample() const { return sample_args<T>(args(), group.b); }
};

// Coefficients in the order in which a row reads them.
template <class T>
struct Reader {
  const T* next;
  uint64_t present;

  // The next coefficient, and whether its operation is present.
  __device__ bool take(T& coefficient) {
    const bool on = present & 1;
    coefficient = __ldg(next++);
    present >>= 1;
    return on;
  }
};

// A sum that begins at -0, because -0 + x is x for every x; if nothing is ever added it is +0.
template <class T>
struct Sums {
  Values<T> total;
  bool started = false;

  __device__ Sums() {
    for_each_value<T>([&](int q, int lane) { total[q][lane] = T(-0.0); });
  }

  __device__ void add(const Work<T>& work, T factor, int slot) {
#pragma unroll
    for (int q = 0; q < kQuads<T>; ++q) {
      if (q >= work.group.quads) continue;
      T value[kQuad];
      work.slots.get(slot, q, value);
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) {
        total[q][lane] = fastdiff::add(total[q][lane], mul(factor, value[lane]));
      }
    }
    started = true;
  }

  __device__ void finish() {
    for_each_value<T>([&](int q, int lane) { total[q][lane] = started ? total[q][lane] : T(0); });
  }
};

// A draw's normals into their slot. Where channels come last, neighbours belong to four Philox blocks.
template <Drawing kDrawing, class T>
__device__ inline void draw_normals(const Work<T>& work, int draw_number) {
  const SampleArgs<T> sample = work.sample();
  const Draw draw = make_draw(sample.draws + 4 * draw_number);
  const int slot = work.slotted.spare;
#pragma unroll 1
  for (int q = 0; q < work.group.quads; ++q) {
    const int64_t place = work.group.place(q);
    if (kDrawing == kDrawsByRow) {
      float normal[kQuad];
      normals_of_block(opaque(sample.seed), draw, place / kQuad, normal);
      T value[kQuad];
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) value[lane] = normal[lane];
      work.slots.put(slot, q, value);
    } else {
#pragma unroll 1
      for (int lane = 0; lane < kQuad; ++lane) {
        const int64_t element = logical_index(work.args(), place + lane);
        work.slots.one(slot, q, lane) = normal_of_element(opaque(sample.seed), draw, element);
      }
    }
  }
}

// Adds the products of coefficients [first, last), as far as they are present.
template <Drawing kDrawing, class T>
__device__ inline void add_products(const Work<T>& work, Reader<T>& reader, int first, int last,
                                    Sums<T>& sums) {
  const Program& p = work.args().program;
#pragma unroll 1
  for (int k = first; k < last; ++k) {
    T factor;
    if (!reader.take(factor)) continue;
    int slot = p.source[k];
    if (kDrawing != kNoDraws && slot >= kFirstDraw) {
      draw_normals<kDrawing>(work, slot - kFirstDraw);
      slot = work.slotted.spare;
    }
    sums.add(work, factor, slot);
  }
}

template <class T>
__device__ inline void put(const Work<T>& work, int slot, const Values<T>& value) {
#pragma unroll
  for (int q = 0; q < kQuads<T>; ++q) {
    if (q < work.group.quads) work.slots.put(slot, q, value[q]);
  }
}

template <class T>
__device__ inline void load_columns(const Work<T>& work) {
#pragma unroll 1
  for (int c = 0; c < work.args().program.columns; ++c) {
    const Buffer& column = work.args().column[c];
    const Spot from(column, work.group.b, work.group);
    if (from.at_once) {
      Values<T> value = {};
      load_quads<T>(from, work.group, value);
      put(work, c, value);
    } else {
      for_each_element(work.group, [&](int q, int lane, int64_t offset) {
        work.slots.one(c, q, lane) = load_as<T>(column.data, from.dtype, from.at + offset);
      });
    }
  }
}

// Values, rounded to the storage type of a buffer, into their sample of it, or of so many stacked copies.
template <class T>
__device__ inline void store(const Work<T>& work, const Buffer& buffer, const Values<T>& value, int copies) {
  const int spare = work.slotted.spare;
#pragma unroll 1
  for (int copy = 0; copy < copies; ++copy) {
    const Spot to(buffer, copy * work.args().batch + work.group.b, work.group);
    if (to.at_once) {
      store_quads<T>(to, work.group, value);
      continue;
    }
    put(work, spare, value);
    for_each_element(work.group, [&](int q, int lane, int64_t offset) {
      store_as<T>(buffer.data, to.dtype, to.at + offset, work.slots.one(spare, q, lane));
    });
  }
}

// Clamps a sum and scales it, as far as its output does and these are present.
template <class T>
__device__ inline void limit(const Output& out, Reader<T>& reader, Values<T>& w) {
  T bound, scale;
  if (out.bound >= 0 && reader.take(bound)) {
    for_each_value<T>([&](int q, int lane) { w[q][lane] = clamp(w[q][lane], bound); });
  }
  if (out.scale >= 0 && reader.take(scale)) {
    for_each_value<T>([&](int q, int lane) { w[q][lane] = mul(scale, w[q][lane]); });
  }
}

// An output as the network input: scaled, rounded once, and stored in every copy.
template <class T>
__device__ inline void feed(const Work<T>& work, Values<T>& w) {
  const StageArgs& a = work.args();
  const SampleArgs<T> sample = work.sample();
  const int k = a.program.c_in;
  if (is_present(sample.present, k)) {
    const T c_in = __ldg(sample.coef + k);
    for_each_value<T>([&](int q, int lane) { w[q][lane] = mul(c_in, w[q][lane]); });
  }
  store(work, a.z, w, a.copies);
}

// All outputs of a thread's elements.
template <class T, Drawing kDrawing>
__device__ inline void stage(const Work<T>& work) {
  const StageArgs& a = work.args();
  const Program& p = a.program;
  load_columns(work);
  const SampleArgs<T> sample = work.sample();
  Reader<T> reader = {sample.coef, (uint64_t)sample.present};
#pragma unroll 1
  for (int o = 0; o < p.outputs; ++o) {
    const Output& out = p.output[o];
    const int first_noise = out.first + out.terms;
    Sums<T> sums;
    add_products<kNoDraws>(work, reader, out.first, first_noise, sums);
    // 1 * x is x, bit for bit.
    if (out.base >= 0) sums.add(work, T(1), out.base);
    add_products<kDrawing>(work, reader, first_noise, first_noise + out.noises, sums);
    sums.finish();
    limit(out, reader, sums.total);
    const int slot = work.slotted.slot[o];
    if (slot >= 0) put(work, slot, sums.total);
    if (a.store[o].data) store(work, a.store[o], sums.total, 1);
    if (o == p.network && a.z.data) feed(work, sums.total);
  }
}

}  // namespace fastdiff
