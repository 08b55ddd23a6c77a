"""Scalars of the host mathematics: 160-bit reals, so that a plan's bits do not depend on the machine.

numpy's and libm's ``exp`` and ``pow`` differ between processors in the last bit; a coefficient computed here
and rounded once to the state type does not.

mpmath's context is shared by all threads, and some of its functions raise its precision while they work. No formula of
this package uses one of those (``expm1`` and ``log1p`` below stand for two), so that any thread may evaluate it at any
time. A formula of the user's own may: ``plan``, ``Schedule.grid``, calling a ``Prediction`` and ``conversion`` hold
``LOCK`` meanwhile.
"""

from __future__ import annotations

import math
import operator
import threading
from numbers import Real as Number
from typing import Any

from fastdiff.errors import PlanError

Real = Any
"""An mpmath ``mpf`` of the context below (mpmath ships no types)."""

PRECISION = 160
GUARD = 20
"""Bits by which a result is computed more precisely before it is rounded to PRECISION."""
LOCK = threading.RLock()


class Context:
    """mpmath's functions and constants in 160 bits; mpmath is imported when the first of them is asked for."""

    def __getattr__(self, name: str) -> Any:
        with LOCK:
            made = vars(self).get("_made") or _make_context()
            # Kept, so that it is found without coming here again.
            vars(self).update({"_made": made, name: getattr(made, name)})
        return vars(self)[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} cannot be set: plans are the same everywhere because the precision is")


def _make_context() -> Any:
    # Imported here because mpmath alone would cost half of what `import fastdiff` may.
    from mpmath.ctx_mp import MPContext
    from mpmath.libmp import mpf_ln2, mpf_pi

    # mpmath keeps the digits of constants that it has computed, in two writes between which a reader can come. With
    # more digits than any formula asks for, they are never written again.
    mpf_pi(8 * PRECISION)
    mpf_ln2(8 * PRECISION)
    context = MPContext()
    context.prec = PRECISION
    return context


mp = Context()

FORMATS = {"float32": (24, -149, 128), "float64": (53, -1074, 1024)}
"""Significant bits, exponent of the smallest subnormal number, exponent that overflows."""


def real(value: Any, name: str = "value") -> Real:
    """A number as a 160-bit real, exactly. Raises PlanError unless it is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, Number):
        raise PlanError(f"{name} is {value!r}; it must be a real number")
    number = mp.convert(value)
    if not mp.isfinite(number):
        raise PlanError(f"{name} is {value}; it must be finite")
    return number


def positive(value: Any, name: str) -> Real:
    """A positive real. Raises PlanError otherwise."""
    number = real(value, name)
    if number <= 0:
        raise PlanError(f"{name} is {value}; it must be positive")
    return number


def not_negative(value: Any, name: str) -> Real:
    """A real that is zero or more. Raises PlanError otherwise."""
    number = real(value, name)
    if number < 0:
        raise PlanError(f"{name} is {value}; it must be zero or more")
    return number


def count(value: Any, name: str) -> int:
    """An integer of at least 1, numpy's included, as Python's. Raises PlanError otherwise."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        whole = isinstance(value, float) and value >= 1 and value.is_integer()
        advice = f"; write {value:.0f}" if whole else ""
        raise PlanError(f"{name} is {value!r}; it must be an integer of at least 1{advice}")
    return number


def expm1(x: Real) -> Real:
    """``exp(x) - 1`` without cancellation, to the precision of the context, which stays as it is."""
    lost = max(0, -mp.mag(x)) if x else 0
    return mp.fsub(mp.exp(x, prec=PRECISION + GUARD + lost), 1)


def log1p(x: Real) -> Real:
    """``log(1 + x)`` without cancellation, to the precision of the context, which stays as it is."""
    return mp.ln(mp.fadd(1, x, exact=True))


def round_to(value: Real, dtype: str) -> float:
    """Round once, to nearest even, to ``"float32"`` or ``"float64"``; the result is a Python float."""
    negative, mantissa, exponent, bits = value._mpf_
    if not mantissa:
        # Zero, infinite, or not a number.
        return float(value)
    digits, smallest, limit = FORMATS[dtype]
    # A whole number of units in the last place; the unit of subnormal numbers does not shrink any further.
    unit = max(exponent + bits - digits, smallest)
    whole = _shift_right(int(mantissa), unit - exponent)
    if whole.bit_length() + unit > limit:
        return -math.inf if negative else math.inf
    return math.ldexp(-whole if negative else whole, unit)


def _shift_right(number: int, places: int) -> int:
    """``number / 2**places``, rounded to the nearest whole number, a tie to the even one."""
    if places <= 0:
        return number << -places
    odd = number >> places & 1
    return number + (1 << places - 1) - 1 + odd >> places
