"""Outputs that bypass the cache, which the kernels take for tensors that do not fit in it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch

from fastdiff.backends import cpu, reference
from fastdiff.row import Output, Row
from fastdiff.testing import same_bits

HOST = cpu.host()
pytestmark = pytest.mark.skipif(HOST is None, reason=str(cpu.unavailable()))

ROW = Row(("x",), (Output("x", (("x", 1.0),), store="w"),), network=0)
COEF = torch.tensor([[0.37, 1.9]])
UNKNOWN_CACHE = 32 << 20
"""What the kernels assume where the system does not say (``csrc/launch.cpp``)."""
COPIES = 12


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
        cpu.stage([x], COEF, None, None, None, ROW.program, [w], z)
    finally:
        HOST.set_isa(before)
    expected, expected_z = torch.empty_like(x), torch.empty(1, numel, dtype=dtype)
    reference.stage([x], COEF, None, None, None, ROW.program, [expected], expected_z)
    assert same_bits(w, expected)
    for copy in z:
        assert same_bits(copy[None], expected_z)
