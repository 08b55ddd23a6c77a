"""What nvcc makes of the CUDA kernels, run as PTX on the CPU: bits, bytes, and every access within bounds."""

from functools import cache

import pytest
from compiled import NVCC, TARGETS

if NVCC is None:
    pytest.skip("nvcc is not installed", allow_module_level=True)

import torch
from cases import KINDS, make
from executed import ExecutedCuda
from sampling import sample

import fastdiff
from fastdiff.backends import reference
from fastdiff.testing.rows import random_case, same_bits

CASES_PER_KIND = 11
RANDOM_CASES = 18
SHAPE = (2, 4, 8, 16)
ELEMENTS = 2 * 4 * 8 * 16


@pytest.fixture(scope="module")
def opened():
    """The library of each target, compiled when it is first asked for."""
    return cache(ExecutedCuda)


@pytest.fixture
def library(opened):
    return opened("sm_90")


def agree(library, case):
    got = case.run(library.stage)
    for key, value in case.run(reference.stage).items():
        assert same_bits(got[key], value), f"{key} of {case.describe()}"


@pytest.mark.parametrize("name", KINDS)
def test_rows_have_the_reference_bits(library, name):
    for seed in range(CASES_PER_KIND):
        agree(library, make(KINDS[name], seed))


@pytest.mark.parametrize("seed", range(RANDOM_CASES))
def test_random_rows_have_the_reference_bits(library, seed):
    agree(library, random_case(seed, max_elements=4097))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_the_reference_bits(opened, target):
    for name in ("guided corrector", "fp64 narrow"):
        agree(opened(target), make(KINDS[name], 1))


@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 2**20), (torch.float64, 2**14)])
def test_noise_has_the_reference_bits(library, dtype, count):
    """B2: 2**20 normals, a quarter of them from each of four seeds."""
    seeds, draws = torch.tensor([0, 1, 2**40 + 3, 2**63 - 1]), torch.tensor([[1, 2, 3, 4]])
    got, expected = (torch.empty(4, count // 4, dtype=dtype) for _ in "ab")
    library.fill_noise(got, seeds, draws)
    reference.fill_noise(expected, seeds, draws)
    assert same_bits(got, expected)


HEUN = [
    (torch.bfloat16, 1.0, "float32", 12),
    (torch.bfloat16, 2.0, "float32", 16),
    (torch.float32, 2.0, "float32", 24),
    (torch.float16, 1.0, "float64", 20),
]
"""The network's type, guidance, the state's type, and bytes per element and evaluation."""


@pytest.mark.parametrize(
    ("target", "network", "guidance", "dtype", "per_element"),
    [("sm_90", *case) for case in HEUN] + [(target, *HEUN[1]) for target in TARGETS if target != "sm_90"],
)
def test_every_byte_moves_once_and_in_quads(opened, target, network, guidance, dtype, per_element):
    """EDM's stochastic Heun: one launch for each evaluation, which moves what the plan says and not a byte more."""
    library = opened(target)
    plan = fastdiff.plan(steps=4, churn=fastdiff.Churn(40.0), guidance=guidance, dtype=dtype)
    moved, accesses = [], set()

    def stage(call):
        library.stage(call)
        regions = library.memory.named("columns", "stores", "z")
        moved.append(sum(region.bytes_read + region.bytes_written for region in regions) / ELEMENTS)
        accesses.update(access for region in regions for access in region.accesses)

    sample(stage, plan, SHAPE, torch.tensor([0, 1]), network)
    assert moved == plan.traffic(network.itemsize)
    assert set(moved[1:-1]) == {per_element}
    # 128 bits, or 64 for four elements of 16 bits.
    assert {width for _, width in accesses} == {16, 4 * network.itemsize}
