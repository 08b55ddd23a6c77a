"""Paths of the forward process, and points: a moment on a path, with what samplers' formulas use of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from fastdiff.maths.real import Real, mp

Function = Callable[[Real], Real]


@dataclass(frozen=True)
class Path:
    """sigma(t) and s(t), with what the probability-flow ODE needs of them.

    Args:
        name: for people and plan files.
        sigma: noise level at t, in data units.
        sigma_deriv: its derivative.
        sigma_inv: t at a noise level.
        s: signal scale at t.
        s_deriv: its derivative.
        end: the time at which sigma is 0, or None if the path never gets there.
    """

    name: str
    sigma: Function
    sigma_deriv: Function
    sigma_inv: Function
    s: Function = lambda t: mp.one
    s_deriv: Function = lambda t: mp.zero
    end: float | None = 0.0

    def with_vp_scale(self) -> Path:
        """The same noise levels with the variance-preserving scale ``s = 1 / sqrt(1 + sigma(t)^2)``."""

        def s(t: Real) -> Real:
            return 1 / mp.sqrt(1 + self.sigma(t) ** 2)

        def s_deriv(t: Real) -> Real:
            return -self.sigma(t) * self.sigma_deriv(t) * s(t) ** 3

        return replace(self, name=f"{self.name}, vp scale", s=s, s_deriv=s_deriv)

    def without_scale(self) -> Path:
        """The same noise levels with ``s = 1``."""
        return replace(self, name=f"{self.name}, no scale", s=lambda t: mp.one, s_deriv=lambda t: mp.zero)


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
