"""A row's structure as nested tuples of integers: what is baked into a compiled stage kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from fastdiff.rows.program import parse

NONE = -1
"""Stands for an absent index: a plain integer, because Triton compares only numbers at compile time."""

Products = tuple[tuple[int, int], ...]
"""Pairs of what is multiplied (a column or a noise reference) and the index of its coefficient."""


class Combination(NamedTuple):
    """One output ``[base +] terms + noise``; ``store`` is its index among the stores that exist, or NONE."""

    base: int
    terms: Products
    noise: Products
    store: int


class Structure(NamedTuple):
    """Everything about a row but its numbers; ``clamp``, ``scale`` and ``c_in`` index coefficients, or are NONE.

    ``derived`` holds the terms of the derived column where ``has_derived``; ``copies`` is 0 without a network input.
    """

    has_derived: bool
    derived: Products
    clamp: int
    scale: int
    outputs: tuple[Combination, ...]
    network: int
    c_in: int
    copies: int


def structure(program: Sequence[int], stored: Sequence[bool], copies: int) -> Structure:
    """Bake a program of ``docs/row-format.md``.

    Args:
        program: the integers.
        stored: for each output, whether a tensor receives it.
        copies: how many copies of the network input are written; 0 if there is none.
    """
    return _structure(tuple(program), tuple(stored), copies)


@lru_cache(maxsize=1024)
def _structure(integers: tuple[int, ...], stored: tuple[bool, ...], copies: int) -> Structure:
    program = parse(integers)
    outputs = tuple(
        Combination(
            NONE if output.base is None else output.base,
            _pairs(output.terms, program.terms_at(i)),
            _pairs(output.noise, program.noise_at(i)),
            sum(stored[:i]) if i < len(stored) and stored[i] else NONE,
        )
        for i, output in enumerate(program.outputs)
    )
    return Structure(
        has_derived=program.derived is not None,
        derived=_pairs(program.derived or (), 0),
        clamp=program.clamp_at if program.clamp else NONE,
        scale=program.scale_at if program.scale else NONE,
        outputs=outputs,
        network=program.network if copies and program.network is not None else NONE,
        c_in=program.c_in_at if copies else NONE,
        copies=copies,
    )


def _pairs(sources: Sequence[int], first: int) -> Products:
    return tuple((source, first + k) for k, source in enumerate(sources))
