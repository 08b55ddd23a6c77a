"""The Triton kernels, compiled for a GPU and run as PTX, against the reference: bit for bit."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
from cases import KINDS, make
from pretend_gpu import PretendGpu

from fastdiff.backends import reference
from fastdiff.backends import triton as backend
from fastdiff.testing.rows import same_bits

CASES_PER_KIND = 13


@pytest.mark.parametrize("name", KINDS)
def test_rows_have_the_reference_bits(name):
    kind = KINDS[name]
    compiled = set()
    for seed in range(CASES_PER_KIND):
        case = make(kind, seed)
        with PretendGpu() as gpu:
            got = case.run(backend.stage)
        expected = case.run(reference.stage)
        for key, value in expected.items():
            assert same_bits(got[key], value), f"{name}, seed {seed}: {key} of {case.describe()}"
        # One call is one launch, and all cases of a kind share one compiled kernel.
        assert len(gpu.launches) == 1
        compiled.add(gpu.launches[0].ptx)
    assert len(compiled) == 1


def test_sizes_are_widened_before_they_are_multiplied():
    """A batch stride beyond 2**31 is followed: two samples 2**31 + 16 elements apart in memory nobody touches."""
    stride = 2**31 + 16
    storage = torch.UntypedStorage(2 * (stride + 16))
    out = torch.empty(0, dtype=torch.bfloat16).set_(storage, 0, (2, 16), (stride, 1))
    with PretendGpu():
        backend.fill_noise(out, torch.tensor([5, 6]), torch.tensor([[4, 0, 0, 0]]))
    expected = torch.empty(2, 16, dtype=torch.bfloat16)
    reference.fill_noise(expected, torch.tensor([5, 6]), torch.tensor([[4, 0, 0, 0]]))
    assert same_bits(out, expected)
