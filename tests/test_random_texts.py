"""Solvers that nobody would write: random texts are compiled to what they say, or refused for want of room.

A text is a list of operations on a pool of vectors, drawn from a seed, so that both interpreters run the same one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_eager import elementwise
from test_plan_step import replay
from torch import Tensor

from fastdiff.backends import reference
from fastdiff.errors import PlanError
from fastdiff.maths.point import Point
from fastdiff.maths.schedule import from_sigmas
from fastdiff.plans.compose import plan, plan_step
from fastdiff.runs.run import Run
from fastdiff.solvers.solver import Solver
from fastdiff.testing import eager
from fastdiff.testing.eager import eager_sample

SHAPE, SEEDS, STEPS = (2, 9), (5, 11), 4
LEVELS = [4.0, 1.5, 0.6, 0.2]
NOT_ROOM = (
    "fit in one launch",
    "product of noise alone",
    "a row holds",
    "itself scaled by a scalar",
    "the same launch clamps or draws",
)
"""Why a text may be refused: limits of a row, and what an inner product can be taken of."""
MASK = torch.linspace(-1, 1, 18, dtype=torch.float64).view(SHAPE)

Operation = tuple[Any, ...]


def text(seed: int) -> tuple[list[Operation], list[int], dict[str, Any]]:
    """Operations of a step, what of the pool is remembered, and the settings."""
    chance = random.Random(seed)
    operations: list[Operation] = []
    kinds = ["denoise", "combine", "combine", "combine", "noise", "path", "given", "call", "scale", "branch"]
    weights = [5, 6, 6, 6, 2, 1, 2, 1, 2, 1]
    for size in range(1, chance.randint(3, 10)):
        i, j, k = (chance.randrange(-3, size) for _ in range(3))
        a, b = chance.choice([0.5, -0.25, 1.0, 0.125]), chance.choice([1.0, -0.5, 0.25])
        operations.append((chance.choices(kinds, weights)[0], i, j, k, a, b, chance.choice(["now", "then", "middle"])))
    remembered = chance.sample(range(len(operations) + 1), chance.randint(0, min(3, len(operations))))
    settings = {
        "clip": chance.choice([None, None, 1.0]),
        "guidance": chance.choice([1.0, 2.0]),
        "visible": chance.random() < 0.3,
    }
    return operations, remembered, settings


def step_of(operations: list[Operation], remembered: list[int]) -> Callable[..., tuple[Any, Any]]:
    def step(trace, x, now, then, memory):
        pool = [x]
        held = list(memory or [])

        def pick(i: int) -> Any:
            """Negative places are what is remembered, where there is so much."""
            return pool[i] if i >= 0 else held[-1 - i] if -1 - i < len(held) else x

        for kind, i, j, k, a, b, place in operations:
            middle = Point(now.path, (now.t + then.t) / 2)
            at = {"now": now, "then": then if then.sigma else now, "middle": middle}[place]
            if kind == "denoise":
                pool.append(trace.denoise(pick(i), at))
            elif kind == "branch":
                found = trace.evaluate(pick(i), at)
                pool.append(found["cond"] * a + next(iter(reversed(found.values()))) * b)
            elif kind == "combine":
                pool.append(pick(i) * a + pick(j) * b - pick(k) / 4)
            elif kind == "noise":
                pool.append(trace.noise() * a)
            elif kind == "path":
                pool.append(trace.brownian(at) * b)
            elif kind == "given":
                pool.append(trace.given("mask") + pick(i) * a)
            elif kind == "call":
                pool.append(trace.call("turn", pick(i), pick(j)))
            else:
                pool.append(pick(i) * (trace.dot(pick(j), pick(k)) / (trace.dot(pick(k), pick(k)) + 1)))
        return pool[-1] * 0.5 + x * 0.25, [pool[i] for i in remembered]

    return step


def turn(a: Tensor, b: Tensor) -> Tensor:
    return a.flip(1) * 0.5 + b * 0.25


def outcome(seed: int, monkeypatch: pytest.MonkeyPatch) -> float | None:
    """How far a text's plan is from the text, in terms of the largest number that came up; None if it was refused."""
    operations, remembered, settings = text(seed)
    solver = Solver(f"text {seed}", 1, "these tests", step_of(operations, remembered))
    nets, visible = elementwise("edm"), settings.pop("visible")
    settings |= {"solver": solver, "schedule": LEVELS, "steps": STEPS}
    try:
        compiled = plan(dtype="float64", batched=False, visible=visible, **settings)
    except PlanError as error:
        if not any(reason in str(error) for reason in NOT_ROOM):
            raise
        return None
    largest = [1.0]

    def watched(self: eager.Value, value: Tensor) -> None:
        self.value = value
        largest[0] = max(largest[0], float(value.abs().max()))

    with monkeypatch.context() as patched:
        patched.setattr(eager.Value, "__init__", watched)
        expected = eager_sample(nets, SHAPE, SEEDS, given={"mask": MASK}, calls={"turn": turn}, **settings)
    run = Run(
        compiled,
        SHAPE,
        SEEDS,
        given={"mask": MASK} if compiled.given else None,
        calls={"turn": turn} if any(row.call for row in compiled.rows) else None,
    )
    for evaluation in run:
        run.step(*[nets[branch](evaluation.z, evaluation.c_noise) for branch in evaluation.branches])
    assert torch.isfinite(expected).all()
    return float((run.finish() - expected).abs().max()) / largest[0]


