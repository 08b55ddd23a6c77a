"""Noise schedules: the path ``x_t = s(t) x_0 + s(t) sigma(t) eps`` and the noise levels visited on it.

A *path* gives sigma(t) and s(t) with inverses and derivatives (Karras et al., *Elucidating the Design Space of
Diffusion-Based Generative Models*, 2022 ("EDM"), table 1 and appendix C; Song et al., *Score-Based Generative
Modeling through SDEs*, 2021). *Levels* choose ``n`` values of sigma. A *schedule* is both. The EDM paper's
ablation mixes them freely, and so may you: ``Schedule(edm_levels(), vp_path())``.

All functions take and return 160-bit reals (``fastdiff.maths.real``), and any thread may call them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastdiff.errors import PlanError
from fastdiff.maths.point import Function, Path, Point
from fastdiff.maths.real import LOCK, Real, count, expm1, log1p, mp, not_negative, positive, real
from fastdiff.maths.registry import Registry

Levels = Callable[[int], list[Real]]


def linear_path() -> Path:
    """``sigma(t) = t, s = 1`` (EDM)."""
    return Path("linear", sigma=lambda t: t, sigma_deriv=lambda t: mp.one, sigma_inv=lambda sigma: sigma)


def vp_path(beta_d: float = 19.9, beta_min: float = 0.1) -> Path:
    """``sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1`` with the variance-preserving scale (VP-SDE)."""
    d, m = positive(beta_d, "beta_d"), not_negative(beta_min, "beta_min")

    def sigma(t: Real) -> Real:
        return mp.sqrt(expm1(d * t * t / 2 + m * t))

    def sigma_deriv(t: Real) -> Real:
        return (d * t + m) * (sigma(t) ** 2 + 1) / (2 * sigma(t))

    def sigma_inv(level: Real) -> Real:
        return (mp.sqrt(m * m + 2 * d * log1p(level * level)) - m) / d

    return replace(Path("vp", sigma, sigma_deriv, sigma_inv).with_vp_scale(), name="vp")


def ve_path() -> Path:
    """``sigma(t) = sqrt(t), s = 1``: VE as in the EDM paper's ablation."""
    return Path("ve", mp.sqrt, sigma_deriv=lambda t: 1 / (2 * mp.sqrt(t)), sigma_inv=lambda sigma: sigma * sigma)


