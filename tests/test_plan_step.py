"""One step of a solver as a plan of its own: chained by hand, on tensors of the caller's, it is the whole sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from test_eager import DPMPP_2M_SDE, PLAN, SEEDS, SHAPE, branches, distance, elementwise, normals
from textbook import CLOUD, PREDICTIONS
from torch import Tensor

from fastdiff import use_backend
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import RescaledGuidance
from fastdiff.maths.point import Point
from fastdiff.maths.real import mp
from fastdiff.maths.schedule import named_schedule
from fastdiff.plans.compose import Held, plan, plan_step
from fastdiff.plans.plan import Plan
from fastdiff.runs.run import Run
from fastdiff.runs.steps import Steps
from fastdiff.solvers.solver import SOLVERS, Solver
from fastdiff.testing.eager import eager_sample

Nets = Mapping[str, Any]


def points(steps: int, schedule: str = "edm") -> list[Point]:
    chosen = named_schedule(schedule)
    return chosen.points(steps)


def replay(
    compiled: Plan,
    held: Mapping[str, Tensor],
    nets: Nets,
    shape: Sequence[int] = SHAPE,
    seeds: Sequence[int] = SEEDS,
    calls: Mapping[str, Callable[..., Tensor]] = {},
) -> dict[str, Tensor]:
    """Every row of a step's plan, on given tensors; what it stored."""
    steps, made, columns = Steps(compiled), {}, {f"in_{name}": tensor for name, tensor in held.items()}
    for k, row in enumerate(compiled.rows):
        z = row.network is not None
        found = steps(k, columns | made, seeds=list(seeds)[: shape[0]], shape=shape, z=z)
        made |= {name: tensor for name, tensor in found.items() if name != "z"}
        if row.call is not None:
            name, arguments = row.call
            made[f"out_{name}"] = calls[name](*((columns | made)[argument] for argument in arguments))
        if z:
            told = torch.full((len(found["z"]),), row.c_noise, dtype=torch.float64)
            made |= {f"F_{branch}": nets[branch](found["z"], told) for branch in row.branches}
    return made


def chain(
    solver: str | Solver, along: Sequence[Point], nets: Nets, shape: Sequence[int] = SHAPE, **settings: Any
) -> Tensor:
    """All steps, one plan each; between them there are only tensors."""
    held: dict[str, Tensor] = {"x0": normals(-1, shape=shape) * float(along[0].s * along[0].sigma)}
    memory = None
    for k, (now, then) in enumerate(pairwise(along)):
        made = plan_step(
            solver,
            now,
            then,
            memory=memory,
            step=k,
            steps=len(along) - 1,
            dtype="float64",
            batched=False,
            **settings,
        )
        held |= replay(made.plan, held, nets, shape)
        memory = made.memory
    return held[f"x{len(along) - 1}"]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_chained_by_hand_are_the_sampler(solver: str, backend: str) -> None:
    """On VP with churn: noise has the counters of the whole sampler, because a step is told its number."""
    settings = {"prediction": "epsilon", "churn": Churn(3.0, 0.01, 50.0, 1.003)}
    nets = branches("epsilon")
    with use_backend(backend):
        found = chain(solver, points(6, "vp"), nets, **settings)
    expected = eager_sample(nets, SHAPE, SEEDS, schedule="vp", solver=solver, steps=6, **settings)
    assert distance(found, expected) <= PLAN


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "unipc", "lms"])
def test_steps_are_guided_and_clipped(solver: str) -> None:
    nets, settings = branches("edm"), {"guidance": 2.0, "clip": 0.75}
    expected = eager_sample(nets, SHAPE, SEEDS, solver=solver, steps=5, **settings)
    assert distance(chain(solver, points(5), nets, **settings), expected) <= PLAN
    # The variance of a sample's elements, of which there must be a few.
    nets, shape, guidance = elementwise("edm"), (4, 3, 5), RescaledGuidance(2.0)
    expected = eager_sample(nets, shape, SEEDS[:4], solver=solver, steps=5, guidance=guidance)
    assert distance(chain(solver, points(5), nets, shape, guidance=guidance), expected) <= PLAN


