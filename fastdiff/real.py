"""Scalars of the host mathematics: 160-bit reals, so that a plan's bits do not depend on the machine.

numpy's and libm's ``exp`` and ``pow`` differ between processors in the last bit; a coefficient computed here
and rounded once to the state type does not. ``LOCK`` guards mpmath's context, which is not thread-safe.
"""

from __future__ import annotations

import math
import threading
from numbers import Real as Number
from typing import Any

from mpmath.ctx_mp import MPContext

from fastdiff.errors import PlanError

Real = Any
"""An mpmath ``mpf`` of the context below (mpmath ships no types)."""

mp = MPContext()
mp.prec = 160
LOCK = threading.RLock()

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


def round_to(value: Real, dtype: str) -> float:
    """Round once, to nearest even, to ``"float32"`` or ``"float64"``; the result is a Python float."""
    if not mp.isfinite(value):
        return float(value)
    digits, smallest, limit = FORMATS[dtype]
    # A whole number of units in the last place; the unit of subnormal numbers does not shrink any further.
    unit = max(mp.mag(value) - digits, smallest) if value else smallest
    whole = int(mp.nint(mp.ldexp(value, -unit)))
    if whole.bit_length() + unit > limit:
        return math.copysign(math.inf, whole)
    return math.ldexp(whole, unit)
