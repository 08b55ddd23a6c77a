"""Static gates on what nvcc makes of the CUDA kernels for every target: registers, spills, roundings, widths.

That they notice faults is shown in ``tests/mutants``.
"""

import ctypes
import importlib.util
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from compiled import CROWD, CSRC, NVCC, ROOT, TARGETS, nvcc, resources

if NVCC is None:
    pytest.skip("nvcc is not installed", allow_module_level=True)

from fastdiff.backends.cuda import Library

KERNELS = 10 + 2
"""Stage without draws, with draws in row-major and channels-last order, and noise in both, for two state types; and
the two of a gram."""

MOST_REGISTERS = 64
FMA_OF_AN_ELEMENT = 11 + 7
"""A radius takes 11 fma and a pair of cosine and sine 7 (``docs/noise.md``); a block of four normals two of each."""


def drawing(kernel):
    """How a kernel draws, by the template argument in its symbol: 0 not at all, 1 blocks, 2 single elements."""
    if is_gram(kernel):
        return int("gram_kernel" in kernel)
    return int(re.search(r"DrawingE(\d)", kernel).group(1))


def is_gram(kernel):
    """Whether a kernel is one of the two of a gram, which have divisions and square roots."""
    return "GramArgs" in kernel


def kernels_of(ptx):
    """The body of each kernel."""
    parts = re.split(r"^\.visible \.entry (\w+)\(", ptx, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def machine_code(target, *flags):
    """What is installed, for one target, without the code of the host around it."""
    return nvcc(target, "cubin", *flags)


def test_the_targets_are_those_that_are_installed():
    asked = re.search(r"^CUDA_TARGETS = (.*)$", (ROOT / "setup.py").read_text(), re.MULTILINE).group(1)
    assert tuple(re.findall(r"sm_\d+", asked)) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled_and_registers_are_few(target):
    used = resources(machine_code(target).with_suffix(".log").read_text())
    assert len(used) == KERNELS
    for kernel, found in used.items():
        assert (found["stack"], found["spills"]) == (0, 0), kernel
        assert 16 <= found["registers"] <= MOST_REGISTERS, kernel


def test_only_the_polynomials_are_fused():
    """The same PTX that the executor runs: explicit fma, as many as the normals take, and every rounding named."""
    kernels = kernels_of(nvcc("sm_90", "ptx", f"-DFD_CROWD={CROWD}").read_text())
    assert len(kernels) == KERNELS
    for kernel, body in kernels.items():
        opcodes = Counter(re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.]+)\s", body, re.MULTILINE))
        fused = {op: n for op, n in opcodes.items() if re.match(r"fma\b|mad\b.*\.f", op)}
        expected = {0: 0, 1: 2 * FMA_OF_AN_ELEMENT, 2: FMA_OF_AN_ELEMENT}[drawing(kernel)]
        assert fused == ({"fma.rn.f32": expected} if expected else {}), kernel
        for op in opcodes:
            assert not re.search(r"\.(ftz|approx|full|sat)\b", op), op
            # Without .rn the assembler may contract a product and a sum.
            if re.match(r"(add|sub|mul|div|sqrt)\b.*\.f(32|64|32x2)$", op):
                assert ".rn" in op, op
        assert ".local" not in body


def sass(path):
    """The machine code of each kernel: its instructions and their bits."""
    triton = importlib.util.find_spec("triton")
    tool = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if triton else Path()
    if not tool.is_file():
        pytest.skip("cuobjdump is not installed (Triton brings it)")
    text = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"Function : (\w+)", text)[1:]
    bodies = ("\n".join(re.findall(r"^.*/\* 0x[0-9a-f]{16} \*/$", part, re.MULTILINE)) for part in parts[1::2])
    return dict(zip(parts[::2], bodies, strict=True))


def test_machine_code_does_not_depend_on_contraction():
    """Every product and sum is one intrinsic, so the assembler has nothing to contract."""
    apart, allowed = sass(machine_code("sm_90")), sass(machine_code("sm_90", "-fmad=true"))
    assert len(apart) == KERNELS
    assert apart == allowed


@pytest.mark.parametrize("target", TARGETS)
def test_machine_code_moves_quads_and_keeps_products_apart(target):
    """128 bits at a time, 64 for four elements of 16 bits; that nothing else is taken, executed PTX shows."""
    code_of = sass(machine_code(target))
    assert len(code_of) == KERNELS
    for kernel, code in code_of.items():
        assert not re.search(r"\b(LDL|STL)\b", code), kernel
        stores, loads = (set(re.findall(rf"\b{op}\.E[.\w]*?\.(64|128)\b", code)) for op in ("STG", "LDG"))
        assert stores == ({"64"} if is_gram(kernel) else {"64", "128"}), kernel
        if "stage" in kernel or "gram" in kernel:
            assert loads >= {"64", "128"}, kernel
        if drawing(kernel) == 0 and not is_gram(kernel):
            # Correctly rounded square roots and divisions bring fused instructions of their own.
            assert re.search(r"\b[FD]MUL\b", code)
            assert not re.search(r"\b[FD]FMA", code), kernel


def test_the_library_opens_without_a_driver_and_says_so():
    """What is installed, for one target: with its own CUDA runtime inside, and no other library of CUDA."""
    path = nvcc("sm_90", "so")
    needed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"NEEDED.*(cuda|torch)", needed)
    library = Library(path)
    assert library.targets == ["sm_90"]
    assert library.runtime >= 12000
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert library.refusal() == "this machine has no NVIDIA driver"
    else:
        assert library.driver > 0


def test_the_source_needs_the_cuda_runtime_and_nothing_else():
    """``cuda_runtime.h`` and our own headers; the C library's two are in the language's own standard."""
    seen, waiting = set(), ["cuda.cu"]
    while waiting:
        for kind, name in re.findall(r'#include ([<"])([\w./]+)[>"]', (CSRC / waiting.pop()).read_text()):
            if kind == '"' and name not in seen:
                waiting.append(name)
            seen.add(name)
    assert {name for name in seen if not (CSRC / name).exists()} == {"cuda_runtime.h", "stdint.h", "string.h"}
