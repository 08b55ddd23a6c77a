"""What a trace leaves behind, from which a plan is compiled: variables, and the events between launches."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.maths.point import Point
from fastdiff.maths.prediction import Scalars
from fastdiff.maths.real import Real
from fastdiff.maths.vector import Combination, Symbol


@dataclass(frozen=True)
class Definition:
    """How a variable comes about.

    Args:
        combination: of earlier symbols.
        clip: it is clamped to plus or minus this, or None.
        after: the number of events before it.
    """

    combination: Combination
    clip: Real | None = None
    after: int = 0


@dataclass(frozen=True)
class Event:
    """What happens between two launches: a network evaluation, or a call of the caller's function.

    Args:
        step: the solver's step that asked for it.
        x: the variable that the network sees, with its point and scalars; None for a call.
        at: where it is evaluated.
        scalars: the preconditioning there.
        branches: what is evaluated.
        call: name and arguments of a call, or None.
    """

    step: int
    x: Symbol | None = None
    at: Point | None = None
    scalars: Scalars | None = None
    branches: tuple[str, ...] = ()
    call: tuple[str, tuple[Symbol, ...]] | None = None
