"""The PTX executor on what nvcc makes: the same tool serves CUDA and Triton kernels."""

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from ptx import Memory, PtxError, Region, execute, parse

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not installed", allow_module_level=True)

PROBE = Path(__file__).with_name("executor_probe.cu")


@pytest.fixture(scope="module", params=["sm_75", "sm_90"])
def text(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("nvcc") / "probe.ptx"
    arch = request.param.replace("sm", "compute")
    subprocess.run(["nvcc", "-ptx", f"-arch={arch}", PROBE, "-o", out], check=True)
    return out.read_text()


def launch(text, name, grid, threads, buffers, arguments):
    """Run a kernel on buffers by name; arguments are bytes, or the name of a buffer."""
    regions = {n: Region(n, 0x100000 * (i + 1), a.view(np.uint8)) for i, (n, a) in enumerate(buffers.items())}
    memory = Memory(list(regions.values()))
    packed = [struct.pack("<Q", regions[a].base) if isinstance(a, str) else a for a in arguments]
    statistics = execute(parse(text, name), grid, threads, packed, memory)
    return memory, statistics


def test_branches_loops_and_structs(text):
    count = 1000
    x = np.random.default_rng(1).normal(size=count).astype(np.float32)
    y = np.full(count, np.nan, np.float32)
    recipe = struct.pack("<QQq4f3i4x", 0x100000, 0x200000, count, 1.5, -2.5, 0.1, 0.7, 0, 0, 9)
    launch(text, "branches", 8, 128, {"x": x, "y": y}, [recipe])
    which = np.arange(count) * 7 // 3 % 5
    fused = (x.astype(np.float64) * np.float32(0.1) + np.float32(0.7)).astype(np.float32)
    choices = [x * np.float32(1.5), x + np.float32(-2.5), fused, np.sqrt(np.abs(x)), x / np.float32(3)]
    expected = np.choose(which, choices)
    for step in range(8):
        expected = np.where(step < np.arange(count) % 9, expected + np.float32(1), expected)
    np.testing.assert_array_equal(y, expected)


def test_wide_accesses_and_bfloat16(text):
    x = np.random.default_rng(2).normal(size=4 * 500).astype(np.float32)
    y = np.zeros(4 * 500, np.uint16)
    memory, _ = launch(text, "quads", 4, 128, {"x": x, "y": y}, ["x", "y", struct.pack("<i", 500)])
    np.testing.assert_array_equal(y, torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16))
    assert memory.named("x")[0].accesses == {("load", 16)}
    assert memory.named("y")[0].accesses == {("store", 8)}
    assert (memory.named("x")[0].bytes_read, memory.named("y")[0].bytes_written) == (8000, 4000)


def test_shuffles_and_shared_memory(text):
    x = np.random.default_rng(3).normal(size=500)
    y = np.full(4, np.nan)
    launch(text, "sums", 4, 128, {"x": x, "y": y}, ["x", "y", struct.pack("<i", 500)])
    tree = np.zeros(512)
    tree[:500] = x
    tree = tree.reshape(4, 4, 32)
    for step in (16, 8, 4, 2, 1):
        tree[..., :step] = tree[..., :step] + tree[..., step : 2 * step]
    warps = tree[..., 0]
    np.testing.assert_array_equal(y, (warps[:, 0] + warps[:, 1]) + (warps[:, 2] + warps[:, 3]))


def test_a_missing_barrier_is_caught(text):
    barrier = [line for line in text.splitlines() if "bar.sync" in line]
    assert len(barrier) == 1
    x, y = np.zeros(128), np.zeros(1)
    with pytest.raises(PtxError, match="before a barrier"):
        launch(text.replace(barrier[0], ""), "sums", 1, 128, {"x": x, "y": y}, ["x", "y", struct.pack("<i", 128)])


def test_contraction_shows_in_the_count_of_fma(text):
    x, y = np.full(32, 1 + 2**-12, np.float32), np.ones(32, np.float32)
    _, statistics = launch(text, "contractible", 1, 32, {"x": x, "y": y}, ["x", "y", struct.pack("<i", 32)])
    assert statistics.instructions["fma.rn.f32"] == 32
    assert (y == np.float32((1 + 2**-12) ** 2 + 1)).all()
