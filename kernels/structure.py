"""A row's structure as nested tuples of integers: what is baked into a compiled stage kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

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
