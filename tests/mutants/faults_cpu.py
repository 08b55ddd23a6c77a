"""Faults in the C++ kernels for the CPU, the ops that torch calls them by, and the loop in C++."""

from __future__ import annotations

from mutant import Mutant

FILE = "tests/test_cpu_backend.py"
ROWS = f"{FILE}::test_random_rows_have_the_bits_of_the_reference[1]"
ALL_ROWS = ROWS.removesuffix("[1]")
"""For what few of them show."""
SUMS = f"{FILE}::test_long_sums_and_clamps"
CASTS = f"{FILE}::test_casts"
MILLION = f"{FILE}::test_a_million_normals"
SMALL = f"{FILE}::test_noise_of_many_small_samples"
LOGICAL = f"{FILE}::test_noise_follows_the_logical_index"
OVERWRITE = f"{FILE}::test_outputs_that_overwrite_each_others_columns"
THREADS = f"{FILE}::test_threads_do_not_change_bits"
STREAM = "tests/test_cpu_stream.py::test_outputs_larger_than_the_cache_have_the_reference_bits"
FLUSH = f"{FILE}::test_flushing_of_subnormals_is_undone_and_restored"
REFUSES = f"{FILE}::test_the_op_refuses"
TAKES = f"{FILE}::test_the_op_takes_what_the_refused_calls_change"
WRITES = f"{FILE}::test_the_loop_writes_what_the_op_writes"
LEAVES = f"{FILE}::test_the_loop_leaves_alone_what_it_does_not_expect"
CHECKS = f"{FILE}::test_the_loop_checks_rows_and_expectations"
FAR = "tests/test_cpu_far.py::test_row_major"
RACES = "tests/sanitizers/test_cpu_sanitized.py::test_no_race_between_threads"
MEMORY = "tests/sanitizers/test_cpu_sanitized.py::test_no_byte_out_of_bounds_and_nothing_undefined"

