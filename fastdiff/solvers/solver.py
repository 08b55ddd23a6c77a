"""Solvers: a few lines each, in the notation of their papers, run once on symbols (``fastdiff.solvers.trace``).

To add one, write its step here and a golden plan in ``tests/golden``; the compiler and the kernels need nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastdiff.errors import PlanError
from fastdiff.maths.real import mp, positive
from fastdiff.maths.vector import Combination
from fastdiff.solvers.trace import Ode


@dataclass(frozen=True)
class Solver:
    """A numerical method for the sampling ODE.

    Args:
        name: for people and plan files.
        order: global order of convergence on smooth problems.
        source: paper and equation.
        solve: given the ODE and the first state, asks for evaluations and returns the last state.
    """

    name: str
    order: int
    source: str
    solve: Callable[[Ode, Combination], Combination]


def euler() -> Solver:
    """``x <- x + h dx/dt``."""

    def solve(ode: Ode, x: Combination) -> Combination:
        for t, t_next in ode.steps():
            x, t = ode.churn(x, t)
            d, x = ode.slope(x, t)
            x = x + d * (t_next - t)
        return x

    return Solver("euler", 1, "Euler's method; Karras et al. 2022, algorithm 2 without the correction", solve)


def second_order(alpha: float = 1.0) -> Solver:
    """The two-stage second-order family: alpha = 1 is Heun, 1/2 the midpoint method, 2/3 Ralston's.

    ``x' = x + alpha h d``, ``x <- x + h ((1 - 1/(2 alpha)) d + 1/(2 alpha) d')``; Euler where x' has no noise left.
    """
    a = positive(alpha, "alpha")
    if a > 1:
        raise PlanError(f"alpha is {alpha}; it must lie in (0, 1], or the second evaluation would overshoot")

    def solve(ode: Ode, x: Combination) -> Combination:
        for t, t_next in ode.steps():
            x, t = ode.churn(x, t)
            h = t_next - t
            d, x = ode.slope(x, t)
            # Not t + h: that sum would lose the digits of a small t_next.
            t_prime = t_next if a == 1 else t + a * h
            if ode.path.sigma(t_prime) == 0:
                x = x + d * h
                continue
            d_prime, _ = ode.slope(x + d * (a * h), t_prime)
            x = x + d * (h * (1 - 1 / (2 * a))) + d_prime * (h / (2 * a))
        return x

    name = {1.0: "heun", 0.5: "midpoint"}.get(float(alpha), f"second_order({alpha})")
    return Solver(name, 2, "Karras et al. 2022, algorithms 2 and 3", solve)


def named_solver(name: str) -> Solver:
    """A solver with its default settings, by name."""
    if name not in SOLVERS:
        raise PlanError(f"solver is {name!r}; known names are {', '.join(SOLVERS)}, or pass a Solver")
    return SOLVERS[name]()


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": euler,
    "heun": second_order,
    "midpoint": lambda: second_order(0.5),
    "ralston": lambda: second_order(float(mp.mpf(2) / 3)),
}
