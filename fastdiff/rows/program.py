"""A program: the structure of a row as integers, and the same with names for its parts.

Rows encode themselves (``fastdiff.rows.row.Row.program``); this module decodes and checks what an op was given, and
encodes the transposed programs that carry gradients. The format is that of ``docs/row-format.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from fastdiff.errors import InputError
from fastdiff.rows.row import MAX_COEFFICIENTS, MAX_COLUMNS, MAX_DRAWS, MAX_OUTPUTS


@dataclass(frozen=True)
class Combination:
    """One output: ``[base +] terms + noise``.

    Args:
        base: index of a column, or None.
        terms: indices of columns; the index after the last column is the derived column.
        noise: ``r >= 0`` is draw ``r``, ``r < 0`` is column ``-1 - r``.
    """

    base: int | None = None
    terms: tuple[int, ...] = ()
    noise: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """What a row computes, without its coefficients.

    Args:
        columns: how many tensors are read.
        draws: how many normal tensors are drawn.
        network: index of the output that becomes the network input, or None.
        derived: the derived column's terms, or None where the row has no derived column.
        clamp: whether the derived column is clamped.
        scale: whether the derived column is scaled, after the clamp.
        outputs: the combinations.
    """

    columns: int
    outputs: tuple[Combination, ...]
    draws: int = 0
    network: int | None = None
    derived: tuple[int, ...] | None = None
    clamp: bool = False
    scale: bool = False

    @property
    def integers(self) -> list[int]:
        """The program as ops take it."""
        found = [self.columns, self.draws, -1 if self.network is None else self.network]
        found += [-1 if self.derived is None else len(self.derived), int(self.clamp), int(self.scale)]
        found += [*(self.derived or ()), len(self.outputs)]
        for output in self.outputs:
            found += [-1 if output.base is None else output.base]
            found += [len(output.terms), *output.terms, len(output.noise), *output.noise]
        return found

    @cached_property
    def clamp_at(self) -> int:
        """Where the coefficients hold the bound of the derived column."""
        return len(self.derived or ())

    @cached_property
    def scale_at(self) -> int:
        """Where the coefficients hold the scale of the derived column."""
        return self.clamp_at + int(self.clamp)

    def terms_at(self, output: int) -> int:
        """Where the coefficients of an output's terms begin."""
        before = sum(len(o.terms) + len(o.noise) for o in self.outputs[:output])
        return self.scale_at + int(self.scale) + before

    def noise_at(self, output: int) -> int:
        """Where the coefficients of an output's noise begin."""
        return self.terms_at(output) + len(self.outputs[output].terms)

    @cached_property
    def c_in_at(self) -> int:
        """Where the coefficients hold ``c_in``, if the program has a network input."""
        return self.terms_at(len(self.outputs))

    @cached_property
    def coefficients(self) -> int:
        """How many coefficients the program reads, ``c_in`` included."""
        return self.c_in_at + int(self.network is not None)


def parse(integers: Sequence[int]) -> Program:
    """Decode a program.

    Raises:
        InputError: it is cut short, too long, or names a column, draw or output that it does not have.
    """
    return _parse(tuple(integers))


@lru_cache(maxsize=1024)
def _parse(integers: tuple[int, ...]) -> Program:
    position = 0

    def take(count: int) -> tuple[int, ...]:
        nonlocal position
        position += count
        if count < 0 or position > len(integers):
            raise _malformed(integers, "it ends too early or counts below zero")
        return integers[position - count : position]

    columns, draws, network, d_terms, clamp, scale = take(6)
    derived = None if d_terms < 0 else take(d_terms)
    outputs = []
    for _ in range(*take(1)):
        (base,) = take(1)
        terms, noise = take(*take(1)), take(*take(1))
        outputs.append(Combination(None if base < 0 else base, terms, noise))
    network_index = None if network < 0 else network
    program = Program(columns, tuple(outputs), draws, network_index, derived, bool(clamp), bool(scale))
    problem = _problem(program)
    if position < len(integers):
        problem = "it goes on after its last output"
    if problem:
        raise _malformed(integers, problem)
    return program


def _problem(program: Program) -> str | None:
    """What is wrong with a decoded program, or None."""
    for what, count, limit in (
        ("columns", program.columns, MAX_COLUMNS),
        ("draws", program.draws, MAX_DRAWS),
        ("outputs", len(program.outputs), MAX_OUTPUTS),
        ("coefficients", program.coefficients, MAX_COEFFICIENTS),
    ):
        if not 0 <= count <= limit:
            return f"it has {count} {what}; 0 to {limit} are allowed"
    if program.network is not None and program.network >= len(program.outputs):
        return f"its network input is output {program.network} of {len(program.outputs)}"
    if program.derived is None and (program.clamp or program.scale):
        return "it clamps or scales a derived column that it does not have"
    last_source = program.columns - (program.derived is None)
    used = [("derived column", i, 0, program.columns - 1) for i in program.derived or ()]
    for output in program.outputs:
        used += [("base", output.base, 0, program.columns - 1)] if output.base is not None else []
        used += [("term", i, 0, last_source) for i in output.terms]
        used += [("noise reference", r, -program.columns, program.draws - 1) for r in output.noise]
    for what, index, low, high in used:
        if not low <= index <= high:
            return f"a {what} is {index}; it must lie in {low} .. {high}"
    return None


def _malformed(integers: Sequence[int], problem: str) -> InputError:
    return InputError(f"program {list(integers)} is malformed: {problem}; take it from fastdiff.rows.row.Row.program")
