"""Gram: inner products of a sample's vectors, and the scalars and coefficients that follow from them, as data.

The op ``gram`` forms up to six linear combinations of columns, draws and the constant 1, sums products of pairs of
them over the elements of each sample in float64, does a little arithmetic on those sums, and so makes the
coefficients of a row that are known only when it runs (``docs/gram.md``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from fastdiff.errors import InputError, PlanError
from fastdiff.rows.program import MAX_COEFFICIENTS, MAX_COLUMNS, MAX_DRAWS

ONE = "1"
"""The name of the constant vector."""
MAX_VECTORS = 6
MAX_SUMS = 21
MAX_STEPS = 64
MAX_TERMS = 256
MAX_FACTORS = 512
"""How many terms the vectors have together, and how many factors the coefficients."""
CHUNK = 4096
"""Elements that are summed to one number before those numbers are summed."""
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
            ("terms", [name for vector in self.vectors for name, _ in vector], MAX_TERMS),
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

    def program(
        self, columns: Sequence[str], draws: Sequence[str], coefficients: Sequence[tuple[int, ...]]
    ) -> GramProgram:
        """Its structure by numbers, in a row of these columns, draws and coefficients (the scalars of each)."""
        index = {name: i for i, name in enumerate((*columns, *draws, ONE))}
        vectors = tuple(tuple(index[name] for name, _ in vector) for vector in self.vectors)
        sums = tuple((1, *pair[:3]) if isinstance(pair, Weighted) else (0, *pair, -1) for pair in self.sums)
        steps = tuple((OPERATIONS.index(step.operation), step.left, step.right) for step in self.steps)
        return GramProgram(len(columns), len(draws), vectors, sums, steps, tuple(coefficients))

    @property
    def numbers(self) -> list[float]:
        """The numbers that its program reads, but for those of coefficients."""
        found = [c for vector in self.vectors for _, c in vector]
        found += [tolerance for pair in self.sums if isinstance(pair, Weighted) for tolerance in (pair.atol, pair.rtol)]
        return found + [step.number for step in self.steps if step.operation == "number"]


@dataclass(frozen=True)
class GramProgram:
    """What the op computes, without its numbers (``docs/gram.md``).

    Args:
        columns: how many tensors are read.
        draws: how many normal tensors are drawn.
        vectors: the sources of each: a column, a draw behind all columns, or the constant 1 behind all draws.
        sums: ``(0, a, b, -1)`` is the inner product of two vectors, ``(1, a, b, c)`` the weighted square.
        steps: ``(operation, left, right)``.
        coefficients: the scalars that each coefficient is affine in.
    """

    columns: int
    draws: int
    vectors: tuple[tuple[int, ...], ...]
    sums: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[int, ...], ...] = ()
    coefficients: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def integers(self) -> list[int]:
        """The program as the op takes it."""
        found = [self.columns, self.draws, len(self.vectors)]
        found += [i for vector in self.vectors for i in (len(vector), *vector)]
        found += [len(self.sums), *(i for pair in self.sums for i in pair)]
        found += [len(self.steps), *(i for step in self.steps for i in step)]
        found += [len(self.coefficients), *(i for terms in self.coefficients for i in (len(terms), *terms))]
        return found

    @property
    def scalars(self) -> int:
        """How many scalars it makes: sums, then steps."""
        return len(self.sums) + len(self.steps)

    @cached_property
    def numbers(self) -> int:
        """How many numbers it reads."""
        constants = sum(operation == OPERATIONS.index("number") for operation, *_ in self.steps)
        weighted = 2 * sum(kind for kind, *_ in self.sums)
        return sum(map(len, self.vectors)) + weighted + constants + sum(1 + len(terms) for terms in self.coefficients)


def parse_gram(integers: Sequence[int]) -> GramProgram:
    """Decode a program.

    Raises:
        InputError: it is cut short, too long, or names something that it does not have.
    """
    return _parse(tuple(integers))


@lru_cache(maxsize=1024)
def _parse(integers: tuple[int, ...]) -> GramProgram:
    position = 0

    def take(count: int = 1) -> tuple[int, ...]:
        nonlocal position
        position += count
        if count < 0 or position > len(integers):
            raise _malformed(integers, "it ends too early or counts below zero")
        return integers[position - count : position]

    columns, draws = take(2)
    vectors = tuple(take(*take()) for _ in range(*take()))
    sums = tuple(take(4) for _ in range(*take()))
    steps = tuple(take(3) for _ in range(*take()))
    coefficients = tuple(take(*take()) for _ in range(*take()))
    program = GramProgram(columns, draws, vectors, sums, steps, coefficients)
    problem = _problem(program)
    if position < len(integers):
        problem = "it goes on after its last coefficient"
    if problem:
        raise _malformed(integers, problem)
    return program


def _problem(program: GramProgram) -> str | None:
    """What is wrong with a decoded program, or None."""
    for what, count, low, high in (
        ("columns", program.columns, 0, MAX_COLUMNS),
        ("draws", program.draws, 0, MAX_DRAWS),
        ("vectors", len(program.vectors), 0, MAX_VECTORS),
        ("sums", len(program.sums), 1, MAX_SUMS),
        ("steps", len(program.steps), 0, MAX_STEPS),
        ("coefficients", len(program.coefficients), 0, MAX_COEFFICIENTS),
        ("terms", sum(map(len, program.vectors)), 0, MAX_TERMS),
        ("factors", sum(map(len, program.coefficients)), 0, MAX_FACTORS),
    ):
        if not low <= count <= high:
            return f"it has {count} {what}; {low} to {high} are allowed"
    sources, vectors = program.columns + program.draws + 1, len(program.vectors)
    used = [("source of a vector", i, sources) for vector in program.vectors for i in vector]
    for kind, a, b, c in program.sums:
        used += [("kind of a sum", kind, 2), ("vector of a sum", a, vectors), ("vector of a sum", b, vectors)]
        used += [("vector of a sum", c, vectors)] if kind == 1 else []
    for i, (operation, left, right) in enumerate(program.steps, len(program.sums)):
        used.append(("operation", operation, len(OPERATIONS)))
        name = OPERATIONS[operation] if 0 <= operation < len(OPERATIONS) else ""
        operands = {"number": (), "sqrt": (left,)}.get(name, (left, right))
        used += [("scalar of a step", operand, i) for operand in operands]
    used += [("scalar of a coefficient", i, program.scalars) for terms in program.coefficients for i in terms]
    for what, index, count in used:
        if not 0 <= index < count:
            return f"a {what} is {index}; it must lie in 0 .. {count - 1}"
    return None


def _malformed(integers: Sequence[int], problem: str) -> InputError:
    return InputError(f"gram program {list(integers)} is malformed: {problem}; take it from Row.gram_program.integers")
