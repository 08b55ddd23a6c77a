"""Linear combinations of named vectors: what a solver computes with while it is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from fastdiff.real import Real, mp

Kind = Literal["x", "D", "F", "xi", "let", "sum"]


@dataclass(frozen=True, order=True)
class Symbol:
    """A vector: a network input x, a denoised D, a network output F, a draw xi, or a kept combination.

    ``index`` counts network evaluations for x, D and F, and otherwise tells symbols of a kind apart.
    ``label`` is the branch of an F, the draw of a xi, or the name that a solver gave.
    """

    kind: Kind
    index: int
    label: str = ""

    def __str__(self) -> str:
        return f"{self.label or self.kind}{self.index}"


CANCELLED = mp.mpf(2) ** -120
"""A sum this much smaller than what was added is zero: 160-bit rounding errors are below 2**-150 of it."""


class Combination:
    """``sum_k c_k symbol_k`` without the coefficients that cancel; immutable."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Symbol, Real] | None = None) -> None:
        self.terms = {symbol: c for symbol, c in (terms or {}).items() if c != 0}

    @classmethod
    def of(cls, symbol: Symbol) -> Combination:
        """The symbol itself."""
        return cls({symbol: mp.one})

    def __add__(self, other: Combination) -> Combination:
        merged = dict(self.terms)
        for symbol, c in other.terms.items():
            old = merged.get(symbol, mp.zero)
            total = old + c
            merged[symbol] = total if abs(total) > CANCELLED * abs(old) else mp.zero
        return Combination(merged)

    def __mul__(self, factor: Real) -> Combination:
        return Combination({symbol: factor * c for symbol, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: Real) -> Combination:
        return self * (1 / mp.mpf(divisor))

    def __neg__(self) -> Combination:
        return self * -1

    def __sub__(self, other: Combination) -> Combination:
        return self + -other

    def __iter__(self) -> Iterator[Symbol]:
        return iter(self.terms)

    def symbol(self) -> Symbol | None:
        """The symbol that this combination is, or None if it is not one symbol with coefficient 1."""
        if len(self.terms) == 1:
            ((symbol, c),) = self.terms.items()
            return symbol if c == 1 else None
        return None

    def only(self, keep: Callable[[Symbol], bool]) -> Combination:
        """The part over the symbols that ``keep`` accepts."""
        return Combination({symbol: c for symbol, c in self.terms.items() if keep(symbol)})

    def replace(self, definition: Callable[[Symbol], Combination | None]) -> Combination:
        """Every symbol that has a definition is replaced by it, recursively."""
        total = Combination()
        for symbol, c in self.terms.items():
            inner = definition(symbol)
            expanded = Combination.of(symbol) if inner is None else inner.replace(definition)
            total = total + expanded * c
        return total
