"""Draws: which standard normals are meant, as the part of the noise counter that all elements share."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.errors import PlanError

INIT, STEP, BROWNIAN = 0, 1, 2
"""Noise purposes of the counter contract (``docs/noise.md``)."""


@dataclass(frozen=True)
class Draw:
    """Which standard normals to draw: the part of the noise counter that is the same for all elements."""

    purpose: int
    draw: int
    sub_draw: int = 0
    tensor: int = 0

    def __post_init__(self) -> None:
        for name, bits in (("purpose", 8), ("draw", 32), ("sub_draw", 24), ("tensor", 16)):
            value = getattr(self, name)
            if not 0 <= value < 2**bits:
                raise PlanError(f"draw field {name} is {value}; it must lie in 0 .. 2**{bits} - 1")
