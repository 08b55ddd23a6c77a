"""Linear combinations of named vectors: what a solver computes with while it is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from fastdiff.maths.real import Real, mp

Kind = Literal["x", "D", "F", "xi", "let", "sum"]


class Symbol(NamedTuple):
    """A vector: a network input x, a denoised D, a network output F, a draw xi, or a kept combination.

    ``index`` counts network evaluations for x, D and F, and otherwise tells symbols of a kind apart.
    ``label`` is the branch of an F, the draw of a xi, or the name that a solver gave.
    """

    kind: Kind
    index: int
    label: str = ""

    def __str__(self) -> str:
        return f"{self.label or self.kind}{self.index}"


CANCELLED = 120
"""A sum that is this many bits smaller than what was added to is zero: rounding errors are 150 bits smaller."""


class Combination:
    """``sum_k c_k symbol_k`` without the coefficients that cancel; immutable."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Symbol, Real]) -> None:
        """``terms`` is taken as it is; no coefficient in it is zero."""
        self.terms = terms

    @classmethod
    def of(cls, symbol: Symbol, coefficient: Real | None = None) -> Combination:
        """The symbol itself, or a multiple of it."""
        c = mp.one if coefficient is None else coefficient
        return cls({symbol: c} if c else {})

    def __add__(self, other: Combination) -> Combination:
        total = dict(self.terms)
        _accumulate(total, other.terms)
        return Combination(total)

    def __mul__(self, factor: Real) -> Combination:
        return Combination({symbol: factor * c for symbol, c in self.terms.items()} if factor else {})

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

    def replace(
        self,
        definition: Callable[[Symbol], Combination | None],
        replaced: dict[Symbol, Combination | None] | None = None,
    ) -> Combination:
        """Every symbol that has a definition is replaced by it, recursively; ``replaced`` remembers those seen."""
        replaced = {} if replaced is None else replaced
        total: dict[Symbol, Real] = {}
        for symbol, c in self.terms.items():
            if symbol not in replaced:
                inner = definition(symbol)
                replaced[symbol] = None if inner is None else inner.replace(definition, replaced)
            expanded = replaced[symbol]
            _accumulate(total, {symbol: c} if expanded is None else (expanded * c).terms)
        return Combination(total)


def _accumulate(total: dict[Symbol, Real], terms: Mapping[Symbol, Real]) -> None:
    """Add terms to a total, in place, without those that cancel."""
    for symbol, c in terms.items():
        old = total.get(symbol)
        if old is None:
            total[symbol] = c
            continue
        new = old + c
        # 2**(exp + bc) is the power of two above a real.
        if new and new.exp + new.bc > old.exp + old.bc - CANCELLED:
            total[symbol] = new
        else:
            del total[symbol]
