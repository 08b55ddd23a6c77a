"""A row: everything one launch computes, as data.

A row reads *columns* (tensors of one shape), optionally forms one derived column

    D = scale * clamp(sum_k d_k * column_k, -bound, bound),

and then up to four outputs

    w = [base +] sum_k c_k * column_k + sum_j n_j * xi_j,

each stored in a buffer, or scaled by ``c_in`` and cast to become the network input ``z``, or both.
The operations and their order are the contract of ``docs/numerics.md``; ``backends/reference.py`` is the
specification in PyTorch. A row knows nothing of diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fastdiff.errors import PlanError
from fastdiff.maths.draw import Draw

MAX_COLUMNS = 16
MAX_OUTPUTS = 4
MAX_DRAWS = 32
MAX_COEFFICIENTS = 64
DERIVED = "D"
NETWORK_PREFIX = "F_"
NOISE_PREFIX = "xi"

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53}
SMALLEST = {"float32": 2.0**-149, "float64": 2.0**-1074}

Terms = tuple[tuple[str, float], ...]


class Bound(NamedTuple):
    """Upper bounds on a quantity's absolute value and on its absolute error."""

    magnitude: float
    error: float


@dataclass(frozen=True)
class Derived:
    """The derived column ``D``: a combination of columns, rounded, then clamped to +-bound, then scaled."""

    terms: Terms
    bound: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Output:
    """One combination ``w``; ``store`` names the buffer that receives it (None: only the network sees it).

    ``noise`` pairs a draw's name, or the name of a column that holds the caller's noise, with its
    coefficient; noise is added after all terms.
    """

    base: str | None = None
    terms: Terms = ()
    noise: Terms = ()
    store: str | None = None


