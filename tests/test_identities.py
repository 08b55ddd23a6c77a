"""What is known of samplers in closed form: which of them coincide, and what they do to Gaussian data.

For data N(0, 1/4) the denoiser is ``D(x; sigma) = x / (1 + 4 sigma^2)``, so every sampler is linear in its noise: the
variance of its samples follows from the coefficients of the paper's formula, one multiplication a step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_eager import PAPER, PLAN, SEEDS, SHAPE, branches, distance
from test_solvers import noise_gains
from textbook import LEVELS, PREDICTIONS, VP
from torch import Tensor

from fastdiff.maths import schedule
from fastdiff.maths.churn import Churn
from fastdiff.maths.schedule import Schedule
from fastdiff.plans.compose import plan
from fastdiff.runs.sample import sample
from fastdiff.solvers.solver import SOLVERS, Solver
from fastdiff.testing.eager import eager_sample

EDM_ON = {
    "linear": Schedule(schedule.edm_levels(), schedule.linear_path()),
    "vp": Schedule(schedule.edm_levels(), schedule.vp_path()),
}


def samples(solver: str | Solver, path: str = "linear", steps: int = 9) -> Tensor:
    return eager_sample(branches("edm"), SHAPE, SEEDS, schedule=EDM_ON[path], solver=solver, steps=steps)


# Samplers that coincide.


@pytest.mark.parametrize("path", EDM_ON)
def test_ddim_without_noise_is_eulers_method_in_sigma(path: str) -> None:
    """On every path: x / s is what moves, and at the end s = 1."""
    assert distance(samples("ddim", path), samples("euler")) <= PLAN
    assert plan(solver="ddim", steps=9).rows == plan(solver="euler", steps=9).rows


@pytest.mark.parametrize("path", EDM_ON)
def test_ddim_with_all_its_noise_is_ddpm(path: str) -> None:
    assert distance(samples(SOLVERS["ddim"](eta=1.0), path), samples("ddpm", path)) <= PLAN
    settings = {"schedule": EDM_ON[path], "steps": 9}
    assert plan(solver=SOLVERS["ddim"](eta=1.0), **settings).rows == plan(solver="ddpm", **settings).rows


@pytest.mark.parametrize("path", EDM_ON)
def test_an_ancestral_sampler_without_noise_is_eulers_method(path: str) -> None:
    assert distance(samples(SOLVERS["euler_ancestral"](eta=0.0), path), samples("euler")) <= PLAN


@pytest.mark.parametrize("path", EDM_ON)
def test_an_ancestral_sampler_is_ddpm(path: str) -> None:
    """``up = sigma' sqrt(sigma^2 - sigma'^2) / sigma`` is the posterior's deviation, ``down`` sigma'^2 / sigma."""
    assert distance(samples("euler_ancestral", path), samples("ddpm", path)) <= PLAN


def test_without_a_past_a_multistep_method_is_eulers() -> None:
    """Two steps, the second to sigma = 0, where D is the answer whatever came before."""
    for solver in ("dpmpp_2m", SOLVERS["lms"](order=1)):
        assert distance(samples(solver, steps=2), samples("euler", steps=2)) <= PLAN
    assert distance(samples(SOLVERS["lms"](order=1)), samples("euler")) <= PLAN


def test_alpha_one_is_heuns_method_one_half_the_midpoint_method_and_two_thirds_ralstons() -> None:
    for name, alpha in (("heun", 1.0), ("midpoint", 0.5), ("ralston", 2 / 3)):
        assert plan(solver=SOLVERS["heun"](alpha=alpha), steps=5).rows == plan(solver=name, steps=5).rows


@pytest.mark.parametrize("name", SOLVERS)
def test_network_evaluations_of_a_solver(name: str) -> None:
    """One a step; two in methods with a second stage, which the step to sigma = 0 does without, but for a midpoint."""
    for steps in (1, 2, 9):
        twice = {"heun": 2 * steps - 1, "predictor_corrector": 2 * steps - 1, "midpoint": 2 * steps}
        twice["ralston"] = 2 * steps
        assert plan(solver=name, steps=steps).evaluations == twice.get(name, steps)


# Data at one point.

IN_SIGMA = ["ddim", "ddpm", "dpmpp_2m", "euler_ancestral", "unipc"]
"""Solvers that step in sigma. The others step in t, in which the way to the point is straight only if sigma = t; even
there Euler-Maruyama goes to 2 D - x."""
IN_TIME = ["euler", "heun", "midpoint", "ralston", "lms"]


@pytest.mark.parametrize(
    ("name", "path"), [*itertools.product(IN_SIGMA, EDM_ON), *((name, "linear") for name in IN_TIME)]
)
def test_data_at_one_point_is_exact_in_one_step(name: str, path: str) -> None:
    """D is the point whatever x: one step lands on it."""
    point = torch.tensor([[0.25, -0.75]], dtype=torch.float64)
    compiled = plan(schedule=EDM_ON[path], prediction="x0", solver=name, steps=1, dtype="float64")
    found = sample(lambda z, c_noise: point + 0 * z, compiled, SHAPE, 7)
    # x is 80 times a normal of at most 6.8, and cancels in at most a dozen roundings.
    assert (found - point).abs().max() <= 12 * 544 * 2.0**-53


def test_it_is_known_of_every_solver_whether_one_step_is_exact() -> None:
    assert {*IN_SIGMA, *IN_TIME, "reverse_sde", "predictor_corrector"} == set(SOLVERS)


NEW_NOISE = {
    "euler_ancestral": "euler_ancestral",
    "euler_ancestral, eta 0.5": SOLVERS["euler_ancestral"](eta=0.5),
    "ddpm": "ddpm",
    "ddim": "ddim",
    "ddim, eta 0.5": SOLVERS["ddim"](eta=0.5),
}


@pytest.mark.parametrize("name", NEW_NOISE)
def test_the_noise_that_is_kept_and_the_noise_that_is_added_make_the_next_level(name: str) -> None:
    """``down^2 + up^2 = sigma'^2``: around data at 0 the deviation of x / s is sigma at every level."""
    for sigmas in ([10.0, 0.5], [10.0, 4.0, 1.0, 0.3], [80.0, 79.0, 2.0, 0.002]):
        for path in (schedule.linear_path(), schedule.vp_path()):
            stops = Schedule(schedule.given_levels(sigmas), replace(path, end=None))
            compiled = plan(
                schedule=stops,
                prediction="x0",
                solver=NEW_NOISE[name],
                steps=len(sigmas),
                dtype="float64",
                noise="caller",
            )
            s = 1.0 if path.name == "linear" else 1 / math.sqrt(1 + sigmas[-1] ** 2)
            # The network of noise_gains answers 0, which for an x0 network is the data's one point.
            assert float(noise_gains(compiled).norm()) == pytest.approx(s * sigmas[-1], rel=PAPER)


