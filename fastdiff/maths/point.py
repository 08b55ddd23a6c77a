"""Points: a moment on a path, with everything of it that samplers' formulas use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fastdiff.maths.real import Real, mp
from fastdiff.maths.schedule import Path


@dataclass(frozen=True)
class Point:
    """``x = s x_0 + s sigma eps`` at time t, ``dx = f x dt + g dw`` forward (Song et al. 2021; EDM, appendix B).

    All values are 160-bit reals; sigma is in data units.

    Args:
        path: sigma(t) and s(t).
        t: the time.
    """

    path: Path
    t: Real

    def __repr__(self) -> str:
        return f"Point({self.path.name}, t={float(self.t):.6g}, sigma={float(self.sigma):.6g})"

    @cached_property
    def sigma(self) -> Real:
        """Noise level at this time."""
        return self.path.sigma(self.t)

    @cached_property
    def s(self) -> Real:
        """Signal scale at this time."""
        return self.path.s(self.t)

    @cached_property
    def sigma_deriv(self) -> Real:
        """``sigma'(t)``."""
        return self.path.sigma_deriv(self.t)

    @cached_property
    def s_deriv(self) -> Real:
        """``s'(t)``."""
        return self.path.s_deriv(self.t)

    @cached_property
    def lam(self) -> Real:
        """``lambda = -log sigma``, half the logarithm of the signal-to-noise ratio."""
        return -mp.log(self.sigma)

    @cached_property
    def f(self) -> Real:
        """Drift ``f = s' / s`` of the forward process."""
        return self.s_deriv / self.s

    @cached_property
    def g2(self) -> Real:
        """Squared diffusion ``g^2 = 2 s^2 sigma sigma'`` of the forward process."""
        return 2 * self.s**2 * self.sigma * self.sigma_deriv
