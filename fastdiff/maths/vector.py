"""Vectors and scalars that a solver computes with while it is traced, and what they amount to.

A *vector* stands for a tensor of the sample's shape. Solvers add and scale vectors; what they build is written out as
a *combination* of symbols only when the trace is complete, because only then it is known which vectors are variables:
one that the network has seen, or that a later step remembers, is looked into no further. A *scalar* is a number of
each sample that is known when a row runs: it is made of inner products of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from fastdiff.errors import PlanError
from fastdiff.maths.real import Real, mp, real
from fastdiff.maths.scalar import Atom, Scalar, Sign

Kind = Literal["x", "D", "F", "xi", "W", "let", "sum", "given", "out", "one"]


class Symbol(NamedTuple):
    """What a combination is made of.

    ``x`` is a network input, ``D`` a denoised prediction, ``F`` a network output, ``xi`` a draw, ``W`` a Brownian
    path at a point, ``let`` what a solver remembers, ``sum`` what the compiler carries, ``given`` a tensor of the
    caller's, ``out`` what the caller's function returned and ``one`` the vector of ones, which only inner products
    know. ``index`` counts events for x, D, F and out, is 1 for a given state, and otherwise tells symbols of a kind
    apart. ``label`` is the branch of an F or D, the draw of a xi, or the name of a given or called one.
    """

    kind: Kind
    index: int
    label: str = ""

    def __str__(self) -> str:
        return f"{self.label or self.kind}{self.index}"


ONES = Symbol("one", 0)
CANCELLED = 120
"""A sum that is this many bits smaller than what was added to is zero: rounding errors are 150 bits smaller."""


class Combination:
    """``sum_k c_k symbol_k`` without the coefficients that cancel; immutable. A coefficient is a real or a scalar."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Symbol, Any]) -> None:
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

    def __mul__(self, factor: Any) -> Combination:
        if isinstance(factor, Scalar):
            return Combination({symbol: factor * c for symbol, c in self.terms.items()})
        return Combination({symbol: c * factor for symbol, c in self.terms.items()} if factor else {})

    def __sub__(self, other: Combination) -> Combination:
        return self + other * -1

    def __iter__(self) -> Iterator[Symbol]:
        return iter(self.terms)

    def only(self, keep: Callable[[Symbol], bool]) -> Combination:
        """The part over the symbols that ``keep`` accepts."""
        return Combination({symbol: c for symbol, c in self.terms.items() if keep(symbol)})

    @property
    def fixed(self) -> bool:
        """Whether all coefficients are known before the row runs."""
        return not any(isinstance(c, Scalar) for c in self.terms.values())

    @property
    def atoms(self) -> list[Atom]:
        """What its coefficients are made of that is known only when the row runs."""
        found = (atom for c in self.terms.values() if isinstance(c, Scalar) for atom in c.terms)
        return list(dict.fromkeys(found))

    def replace(
        self,
        definition: Callable[[Symbol], Combination | None],
        replaced: dict[Symbol, Combination | None] | None = None,
    ) -> Combination:
        """Every symbol that has a definition is replaced by it, recursively; ``replaced`` remembers those seen."""
        replaced = {} if replaced is None else replaced
        total: dict[Symbol, Any] = {}
        for symbol, c in self.terms.items():
            if symbol not in replaced:
                inner = definition(symbol)
                replaced[symbol] = None if inner is None else inner.replace(definition, replaced)
            expanded = replaced[symbol]
            _accumulate(total, {symbol: c} if expanded is None else (expanded * c).terms)
        return Combination(total)


def _accumulate(total: dict[Symbol, Any], terms: Mapping[Symbol, Any]) -> None:
    """Add terms to a total, in place, without those that cancel."""
    for symbol, c in terms.items():
        old = total.get(symbol)
        if old is None:
            total[symbol] = c
            continue
        new = c + old if isinstance(c, Scalar) else old + c
        # 2**(exp + bc) is the power of two above a real.
        if isinstance(new, Scalar) or (new and new.exp + new.bc > old.exp + old.bc - CANCELLED):
            total[symbol] = new
        else:
            del total[symbol]


