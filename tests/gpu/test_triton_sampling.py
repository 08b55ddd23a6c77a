"""Whole samplings through the Triton kernels: bits, launches, and bytes that move."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
from pretend_gpu import PretendGpu
from sampling import sample
from triton.backends.compiler import GPUTarget

import fastdiff
from fastdiff.backends import reference
from fastdiff.backends import triton as backend
from fastdiff.testing.rows import same_bits

SHAPE = (2, 4, 8, 16)
ELEMENTS = 2 * 4 * 8 * 16


def heun(guidance, steps=3):
    churn = fastdiff.Churn(40.0, s_noise=1.003)
    return fastdiff.plan(schedule="edm", prediction="edm", solver="heun", steps=steps, guidance=guidance, churn=churn)


@pytest.mark.parametrize(("guidance", "bytes_an_evaluation"), [(1.0, 12), (2.0, 16)])
def test_stochastic_heun_moves_what_it_must(guidance, bytes_an_evaluation):
    plan, seeds = heun(guidance), torch.tensor([3, 2**50])
    with PretendGpu() as gpu:
        got = sample(backend.stage, plan, SHAPE, seeds, torch.bfloat16)
    assert same_bits(got, sample(reference.stage, plan, SHAPE, seeds, torch.bfloat16))
    assert len(gpu.launches) == plan.evaluations + 1

    moved = []
    for launch in gpu.launches:
        regions = launch.memory.named("columns", "stores", "z")
        # Nothing is read twice, and nothing is read that is not counted.
        assert all(region.bytes_read in (0, region.data.size) for region in regions)
        moved.append(sum(region.bytes_read + region.bytes_written for region in regions) / ELEMENTS)
    assert moved == plan.traffic(network_bytes=2)
    assert set(moved[1:-1]) == {bytes_an_evaluation}


def test_accesses_are_wide():
    plan = heun(2.0)
    with PretendGpu() as gpu:
        sample(backend.stage, plan, SHAPE, torch.tensor([0, 1]), torch.bfloat16)
    for launch in gpu.launches:
        for region in launch.memory.named("columns", "stores", "z"):
            quad = 8 if region.name in ("z", "columns.1", "columns.2") else 16
            assert {width for _, width in region.accesses} == {quad}, region.name


def test_a_structure_is_compiled_once():
    plan = heun(1.0, steps=18)
    with PretendGpu() as gpu:
        sample(backend.stage, plan, SHAPE, torch.tensor([0, 1]), torch.bfloat16)
    assert len(gpu.launches) == 36
    assert len({launch.ptx for launch in gpu.launches}) == len({row.program for row in plan.rows}) <= 8


@pytest.mark.parametrize("arch", [80, 100, 120])
def test_code_for_other_targets_has_the_same_bits(arch):
    """Conversions and packed arithmetic differ between targets, the bits must not."""
    plan, seeds = heun(2.0, steps=2), torch.tensor([3, 2**50])
    with PretendGpu(GPUTarget("cuda", arch, 32)) as gpu:
        got = sample(backend.stage, plan, SHAPE, seeds, torch.bfloat16)
    assert same_bits(got, sample(reference.stage, plan, SHAPE, seeds, torch.bfloat16))
    assert f".target sm_{arch}" in gpu.launches[0].ptx
