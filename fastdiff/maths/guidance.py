"""Guidance: how the outputs of several network branches combine into one prediction.

Classifier-free guidance (Ho and Salimans, 2022) in the convention of score composition:
``F = gamma F_cond + (1 - gamma) F_uncond``; gamma 0 is unconditional, 1 conditional, above 1 guided. It acts on the
raw network outputs, which is the same as acting on D, epsilon or the score, because c_skip and c_out are shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastdiff.errors import PlanError
from fastdiff.maths.real import Real, mp, not_negative, real

COND, UNCOND = "cond", "uncond"


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

    def weights(self, sigma: Real) -> dict[str, Real]:
        """Branches that must be evaluated at this noise level, with their weights, which sum to 1."""
        gamma = real(self.scale, "guidance scale")
        if self.interval is not None and not self.interval[0] <= float(sigma) <= self.interval[1]:
            gamma = mp.one
        weights = {COND: gamma, UNCOND: 1 - gamma}
        return {name: weights[name] for name in self.order if weights[name] != 0}


def _finite(high: Any) -> Any:
    """An open upper end is allowed: infinity stands for every noise level."""
    return 1e300 if high == float("inf") else high
