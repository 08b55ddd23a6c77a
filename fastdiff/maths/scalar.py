"""Scalars: numbers of each sample that are known when a row runs, made of inner products by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from numbers import Real as Number
from typing import Any

from fastdiff.errors import PlanError
from fastdiff.maths.real import Real, mp, real


class Sign(IntEnum):
    """What is known of a scalar's sign."""

    ANY = 0
    NOT_NEGATIVE = 1
    POSITIVE = 2


class Atom:
    """A number of each sample that is no sum: ``operation`` on vectors (``dot``, ``weighted``) or on scalars."""

    __slots__ = ("arguments", "numbers", "operation", "sign")

    def __init__(self, operation: str, arguments: tuple[Any, ...], sign: Sign, numbers: tuple[float, ...] = ()) -> None:
        self.operation, self.arguments, self.sign, self.numbers = operation, arguments, sign, numbers


class Scalar:
    """A number of each sample, ``constant + sum_k factor_k atom_k``, known when a row runs."""

    __slots__ = ("constant", "terms")

    def __init__(self, constant: Real, terms: Mapping[Atom, Real]) -> None:
        self.constant, self.terms = constant, terms

    @classmethod
    def of(cls, atom: Atom) -> Scalar:
        """The atom itself."""
        return cls(mp.zero, {atom: mp.one})

    @staticmethod
    def _from(value: Any) -> Scalar:
        return value if isinstance(value, Scalar) else Scalar(real(value, "a number"), {})

    def __add__(self, other: Any) -> Scalar:
        other = self._from(other)
        total = dict(self.terms)
        for atom, c in other.terms.items():
            total[atom] = total.get(atom, mp.zero) + c
        return Scalar(self.constant + other.constant, {atom: c for atom, c in total.items() if c})

    __radd__ = __add__

    def __mul__(self, other: Any) -> Scalar:
        if isinstance(other, Scalar) and other.terms:
            if not self.terms:
                return other * self.constant
            lowest = min(self.sign, other.sign)
            sign = Sign.NOT_NEGATIVE if other is self and lowest is Sign.ANY else lowest
            return Scalar.of(Atom("mul", (self, other), sign))
        if not isinstance(other, Scalar | Number):
            # A vector: it knows how to be multiplied by a scalar.
            return NotImplemented
        factor = other.constant if isinstance(other, Scalar) else real(other, "a factor")
        return Scalar(self.constant * factor, {atom: c * factor for atom, c in self.terms.items()} if factor else {})

    __rmul__ = __mul__

    def __neg__(self) -> Scalar:
        return self * -1

    def __sub__(self, other: Any) -> Scalar:
        return self + self._from(other) * -1

    def __rsub__(self, other: Any) -> Scalar:
        return self * -1 + other

    def __truediv__(self, other: Any) -> Scalar:
        divisor = self._from(other)
        if divisor.sign is not Sign.POSITIVE and not (divisor.constant and not divisor.terms):
            raise PlanError(
                "divides by a scalar that can be zero; give it a floor, such as scalar.at_least(1e-12), where it is "
                "never smaller in earnest"
            )
        if not divisor.terms:
            return self * (1 / divisor.constant)
        return Scalar.of(Atom("div", (self, divisor), self.sign))

    def __rtruediv__(self, other: Any) -> Scalar:
        return self._from(other) / self

    def sqrt(self) -> Scalar:
        """The square root.

        Raises:
            PlanError: the scalar is not known to be zero or more.
        """
        if self.sign is Sign.ANY:
            raise PlanError("takes the square root of a scalar that can be negative; give it a floor: .at_least(0)")
        return Scalar.of(Atom("sqrt", (self,), self.sign))

    def at_least(self, floor: float) -> Scalar:
        """The larger of the scalar and a number."""
        number = real(floor, "floor")
        sign = Sign.POSITIVE if number > 0 else Sign.NOT_NEGATIVE if number == 0 else Sign.ANY
        return Scalar.of(Atom("max", (self, self._from(floor)), max(sign, self.sign)))

    @property
    def sign(self) -> Sign:
        """What is known of the sign, from the parts."""
        if self.constant < 0 or any(c < 0 or atom.sign is Sign.ANY for atom, c in self.terms.items()):
            return Sign.ANY
        surely = self.constant > 0 or any(atom.sign is Sign.POSITIVE for atom in self.terms)
        return Sign.POSITIVE if surely else Sign.NOT_NEGATIVE
