"""Faults in the CUDA kernels, their launcher, and the headers that they share with the CPU kernels."""

from __future__ import annotations

from mutant import Mutant

RANDOM_ROWS = "tests/gpu/test_cuda_emulated.py::test_random_rows_have_the_reference_bits[1]"
NOISE = "tests/gpu/test_cuda_emulated.py::test_noise_has_the_reference_bits[memory_format0-dtype0]"
MEMORY = "tests/gpu/test_cuda_sanitized.py::test_no_byte_out_of_bounds_and_nothing_undefined"
RACES = "tests/gpu/test_cuda_sanitized.py::test_no_race_between_threads"
BEYOND = "tests/gpu/test_cuda_emulated.py::test_beyond_two_to_the_32_elements[17179870211]"
STRIDE = "tests/gpu/test_cuda_emulated.py::test_a_batch_stride_beyond_two_to_the_32_elements"
HIGH = "tests/gpu/test_cuda_emulated.py::test_more_samples_than_a_grid_is_high"
SHARED = "tests/gpu/test_cuda_emulated.py::test_only_outputs_that_are_read_take_shared_memory"
SAMPLINGS = "tests/gpu/test_cuda_emulated.py::test_whole_samplings_have_the_reference_bits[3.0-float32]"
DEVICE = "tests/gpu/test_cuda_emulated.py::test_the_tensors_device_and_its_current_stream_are_used"
ERRORS = "tests/gpu/test_cuda_emulated.py::test_what_the_runtime_says_reaches_the_caller"
REFUSALS = "tests/gpu/test_cuda_emulated.py::test_refusals_say_why"
PTX = "tests/gpu/test_cuda_ptx.py::test_rows_have_the_reference_bits"
TRAFFIC = "tests/gpu/test_cuda_ptx.py::test_every_byte_moves_once_and_in_quads[sm_90-network0-1.0-float32-12]"
CONTRACTION = "tests/gpu/test_cuda_gates.py::test_machine_code_does_not_depend_on_contraction"
FUSED = "tests/gpu/test_cuda_gates.py::test_only_the_polynomials_are_fused"
SPILLS = "tests/gpu/test_cuda_gates.py::test_nothing_is_spilled_and_registers_are_few[sm_90]"
GRAMS = "tests/gpu/test_cuda_gram.py::test_random_grams_have_the_bits_of_the_definition[1]"
GRAM_PTX = "tests/gpu/test_cuda_gram.py::test_compiled_grams_have_the_bits_of_the_definition"
GRAM_BEYOND = "tests/gpu/test_cuda_gram.py::test_beyond_two_to_the_32_elements"
LEVELS = "tests/gpu/test_cuda_gram.py::test_a_sum_of_more_chunks_than_one_chunk_has"
NAN = "tests/gpu/test_cuda_gram.py::test_a_nan_stays_in_its_sample_and_is_never_lost"

