"""Order of convergence of every solver, on a problem with a known smooth solution (VERIFY, C1).

The ODE is followed from sigma = 10 to 0.02, not to 0: EDM's algorithms always end with an Euler step to sigma = 0,
whose error depends on sigma_min and not on the number of steps. A path that declares no end stops at the last level.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import textbook
import torch
from scipy.integrate import solve_ivp
from textbook import CLOUD, PREDICTIONS
from torch import Tensor

from fastdiff.maths import schedule
from fastdiff.maths.schedule import Path, Schedule
from fastdiff.plans.compose import plan
from fastdiff.runs.sample import sample
from fastdiff.solvers.solver import SOLVERS, named_solver

SHAPE, SEED = (24, 2), 3
HIGH, LOW = 10.0, 0.02
TWO_STAGES = ("heun", "midpoint", "ralston")
PATHS = {
    "linear": schedule.linear_path(),
    "smld": schedule.smld_path(LOW, HIGH),
    "vp, no scale": schedule.vp_path().without_scale(),
}


@pytest.fixture(scope="module")
def solution() -> Tensor:
    """The exact ODE map in x, ``dx / dsigma = (x - D) / sigma``, in log sigma, to 1e-11 (DOP853, checks its error)."""
    start = HIGH * textbook.counter_noise(SHAPE, range(SEED, SEED + SHAPE[0]), torch.float64)(-1)

    def slope(log_sigma: float, x: np.ndarray) -> np.ndarray:
        xhat = torch.from_numpy(x).view(SHAPE)
        sigma = torch.full((SHAPE[0],), math.exp(log_sigma), dtype=torch.float64)
        return (xhat - CLOUD.denoise(xhat, sigma)).flatten().numpy()

    found = solve_ivp(
        slope, (math.log(HIGH), math.log(LOW)), start.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-13
    )
    return torch.from_numpy(found.y[:, -1]).view(SHAPE)


def error(solver: str, path: Path, steps: int, solution: Tensor) -> float:
    """Root mean square error of ``steps`` steps; the network runs in float64 too."""
    chosen = Schedule(schedule.edm_levels(LOW, HIGH), replace(path, end=None))
    compiled = plan(schedule=chosen, prediction="edm", solver=solver, steps=steps + 1, dtype="float64")
    assert compiled.evaluations == steps * (2 if solver in TWO_STAGES else 1)
    found = sample(CLOUD.network(PREDICTIONS["edm"]), compiled, SHAPE, SEED)
    return float((found - solution).square().mean().sqrt())


CASES = [
    ("euler", "linear", (40, 80, 160, 320)),
    ("heun", "linear", (40, 80, 160, 320)),
    ("midpoint", "linear", (40, 80, 160)),
    ("ralston", "linear", (40, 80, 160)),
    ("ddim", "linear", (40, 80, 160)),
    ("dpmpp_2m", "linear", (40, 80, 160)),
    ("unipc", "linear", (40, 80, 160)),
    # Its fourth order holds until the error of the first steps shows.
    ("lms", "linear", (640, 1280)),
    *itertools.product(["euler", "heun"], ["smld", "vp, no scale"], [(40, 80, 160)]),
]


@pytest.mark.parametrize(("solver", "path", "steps"), CASES)
def test_the_order_of_a_solver_is_the_one_it_states(
    solver: str, path: str, steps: tuple[int, ...], solution: Tensor
) -> None:
    errors = [error(solver, PATHS[path], n, solution) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(named_solver(solver).order, abs=0.15), errors
    # Far above the reference's own error, else the slope would be that of rounding.
    assert errors[-1] > 1e-8


def test_every_deterministic_solver_has_its_order_tested() -> None:
    drawn = {name for name, solver in SOLVERS.items() if solver.stochastic}
    assert {solver for solver, _, _ in CASES} == set(SOLVERS) - drawn


def test_a_scaled_path_has_the_same_solution(solution: Tensor) -> None:
    """With the variance-preserving scale the state is s(t) times the other one, at 0.02 by 0.9998; Heun, 80 steps."""
    chosen = Schedule(schedule.edm_levels(LOW, HIGH), replace(schedule.vp_path(), end=None))
    compiled = plan(schedule=chosen, prediction="edm", solver="heun", steps=81, dtype="float64")
    found = sample(CLOUD.network(PREDICTIONS["edm"]), compiled, SHAPE, SEED) * math.sqrt(1 + LOW**2)
    # Measured 4.8e-5; along the straighter path, so closer than without the scale.
    assert float((found - solution).square().mean().sqrt()) < error("heun", PATHS["vp, no scale"], 80, solution) < 2e-3
