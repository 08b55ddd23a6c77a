"""Churn: fresh noise before the network sees a state."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.errors import PlanError
from fastdiff.maths.real import Real, mp, not_negative, positive, real


@dataclass(frozen=True)
class Churn:
    """EDM's stochasticity (EDM, algorithm 2): fresh noise before the network, in an interval of sigma.

    ``gamma = min(s_churn / steps, sqrt(2) - 1)`` where ``s_tmin <= sigma <= s_tmax``, else 0; sigma becomes
    ``(1 + gamma) sigma`` and the noise that lifts it there is scaled by s_noise.

    Raises:
        PlanError: a value is negative, NaN, or the interval is empty.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = float("inf")
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        not_negative(self.s_churn, "s_churn")
        not_negative(self.s_tmin, "s_tmin")
        positive(self.s_noise, "s_noise")
        if not self.s_tmax >= self.s_tmin:
            raise PlanError(f"s_tmin is {self.s_tmin} and s_tmax is {self.s_tmax}; s_tmin must not exceed s_tmax")

    def gamma(self, sigma: Real, steps: int) -> Real:
        """How far the noise level is raised, relative to sigma."""
        # As a float: the last of levels that end at 0.002 is 0.002 only to 160 bits.
        if not self.s_tmin <= float(sigma) <= self.s_tmax:
            return mp.zero
        return min(real(self.s_churn, "s_churn") / steps, mp.sqrt(2) - 1)
