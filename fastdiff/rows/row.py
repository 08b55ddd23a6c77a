"""A row: everything one launch computes, as data.

A row reads *columns* (tensors of one shape) and draws normals, and makes up to six outputs

    w = scale * clamp([base +] sum_k c_k * source_k + sum_j n_j * xi_j, -bound, bound),

whose sources are columns and earlier outputs (``w0`` is the first). Each output is stored in a buffer, or scaled by
``c_in`` and cast to become the network input ``z``, or both, or neither. The operations and their order are the
contract of ``docs/numerics.md``; ``backends/reference.py`` is the specification in PyTorch. A row knows nothing of
diffusion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from fastdiff.errors import PlanError
from fastdiff.maths.draw import Draw
from fastdiff.rows.gram import Gram, GramProgram
from fastdiff.rows.program import (
    MAX_COEFFICIENTS,
    MAX_COLUMNS,
    MAX_DRAWS,
    MAX_OUTPUTS,
    Formula,
    Program,
)

NETWORK_PREFIX = "F_"
NOISE_PREFIX = "xi"
GIVEN_PREFIX = "in_"
CALLED_PREFIX = "out_"

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53}
SMALLEST = {"float32": 2.0**-149, "float64": 2.0**-1074}


class Affine(NamedTuple):
    """A coefficient that is known when the row runs: ``constant + sum_j factor_j * scalar_j``, rounded once.

    ``terms`` pairs the number of a scalar of the row's ``Gram`` with its factor.
    """

    constant: float
    terms: tuple[tuple[int, float], ...]


Coefficient = float | Affine
Terms = tuple[tuple[str, Coefficient], ...]


def fixed(coefficient: Coefficient) -> float:
    """A coefficient that is known beforehand.

    Raises:
        PlanError: it is known only when the row runs.
    """
    if isinstance(coefficient, Affine):
        raise PlanError("a coefficient is known only when its row runs, so no bound can be had before")
    return coefficient


class Bound(NamedTuple):
    """Upper bounds on a quantity's absolute value and on its absolute error."""

    magnitude: float
    error: float


@dataclass(frozen=True)
class Output:
    """One combination ``w``; ``store`` names the buffer that receives it (None: only this row sees it).

    ``base`` and the names in ``terms`` are columns or earlier outputs (``"w0"``). ``noise`` pairs a draw's name, or
    the name of a column that holds the caller's noise, with its coefficient; noise is added after all terms. Then the
    sum is clamped to plus or minus ``bound`` (a NaN stays), then multiplied by ``scale``.
    """

    base: str | None = None
    terms: Terms = ()
    noise: Terms = ()
    store: str | None = None
    bound: Coefficient | None = None
    scale: Coefficient | None = None