@dataclass(frozen=True)
class Row:
    """One launch. Coefficients are exact in the state type (they were rounded once, by the compiler).

    By convention of plans, a column called ``F_cond`` is the network output of branch ``cond``, ``xi0`` noise that
    the caller makes, and any other name a buffer that an earlier row has stored.

    Args:
        columns: names of the tensors read, in the order in which they are passed.
        outputs: at most four combinations.
        draws: name and counter of every normal tensor drawn.
        derived: the derived column, named ``"D"`` in terms.
        network: index of the output that becomes the network input, or None on the last row.
        c_in: the factor between that output and the network input.
        copies: how many copies of the network input are written (2 for batched guidance).
        c_noise: the noise conditioning of the network evaluation that follows.
        sigma: noise level of that evaluation, in data units (for people and for guidance intervals).
        branches: names of the network outputs that the *next* row reads, such as ``("cond", "uncond")``.

    Raises:
        PlanError: a coefficient is NaN or infinite, a name is unknown, or a limit is passed.
    """

    columns: tuple[str, ...]
    outputs: tuple[Output, ...]
    draws: tuple[tuple[str, Draw], ...] = ()
    derived: Derived | None = None
    network: int | None = None
    c_in: float = 1.0
    copies: int = 1
    c_noise: float = 0.0
    sigma: float = 0.0
    branches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        coefficients = self.labelled_coefficients()
        limits = (
            ("columns", len(self.columns), MAX_COLUMNS),
            ("outputs", len(self.outputs), MAX_OUTPUTS),
            ("draws", len(self.draws), MAX_DRAWS),
            ("coefficients", len(coefficients), MAX_COEFFICIENTS),
        )
        for what, count, limit in limits:
            if count > limit:
                raise PlanError(f"a row has {count} {what}; at most {limit} fit in one launch")
        self._check_names()
        told = [("c_noise", self.c_noise), ("sigma", self.sigma)]
        for label, value in (*coefficients, *told):
            if not math.isfinite(value):
                raise PlanError(f"coefficient {label} is {value}; every coefficient must be finite")

    def _check_names(self) -> None:
        names = (*self.columns, *(name for name, _ in self.draws))
        if len(set(names)) != len(names) or DERIVED in names:
            raise PlanError(f"columns and draws {names} must be distinct and none may be called {DERIVED!r}")
        columns = set(self.columns)
        sources = columns | ({DERIVED} if self.derived else set())
        noise = set(names)
        used = [(name, columns) for name, _ in (self.derived.terms if self.derived else ())]
        for output in self.outputs:
            used += [(output.base, columns)] if output.base is not None else []
            used += [(name, sources) for name, _ in output.terms]
            used += [(name, noise) for name, _ in output.noise]
        for name, allowed in used:
            if name not in allowed:
                raise PlanError(f"a row uses {name!r}; it has {sorted(allowed)}")
        if self.network is not None and not 0 <= self.network < len(self.outputs):
            raise PlanError(f"network input is output {self.network}; the row has {len(self.outputs)} outputs")
        if self.derived and self.derived.bound is not None and self.derived.bound < 0:
            raise PlanError(f"the bound of D is {self.derived.bound}; it must be zero or more")
        if self.copies < 1:
            raise PlanError(f"copies is {self.copies}; a network input needs at least one")

    def labelled_coefficients(self) -> list[tuple[str, float]]:
        """Every coefficient with a name a person can find, in the order in which kernels read them."""
        found: list[tuple[str, float]] = []
        if self.derived:
            found += [(f"D[{name}]", c) for name, c in self.derived.terms]
            if self.derived.bound is not None:
                found.append(("D.bound", self.derived.bound))
            if self.derived.scale is not None:
                found.append(("D.scale", self.derived.scale))
        for i, output in enumerate(self.outputs):
            found += [(f"w{i}[{name}]", c) for name, c in (*output.terms, *output.noise)]
        if self.network is not None:
            found.append(("c_in", self.c_in))
        return found

    @property
    def coefficients(self) -> list[float]:
        """All coefficients in kernel order: D's terms, bound, scale; each output's terms, noise; c_in."""
        return [value for _, value in self.labelled_coefficients()]

    @property
    def program(self) -> list[int]:
        """The row's structure as integers, as ops and kernels take it (see ``docs/row-format.md``).

        ``[columns, draws, network | -1, D terms | -1, clamp?, scale?, *D columns, outputs, *each]`` where each
        output is ``[base | -1, terms, *columns, noises, *references]``. In terms, index ``columns`` is D. A
        noise reference ``r >= 0`` is a draw, ``r < 0`` is column ``-1 - r``.
        """
        index = {name: i for i, name in enumerate((*self.columns, DERIVED))}
        reference = {name: -1 - i for i, name in enumerate(self.columns)}
        reference |= {name: i for i, (name, _) in enumerate(self.draws)}
        head = [len(self.columns), len(self.draws), -1 if self.network is None else self.network]
        d = self.derived
        if d is None:
            head += [-1, 0, 0]
        else:
            head += [len(d.terms), int(d.bound is not None), int(d.scale is not None)]
            head += [index[name] for name, _ in d.terms]
        head.append(len(self.outputs))
        for output in self.outputs:
            head += [-1 if output.base is None else index[output.base]]
            head += [len(output.terms), *(index[name] for name, _ in output.terms)]
            head += [len(output.noise), *(reference[name] for name, _ in output.noise)]
        return head

    def bound(
        self,
        magnitude: Mapping[str, float],
        dtype: str = "float32",
        *,
        rounded_coefficients: bool = False,
    ) -> list[Bound]:
        """A-priori bounds on each output ``w`` and on its rounding error, given exact columns.

        Running error analysis of the contract's operation order (Higham, *Accuracy and Stability of Numerical
        Algorithms*, 2nd ed., section 3.1): every operation adds its result's magnitude times the unit roundoff,
        and a product half of the smallest subnormal where it may underflow. Overflow is not covered.

        Args:
            magnitude: for every column and draw, an upper bound on its absolute value.
            dtype: the state type, ``"float32"`` or ``"float64"``.
            rounded_coefficients: count the coefficients' own rounding too, so that the bound is against exact
                mathematics; otherwise it is against the same row in exact arithmetic.
        """
        u, tiny = UNIT_ROUNDOFF[dtype], SMALLEST[dtype]
        known = {name: Bound(size, 0.0) for name, size in magnitude.items()}

        def product(name: str, c: float) -> Bound:
            size, carried = abs(c) * known[name].magnitude, abs(c) * known[name].error
            carried += (u * size + tiny * known[name].magnitude) if rounded_coefficients else 0.0
            return Bound(size, carried + (size + carried) * u + tiny)

        def accumulate(parts: list[Bound]) -> Bound:
            total = Bound(0.0, 0.0)
            for i, part in enumerate(parts):
                size, carried = total.magnitude + part.magnitude, total.error + part.error
                total = Bound(size, carried + (size + carried) * u if i else carried)
            return total

        if self.derived:
            d = accumulate([product(name, c) for name, c in self.derived.terms])
            if self.derived.bound is not None:
                d = Bound(min(d.magnitude, self.derived.bound), d.error + u * abs(self.derived.bound))
            known[DERIVED] = d
            if self.derived.scale is not None:
                known[DERIVED] = product(DERIVED, self.derived.scale)
        bounds = []
        for output in self.outputs:
            parts = [accumulate([product(name, c) for name, c in output.terms])] if output.terms else []
            parts += [known[output.base]] if output.base is not None else []
            bounds.append(accumulate([*parts, *(product(name, c) for name, c in output.noise)]))
        return bounds
