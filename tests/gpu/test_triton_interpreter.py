"""The source of the Triton kernels in Triton's interpreter: a second opinion that shares no compiler with the first."""

from itertools import islice

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
from interpreted import interpreted
from ptx import PtxError
from sampling import sample

import fastdiff
from fastdiff.backends import reference
from fastdiff.backends import triton as backend
from fastdiff.rows.call import Call
from fastdiff.rows.program import Formula, Program
from fastdiff.testing.rows import random_case, same_bits

COUNT = 60
COST = 12
"""The interpreter runs one instance at a time, so PR cases have at most so many (samples times noise terms)."""


def affordable():
    """The first random cases that are cheap."""
    seed = 0
    while True:
        case = random_case(seed, max_elements=4097)
        if case.shape[0] * (1 + sum(len(output.noise) for output in case.row.outputs)) <= COST:
            yield case
        seed += 1


def test_random_rows_have_the_reference_bits():
    with interpreted() as launches:
        for case in islice(affordable(), COUNT):
            got, expected = case.run(backend.stage), case.run(reference.stage)
            for key, value in expected.items():
                assert same_bits(got[key], value), f"{key} of {case.describe()}"
            assert len(launches) == (case.shape.numel() > 0)
            launches.clear()


def test_a_sampling_has_the_reference_bits():
    plan = fastdiff.plan(
        schedule="edm", prediction="edm", solver="heun", steps=2, guidance=2.0, churn=fastdiff.Churn(40.0)
    )
    shape, seeds = (1, 3, 4, 6), torch.tensor([11])
    with interpreted():
        got = sample(backend.stage, plan, shape, seeds, torch.float16)
    assert same_bits(got, sample(reference.stage, plan, shape, seeds, torch.float16))


@pytest.mark.parametrize("count", [2**14, pytest.param(2**20, marks=pytest.mark.night)])
def test_noise_has_the_reference_bits(count):
    """B2: normals, half of them from each of two seeds and draws."""
    got, expected = (torch.full((2, count // 2), torch.nan) for _ in "ab")
    seeds, draws = torch.tensor([0, 2**63 - 1]), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    with interpreted() as launches:
        backend.fill_noise(got, seeds, draws)
    reference.fill_noise(expected, seeds, draws)
    assert same_bits(got, expected)
    assert len(launches) == 1


def test_its_bounds_are_checked(monkeypatch):
    """Tell the kernel that samples are one element longer than they are."""
    tiling = backend.tiling
    monkeypatch.setattr(backend, "tiling", lambda *arguments: tiling(*arguments)._replace(numel=32))
    with interpreted(), pytest.raises(Exception, match="out of bounds") as caught:
        backend.fill_noise(torch.zeros(1, 31), torch.tensor([1]), torch.tensor([[0, 0, 0, 0]]))
    assert isinstance(caught.value, PtxError) or "PtxError" in repr(caught.value)


def test_the_interpreter_needs_its_repairs():
    """If this fails, Triton's own conversions have become right and ``interpreted`` can lose one repair."""
    from triton.runtime import interpreter

    repaired = interpreter.InterpreterBuilder.cast_impl
    with interpreted():
        assert interpreter.InterpreterBuilder.cast_impl is not repaired
        value = torch.tensor([[1 + 2**-8 + 2**-9]])
        out = torch.zeros(1, 1, dtype=torch.bfloat16)
        program, coef = Program(1, (Formula(base=0),), network=0), torch.ones(1, 1)
        backend.stage(Call([value], coef, program, stores=[None], z=out))
        assert out.item() == 1 + 2**-7
        interpreter.InterpreterBuilder.cast_impl = repaired
        backend.stage(Call([value], coef, program, stores=[None], z=out))
        assert out.item() == 1.0
