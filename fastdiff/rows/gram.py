"""Gram: inner products of a sample's vectors, and the scalars and coefficients that follow from them, as data.

The op ``gram`` forms up to six linear combinations of columns, draws and the constant 1, sums products of pairs of
them over the elements of each sample in float64, does a little arithmetic on those sums, and so makes the
coefficients of a row that are known only when it runs (``docs/gram.md``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from fastdiff.errors import PlanError

ONE = "1"
"""The name of the constant vector."""
MAX_VECTORS = 6
MAX_SUMS = 21
MAX_STEPS = 64
OPERATIONS = ("number", "add", "sub", "mul", "div", "sqrt", "max")
"""Arithmetic on scalars; an operation's place is its code."""


class Inner(NamedTuple):
    """``sum_e a_e b_e`` over the elements of a sample; a and b are numbers of vectors."""

    a: int
    b: int


class Weighted(NamedTuple):
    """``sum_e (a_e / max(atol, rtol max(|b_e|, |c_e|)))**2``: the square of an adaptive method's error norm."""

    a: int
    b: int
    c: int
    atol: float
    rtol: float


class Step(NamedTuple):
    """One operation on scalars: sums come first, then the results of the steps before this one.

    ``"number"`` is the constant ``number``; ``"sqrt"`` takes ``left`` alone.
    """

    operation: str
    left: int = -1
    right: int = -1
    number: float = 0.0


@dataclass(frozen=True)
class Gram:
    """The inner products of a row and what is made of them.

    Args:
        vectors: at most six combinations; a name is a column, a draw or ``"1"``.
        sums: what is summed.
        steps: arithmetic on the sums, all in float64, each operation rounded once.

    Raises:
        PlanError: there is nothing to sum, something is referred to that is not there, or a limit is passed.
    """

    vectors: tuple[tuple[tuple[str, float], ...], ...]
    sums: tuple[Inner | Weighted, ...]
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if not self.sums:
            raise PlanError("a gram sums nothing; give it at least one pair of vectors")
        limits = (
            ("vectors", self.vectors, MAX_VECTORS),
            ("sums", self.sums, MAX_SUMS),
            ("steps", self.steps, MAX_STEPS),
        )
        for what, given, limit in limits:
            if len(given) > limit:
                raise PlanError(f"a gram has {len(given)} {what}; at most {limit} fit in one launch")
        for pair in self.sums:
            vectors = pair[:3] if isinstance(pair, Weighted) else pair
            if not all(0 <= v < len(self.vectors) for v in vectors):
                raise PlanError(f"a sum is of the vectors {vectors}; there are 0 .. {len(self.vectors) - 1}")
            if isinstance(pair, Weighted) and not (pair.atol > 0 and pair.rtol >= 0 and math.isfinite(pair.rtol)):
                raise PlanError(f"atol is {pair.atol} and rtol {pair.rtol}; atol must be positive, rtol zero or more")
        for i, step in enumerate(self.steps, len(self.sums)):
            if step.operation not in OPERATIONS:
                raise PlanError(f"operation is {step.operation!r}; it must be one of {', '.join(OPERATIONS)}")
            operands = {"number": (), "sqrt": (step.left,)}.get(step.operation, (step.left, step.right))
            if not all(0 <= operand < i for operand in operands):
                raise PlanError(f"a step uses the scalars {operands}; there are 0 .. {i - 1}")
        numbers = [c for vector in self.vectors for _, c in vector] + [step.number for step in self.steps]
        if not all(map(math.isfinite, numbers)):
            raise PlanError(f"the numbers of a gram are {numbers}; every one must be finite")

    @property
    def scalars(self) -> int:
        """How many scalars it makes: sums, then steps."""
        return len(self.sums) + len(self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns and draws that its vectors use."""
        return tuple(dict.fromkeys(name for vector in self.vectors for name, _ in vector if name != ONE))
