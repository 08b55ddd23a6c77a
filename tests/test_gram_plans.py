"""Inner products of the state: who makes them, and that who does not says so."""

from fractions import Fraction

import pytest
import torch

import fastdiff
from fastdiff.ops.schema import gram
from fastdiff.rows.gram import GramProgram
from fastdiff.testing.rows import same_bits

SHAPE, SEEDS = (3, 2, 5, 7), (11, 12, 13)


def sampled(seeds=SEEDS, shape=SHAPE, **named):
    plan = fastdiff.plan(solver="predictor_corrector", steps=4)
    assert any(row.gram is not None for row in plan.rows)
    return fastdiff.sample(lambda z, c_noise: torch.tanh(z) * 0.5, plan, shape, list(seeds), **named)


def test_backends_make_the_same_inner_products():
    with fastdiff.use_backend("reference"):
        expected = sampled()
    assert same_bits(sampled(), expected)


def test_a_sample_has_its_own_inner_products():
    together = sampled()
    for b, seed in enumerate(SEEDS):
        assert same_bits(sampled((seed,), (1, *SHAPE[1:]))[0], together[b])


# One sum -----------------------------------------------------------------------------------------------------------

ROUNDINGS = 18
"""Of a product and its way through one level of the tree (``docs/gram.md``)."""


def summed(a, b, backend):
    inner = GramProgram(2, 0, ((0,), (1,)), ((0, 0, 1, -1),))
    scalars = torch.empty((a.shape[0], 1), dtype=torch.float64)
    with fastdiff.use_backend(backend):
        gram([a, b], torch.ones((1, 2), dtype=torch.float64), inner, scalars=scalars)
    return scalars[:, 0]


@pytest.mark.parametrize("numel", [1, 3, 4, 5, 511, 512, 513, 4095, 4096])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_error_is_within_what_the_page_says(numel, backend):
    drawn = torch.Generator().manual_seed(numel)
    # Sizes over ten binades and both signs, so that sums cancel.
    a, b = (torch.randn(5, numel, generator=drawn, dtype=torch.float64).exp2() for _ in range(2))
    a *= torch.where(torch.rand(5, numel, generator=drawn) < 0.5, -1.0, 1.0)
    for ours, x, y in zip(summed(a, b, backend).tolist(), a.tolist(), b.tolist(), strict=True):
        products = [Fraction(p) * Fraction(q) for p, q in zip(x, y, strict=True)]
        allowed = ROUNDINGS * Fraction(2) ** -53 * sum(map(abs, products)) * (1 + Fraction(2) ** -40)
        assert abs(Fraction(ours) - sum(products)) <= allowed


@pytest.mark.parametrize("numel", [7, 4096, 4097, 40_000])
def test_neither_batch_nor_position_nor_threads_nor_layout_play_a_part(numel):
    a = torch.randn(4, numel, 2, 3, generator=torch.Generator().manual_seed(1))
    b = a.flip(0).contiguous()
    expected = summed(a, b, "reference")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert same_bits(summed(a, b, "cpu"), expected)
    finally:
        torch.set_num_threads(threads)
    assert same_bits(summed(a[2:3], b[2:3], "cpu"), expected[2:3])
    last = [t.contiguous(memory_format=torch.channels_last) for t in (a, b)]
    assert same_bits(summed(*last, "cpu"), expected)