# Gaussian data of standard deviation 1/2: the variance of samples, step by step.

SIGMA_DATA = 0.5
Recursion = Callable[[float, float, float], float]
"""The variance of x after a step, from the variance before it, sigma and the next sigma."""


def kept(sigma: float) -> float:
    """``D = kept x / s``."""
    return SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2)


def ancestral(eta: float) -> Recursion:
    """k-diffusion's ancestral step, in x / s."""

    def step(v: float, sigma: float, then: float) -> float:
        up = min(then, eta * then * math.sqrt(1 - (then / sigma) ** 2))
        down = math.sqrt(then**2 - up**2)
        a = kept(sigma) + (1 - kept(sigma)) * down / sigma
        return a**2 * v + up**2

    return step


def ddim(eta: float) -> Recursion:
    """Song, Meng and Ermon 2021, equation 12, for x0 and eps."""

    def step(v: float, sigma: float, then: float) -> float:
        up = eta * then * math.sqrt(1 - (then / sigma) ** 2)
        eps = (1 - kept(sigma)) / sigma
        return (kept(sigma) + math.sqrt(then**2 - up**2) * eps) ** 2 * v + up**2

    return step


def reverse_vp(v: float, sigma: float, then: float) -> float:
    """Euler-Maruyama on the reverse VP SDE, in x itself: ``x + (-beta x / 2 - beta score) h + sqrt(-beta h) xi``."""
    t, t_next = VP.sigma_inv(sigma), VP.sigma_inv(then)
    beta, h, s = 0.1 + 19.9 * t, t_next - t, 1 / math.sqrt(1 + sigma**2)
    score = (kept(sigma) - 1) / (s * sigma) ** 2
    return (1 + (-beta / 2 - beta * score * s / s) * h) ** 2 * v + (-beta * h if then else 0.0)


