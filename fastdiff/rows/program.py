"""A program: the structure of a row by numbers, in the one encoding that ops and kernels take.

The format is that of ``docs/row-format.md``. ``Program.integers`` encodes, ``parse`` decodes and checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from fastdiff.errors import InputError

MAX_COLUMNS = 16
MAX_OUTPUTS = 6
MAX_DRAWS = 32
MAX_COEFFICIENTS = 64


@dataclass(frozen=True)
class Formula:
    """One output: ``scale * clamp([base +] terms + noise)``.

    Args:
        base: index of a column or earlier output, or None.
        terms: indices of columns; output ``i`` is the index ``columns + i``.
        noise: ``r >= 0`` is draw ``r``, ``r < 0`` is column ``-1 - r``.
        clamp: whether the sum is clamped.
        scale: whether it is scaled, after the clamp.
    """

    base: int | None = None
    terms: tuple[int, ...] = ()
    noise: tuple[int, ...] = ()
    clamp: bool = False
    scale: bool = False

    @property
    def coefficients(self) -> int:
        """How many coefficients it reads."""
        return len(self.terms) + len(self.noise) + self.clamp + self.scale


@dataclass(frozen=True)
class Program:
    """What a row computes, without its coefficients.

    Args:
        columns: how many tensors are read.
        outputs: the formulas, in order; one may use those before it.
        draws: how many normal tensors are drawn.
        network: index of the output that becomes the network input, or None.

    ``integers`` is the program as ops take it; ``starts`` says where the coefficients of each output begin, and where
    all of them end.
    """

    columns: int
    outputs: tuple[Formula, ...]
    draws: int = 0
    network: int | None = None
    integers: list[int] = field(init=False, repr=False, compare=False)
    starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "integers", self._integers())
        places = [0]
        for output in self.outputs:
            places.append(places[-1] + output.coefficients)
        object.__setattr__(self, "starts", tuple(places))

    def _integers(self) -> list[int]:
        found = [self.columns, self.draws, -1 if self.network is None else self.network, len(self.outputs)]
        for output in self.outputs:
            found += [-1 if output.base is None else output.base]
            found += [len(output.terms), *output.terms, len(output.noise), *output.noise]
            found += [int(output.clamp), int(output.scale)]
        return found

    def terms_at(self, output: int) -> int:
        """Where the coefficients of an output's terms begin."""
        return self.starts[output]

    def noise_at(self, output: int) -> int:
        """Where the coefficients of an output's noise begin."""
        return self.terms_at(output) + len(self.outputs[output].terms)

    def bound_at(self, output: int) -> int:
        """Where the coefficients hold the bound of an output that is clamped."""
        return self.noise_at(output) + len(self.outputs[output].noise)

    def scale_at(self, output: int) -> int:
        """Where the coefficients hold the scale of an output that is scaled."""
        return self.bound_at(output) + self.outputs[output].clamp

    @property
    def c_in_at(self) -> int:
        """Where the coefficients hold ``c_in``, if the program has a network input."""
        return self.starts[-1]

    @property
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

    def take(count: int = 1) -> tuple[int, ...]:
        nonlocal position
        position += count
        if count < 0 or position > len(integers):
            raise _malformed(integers, "it ends too early or counts below zero")
        return integers[position - count : position]

    columns, draws, network, count = take(4)
    outputs = []
    for _ in range(count):
        (base,) = take()
        terms, noise = take(*take()), take(*take())
        clamp, scale = take(2)
        outputs.append(Formula(None if base < 0 else base, terms, noise, bool(clamp), bool(scale)))
    program = Program(columns, tuple(outputs), draws, None if network < 0 else network)
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
    for i, output in enumerate(program.outputs):
        last = program.columns + i - 1
        used = [("base", output.base, 0, last)] if output.base is not None else []
        used += [("term", source, 0, last) for source in output.terms]
        used += [("noise reference", r, -program.columns, program.draws - 1) for r in output.noise]
        for what, index, low, high in used:
            if not low <= index <= high:
                return f"a {what} of output {i} is {index}; it must lie in {low} .. {high}"
    return None


def _malformed(integers: Sequence[int], problem: str) -> InputError:
    return InputError(f"program {list(integers)} is malformed: {problem}; take it from Row.program.integers")
