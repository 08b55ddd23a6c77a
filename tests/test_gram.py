"""Inner products of the state: who makes them, and that who does not says so."""

from dataclasses import replace

import pytest
import torch

import fastdiff
from fastdiff.backends import registry
from fastdiff.errors import BackendError
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


def test_a_backend_without_inner_products_is_refused_before_anything_runs():
    without = replace(registry.BACKENDS[-1], name="plain", gram=None)
    with registry.registered(without), fastdiff.use_backend("plain"):
        with pytest.raises(BackendError, match="'plain' makes no inner products yet.*use_backend"):
            sampled()