def smld_path(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Path:
    """``sigma(t) = sigma_min (sigma_max / sigma_min)^t, s = 1``: VE as in score-SDE; it never reaches sigma = 0."""
    low, high = _range(sigma_min, sigma_max)
    rate = mp.log(high / low)
    return Path(
        "smld",
        sigma=lambda t: low * mp.exp(rate * t),
        sigma_deriv=lambda t: rate * low * mp.exp(rate * t),
        sigma_inv=lambda sigma: mp.log(sigma / low) / rate,
        end=None,
    )


def edm_levels(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Levels:
    """Karras et al.: equal steps in ``sigma^(1/rho)`` from sigma_max to sigma_min (EDM, equation 5)."""
    low, high = _range(sigma_min, sigma_max)
    power = positive(rho, "rho")

    def levels(n: int) -> list[Real]:
        a, b = high ** (1 / power), low ** (1 / power)
        return [(a + f * (b - a)) ** power for f in _fractions(n)]

    return levels


def time_levels(path: Path, t_max: float, t_min: float) -> Levels:
    """The noise levels at equal steps of a path's time from t_max to t_min."""
    start, end = real(t_max, "t_max"), real(t_min, "t_min")
    return lambda n: [path.sigma(start + f * (end - start)) for f in _fractions(n)]


def vp_levels(beta_d: float = 19.9, beta_min: float = 0.1, epsilon_s: float = 1e-3) -> Levels:
    """Equal steps in the VP time from 1 to epsilon_s (EDM, table 1, column VP)."""
    return time_levels(vp_path(beta_d, beta_min), 1.0, epsilon_s)


def ve_levels(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Levels:
    """Geometric levels from sigma_max to sigma_min (EDM, table 1, column VE)."""
    low, high = _range(sigma_min, sigma_max)
    return lambda n: [high * (low / high) ** f for f in _fractions(n)]


def iddpm_sigmas(m: int = 1000, c_1: float = 1e-3, c_2: float = 8e-3) -> list[Real]:
    """The iDDPM noise levels ``u_0 > ... > u_M = 0`` (EDM, table 1, column iDDPM).

    ``u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, c_1) - 1)``, ``abar_j = sin^2(pi j / (2 M (c_2 + 1)))``.
    """
    floor, offset = positive(c_1, "c_1"), positive(c_2, "c_2")

    def alpha_bar(j: int) -> Real:
        return mp.sin(mp.pi * j / (2 * m * (offset + 1))) ** 2

    u = [mp.zero] * (m + 1)
    for j in range(m, 0, -1):
        u[j - 1] = mp.sqrt((u[j] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), floor) - 1)
    return u


def iddpm_levels(m: int = 1000, j_0: int = 8, c_1: float = 1e-3, c_2: float = 8e-3) -> Levels:
    """``u_j`` at ``j = floor(j_0 + (M - 1 - j_0) i / (n - 1) + 1/2)`` (EDM, table 1, column iDDPM)."""
    u = iddpm_sigmas(m, c_1, c_2)
    return lambda n: [u[int(mp.floor(j_0 + (m - 1 - j_0) * f + mp.mpf(1) / 2))] for f in _fractions(n)]


def given_levels(sigmas: Sequence[float]) -> Levels:
    """Exactly these noise levels, strictly decreasing and positive; a final 0 is added by the schedule."""
    chosen = [positive(sigma, f"sigmas[{i}]") for i, sigma in enumerate(sigmas)]

    def levels(n: int) -> list[Real]:
        if n != len(chosen):
            raise PlanError(f"steps is {n}, but {len(chosen)} sigmas were given; give as many steps as sigmas")
        return chosen

    return levels


@dataclass(frozen=True)
class Schedule:
    """Noise levels on a path. ``name`` goes into plan files and ``explain()``."""

    levels: Levels
    path: Path
    name: str = "custom"

    def grid(self, steps: int, round_sigma: Function = lambda sigma: sigma) -> list[Real]:
        """Times ``t_0 > ... > t_{steps-1} > t_steps``, the last at sigma = 0 (left out if the path has no end).

        Args:
            steps: number of noise levels, at least 1.
            round_sigma: rounding to the levels a network knows (EDM's ``round_sigma``).

        Raises:
            PlanError: steps is not a positive integer, or levels are not positive and strictly decreasing.
        """
        with LOCK:
            sigmas = [round_sigma(sigma) for sigma in self.levels(count(steps, "steps"))]
            for i, sigma in enumerate(sigmas):
                if sigma <= 0 or (i and sigma >= sigmas[i - 1]):
                    shown = ", ".join(f"{float(s):.6g}" for s in sigmas[max(i - 1, 0) : i + 1])
                    raise PlanError(
                        f"noise levels must be positive and strictly decreasing, but level {i} is not: {shown}; "
                        "use fewer steps or other levels"
                    )
            times = [self.path.sigma_inv(sigma) for sigma in sigmas]
            end = self.path.end
        return times if end is None else [*times, real(end, "end")]

    def points(self, steps: int, round_sigma: Function = lambda sigma: sigma) -> list[Point]:
        """The points on the path at the times of ``grid``, which takes and raises the same."""
        return [Point(self.path, t) for t in self.grid(steps, round_sigma)]


def named_schedule(name: str) -> Schedule:
    """A schedule of EDM's table 1 by name: ``"edm"``, ``"vp"``, ``"ve"`` or ``"iddpm"``."""
    return SCHEDULES.named(name)()


SCHEDULES: Registry[Callable[[], Schedule]] = Registry("schedule")
SCHEDULES.add("edm", lambda: Schedule(edm_levels(), linear_path(), "edm"))
SCHEDULES.add("vp", lambda: Schedule(vp_levels(), vp_path(), "vp"))
SCHEDULES.add("ve", lambda: Schedule(ve_levels(), ve_path(), "ve"))
SCHEDULES.add("iddpm", lambda: Schedule(iddpm_levels(), linear_path(), "iddpm"))


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """The EDM schedule with other ends or another rho."""
    return Schedule(edm_levels(sigma_min, sigma_max, rho), linear_path(), "edm")


def from_sigmas(sigmas: Sequence[Any]) -> Schedule:
    """A schedule through exactly these noise levels, on the path ``sigma(t) = t``; a trailing 0 may be given."""
    values = list(sigmas)
    if values and real(values[-1], "sigmas[-1]") == 0:
        values.pop()
    if not values:
        raise PlanError("sigmas is empty; give at least one positive noise level")
    return Schedule(given_levels(values), linear_path(), "sigmas")


def _fractions(n: int) -> list[Real]:
    """``i / (n - 1)`` for i < n; a single level is the first."""
    return [mp.mpf(i) / (n - 1) if n > 1 else mp.zero for i in range(n)]


def _range(sigma_min: float, sigma_max: float) -> tuple[Real, Real]:
    low, high = positive(sigma_min, "sigma_min"), positive(sigma_max, "sigma_max")
    if low >= high:
        raise PlanError(f"sigma_min is {sigma_min} and sigma_max is {sigma_max}; sigma_min must be the smaller")
    return low, high