CPU = (
    Mutant(
        "later parts of a tile have the noise of the first",
        "csrc/cpu.cpp",
        "source[__builtin_ctzll(rest)] += part;",
        "source[__builtin_ctzll(rest)] += 0;",
        "tests/test_cpu_stream.py::test_launches_that_move_much_have_the_reference_bits",
    ),
    # A sample in tiles.
    Mutant(
        "the batch stride is the sample's size",
        "csrc/cpu.cpp",
        "(b * column.batch_stride + i) * kItemSize[column.dtype]",
        "(b * a.numel + i) * kItemSize[column.dtype]",
        ROWS,
    ),
    Mutant(
        "the last tile is one element short",
        "csrc/cpu.cpp",
        "end - i < kTile<T> ? end - i : kTile<T>",
        "end - i < kTile<T> ? end - i - 1 : kTile<T>",
        ROWS,
    ),
    Mutant(
        "the last tile is a whole one",
        "csrc/cpu.cpp",
        "end - i < kTile<T> ? end - i : kTile<T>",
        "kTile<T>",
        MEMORY,
    ),
    Mutant("a partial sum is dropped", "csrc/cpu.cpp", "      held = 1;\n", "      held = 0;\n", SUMS),
    Mutant(
        "an output is stored over a column that is read later",
        "csrc/cpu.cpp",
        "direct[left[pick]] = safe && store.data",
        "direct[left[pick]] = store.data",
        OVERWRITE,
    ),
    Mutant(
        "the noise comes before the base",
        "csrc/cpu.cpp",
        "if (out.base >= 0) terms.push(T(1), out.base);\n      gather(terms, out.first + out.terms, out.noises);\n",
        "gather(terms, out.first + out.terms, out.noises);\n      if (out.base >= 0) terms.push(T(1), out.base);\n",
        ROWS,
    ),
    Mutant(
        "an absent clamp clamps",
        "csrc/cpu.cpp",
        "if (output.bound >= 0 && is_present(sample.present, output.bound))",
        "if (output.bound >= 0)",
        ROWS,
    ),
    Mutant(
        "copies lie one sample apart",
        "csrc/cpu.cpp",
        "(copy * a.batch + b) * a.z.batch_stride + i",
        "(copy + b) * a.z.batch_stride + i",
        ROWS,
    ),
    Mutant(
        "all samples share coefficients",
        "csrc/cpu.cpp",
        "shared = args.coef_stride == 0 && args.present_stride == 0;",
        "shared = true;",
        ROWS,
    ),
    Mutant(
        "noise of a flat walk has one seed",
        "csrc/cpu.cpp",
        "const int64_t seed = a.seeds[index * a.seeds_stride];",
        "const int64_t seed = a.seeds[0];",
        SMALL,
    ),
    # Loops over a tile.
    Mutant(
        "what a vector leaves over is left out",
        "csrc/cpu_loops.h",
        "for (; i < n; ++i) {\n    T sum",
        "for (; i < 0; ++i) {\n    T sum",
        SUMS,
    ),
    Mutant(
        "products and sums of left-over elements are fused",
        "csrc/cpu_loops.h",
        "sum = add(sum, mul(c[j], p[j][i]));",
        "sum = (T)__builtin_fma((double)c[j], (double)p[j][i], (double)sum);",
        SUMS,
    ),
    Mutant(
        "the compiler may contract",
        "setup.py",
        '"-ffp-contract=off"',
        '"-ffp-contract=fast"',
        SUMS,
    ),
    Mutant(
        "the clamp of vectors loses NaN",
        "csrc/vec_avx2.h",
        "_mm256_cmp_ps(a, low, _CMP_LT_OQ)",
        "_mm256_cmp_ps(a, low, _CMP_NGE_UQ)",
        SUMS,
    ),
    Mutant(
        "vectors of bfloat16 are cut off",
        "csrc/vec_avx2.h",
        "_mm256_set1_epi32(0x7FFF)), odd)",
        "_mm256_set1_epi32(0)), odd)",
        CASTS,
    ),
    Mutant(
        "vectors of float16 are rounded towards zero",
        "csrc/vec_avx2.h",
        "_mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT)",
        "_mm256_cvtps_ph(f, _MM_FROUND_TO_ZERO)",
        CASTS,
    ),
    Mutant(
        "outputs that bypass the cache change places",
        "csrc/vec_avx2.h",
        "kStream ? _mm256_stream_ps((float*)p + 8, b)",
        "kStream ? _mm256_stream_ps((float*)p + 8, a)",
        STREAM,
    ),
    # Noise in vectors.
    Mutant(
        "nine rounds",
        "csrc/cpu_noise.h",
        "for (int round = first; round < kPhiloxRounds; ++round) {",
        "for (int round = first; round < kPhiloxRounds - 1; ++round) {",
        MILLION,
    ),
    Mutant(
        "a polynomial is not fused",
        "csrc/cpu_noise.h",
        "  r = fmas(r, s, f);\n",
        "  r = each<N>([&](int i) __attribute__((always_inline)) "
        "{ return Words::addf(Words::mul(r.v[i], s.v[i]), f.v[i]); });\n",
        MILLION,
    ),
    Mutant(
        "words are cut to 24 bits",
        "csrc/vec_avx2.h",
        "_mm256_set1_epi32(0xFFFF)), _mm256_set1_epi32(0x4B000000)",
        "_mm256_set1_epi32(0xFF00)), _mm256_set1_epi32(0x4B000000)",
        MILLION,
    ),
    Mutant(
        "the counter has 32 bits",
        "csrc/cpu_noise.h",
        "make_start(key, draw, (uint32_t)(block >> 32))",
        "make_start(key, draw, 0)",
        FAR,
    ),
    Mutant(
        "a cut block begins at its first lane",
        "csrc/cpu_blocks.h",
        "const int lane = (int)(element & 3);",
        "const int lane = 0;",
        LOGICAL,
    ),
    Mutant(
        "channels and pixels change places",
        "csrc/cpu_blocks.h",
        "list_run(list, draw, seed, channel * positions + position, run,",
        "list_run(list, draw, seed, position * channels + channel, run,",
        LOGICAL,
    ),
    Mutant(
        "the last pixel's channels are left out",
        "csrc/cpu_blocks.h",
        "const int64_t run = rounds + (offset < rest);",
        "const int64_t run = rounds;",
        LOGICAL,
    ),
    # Choosing how to walk, and threads.
    Mutant(
        "gaps between samples are walked",
        "csrc/launch.cpp",
        "return !buffer.data || buffer.batch_stride == a.numel;",
        "return true;",
        ROWS,
    ),
    Mutant(
        "samples with coefficients of their own are walked as one",
        "csrc/launch.cpp",
        "a.batch > 1 && a.coef_stride == 0 &&",
        "a.batch > 1 &&",
        ALL_ROWS,
    ),
    Mutant(
        "samples with draws of their own are walked as one",
        "csrc/launch.cpp",
        "a.present_stride == 0 && a.draws_stride == 0 &&",
        "a.present_stride == 0 &&",
        SMALL,
    ),
    Mutant(
        "a thread begins inside a tile",
        "csrc/launch.cpp",
        "return i == chunks ? total : at - inside % kAlign;",
        "return i == chunks ? total : at;",
        THREADS,
    ),
    Mutant(
        "the elements of two threads overlap",
        "csrc/launch.cpp",
        "split.start(begin), split.start(end));",
        "split.start(begin), split.start(end) + (end < split.chunks));",
        RACES,
    ),
    Mutant(
        "subnormals are flushed if the caller says so",
        "csrc/fpenv.h",
        "ExactFloat() : saved_(get_float_control()) { set_float_control(kExactControl); }",
        "ExactFloat() : saved_(get_float_control()) {}",
        FLUSH,
    ),
    Mutant(
        "the caller's settings are lost",
        "csrc/fpenv.h",
        "~ExactFloat() { set_float_control(saved_); }",
        "~ExactFloat() {}",
        FLUSH,
    ),
    # The ops.
    Mutant(
        "negative seeds are taken",
        "csrc/ops.cpp",
        'STD_TORCH_CHECK(seeds[i] >= 0, "a seed is negative")',
        'STD_TORCH_CHECK(seeds[i] >= -1, "a seed is negative")',
        REFUSES,
    ),
    Mutant(
        "an output may lie on the coefficients",
        "csrc/ops.cpp",
        "if (share_memory(extent, table.extent)) refuse(table.name);",
        "",
        REFUSES,
    ),
    Mutant(
        "layouts may be mixed",
        "csrc/ops.cpp",
        "STD_TORCH_CHECK(layout_ == kEitherLayout || layout_ == own, name,",
        "STD_TORCH_CHECK(layout_ != kNotDense, name,",
        REFUSES,
    ),
    Mutant(
        "neighbours in memory overlap",
        "csrc/memory.h",
        "if (left + a.size <= right) {",
        "if (left + a.size < right) {",
        TAKES,
    ),
)