STOCHASTIC: dict[str, tuple[str | Solver, str, Recursion]] = {
    "euler_ancestral": ("euler_ancestral", "edm", ancestral(1.0)),
    "euler_ancestral, eta 0.5": (SOLVERS["euler_ancestral"](eta=0.5), "edm", ancestral(0.5)),
    "ddpm": ("ddpm", "vp", ddim(1.0)),
    "ddim, eta 0.5": (SOLVERS["ddim"](eta=0.5), "vp", ddim(0.5)),
    "reverse_sde": ("reverse_sde", "vp", reverse_vp),
}


def deviation(name: str, steps: int) -> float:
    """The standard deviation of samples, in closed form."""
    _, levels, step = STOCHASTIC[name]
    sigmas = [*LEVELS[levels](steps), 0.0]
    v = sigmas[0] ** 2
    if step is reverse_vp:
        v /= 1 + sigmas[0] ** 2
    for sigma, then in pairwise(sigmas):
        v = step(v, sigma, then)
    return math.sqrt(v)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_sampler_has_the_variance_of_its_recursion(name: str) -> None:
    """The gain of every draw in the result, by one-hot noise: exact to float64."""
    solver, levels, _ = STOCHASTIC[name]
    for steps in (2, 10, 40):
        compiled = plan(schedule=levels, solver=solver, steps=steps, dtype="float64", noise="caller")
        assert float(noise_gains(compiled).norm()) == pytest.approx(deviation(name, steps), rel=PAPER)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samples_have_the_variance_of_the_recursion(name: str) -> None:
    """200,000 float32 samples by their counters, within 4 standard errors; noise 1 % too large would be 9 off."""
    n, (solver, levels, _) = 200_000, STOCHASTIC[name]
    compiled = plan(schedule=levels, solver=solver, steps=10)
    x = sample(lambda z, c_noise: torch.zeros_like(z), compiled, (8, n // 8), 7).double()
    std = deviation(name, 10)
    assert abs(float(x.std()) - std) <= 4 * std / math.sqrt(2 * n)
    assert abs(float(x.mean())) <= 4 * std / math.sqrt(n)


def test_every_stochastic_solver_has_its_variance_tested() -> None:
    """But for the corrector, whose step depends on the sample; its text is compared with the paper's."""
    tested = {name.partition(",")[0] for name in STOCHASTIC} - {"ddim"}
    drawn = {name for name, solver in SOLVERS.items() if solver.stochastic}
    assert tested == drawn - {"predictor_corrector"}


def test_langevin_steps_have_the_variance_of_their_fixed_point() -> None:
    """``x + e score + sqrt(2 e) xi`` on N(0, v) has the stationary variance ``v / (1 - e / (2 v))``."""
    levels, e = [1.0, 0.9999], 0.02
    v = SIGMA_DATA**2 + levels[0] ** 2

    def step(trace, x, now, then, memory):
        for _ in range(60):
            x = x + trace.score(x, now) * e + trace.noise() * math.sqrt(2 * e)
        return x, None

    stops = Schedule(schedule.given_levels(levels), replace(schedule.linear_path(), end=None))
    langevin = Solver("langevin", 1, "Song and Ermon 2019", step, stochastic=True)
    compiled = plan(schedule=stops, solver=langevin, steps=2, dtype="float64", noise="caller")
    a = (1 - e / v) ** 60
    expected = a**2 * levels[0] ** 2 + (1 - a**2) * v / (1 - e / (2 * v))
    assert float(noise_gains(compiled).norm() ** 2) == pytest.approx(expected, rel=PAPER)
    assert compiled.evaluations == 60
    assert PREDICTIONS["edm"].scalars(1.0)[0] == 0.25 / 1.25


def test_churn_does_not_touch_solvers_that_do_not_churn() -> None:
    for name in ("euler_ancestral", "ddim", "unipc"):
        assert plan(solver=name, steps=4, churn=Churn(10.0)).rows == plan(solver=name, steps=4).rows
