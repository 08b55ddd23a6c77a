"""Runge-Kutta methods for the probability-flow ODE, with EDM's churn before each step."""

from __future__ import annotations

from dataclasses import replace

from fastdiff.errors import PlanError
from fastdiff.maths.point import Point
from fastdiff.maths.real import Real, positive
from fastdiff.solvers.solver import SOLVERS, Solver, solver

SOURCE = "Karras et al. 2022, algorithms 2 and 3"


@solver("euler", order=1, source="Euler's method; Karras et al. 2022, algorithm 2 without the correction")
def euler(trace, x, now, then, memory):
    """``x <- x + h dx/dt``."""
    x, now = trace.churn(x, now)
    return x + trace.slope(x, now) * (then.t - now.t), None


@solver("heun", order=2, source=SOURCE)
def heun(trace, x, now, then, memory, *, alpha=1.0):
    """``x' = x + alpha h d``, ``x <- x + h ((1 - 1/(2 alpha)) d + 1/(2 alpha) d')``; Euler where x' has no noise left.

    The two-stage second-order family: alpha = 1 is Heun, 1/2 the midpoint method, 2/3 Ralston's.
    """
    x, now = trace.churn(x, now)
    a, h, d = _alpha(alpha), then.t - now.t, trace.slope(x, now)
    # Not t + h: that sum would lose the digits of a small t_next.
    middle = then if a == 1 else Point(now.path, now.t + a * h)
    if middle.sigma == 0:
        return x + d * h, None
    d_middle = trace.slope(x + d * (a * h), middle)
    return x + d * (h * (1 - 1 / (2 * a))) + d_middle * (h / (2 * a)), None


def second_order(alpha: float = 1.0) -> Solver:
    """The two-stage second-order method with this alpha.

    Raises:
        PlanError: alpha does not lie in (0, 1].
    """
    _alpha(alpha)
    names = {1.0: "heun", 0.5: "midpoint", 2 / 3: "ralston"}
    return replace(heun(alpha=alpha), name=names.get(float(alpha), f"second_order({alpha})"))


def _alpha(alpha: float) -> Real:
    if positive(alpha, "alpha") > 1:
        raise PlanError(f"alpha is {alpha}; it must lie in (0, 1], or the second evaluation would overshoot")
    return positive(alpha, "alpha")


midpoint = SOLVERS.add("midpoint", replace(heun, name="midpoint", settings={"alpha": 0.5}))
ralston = SOLVERS.add("ralston", replace(heun, name="ralston", settings={"alpha": 2 / 3}))
