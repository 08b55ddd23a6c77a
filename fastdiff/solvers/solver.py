"""Solvers: one step each, in the notation of its paper, and the registry of them.

    @solver("euler", order=1, source="Euler's method")
    def euler(trace, x, now, then, memory):
        d = trace.slope(x, now)
        return x + d * (then.t - now.t), None

A step takes the state ``x`` at the point ``now`` to the point ``then``. What it returns as memory it is given again at
the next step; at the first it is None. It may return vectors, points and numbers there, in tuples, lists and dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from typing import Any

from fastdiff.errors import PlanError
from fastdiff.maths.registry import Registry
from fastdiff.maths.vector import Vector

Step = Callable[..., tuple[Vector, Any]]
"""``step(trace, x, now, then, memory, **settings) -> (x, memory)``."""


@dataclass(frozen=True)
class Solver:
    """A sampler's step, with what is known of it. Call it with settings to have them changed: ``ddim(eta=1)``.

    Args:
        name: for people and plan files.
        order: global order of convergence on smooth problems; of a stochastic one, of its drift.
        source: paper and equation.
        step: see the module.
        stochastic: whether it draws noise of its own.
        settings: keyword arguments of the step.

    Raises:
        PlanError: a setting that the step does not have.
    """

    name: str
    order: int
    source: str
    step: Step
    stochastic: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, **settings: Any) -> Solver:
        """The same solver with other settings; see the class."""
        known = [p.name for p in signature(self.step).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
        if unknown := [name for name in settings if name not in known]:
            allowed = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise PlanError(f"solver {self.name!r} was given {', '.join(unknown)}; {allowed}")
        base = self.name.partition("(")[0]
        together = {**self.settings, **settings}
        words = ", ".join(f"{name}={_shown(value)}" for name, value in together.items())
        return replace(self, name=f"{base}({words})", settings=together)

    def __reduce__(self) -> Any:
        """By name and settings: in a module that registers it, the name of its step stands for the solver."""
        base = self.name.partition("(")[0]
        if base in SOLVERS and SOLVERS[base].step is self.step:
            return _registered, (base, self.name, dict(self.settings))
        return Solver, (self.name, self.order, self.source, self.step, self.stochastic, self.settings)


def _registered(base: str, name: str, settings: dict[str, Any]) -> Solver:
    return replace(SOLVERS.named(base), name=name, settings=settings)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else repr(value)


SOLVERS: Registry[Solver] = Registry("solver")


def solver(name: str, *, order: int, source: str, stochastic: bool = False) -> Callable[[Step], Solver]:
    """Make a solver of a step and register it by name; arguments as for ``Solver``.

    Raises:
        PlanError: the name is taken.
    """

    def register(step: Step) -> Solver:
        return SOLVERS.add(name, Solver(name, order, source, step, stochastic))

    return register


def named_solver(name: str) -> Solver:
    """A solver with its default settings, by name."""
    return SOLVERS.named(name)