def test_a_path_is_remembered_from_step_to_step() -> None:
    nets = branches("edm")
    expected = eager_sample(nets, SHAPE, SEEDS, solver=DPMPP_2M_SDE, steps=6)
    assert distance(chain(DPMPP_2M_SDE, points(6), nets), expected) <= PLAN


def remembers_everything(trace, x, now, then, memory):
    """Everything that outlives a step: x, D, noise, a scaled vector, what was given, in a nest of containers."""
    D, xi, shift = trace.denoise(x, now), trace.noise(), trace.given("shift")
    y = x + (x - D) * ((then.sigma - now.sigma) / now.sigma) + shift * then.sigma
    if memory is not None:
        (x_before, D_before), rest = memory
        y = y + (x_before - D_before) * (then.sigma / 256) + rest["xi"] * (then.sigma / 8)
        y = y + rest["more"][0] * (then.sigma / 4) + rest["more"][1] * (then.sigma / 16)
    more = [D * 2 - x, shift, now, 3.5, "text", None]
    return y, ((x, D), {"xi": xi, "more": more})


REMEMBERS = Solver("remembers", 1, "these tests", remembers_everything)


def test_whatever_a_step_remembers_is_handed_on() -> None:
    """Vectors become tensors of names of their own; all else is as it was."""
    nets, shift = branches("edm"), torch.linspace(-1, 1, 12, dtype=torch.float64).view(SHAPE)
    along = points(5)
    expected = eager_sample(nets, SHAPE, SEEDS, solver=REMEMBERS, steps=5, given={"shift": shift})
    held: dict[str, Tensor] = {"x0": normals(-1) * 80, "shift": shift}
    memory: Any = None
    for k, (now, then) in enumerate(pairwise(along)):
        made = plan_step(REMEMBERS, now, then, memory=memory, step=k, dtype="float64")
        # A name is not given away while the step reads what it stands for.
        assert not set(made.plan.buffers) & {name.removeprefix("in_") for name in made.plan.given}
        held |= replay(made.plan, held, nets)
        memory = made.memory
        (x_before, D_before), rest = memory
        assert x_before == Held(f"x{k}")
        assert rest["more"][1:] == [Held("shift"), now, 3.5, "text", None]
        assert all(isinstance(one, Held) for one in (D_before, rest["xi"], rest["more"][0]))
        assert {one.name for one in (D_before, rest["xi"], rest["more"][0])} <= set(held)
    assert distance(held["x5"], expected) <= PLAN


def test_a_plan_remembers_it_too() -> None:
    """The whole sampler, with buffers that are shared and with all kept."""
    nets, shift = branches("edm"), torch.linspace(-1, 1, 12, dtype=torch.float64).view(SHAPE)
    expected = eager_sample(nets, SHAPE, SEEDS, solver=REMEMBERS, steps=5, given={"shift": shift})
    for visible in (False, True):
        run = Run(
            plan(solver=REMEMBERS, steps=5, dtype="float64", visible=visible), SHAPE, SEEDS, given={"shift": shift}
        )
        for evaluation in run:
            run.step(nets["cond"](evaluation.z, evaluation.c_noise))
        assert distance(run.finish(), expected) <= PLAN


class Past(NamedTuple):
    """What a step remembers, with names."""

    at: Point
    D: Any


def test_memory_may_be_a_named_tuple() -> None:
    def dpmpp_2m(trace, x, now, then, memory):
        assert memory is None or isinstance(memory, Past)
        y, (_, D) = SOLVERS["dpmpp_2m"].step(trace, x, now, then, memory)
        return y, Past(now, D)

    nets, solver = branches("edm"), Solver("dpmpp_2m", 2, "these tests", dpmpp_2m)
    assert torch.equal(chain(solver, points(5), nets), chain("dpmpp_2m", points(5), nets))