CUDA = (
    # The launch.
    Mutant("the last quad is left out", "csrc/cuda.cu", "i < a.numel; i +=", "i + kQuad < a.numel; i +=", RANDOM_ROWS),
    Mutant(
        "the last sample is left out",
        "csrc/cuda.cu",
        "b < a.batch; b += y_step",
        "b + 1 < a.batch; b += y_step",
        RANDOM_ROWS,
    ),
    Mutant("a grid may be of any height", "csrc/cuda.cu", "at_most(high, kMaxGridY)", "high", HIGH),
    Mutant(
        "samples beyond the grid are left out",
        "csrc/cuda.cu",
        "b < a.batch; b += y_step",
        "b < a.batch; b += a.batch",
        HIGH,
    ),
    Mutant("two threads take each quad", "csrc/cuda.cu", "int64_t i = x * kQuad;", "int64_t i = x / 2 * kQuad;", RACES),
    Mutant("places have 32 bits", "csrc/quad.h", "return i + q * step;", "return (int32_t)(i + q * step);", BEYOND),
    Mutant("too little shared memory", "csrc/cuda_stage.h", "return a.spare + 1;", "return a.spare;", MEMORY),
    Mutant(
        "outputs that nobody reads take shared memory",
        "csrc/cuda_stage.h",
        "is_read(p, o) ? next++ : -1",
        "next++",
        SHARED,
    ),
    Mutant(
        "the device is not given back",
        "csrc/cuda.cu",
        "if (problem_ == cudaSuccess && before_ != wanted_) cudaSetDevice(before_);",
        "",
        DEVICE,
    ),
    Mutant(
        "the stream is not the current one",
        "fastdiff/backends/cuda.py",
        "torch.cuda.current_stream(tensor.device).cuda_stream",
        "None",
        DEVICE,
    ),
    Mutant("the runtime remembers an error", "csrc/cuda.cu", "  cudaGetLastError();\n", "", ERRORS),
    Mutant(
        "an error is not raised",
        "fastdiff/backends/cuda.py",
        "if problem is not None:",
        "if problem is not None and tensor is None:",
        ERRORS,
    ),
    Mutant(
        "machine code is taken for PTX",
        "fastdiff/backends/cuda.py",
        'if kind == "compute" else',
        'if kind == "sm" else',
        REFUSALS,
    ),
    # What a thread owns.
    Mutant(
        "a quad ends at the sample's end or is left out",
        "csrc/quad.h",
        "if (group.place(q) + lane < group.numel)",
        "if (group.place(q) + kQuad <= group.numel)",
        RANDOM_ROWS,
    ),
    Mutant(
        "one element too many",
        "csrc/quad.h",
        "if (group.place(q) + lane < group.numel)",
        "if (group.place(q) + lane <= group.numel)",
        MEMORY,
    ),
    Mutant(
        "a thread has one quad",
        "csrc/quad.h",
        "group.quads += group.place(q) < numel;",
        "group.quads += 0 * q;",
        RANDOM_ROWS,
    ),
    Mutant(
        "a thread has a quad too many",
        "csrc/quad.h",
        "group.quads += group.place(q) < numel;",
        "group.quads += 1;",
        TRAFFIC,
    ),
    Mutant(
        "quads of a thread lie side by side",
        "csrc/quad.h",
        "return i + q * step;",
        "return i + q * kQuad;",
        RANDOM_ROWS,
    ),
    Mutant(
        "misaligned quads move at once",
        "csrc/quad.h",
        "group.whole && ((uintptr_t)data + at * item) % (item == 2 ? 8 : 16) == 0",
        "group.whole",
        MEMORY,
    ),
    Mutant(
        "the last quad moves at once",
        "csrc/quad.h",
        "group.whole && ((uintptr_t)data + at * item) % (item == 2 ? 8 : 16) == 0",
        "((uintptr_t)data + at * item) % (item == 2 ? 8 : 16) == 0",
        MEMORY,
    ),
    Mutant(
        "nothing moves at once",
        "csrc/quad.h",
        "group.whole && ((uintptr_t)data + at * item) % (item == 2 ? 8 : 16) == 0",
        "false",
        TRAFFIC,
    ),
    Mutant(
        "offsets have 32 bits",
        "csrc/quad.h",
        "at(row * buffer.batch_stride + group.i)",
        "at((int32_t)(row * buffer.batch_stride + group.i))",
        STRIDE,
    ),
    Mutant(
        "the batch stride is the sample's size",
        "csrc/quad.h",
        "row * buffer.batch_stride",
        "row * group.numel",
        RANDOM_ROWS,
    ),
    Mutant(
        "halves change places",
        "csrc/quad.h",
        "word[lane / 2] >> 16 * (lane % 2)",
        "word[lane / 2] >> 16 * (1 - lane % 2)",
        RANDOM_ROWS,
    ),
    Mutant(
        "packed halves change places, on the device",
        "csrc/quad.h",
        '"cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low)',
        '"cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(low), "f"(high)',
        PTX,
    ),
    Mutant("bfloat16 is cut off, on the device", "csrc/quad.h", '"cvt.rn.bf16x2.f32', '"cvt.rz.bf16x2.f32', PTX),
    Mutant(
        "elements of a quad are one", "csrc/cuda_stage.h", "from.at + offset", "from.at + offset - lane", RANDOM_ROWS
    ),
    # Slots.
    Mutant("slots of two quads overlap", "csrc/slots.h", "(slot * kQuads<T> + q)", "(slot + q)", RANDOM_ROWS),
    Mutant(
        "threads share slots", "csrc/cuda_stage.h", "(threadIdx.y * blockDim.x + threadIdx.x)", "(threadIdx.x)", RACES
    ),
    Mutant(
        "normals overwrite an output",
        "csrc/cuda_stage.h",
        "found.spare = next;",
        "found.spare = p.columns;",
        RANDOM_ROWS,
    ),
    Mutant(
        "an output that is only a base has no slot",
        "csrc/cuda_stage.h",
        "found |= p.output[o].base == kFirstOutput + output;",
        "found |= p.output[o].base == output;",
        RANDOM_ROWS,
    ),
    Mutant(
        "a column is stored before the others are loaded",
        "csrc/cuda_stage.h",
        "      put(work, c, value);\n",
        "      put(work, c, value);\n      if (work.a.store[0].data) store(work, work.a.store[0], value, 1);\n",
        RANDOM_ROWS,
    ),
    # The row.
    Mutant("sums begin at +0", "csrc/cuda_stage.h", "T(-0.0)", "T(0.0)", RANDOM_ROWS),
    Mutant("an empty sum is -0", "csrc/cuda_stage.h", "started ? total[q][lane] : T(0)", "total[q][lane]", RANDOM_ROWS),
    Mutant(
        "the factor is added",
        "csrc/cuda_stage.h",
        "mul(factor, value[lane])",
        "fastdiff::add(factor, value[lane])",
        RANDOM_ROWS,
    ),
    Mutant(
        "products and sums are fused",
        "csrc/cuda_stage.h",
        "fastdiff::add(total[q][lane], mul(factor, value[lane]))",
        "(T)fma((float)factor, (float)value[lane], (float)total[q][lane])",
        RANDOM_ROWS,
    ),
    Mutant("presence does not advance", "csrc/cuda_stage.h", "    present >>= 1;\n", "", RANDOM_ROWS),
    Mutant(
        "an absent coefficient is not passed over",
        "csrc/cuda_stage.h",
        "coefficient = __ldg(next++);",
        "coefficient = __ldg(next);\n    next += on;",
        RANDOM_ROWS,
    ),
    Mutant(
        "an absent term is multiplied by zero",
        "csrc/cuda_stage.h",
        "if (!reader.take(factor)) continue;",
        "if (!reader.take(factor)) factor = T(0);",
        RANDOM_ROWS,
    ),
    Mutant(
        "the clamp is never absent",
        "csrc/cuda_stage.h",
        "out.bound >= 0 && reader.take(bound)",
        "out.bound >= 0 && (reader.take(bound) || true)",
        RANDOM_ROWS,
    ),
    Mutant(
        "later outputs read the sum before its clamp",
        "csrc/cuda_stage.h",
        "    limit(out, reader, sums.total);\n    const int slot = work.slotted.slot[o];\n"
        "    if (slot >= 0) put(work, slot, sums.total);\n",
        "    const int slot = work.slotted.slot[o];\n    if (slot >= 0) put(work, slot, sums.total);\n"
        "    limit(out, reader, sums.total);\n",
        RANDOM_ROWS,
    ),
    Mutant(
        "the scale divides",
        "csrc/cuda_stage.h",
        "w[q][lane] = mul(scale, w[q][lane]);",
        "w[q][lane] /= scale;",
        RANDOM_ROWS,
    ),
    Mutant(
        "the clamp loses NaN",
        "csrc/stage.h",
        "return value > bound ? bound : value < -bound ? -bound : value;",
        "return value < bound ? (value > -bound ? value : -bound) : bound;",
        RANDOM_ROWS,
    ),
    Mutant(
        "an output that is a term is the first column",
        "csrc/cuda_stage.h",
        "p.source[k] = (uint8_t)found.slot[p.source[k] - kFirstOutput];",
        "p.source[k] = 0;",
        RANDOM_ROWS,
    ),
    Mutant(
        "an output that is a base is the first column",
        "csrc/cuda_stage.h",
        "base = found.slot[base - kFirstOutput];",
        "base = 0;",
        RANDOM_ROWS,
    ),
    Mutant("the base is left out", "csrc/cuda_stage.h", "if (out.base >= 0)", "if (out.base > 0)", RANDOM_ROWS),
    Mutant(
        "the network input is never unscaled",
        "csrc/cuda_stage.h",
        "if (is_present(sample.present, k)) {",
        "{",
        RANDOM_ROWS,
    ),
    Mutant(
        "copies lie one sample apart",
        "csrc/cuda_stage.h",
        "copy * work.args().batch + work.group.b",
        "copy + work.group.b",
        SAMPLINGS,
    ),
    Mutant(
        "all samples share the first one's seed",
        "csrc/stage.h",
        "a.seeds[b * a.seeds_stride]",
        "a.seeds[0]",
        RANDOM_ROWS,
    ),
    Mutant(
        "all samples share coefficients",
        "fastdiff/backends/cuda_arguments.py",
        "0 if table.shape[0] == 1 else table.stride(0)",
        "0",
        RANDOM_ROWS,
    ),
    Mutant(
        "seeds and draws change places",
        "fastdiff/backends/cuda_arguments.py",
        '*((name, ctypes.c_void_p) for name in ("coef", "present", "seeds", "draws"))',
        '*((name, ctypes.c_void_p) for name in ("coef", "present", "draws", "seeds"))',
        RANDOM_ROWS,
    ),
    Mutant(
        "a clamp without a scale is both",
        "fastdiff/backends/cuda_arguments.py",
        "scale=program.scale_at(i) if output.scale else -1",
        "scale=program.scale_at(i)",
        RANDOM_ROWS,
    ),
    Mutant(
        "columns of noise are draws",
        "fastdiff/backends/cuda_arguments.py",
        "FIRST_DRAW + r if r >= 0 else -1 - r",
        "FIRST_DRAW + max(r, 0)",
        RANDOM_ROWS,
    ),
    # Storage types.
    Mutant(
        "bfloat16 is cut off",
        "csrc/stage.h",
        "return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);",
        "return (uint16_t)(u >> 16);",
        RANDOM_ROWS,
    ),
    Mutant(
        "ties of float16 go up",
        "csrc/stage.h",
        "size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)",
        "size - 0x38000000u + 0x1000u",
        RANDOM_ROWS,
    ),
    Mutant(
        "float16 has no subnormals",
        "csrc/stage.h",
        "if (size < 0x38800000u) {",
        "if (size < 0x38800000u) return (uint16_t)sign;\n  if (size < 0x38800000u) {",
        RANDOM_ROWS,
    ),
    Mutant(
        "float16 has no infinity",
        "csrc/stage.h",
        "if (size >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);",
        "",
        RANDOM_ROWS,
    ),
    # Noise.
    Mutant("nine rounds", "csrc/philox.h", "kPhiloxRounds = 10", "kPhiloxRounds = 9", NOISE),
    Mutant("the key stands still", "csrc/philox.h", "key1 += kPhiloxWeyl1;", "", NOISE),
    Mutant(
        "the counter is off by one",
        "csrc/cuda_stage.h",
        "draw, place / kQuad, normal)",
        "draw, place / kQuad + 1, normal)",
        NOISE,
    ),
    Mutant(
        "the counter has 32 bits",
        "csrc/normal.h",
        "float (&normal)[4]) {\n  uint32_t word[4] = {(uint32_t)block, (uint32_t)(block >> 32) | draw.purpose_tensor,",
        "float (&normal)[4]) {\n  uint32_t word[4] = {(uint32_t)block, draw.purpose_tensor,",
        BEYOND,
    ),
    Mutant(
        "every draw is the first",
        "csrc/cuda_stage.h",
        "sample.draws + 4 * draw_number",
        "sample.draws + 0 * draw_number",
        RANDOM_ROWS,
    ),
    Mutant(
        "memory order counts elements",
        "csrc/cuda.cu",
        "return a.channels > 1 ? kDrawsByChannel : kDrawsByRow;",
        "return a.channels > 1 ? kDrawsByRow : kDrawsByRow;",
        RANDOM_ROWS,
    ),
    Mutant(
        "channels and pixels change places",
        "csrc/stage.h",
        "i % a.channels * (a.numel / a.channels) + i / a.channels",
        "i % (a.numel / a.channels) * a.channels + i / (a.numel / a.channels)",
        RANDOM_ROWS,
    ),
    Mutant(
        "the second pair is the first",
        "csrc/normal.h",
        "const bool second_pair = element & 2,",
        "const bool second_pair = element & 4,",
        RANDOM_ROWS,
    ),
    Mutant(
        "the sub-draw is forgotten",
        "csrc/normal.h",
        "(uint32_t)four[3] | (uint32_t)kNoiseFormat << 24",
        "(uint32_t)kNoiseFormat << 24",
        NOISE,
    ),
    Mutant("a polynomial is not fused", "csrc/normal.h", "r = fma(r, s, f);", "r = add(mul(r, s), f);", NOISE),
    Mutant(
        "the quadrant is rounded down",
        "csrc/normal.h",
        "const uint32_t quadrant = turned >> 30;",
        "const uint32_t quadrant = word >> 30;",
        NOISE,
    ),
    # Grams.
    Mutant(
        "products of a quad are added one after the other",
        "csrc/cuda_gram.h",
        "return add(add(p[0], p1), add(p2, p3));",
        "return add(add(add(p[0], p1), p2), p3);",
        GRAMS,
    ),
    Mutant(
        "what lies past the end counts",
        "csrc/cuda_gram.h",
        "elements > 3 ? p[3] : 0",
        "elements > 2 ? p[3] : 0",
        GRAMS,
    ),
    Mutant(
        "an element past the end is read",
        "csrc/cuda_gram.h",
        "if (element >= a.numel) continue;",
        "if (element > a.numel) continue;",
        MEMORY,
    ),
    Mutant("a chunk has four turns", "csrc/cuda_gram.h", "kTurns = 8", "kTurns = 4", GRAMS),
    Mutant("lanes are folded six times", "csrc/cuda_gram.h", "kFolds = 7", "kFolds = 6", GRAMS),
    Mutant(
        "lanes are folded without a barrier",
        "csrc/cuda_gram.h",
        "    const int width = 1 << fold;\n    __syncthreads();\n",
        "    const int width = 1 << fold;\n",
        RACES,
    ),
    Mutant(
        "lanes are folded without a barrier, on the device",
        "csrc/cuda_gram.h",
        "    const int width = 1 << fold;\n    __syncthreads();\n",
        "    const int width = 1 << fold;\n",
        GRAM_PTX,
    ),
    Mutant(
        "scalars are read before they are made",
        "csrc/cuda_gram.h",
        "  __syncthreads();\n  if (thread < scalars)",
        "  if (thread < scalars)",
        GRAMS,
    ),
    Mutant(
        "memory order is logical order",
        "csrc/cuda_gram.h",
        "element % pixels * a.channels + element / pixels",
        "element",
        GRAMS,
    ),
    Mutant(
        "channels-last quads move at once",
        "csrc/cuda_gram.h",
        "if (a.channels <= 1 && from.at_once)",
        "if (from.at_once)",
        GRAMS,
    ),
    Mutant("the larger of a NaN is a number", "csrc/cuda_gram.h", "a > b || a != a ? a : b", "a > b ? a : b", NAN),
    Mutant(
        "the larger of a number is never a NaN", "csrc/cuda_gram.h", "a > b || a != a ? a : b", "a < b ? b : a", GRAMS
    ),
    Mutant(
        "sizes keep their sign", "csrc/cuda_gram.h", "bits<uint64_t>(a) & ~(1ull << 63)", "bits<uint64_t>(a)", GRAMS
    ),
    Mutant("all draws are the first", "csrc/cuda_gram.h", "4 * (source - kFirstGramDraw)", "0 * source", GRAMS),
    Mutant(
        "a difference is turned round",
        "csrc/cuda_gram.h",
        "return add(left, -right);",
        "return add(right, -left);",
        GRAMS,
    ),
    Mutant(
        "steps do not take their numbers", "csrc/cuda_gram.h", "__ldg(number++) : 0.0", "__ldg(number) : 0.0", GRAMS
    ),
    Mutant(
        "coefficients pass over no factors",
        "csrc/cuda_gram.h",
        "p.affine + k + factor;",
        "p.affine + k;",
        GRAMS,
    ),
    Mutant(
        "parts of all samples are one sample's",
        "csrc/cuda_gram.h",
        "a.parts[(b * p.sums + thread) * chunks_of(a.numel) + chunk]",
        "a.parts[thread * chunks_of(a.numel) + chunk]",
        GRAMS,
    ),
    Mutant(
        "parts are summed once",
        "csrc/cuda_gram.h",
        "count > 1; count = chunks_of(count)",
        "count > 1; count = 1",
        LEVELS,
    ),
    Mutant(
        "chunks begin within 32 bits",
        "csrc/cuda_gram.h",
        "const int64_t first = chunk * kChunk + (turn * kLanes + thread) * kQuad;\n    // A quad",
        "const int64_t first = (uint32_t)chunk * (uint32_t)kChunk + (turn * kLanes + thread) * kQuad;\n    // A quad",
        GRAM_BEYOND,
    ),
    Mutant(
        "samples beyond the grid are left out of a gram",
        "csrc/cuda.cu",
        "b < a.batch; b += gridDim.y",
        "b < gridDim.y; b += a.batch",
        "tests/gpu/test_cuda_gram.py::test_more_samples_than_a_grid_is_high",
    ),
    Mutant(
        "a whole chunk is a part",
        "fastdiff/backends/cuda_arguments.py",
        "if args.numel > CHUNK:",
        "if args.numel >= CHUNK:",
        GRAMS,
    ),
    Mutant(
        "the constant is a draw",
        "fastdiff/backends/cuda_arguments.py",
        "{one: MAX_COLUMNS + MAX_DRAWS}",
        "{one: MAX_COLUMNS}",
        GRAMS,
    ),
    # What only the compiled code shows.
    Mutant(
        "plain operators, which the assembler may fuse",
        "csrc/cuda_stage.h",
        "fastdiff::add(total[q][lane], mul(factor, value[lane]))",
        "total[q][lane] + factor * value[lane]",
        CONTRACTION,
    ),
    Mutant(
        "a vector's products and sums by plain operators",
        "csrc/cuda_gram.h",
        "total[lane] = add(total[lane], mul(factor, value[lane]));",
        "total[lane] += factor * value[lane];",
        CONTRACTION,
    ),
    Mutant(
        "a division that rounds to zero on the device", "csrc/portable.h", "__ddiv_rn(a, b)", "__ddiv_rz(a, b)", FUSED
    ),
    Mutant("an approximate square root on the device", "csrc/portable.h", "__fsqrt_rn(a)", "__fsqrt_rz(a)", FUSED),
    Mutant("subnormals are flushed", "csrc/nvcc.options", "-ftz=false", "-ftz=true", FUSED),
    Mutant(
        "registers without a value are carried through loops",
        "csrc/quad.h",
        "uint32_t word[kQuads<T>][kItem<kType>] = {};",
        "uint32_t word[kQuads<T>][kItem<kType>];",
        SPILLS,
    ),
)
