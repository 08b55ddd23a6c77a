"""Guidance: which branches of the network are evaluated, and how their denoised predictions combine into one.

Anything with these two methods guides; the names of branches are free, and ``Run`` hands them to whoever calls the
network:

    branches(sigma) -> ("cond", "uncond")
    combine(sigma, {"cond": D_cond, "uncond": D_uncond}) -> D

Classifier-free guidance (Ho and Salimans, 2022) in the convention of score composition:
``F = gamma F_cond + (1 - gamma) F_uncond``; gamma 0 is unconditional, 1 conditional, above 1 guided. It acts on the
raw network outputs, which is the same as acting on D, epsilon or the score, because c_skip and c_out are shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastdiff.errors import PlanError
from fastdiff.maths.real import Real, mp, not_negative, real

COND, UNCOND = "cond", "uncond"


class Guide(Protocol):
    """What guides: see the module."""

    def branches(self, sigma: Real) -> tuple[str, ...]:
        """What must be evaluated at this noise level (data units), in order."""
        ...

    def combine(self, sigma: Real, denoised: Mapping[str, Any]) -> Any:
        """The guided D from that of each branch; vectors are added, scaled and multiplied by scalars."""
        ...


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, optionally only for sigma in ``interval`` (Kynkaanniemi et al., 2024).

    Args:
        scale: gamma.
        interval: ``(low, high)`` in data units, ends included; outside it the conditional branch alone is used.
        order: in which the branches are stacked along the batch, or called.

    Raises:
        PlanError: scale is not finite, the interval is not two ordered noise levels, or order is not both branches.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    order: tuple[str, str] = (COND, UNCOND)

    def __post_init__(self) -> None:
        real(self.scale, "guidance scale")
        if sorted(self.order) != [COND, UNCOND]:
            raise PlanError(f"guidance order is {self.order!r}; it must hold {COND!r} and {UNCOND!r} once each")
        if self.interval is not None:
            try:
                low, high = self.interval
            except (TypeError, ValueError):
                raise PlanError(f"guidance interval is {self.interval!r}; it must be (low, high)") from None
            if not_negative(low, "interval low") > real(_finite(high), "interval high"):
                raise PlanError(f"guidance interval is ({low}, {high}); low must not exceed high")

    def branches(self, sigma: Real) -> tuple[str, ...]:
        """What must be evaluated at this noise level, in the order in which it is stacked or called."""
        return tuple(self._weights(sigma))

    def combine(self, sigma: Real, denoised: Mapping[str, Any]) -> Any:
        """The guided D from that of each branch (vectors, or whatever can be added and scaled)."""
        terms = [
            denoised[name] if weight == 1 else denoised[name] * weight for name, weight in self._weights(sigma).items()
        ]
        return sum(terms[1:], terms[0])

    def _weights(self, sigma: Real) -> dict[str, Real]:
        """Branches with their weights, which sum to 1."""
        gamma = real(self.scale, "guidance scale")
        if self.interval is not None and not self.interval[0] <= float(sigma) <= self.interval[1]:
            gamma = mp.one
        weights = {COND: gamma, UNCOND: 1 - gamma}
        return {name: weights[name] for name in self.order if weights[name] != 0}


@dataclass(frozen=True)
class RescaledGuidance(Guidance):
    """Guidance whose result has the spread of the conditional prediction (Lin et al. 2024, equations 15 and 16).

    ``D = (phi std(D_cond) / std(D_cfg) + 1 - phi) D_cfg``, the standard deviation being that of each sample.

    Args:
        phi: 0 is plain guidance, 1 the full rescale.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= real(self.phi, "phi") <= 1:
            raise PlanError(f"phi is {self.phi}; it must lie in 0 .. 1")

    def combine(self, sigma: Real, denoised: Mapping[str, Any]) -> Any:
        """See ``Guidance``."""
        guided = super().combine(sigma, denoised)
        if len(denoised) < 2:
            return guided
        ratio = (_variance(denoised[COND]) / _variance(guided)).sqrt()
        return guided * (ratio * real(self.phi, "phi") + (1 - real(self.phi, "phi")))


def _variance(x: Any) -> Any:
    """The sum of squares around the mean of each sample."""
    return (x.dot(x) - x.total() * x.total() / x.size()).at_least(1e-30)


def _finite(high: Any) -> Any:
    """An open upper end is allowed: infinity stands for every noise level."""
    return 1e300 if high == float("inf") else high
