"""From the scalars of a stage to the ``Gram`` of its row: sums first, then arithmetic, each thing once."""

from __future__ import annotations

from collections.abc import Mapping

from fastdiff.maths.real import Real, round_to
from fastdiff.maths.scalar import Atom, Scalar
from fastdiff.maths.vector import Combination, Symbol
from fastdiff.rows.gram import Gram, Inner, Step, Weighted
from fastdiff.rows.row import Affine, Coefficient

SUMS = ("dot", "weighted")


class Scalars:
    """The scalars of one row.

    Args:
        dots: of every atom the combinations of its vectors, arguments before what is made of them.
        names: what symbols are called in the row; their order is that of summation.
    """

    def __init__(self, dots: Mapping[Atom, tuple[Combination, ...]], names: Mapping[Symbol, str]) -> None:
        self._names = names
        self._vectors: dict[tuple[tuple[str, float], ...], int] = {}
        self._sums: dict[Inner | Weighted, int] = {}
        self._steps: dict[Step, int] = {}
        self._places: dict[Atom, int] = {}
        # Sums are numbered before steps, whatever comes about first.
        for atom, combinations in dots.items():
            if atom.operation in SUMS:
                vectors = [self._vector(combination) for combination in combinations]
                total = Inner(*vectors) if atom.operation == "dot" else Weighted(*vectors, *atom.numbers)
                self._places[atom] = self._sums.setdefault(total, len(self._sums))
        for atom in dots:
            if atom.operation not in SUMS:
                self._places[atom] = self._step(atom.operation, *map(self._number, atom.arguments))

    @property
    def gram(self) -> Gram | None:
        """All that the row's gram computes; None where there is nothing."""
        return Gram(tuple(self._vectors), tuple(self._sums), tuple(self._steps)) if self._sums else None

    def coefficient(self, value: Real | Scalar, dtype: str) -> Coefficient:
        """A coefficient as the row holds it: rounded once, now or when it runs."""
        if not isinstance(value, Scalar):
            return round_to(value, dtype)
        if not value.terms:
            return round_to(value.constant, dtype)
        terms = tuple((self._places[atom], round_to(c, "float64")) for atom, c in value.terms.items())
        return Affine(round_to(value.constant, "float64"), terms)

    def _vector(self, combination: Combination) -> int:
        terms = combination.terms
        assert self._names.keys() >= terms.keys(), f"a stage cannot read {terms.keys() - self._names.keys()}"
        written = tuple((name, round_to(terms[s], "float64")) for s, name in self._names.items() if s in terms)
        return self._vectors.setdefault(written, len(self._vectors))

    def _number(self, scalar: Scalar) -> int:
        """The place of a scalar: an atom's own, or that of the sum that it is."""
        total: int | None = None
        for atom, c in scalar.terms.items():
            term = self._places[atom]
            if c != 1:
                term = self._step("mul", term, self._constant(c))
            total = term if total is None else self._step("add", total, term)
        if total is None or scalar.constant:
            constant = self._constant(scalar.constant)
            total = constant if total is None else self._step("add", total, constant)
        return total

    def _constant(self, value: Real) -> int:
        return self._place(Step("number", number=round_to(value, "float64")))

    def _step(self, operation: str, left: int, right: int = -1) -> int:
        return self._place(Step(operation, left, right))

    def _place(self, step: Step) -> int:
        return len(self._sums) + self._steps.setdefault(step, len(self._steps))