LOOP = (
    Mutant(
        "the second branch is counted in bytes",
        "csrc/loop.cpp",
        "(stacked ? branch * batch_ * stride * kItemSize[dtype] : 0)",
        "(stacked ? branch * batch_ * stride : 0)",
        WRITES,
    ),
    Mutant(
        "all branches read the first one",
        "csrc/loop.cpp",
        "outputs[stacked ? 0 : branch]",
        "outputs[0]",
        WRITES,
    ),
    Mutant(
        "a network output of another width is taken",
        "csrc/loop.cpp",
        "t.dtype.bits != e.dtype.bits || ",
        "",
        LEAVES,
    ),
    Mutant(
        "a network output of another layout is taken",
        "csrc/loop.cpp",
        "if (t.strides[d] != e.strides[d] && e.shape[d] != 1) return false;",
        "",
        LEAVES,
    ),
    Mutant(
        "a store may lie on half of a column",
        "csrc/loop.cpp",
        "return !share_memory(extent_of(out, samples, a.numel), extent_of(column, a.batch, a.numel));",
        "return true;",
        CHECKS,
    ),
    Mutant(
        "a row after the last one is run",
        "csrc/loop.cpp",
        "if (index >= size()) return false;",
        "if (index > size()) return false;",
        WRITES,
    ),
)
