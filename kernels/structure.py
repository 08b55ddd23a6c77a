"""The structure of rows and grams as nested tuples of integers: what is baked into a compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

from fastdiff.rows.gram import OPERATIONS, GramProgram
from fastdiff.rows.program import Program

NONE = -1
"""Stands for an absent index: a plain integer, because Triton compares only numbers at compile time."""

Products = tuple[tuple[int, int], ...]
"""Pairs of what is multiplied (a column, an output or a noise reference) and the index of its coefficient."""


class Made(NamedTuple):
    """One output; ``bound`` and ``scale`` index coefficients, ``store`` the stores that exist, or they are NONE."""

    base: int
    terms: Products
    noise: Products
    bound: int
    scale: int
    store: int


class Structure(NamedTuple):
    """All of a row but its numbers; ``c_in`` indexes coefficients; ``copies`` is 0 without a network input."""

    columns: int
    outputs: tuple[Made, ...]
    network: int
    c_in: int
    copies: int


@lru_cache(maxsize=1024)
def structure(program: Program, stored: tuple[bool, ...], copies: int) -> Structure:
    """Bake a program of ``docs/row-format.md``.

    Args:
        program: the row's.
        stored: for each output, whether a tensor receives it.
        copies: how many copies of the network input are written; 0 if there is none.
    """
    outputs = tuple(
        Made(
            base=NONE if output.base is None else output.base,
            terms=_pairs(output.terms, program.terms_at(i)),
            noise=_pairs(output.noise, program.noise_at(i)),
            bound=program.bound_at(i) if output.clamp else NONE,
            scale=program.scale_at(i) if output.scale else NONE,
            store=sum(stored[:i]) if i < len(stored) and stored[i] else NONE,
        )
        for i, output in enumerate(program.outputs)
    )
    return Structure(
        columns=program.columns,
        outputs=outputs,
        network=program.network if copies and program.network is not None else NONE,
        c_in=program.c_in_at if copies else NONE,
        copies=copies,
    )


def _pairs(sources: Sequence[int], first: int) -> Products:
    return tuple((source, first + k) for k, source in enumerate(sources))


class SumOf(NamedTuple):
    """One sum: of the products of two vectors (``square``: of one with itself), or where ``tolerance`` indexes the
    numbers atol and rtol, of the squares of ``left`` weighed by ``right`` and ``other``.
    """

    left: Products
    right: Products
    other: Products
    square: bool
    tolerance: int


class Step(NamedTuple):
    """A scalar made of earlier ones, or of a number; what it does not have is NONE."""

    operation: int
    left: int
    right: int
    number: int


class Coefficient(NamedTuple):
    """A constant at ``number``, then a factor for each of the scalars."""

    number: int
    scalars: tuple[int, ...]


class GramStructure(NamedTuple):
    """All of a gram but its numbers."""

    draws: int
    sums: tuple[SumOf, ...]
    steps: tuple[Step, ...]
    coefficients: tuple[Coefficient, ...]


@lru_cache(maxsize=1024)
def gram_structure(program: GramProgram) -> GramStructure:
    """Bake a program of ``docs/gram.md``."""
    numbers = count()
    vectors = [tuple((source, next(numbers)) for source in vector) for vector in program.vectors]
    sums = []
    for weighted, a, b, c in program.sums:
        tolerance = next(numbers) if weighted else NONE
        if weighted:
            next(numbers)
        sums.append(SumOf(vectors[a], vectors[b], vectors[c] if weighted else (), a == b, tolerance))
    steps = [
        Step(operation, left, right, next(numbers) if operation == OPERATIONS.index("number") else NONE)
        for operation, left, right in program.steps
    ]
    coefficients = []
    for scalars in program.coefficients:
        coefficients.append(Coefficient(next(numbers), scalars))
        for _ in scalars:
            next(numbers)
    return GramStructure(program.draws, tuple(sums), tuple(steps), tuple(coefficients))