def test_the_result_of_a_step_that_evaluates_for_the_next_one_is_its_state() -> None:
    """First same as last: the slope at the new state is remembered, so each step asks the network once."""

    def fsal(trace, x, now, then, memory):
        d = trace.slope(x, now) if memory is None else memory
        x = x + d * (then.t - now.t)
        return x, trace.slope(x, then) if then.sigma else None

    solver, nets, along = Solver("fsal", 1, "these tests", fsal), branches("edm"), points(5)
    made = plan_step(solver, along[0], along[1])
    assert made.plan.result == "x1"
    assert made.plan.evaluations == 2
    assert distance(chain(solver, along, nets), eager_sample(nets, SHAPE, SEEDS, solver="euler", steps=5)) <= PLAN


@pytest.mark.parametrize(("solver", "vectors"), [("heun", 0), ("dpmpp_2m", 1), ("lms", 3), ("unipc", 3)])
def test_a_step_stores_its_state_and_what_it_remembers(solver: str, vectors: int) -> None:
    """``x1`` from the given ``x0``, and of the vectors remembered those that are new; one launch an evaluation."""
    memory, along = None, points(6)
    for k, (now, then) in enumerate(pairwise(along)):
        made = plan_step(solver, now, then, memory=memory, step=k)
        memory = made.memory
        assert f"x{k + 1}" in made.plan.buffers
        assert f"x{k}" in made.plan.given
        assert len(made.plan.rows) == made.plan.evaluations + 1
        assert made.plan.result == f"x{k + 1}"
        assert made.plan.rows[0].outputs[0].store is None
    held = [name for name in made.plan.given if name.startswith(("m", "x"))]
    assert len(held) >= vectors
    assert made.plan.description == f"{SOLVERS[solver].name} · one step from sigma 0.002 to 0"


def test_a_step_the_other_way_undoes_a_step() -> None:
    """From data to noise the ODE is the same: Heun's step forth and back is off by its third order."""
    nets, (_, now, then, *_) = branches("edm"), points(40)
    x = normals(-1) * float(now.sigma)
    there = replay(plan_step("heun", now, then, dtype="float64").plan, {"x0": x}, nets)["x1"]
    back = replay(plan_step("heun", then, now, dtype="float64").plan, {"x0": there}, nets)["x1"]
    assert distance(back, x) < 1e-4 < distance(there, x)


def test_an_adaptive_method_chooses_its_own_points() -> None:
    """Step doubling: Euler's method with the step that its error allows, against many small steps."""
    path = named_schedule("edm").path
    net = CLOUD.network(PREDICTIONS["edm"])
    nets = {"cond": net}

    def stepped(x: Tensor, start: float, end: float) -> Tensor:
        now, then = (Point(path, mp.mpf(sigma)) for sigma in (start, end))
        return replay(plan_step("heun", now, then, dtype="float64").plan, {"x0": x}, nets)["x1"]

    x, sigma, h, taken = normals(-1) * 10, 10.0, 5.0, 0
    while sigma > 0.5:
        h = min(h, sigma - 0.5)
        whole, half = stepped(x, sigma, sigma - h), stepped(x, sigma, sigma - h / 2)
        twice = stepped(half, sigma - h / 2, sigma - h)
        error = float((whole - twice).abs().max())
        if error <= 1e-3:
            x, sigma, taken = twice, sigma - h, taken + 1
        h *= min(2.0, max(0.3, 0.9 * (1e-3 / max(error, 1e-12)) ** (1 / 3)))
    fine = normals(-1) * 10
    for k in range(100):
        fine = stepped(fine, 10 * 0.05 ** (k / 100), 10 * 0.05 ** ((k + 1) / 100))
    # Each step's error is at most 1e-3, and later steps shrink it.
    assert float((x - fine).abs().max()) <= 1e-3 * taken
    assert 3 < taken < 60


def test_a_step_compiles_in_a_fraction_of_a_launch_of_a_network() -> None:
    """Measured 0.3 to 1 ms; 20 ms would be noticed by whoever compiles as he samples."""
    along, times = points(18), []
    for now, then in pairwise(along):
        start = time.thread_time()
        plan_step("heun", now, then)
        times.append(time.thread_time() - start)
    assert sorted(times)[len(times) // 2] < 0.02
