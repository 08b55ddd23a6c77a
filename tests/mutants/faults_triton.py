"""Faults in the Triton kernels and their launcher, beside those of ``tests/gpu/test_triton_mutants.py``."""

from __future__ import annotations

from mutant import Mutant

ROWS = "tests/gpu/test_triton_stage.py::test_rows_have_the_reference_bits"
GATES = "tests/gpu/test_triton_gates.py::test_ptx_rounds_once_and_moves_quads[sm_90]"
COUNTERS = "tests/gpu/test_triton_noise.py::test_counters_of_huge_samples"
WIDENED = "tests/gpu/test_triton_stage.py::test_sizes_are_widened_before_they_are_multiplied"
TILES = "tests/gpu/test_triton_backend.py::test_tiles_cover_a_sample"
ACCESS = "tests/gpu/test_triton_backend.py::test_access_is_as_wide_as_the_memory_allows"
NOTHING = "tests/gpu/test_triton_backend.py::test_nothing_is_launched_for_nothing"

TRITON = (
    Mutant(
        "a mask per element makes accesses scalar",
        "kernels/stage.py",
        'if ACCESS == "elements":\n        masks',
        'if ACCESS != "tail":\n        masks',
        GATES,
    ),
    Mutant(
        "products and sums may be fused",
        "fastdiff/backends/triton.py",
        '"enable_fp_fusion": False',
        '"enable_fp_fusion": True',
        GATES,
    ),
    Mutant(
        "the base is added after the noise",
        "kernels/stage.py",
        "total = base + total if present is None else tl.where(started, base + total, base)",
        "total = total if present is None else tl.where(started, base + total, base)",
        f"{ROWS}[heun corrector]",
    ),
    Mutant(
        "an absent scale scales",
        "kernels/stage.py",
        "w = scaled if present is None else tl.where(_is_on(present, OUTPUT.scale), scaled, w)",
        "w = scaled",
        f"{ROWS}[continuous batching]",
    ),
    Mutant(
        "an absent network scale scales",
        "kernels/stage.py",
        "scaled = tl.where(_is_on(present, ROW.c_in), scaled, w)",
        "scaled = scaled",
        f"{ROWS}[fp64 narrow]",
    ),
    Mutant(
        "every draw is the first",
        "kernels/stage.py",
        "draw = draws + 4 * REFERENCE",
        "draw = draws",
        f"{ROWS}[multistep]",
    ),
    Mutant(
        "samples share draws",
        "kernels/stage.py",
        "draws += sample * draws_stride",
        "draws += sample * 0",
        f"{ROWS}[multistep]",
    ),
    Mutant(
        "a column of noise is another column",
        "kernels/stage.py",
        "xi = wide[-1 - REFERENCE]",
        "xi = wide[-2 - REFERENCE]",
        f"{ROWS}[caller's noise]",
    ),
    Mutant(
        "the counter has 32 bits",
        "kernels/normal.py",
        "c1 = (block >> 32) | (purpose << 8)",
        "c1 = (purpose << 8)",
        COUNTERS,
    ),
    Mutant(
        "the seed has 32 bits",
        "kernels/normal.py",
        "k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)",
        "k0, k1 = seed.to(tl.uint32), (seed >> 63).to(tl.uint32)",
        COUNTERS,
    ),
    Mutant(
        "the batch stride is not widened",
        "kernels/stage.py",
        "offset = sample * (stride.to(tl.int64) >> STRIDE_SHIFT)",
        "offset = sample.to(tl.int32) * (stride >> STRIDE_SHIFT).to(tl.int32)",
        WIDENED,
    ),
    Mutant(
        "coefficients of an output are the first ones",
        "kernels/structure.py",
        "_pairs(output.terms, program.terms_at(i))",
        "_pairs(output.terms, program.terms_at(0))",
        f"{ROWS}[heun predictor]",
    ),
    Mutant(
        "a stride is specialised",
        "fastdiff/backends/triton.py",
        "return tensor.stride(0) << import_module",
        "return tensor.stride(0) << 0 * import_module",
        f"{ROWS}[heun predictor]",
    ),
    Mutant(
        "the last tile is left out",
        "fastdiff/backends/triton.py",
        "tiles = max(-(-numel // tile), 1)",
        "tiles = max(numel // tile, 1)",
        TILES,
    ),
    Mutant(
        "samples are not asked for their stride",
        "fastdiff/backends/triton.py",
        "tensor.data_ptr() % width == 0 and (tensor.shape[0] == 1 or tensor.stride(0) * size % width == 0)",
        "tensor.data_ptr() % width == 0",
        ACCESS,
    ),
    Mutant(
        "nothing is launched for something",
        "fastdiff/backends/triton.py",
        "    if tensors[0].numel() == 0:\n        return\n",
        "",
        NOTHING,
    ),
)
