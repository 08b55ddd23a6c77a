"""Launches that move much: in short tiles, and with outputs that bypass the cache where they do not fit in it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch

from fastdiff.backends import cpu, reference
from fastdiff.maths.draw import Draw
from fastdiff.rows.call import Call
from fastdiff.rows.row import Output, Row
from fastdiff.testing.rows import same_bits

HOST = cpu.host()
pytestmark = pytest.mark.skipif(HOST is None, reason=str(cpu.unavailable()))

ROW = Row(("x",), (Output("x", (("x", 1.0),), store="w"),), network=0)
COEF = torch.tensor([[0.37, 1.9]])
UNKNOWN_CACHE = 32 << 20
"""What the kernels assume where the system does not say (``csrc/launch.cpp``)."""
COPIES = 12


NOISY = Row(
    ("x", "f"),
    (Output("x", (("f", 1.0),), (("xi", 1.0),), store="w"), Output(None, (("x", 1.0),), (("xi", 1.0),), store="v")),
    (("xi", Draw(1, 0)),),
    network=0,
)
FAR = 16 << 20
"""Launches that move more bytes go by short tiles (``csrc/launch.cpp``)."""


def cache_bytes() -> int:
    """The size of the last-level cache as the system tells it; Python's own ``os.sysconf`` does not know the name."""
    command = ["getconf", "LEVEL3_CACHE_SIZE"]
    if shutil.which(command[0]) is None:
        return UNKNOWN_CACHE
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return int(told) if told.isdigit() and int(told) > 0 else UNKNOWN_CACHE


@pytest.mark.parametrize("isa", HOST.isas() if HOST else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_larger_than_the_cache_have_the_reference_bits(isa: str, dtype: torch.dtype) -> None:
    """One column is read; a store and many copies of the network input are written, all from the same numbers."""
    numel = cache_bytes() // (4 + 4 + COPIES * dtype.itemsize) + 3
    if numel > 2**24:
        pytest.skip(f"this machine's cache of {cache_bytes()} bytes would need tensors of {numel} elements")
    x, w, z = torch.empty(1, numel), torch.empty(1, numel), torch.empty(COPIES, numel, dtype=dtype)
    x.copy_(torch.arange(numel).remainder_(65521) * 0.001)
    before = HOST.isa()
    HOST.set_isa(isa)
    try:
        cpu.stage(Call([x], COEF, ROW.program, stores=[w], z=z))
    finally:
        HOST.set_isa(before)
    expected, expected_z = torch.empty_like(x), torch.empty(1, numel, dtype=dtype)
    reference.stage(Call([x], COEF, ROW.program, stores=[expected], z=expected_z))
    assert same_bits(w, expected)
    for copy in z:
        assert same_bits(copy[None], expected_z)


@pytest.mark.parametrize("isa", HOST.isas() if HOST else [])
@pytest.mark.parametrize(("state", "network"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float32)])
def test_launches_that_move_much_have_the_reference_bits(isa: str, state: torch.dtype, network: torch.dtype) -> None:
    """Noise is drawn for several tiles at once, in samples whose last tile is short."""
    numel = FAR // (2 * (3 * state.itemsize + 2 * network.itemsize)) + 3
    assert 2 * numel * (3 * state.itemsize + 2 * network.itemsize) > FAR
    x = torch.arange(2 * numel).remainder_(65521).mul(0.001).to(state).view(2, numel)
    f = x.flip(1).to(network)
    coef, seeds, draws = torch.tensor([[0.37, 1.9, 0.5, 0.7, 1.1]], dtype=state), torch.tensor([3, 8]), NOISY.draws
    counters = torch.tensor([[[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in draws]])
    made = []
    for run in (cpu.stage, reference.stage):
        outputs = [torch.empty_like(x), torch.empty_like(x)], torch.empty_like(f)
        call = Call([x, f], coef, NOISY.program, seeds, counters, None, *outputs)
        before = HOST.isa()
        HOST.set_isa(isa)
        try:
            run(call)
        finally:
            HOST.set_isa(before)
        made.append([*outputs[0], outputs[1]])
    assert all(map(same_bits, *made))
