"""Brownian motion of a sample: one path whose values are combinations of draws, whatever steps ask for them.

Levy's construction on the dyadic intervals of ``v = sigma / (1 + sigma)`` in 0 .. 1, which is rounded to a multiple of
2**-20: v times a first draw, and on each level one tent times a draw of its own.
"""

from __future__ import annotations

from fastdiff.maths.draw import BROWNIAN, Draw
from fastdiff.maths.point import Point
from fastdiff.maths.real import Real, mp

FINEST = 20
"""Brownian motion is known at multiples of 2**-20 of v."""


def snapped(at: Point) -> Real:
    """``v = sigma / (1 + sigma)`` at the nearest multiple of 2**-20."""
    return mp.mpf(int(mp.nint(at.sigma / (1 + at.sigma) * 2**FINEST))) / 2**FINEST


def weights(v: Real) -> dict[Draw, Real]:
    """``W(v)`` as a combination of draws."""
    found = {Draw(BROWNIAN, 0, 0): v}
    for level in range(FINEST):
        k = int(mp.floor(v * 2**level))
        place = v * 2**level - k
        height = min(place, 1 - place)
        if height:
            found[Draw(BROWNIAN, 0, 2**level + k)] = height * mp.sqrt(mp.mpf(2) ** -level)
    return found