class Vector:
    """A symbol, or a sum of multiples of other vectors that waits to be written out.

    Args:
        home: the trace that it belongs to; vectors of two traces do not mix.
        parts: other vectors with their factors, reals or scalars.
        symbol: the variable that it is, if it is one; one may become one later.
    """

    __slots__ = ("home", "parts", "symbol")

    def __init__(self, home: Any, parts: Mapping[Vector, Any], symbol: Symbol | None = None) -> None:
        self.home, self.parts, self.symbol = home, parts, symbol

    def _check(self, other: Any, doing: str) -> None:
        if not isinstance(other, Vector):
            raise PlanError(f"{self.home.where}: {doing} {other!r} ({type(other).__name__}); it must be a vector")
        if other.home is not self.home:
            # The trace that runs is the one that is at a step.
            running = self.home if self.home.step is not None else other.home
            raise PlanError(f"{running.where}: {doing} a vector of another trace; use what this step was given")

    def __add__(self, other: Vector) -> Vector:
        self._check(other, "adds")
        return Vector(self.home, {self: mp.one, other: mp.one} if other is not self else {self: mp.mpf(2)})

    __radd__ = __add__

    def __mul__(self, factor: Any) -> Vector:
        if isinstance(factor, Vector):
            raise PlanError(f"{self.home.where}: multiplies two vectors; their inner product is trace.dot(u, v)")
        return Vector(self.home, {self: factor if isinstance(factor, Scalar) else real(factor, "a factor")})

    __rmul__ = __mul__

    def __sub__(self, other: Vector) -> Vector:
        self._check(other, "subtracts")
        return self + other * -1

    def __neg__(self) -> Vector:
        return self * -1

    def __truediv__(self, divisor: Any) -> Vector:
        if isinstance(divisor, Scalar):
            return self * (1 / divisor)
        if isinstance(divisor, Vector):
            raise PlanError(f"{self.home.where}: divides by a vector; a vector is divided by a number or a scalar")
        number = real(divisor, "a divisor")
        if not number:
            raise PlanError(f"{self.home.where}: divides by zero")
        return self * (1 / number)

    def dot(self, other: Vector) -> Scalar:
        """The inner product of each sample, in float64."""
        self._check(other, "takes the inner product with")
        return Scalar.of(Atom("dot", (self, other), Sign.NOT_NEGATIVE if other is self else Sign.ANY))

    def total(self) -> Scalar:
        """The sum of each sample's elements."""
        return self.dot(Vector(self.home, {}, ONES))

    def size(self) -> Scalar:
        """How many elements a sample has."""
        ones = Vector(self.home, {}, ONES)
        return Scalar.of(Atom("dot", (ones, ones), Sign.POSITIVE))

    def combination(self, known: dict[Vector, Combination] | None = None) -> Combination:
        """Over symbols: variables are not looked into.

        Args:
            known: combinations of vectors that were written out since the last one became a variable; added to. A
                vector that others share would be written out once for each of them, and again for each of theirs.
        """
        if self.symbol is not None:
            return Combination.of(self.symbol)
        known = {} if known is None else known
        if self not in known:
            known[self] = self.written_out(known)
        return known[self]

    def written_out(self, known: dict[Vector, Combination] | None = None) -> Combination:
        """The same, looking into this one."""
        known = {} if known is None else known
        total: dict[Symbol, Any] = {}
        for part, c in self.parts.items():
            _accumulate(total, (part.combination(known) * c).terms)
        return Combination(total)


def weighted_square(a: Vector, b: Vector, c: Vector, *, atol: float, rtol: float) -> Scalar:
    """``sum (a / max(atol, rtol max(|b|, |c|)))**2`` of each sample: an adaptive method's error, squared."""
    a._check(b, "weighs by")
    a._check(c, "weighs by")
    return Scalar.of(Atom("weighted", (a, b, c), Sign.NOT_NEGATIVE, (float(atol), float(rtol))))