def test_a_text_that_repeats_itself_is_written_out_in_no_time() -> None:
    """Each line uses the one before twice: 2**200 terms, were they written out one by one."""

    def doubling(trace, x, now, then, memory):
        D = trace.denoise(x, now)
        for _ in range(200):
            x = x * 0.5 + (x * 0.5 + D * 0.125)
        return x, None

    compiled = plan(solver=Solver("doubling", 1, "these tests", doubling), steps=3)
    assert compiled.traffic(network_bytes=2) == [6, 12, 12, 10]


def test_a_vector_may_be_remembered_before_what_it_is_made_of() -> None:
    def step(trace, x, now, then, memory):
        D = trace.denoise(x, now)
        half = D * 0.5
        sum_of = half + x * 0.25
        return D * (1 - then.sigma / now.sigma) + x * (then.sigma / now.sigma), [sum_of * 2, sum_of, half]

    compiled = plan(solver=Solver("backwards", 1, "these tests", step), steps=4)
    assert len(compiled.buffers) == 1, "nobody reads what is remembered"


FOUND = [20, 35, 54, 112, 155, 272, 2426, 3742]
"""Texts that were once compiled to something else, or not at all."""


@pytest.mark.parametrize("seed", FOUND)
def test_texts_that_once_were_compiled_wrongly(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    far = outcome(seed, monkeypatch)
    assert far is None or far <= 1e-11


def test_a_row_that_reads_nothing_leaves_what_is_carried_alone() -> None:
    """It learns the size of the batch from a tensor that it stores: one that holds nothing else."""

    def step(trace, x, now, then, memory):
        D = trace.denoise(x, now)
        trace.denoise(trace.noise(), now)
        seen = trace.denoise(trace.noise(), now)
        return D * 0.5 + x * 0.25 + seen * 0.125 + (memory or D) * 0.0625, D

    nets = elementwise("edm")
    settings = {"solver": Solver("peeks", 1, "these tests", step), "schedule": LEVELS, "steps": STEPS}
    compiled = plan(dtype="float64", **settings)
    stepping = Run(compiled, SHAPE, SEEDS)
    for evaluation in stepping:
        stepping.step(nets["cond"](evaluation.z, evaluation.c_noise))
    assert float((stepping.finish() - eager_sample(nets, SHAPE, SEEDS, **settings)).abs().max()) <= 1e-12


@pytest.mark.parametrize("block", range(4))
def test_random_texts_are_compiled_to_what_they_say(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong coefficient or a vector taken for another shows in the first digits; rounding in the last five."""
    found = {seed: outcome(seed, monkeypatch) for seed in range(40 * block, 40 * block + 40)}
    compiled = {seed: far for seed, far in found.items() if far is not None}
    assert len(compiled) >= 20
    assert max(compiled.values()) <= 1e-11, compiled


def chained(seed: int) -> float | None:
    """The same for a text whose steps are compiled one by one."""
    operations, remembered, settings = text(seed)
    del settings["visible"]
    settings |= {"solver": Solver(f"text {seed}", 1, "these tests", step_of(operations, remembered))}
    nets, chosen, memory = elementwise("edm"), from_sigmas(LEVELS), None
    first = reference.normals(9, torch.tensor(SEEDS), torch.tensor([[0, 0, 0, 0]])).view(SHAPE).double()
    held = {"x0": first * LEVELS[0], "mask": MASK}
    points = chosen.points(STEPS)
    try:
        for k, (now, then) in enumerate(pairwise(points)):
            made = plan_step(now=now, then=then, memory=memory, step=k, dtype="float64", batched=False, **settings)
            assert made.plan.result == f"x{k + 1}"
            held |= replay(made.plan, held, nets, SHAPE, SEEDS, {"turn": turn})
            memory = made.memory
    except PlanError as error:
        if not any(reason in str(error) for reason in NOT_ROOM):
            raise
        return None
    settings |= {"schedule": LEVELS, "steps": STEPS}
    expected = eager_sample(nets, SHAPE, SEEDS, given={"mask": MASK}, calls={"turn": turn}, **settings)
    return float((held[f"x{STEPS}"] - expected).abs().max() / expected.abs().max().clamp(min=1))


def test_random_texts_chained_by_hand_are_what_they_say() -> None:
    found = {seed: chained(seed) for seed in range(60)}
    compiled = {seed: far for seed, far in found.items() if far is not None}
    assert len(compiled) >= 50
    assert max(compiled.values()) <= 1e-11, compiled