@dataclass(frozen=True)
class Row:
    """One launch. Coefficients are exact in the state type (they were rounded once, by the compiler).

    By convention of plans, a column called ``F_cond`` is the network output of branch ``cond``, ``xi0`` noise that
    the caller makes, ``in_mask`` a tensor that the caller gives, ``out_rotate`` what the call ``rotate`` returned, and
    any other name a buffer that an earlier row has stored.

    Args:
        columns: names of the tensors read, in the order in which they are passed.
        outputs: at most six combinations.
        draws: name and counter of every normal tensor drawn.
        network: index of the output that becomes the network input, or None.
        c_in: the factor between that output and the network input.
        copies: how many copies of the network input are written (2 for batched guidance).
        c_noise: the noise conditioning of the network evaluation that follows.
        sigma: noise level of that evaluation, in data units (for people and for guidance intervals).
        branches: names of the network outputs that the *next* row reads, such as ``("cond", "uncond")``.
        gram: inner products that decide the coefficients which are ``Affine``; a launch before this one.
        call: name of the caller's function that follows in place of the network, and the buffers that it is given.

    ``program`` is the row's structure, as ops and kernels take it (``docs/row-format.md``).

    Raises:
        PlanError: a coefficient is NaN or infinite, a name is unknown, or a limit is passed.
    """

    columns: tuple[str, ...]
    outputs: tuple[Output, ...]
    draws: tuple[tuple[str, Draw], ...] = ()
    network: int | None = None
    c_in: Coefficient = 1.0
    copies: int = 1
    c_noise: float = 0.0
    sigma: float = 0.0
    branches: tuple[str, ...] = ()
    gram: Gram | None = None
    call: tuple[str, tuple[str, ...]] | None = None
    program: Program = field(init=False, repr=False, compare=False)

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
        if self.network is not None and self.call is not None:
            raise PlanError(f"a row feeds the network and the call {self.call[0]!r}; one of them can follow it")
        self._check_names()
        told = [("c_noise", self.c_noise), ("sigma", self.sigma)]
        for label, value in (*coefficients, *told):
            for number in self._numbers(label, value):
                if not math.isfinite(number):
                    raise PlanError(f"coefficient {label} is {number}; every coefficient must be finite")
        if self.network is not None and not 0 <= self.network < len(self.outputs):
            raise PlanError(f"network input is output {self.network}; the row has {len(self.outputs)} outputs")
        for i, output in enumerate(self.outputs):
            if isinstance(output.bound, float) and output.bound < 0:
                raise PlanError(f"the bound of w{i} is {output.bound}; it must be zero or more")
        if self.copies < 1:
            raise PlanError(f"copies is {self.copies}; a network input needs at least one")
        object.__setattr__(self, "program", self._program())

    def _numbers(self, label: str, value: Coefficient) -> Iterator[float]:
        """The numbers of a coefficient; what it refers to must be there."""
        if not isinstance(value, Affine):
            yield value
            return
        known = 0 if self.gram is None else self.gram.scalars
        for scalar, factor in value.terms:
            if not 0 <= scalar < known:
                raise PlanError(f"coefficient {label} uses scalar {scalar}; the row's gram makes {known}")
            yield factor
        yield value.constant

    def _check_names(self) -> None:
        names = (*self.columns, *(name for name, _ in self.draws))
        if len(set(names)) != len(names) or any(re.fullmatch(r"w\d+", name) for name in names):
            raise PlanError(f"columns and draws {names} must be distinct and none called like an output (w0, w1, ...)")
        noise = set(names)
        sources = set(self.columns)
        used = [] if self.gram is None else [(name, noise) for name in self.gram.names]
        for i, output in enumerate(self.outputs):
            known = set(sources)
            used += [(output.base, known)] if output.base is not None else []
            used += [(name, known) for name, _ in output.terms]
            used += [(name, noise) for name, _ in output.noise]
            sources.add(f"w{i}")
        for name, allowed in used:
            if name not in allowed:
                raise PlanError(f"a row uses {name!r}; it has {sorted(allowed)}")

    def labelled_coefficients(self) -> list[tuple[str, Coefficient]]:
        """Every coefficient with a name a person can find, in the order in which kernels read them."""
        found: list[tuple[str, Coefficient]] = []
        for i, output in enumerate(self.outputs):
            found += [(f"w{i}[{name}]", c) for name, c in (*output.terms, *output.noise)]
            found += [] if output.bound is None else [(f"w{i}.bound", output.bound)]
            found += [] if output.scale is None else [(f"w{i}.scale", output.scale)]
        if self.network is not None:
            found.append(("c_in", self.c_in))
        return found

    @property
    def coefficients(self) -> list[Coefficient]:
        """All coefficients in kernel order: each output's terms, noise, bound and scale; then c_in."""
        return [value for _, value in self.labelled_coefficients()]

    @property
    def x(self) -> str | None:
        """Name of the tensor that holds the state which the network sees, unscaled; None where none holds it."""
        if self.network is None:
            return None
        output = self.outputs[self.network]
        return output.base if output.store is None and not (output.terms or output.noise) else output.store

    def _program(self) -> Program:
        index = {name: i for i, name in enumerate(self.columns)}
        index |= {f"w{i}": len(self.columns) + i for i in range(len(self.outputs))}
        reference = {name: -1 - i for i, name in enumerate(self.columns)}
        reference |= {name: i for i, (name, _) in enumerate(self.draws)}
        formulas = (
            Formula(
                None if output.base is None else index[output.base],
                tuple(index[name] for name, _ in output.terms),
                tuple(reference[name] for name, _ in output.noise),
                output.bound is not None,
                output.scale is not None,
            )
            for output in self.outputs
        )
        return Program(len(self.columns), tuple(formulas), len(self.draws), self.network)

    @cached_property
    def gram_program(self) -> GramProgram | None:
        """The structure of the row's gram, up to the coefficients that it makes; None without one."""
        if self.gram is None:
            return None
        used = [tuple(s for s, _ in c.terms) if isinstance(c, Affine) else () for c in self.coefficients]
        return self.gram.program(self.columns, [name for name, _ in self.draws], used)

    @property
    def gram_numbers(self) -> list[float]:
        """The numbers of the row's gram; a coefficient's are its constant and its factors."""
        found = [] if self.gram is None else self.gram.numbers
        for c in self.coefficients if self.gram is not None else ():
            found += [c.constant, *(factor for _, factor in c.terms)] if isinstance(c, Affine) else [c]
        return found

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

        Raises:
            PlanError: a coefficient is known only when the row runs.
        """
        u, tiny = UNIT_ROUNDOFF[dtype], SMALLEST[dtype]
        known = {name: Bound(size, 0.0) for name, size in magnitude.items()}

        def product(source: Bound, coefficient: Coefficient) -> Bound:
            c = fixed(coefficient)
            size, carried = abs(c) * source.magnitude, abs(c) * source.error
            carried += (u * size + tiny * source.magnitude) if rounded_coefficients else 0.0
            return Bound(size, carried + (size + carried) * u + tiny)

        def accumulate(parts: list[Bound]) -> Bound:
            total = Bound(0.0, 0.0)
            for i, part in enumerate(parts):
                size, carried = total.magnitude + part.magnitude, total.error + part.error
                total = Bound(size, carried + (size + carried) * u if i else carried)
            return total

        bounds = []
        for i, output in enumerate(self.outputs):
            parts = [accumulate([product(known[name], c) for name, c in output.terms])] if output.terms else []
            parts += [known[output.base]] if output.base is not None else []
            w = accumulate([*parts, *(product(known[name], c) for name, c in output.noise)])
            if output.bound is not None:
                limit = fixed(output.bound)
                w = Bound(min(w.magnitude, limit), w.error + u * abs(limit))
            if output.scale is not None:
                w = product(w, output.scale)
            known[f"w{i}"] = w
            bounds.append(w)
        return bounds
