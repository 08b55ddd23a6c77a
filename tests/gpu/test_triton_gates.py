"""Static gates on what Triton compiles for every target: registers, spills, widths, roundings."""

import re
import subprocess
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
import triton
from pretend_gpu import PretendGpu
from sampling import sample
from triton.backends.compiler import GPUTarget

import fastdiff
from fastdiff.backends import triton as backend

NVIDIA = {f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)}
GFX942 = GPUTarget("hip", "gfx942", 64)

FMA_OF_A_BLOCK = 2 * (11 + 7)
"""A block of four normals takes two radii of 11 fma and two pairs of cosine and sine of 7 (``docs/noise.md``)."""

MOST_REGISTERS = 64


def launches(target, network_type=torch.bfloat16, guidance=2.0):
    """The rows of a short stochastic Heun sampling, compiled for a target, with their draws."""
    plan = fastdiff.plan(
        schedule="edm", prediction="edm", solver="heun", steps=3, guidance=guidance, churn=fastdiff.Churn(40.0)
    )
    # Warps of 64 threads, of which two hold a tile's quads.
    warps = 2 if target is GFX942 else backend.WARPS
    with mock.patch.object(backend, "WARPS", warps), PretendGpu(target, run=False) as gpu:
        sample(backend.stage, plan, (2, 4, 8, 16), torch.tensor([0, 1]), network_type)
    return [(launch, len(row.draws)) for launch, row in zip(gpu.launches, plan.rows, strict=True)]


def resources(cubin):
    """What the assembler says a kernel takes: REG, STACK, SHARED, LOCAL."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def registers(launch):
    """How many registers a thread takes, whatever the target."""
    if "cubin" in launch.files:
        return resources(launch.files["cubin"])["REG"]
    return int(re.search(r"\.vgpr_count:\s+(\d+)", launch.files["amdgcn"].read_text()).group(1))


@pytest.mark.parametrize("name", NVIDIA)
def test_nothing_is_spilled_and_registers_are_few(name):
    for launch, draws in launches(NVIDIA[name]):
        used = resources(launch.files["cubin"])
        assert (used["STACK"], used["LOCAL"], used["SHARED"]) == (0, 0, 0), launch.files["cubin"]
        assert 16 <= used["REG"] <= MOST_REGISTERS, (used, draws)


@pytest.mark.parametrize("name", NVIDIA)
def test_ptx_rounds_once_and_moves_quads(name):
    for launch, draws in launches(NVIDIA[name]):
        ptx = launch.ptx
        opcodes = Counter(re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.]+)\s", ptx, re.M))
        # Explicit fma, as many as the normals' polynomials have, and no other: nothing has been contracted.
        fused = {op for op in opcodes if re.match(r"fma\b|mad\b.*\.f", op)}
        assert fused <= {"fma.rn.f32", "fma.rn.f32x2"}
        # A packed instruction does two.
        assert opcodes["fma.rn.f32"] + 2 * opcodes["fma.rn.f32x2"] == draws * FMA_OF_A_BLOCK
        assert opcodes["sqrt.rn.f32"] == 2 * draws
        for op in opcodes:
            assert not re.search(r"\.(ftz|approx|full|sat)\b", op), op
            # Without .rn the assembler may contract a product and a sum.
            if re.match(r"(add|sub|mul)\b.*\.f(32|64|32x2)$", op):
                assert ".rn" in op, op
        assert not re.search(r"\.local\b", ptx)
        # float32 and bfloat16 quads; what is narrower are scalars: coefficients, seeds and draws.
        state = {op for op in opcodes if re.match(r"(ld|st)\.global", op) and ".v" in op}
        assert state <= {"ld.global.v4.b32", "st.global.v4.b32", "ld.global.v2.b32", "st.global.v2.b32"}
        assert not any(re.match(r"st\.global\.b\d+", op) for op in opcodes)


def test_sass_moves_quads_and_keeps_products_apart():
    """The assembler's own output: as many 128-bit accesses as columns and stores ask for, and no contraction."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    for launch, draws in launches(NVIDIA["sm_90"], network_type=torch.float32):
        sass = subprocess.run([tool, launch.files["cubin"]], capture_output=True, text=True, check=True).stdout
        stores = re.findall(r"\bSTG\.E(?:\.(\d+))?", sass)
        assert stores
        assert set(stores) == {"128"}
        assert not re.search(r"\b(LDL|STL)\b", sass)
        if not draws:
            # With noise, the correctly rounded square root brings fused and flushing instructions of its own.
            assert re.search(r"\bFMUL\b", sass)
            assert not re.search(r"\bFFMA|\b(FMUL|FADD)\.FTZ\b", sass)


def test_amd_moves_quads_without_spilling():
    for launch, draws in launches(GFX942):
        text = launch.files["amdgcn"].read_text()
        found = dict(re.findall(r"\.(\w+_spill_count|vgpr_count|private_segment_fixed_size):\s+(\d+)", text))
        assert int(found["vgpr_spill_count"]) == int(found["sgpr_spill_count"]) == 0
        assert int(found["private_segment_fixed_size"]) == 0
        assert int(found["vgpr_count"]) <= MOST_REGISTERS
        stores = set(re.findall(r"\b(?:buffer|global)_store_\w+", text))
        assert stores
        assert all(store.endswith(("x4", "x2")) for store in stores)
        # Round to nearest even, subnormals kept, for 32 bits and for 16 and 64.
        assert re.search(r"\.amdhsa_float_round_mode_32 0\b", text)
        assert re.search(r"\.amdhsa_float_denorm_mode_32 3\b", text)
        assert re.search(r"\.amdhsa_float_denorm_mode_16_64 3\b", text)
        # A packed instruction does two; the compiler's correctly rounded square root takes two of its own.
        packed, single = re.findall(r"\bv_pk_fma_f32\b", text), re.findall(r"\bv_(?:fma|fmac|fmaak|fmamk)_f32", text)
        assert 2 * len(packed) + len(single) == draws * (FMA_OF_A_BLOCK + 2 * 2)


def test_the_gates_notice_contraction(monkeypatch):
    """The same rows compiled as Triton would by default: the counts above cannot hold."""
    constants = backend._constants
    monkeypatch.setattr(backend, "_constants", lambda cover: constants(cover) | {"enable_fp_fusion": True})
    contractible = [re.findall(r"(?:mul|add)\.f32|fma\.rn\.f32", launch.ptx) for launch, _ in launches(NVIDIA["sm_90"])]
    assert any("mul.f32" in found for found in contractible)
