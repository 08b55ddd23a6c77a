"""Tracing: a solver runs once on symbols, and leaves the list of everything it computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from fastdiff.maths.churn import Churn
from fastdiff.maths.draw import INIT, STEP, Draw
from fastdiff.maths.guidance import Guidance
from fastdiff.maths.prediction import Prediction, Scalars
from fastdiff.maths.real import Real, mp, real
from fastdiff.maths.schedule import Schedule
from fastdiff.maths.vector import Combination, Symbol


@dataclass(frozen=True)
class Definition:
    """How a variable comes about: a combination of earlier symbols, clamped to +-clip where that is given."""

    combination: Combination
    clip: Real | None = None


@dataclass(frozen=True)
class Evaluation:
    """One network evaluation: its input variable, and what the network is told."""

    x: Symbol
    sigma: Real
    s: Real
    scalars: Scalars
    branches: tuple[str, ...]
    step: int


class Ode:
    """The probability-flow ODE (EDM, equation 4) as a solver sees it, recording every evaluation it asks for.

    Args:
        schedule, prediction, guidance, churn: see their modules.
        steps: number of noise levels.
        clip: bound on abs(D), or None.
    """

    def __init__(
        self,
        schedule: Schedule,
        prediction: Prediction,
        guidance: Guidance,
        churn: Churn,
        steps: int,
        clip: Real | None = None,
    ) -> None:
        self.path, self.prediction, self.guidance, self.churning = schedule.path, prediction, guidance, churn
        self.grid = schedule.grid(steps, prediction.round_sigma)
        self.count, self.clip, self.step = steps, clip, 0
        self.variables: dict[Symbol, Definition] = {}
        self.evaluations: list[Evaluation] = []
        self.draws: dict[Symbol, Draw] = {}
        self._kept = 0

    def start(self) -> Combination:
        """``x = s(t_0) sigma(t_0) xi``."""
        t = self.grid[0]
        return self.noise(Draw(INIT, 0)) * (self.path.s(t) * self.path.sigma(t))

    def steps(self) -> Iterator[tuple[Real, Real]]:
        """``(t, t_next)`` of every step; the step number goes into the noise counter."""
        for number, times in enumerate(pairwise(self.grid)):
            self.step = number
            yield times

    def noise(self, draw: Draw) -> Combination:
        """Unit Gaussian noise with this counter."""
        symbol = Symbol("xi", len(self.draws), f"xi{draw.purpose}.{draw.draw}.{draw.sub_draw}.")
        self.draws[symbol] = draw
        return Combination.of(symbol)

    def churn(self, x: Combination, t: Real) -> tuple[Combination, Real]:
        """Raise the noise level from sigma(t) by fresh noise; returns the new x and t (EDM, algorithm 2)."""
        sigma = self.path.sigma(t)
        gamma = self.churning.gamma(sigma, self.count)
        sigma_hat = self.prediction.round_sigma(sigma * (1 + gamma)) if gamma else sigma
        if sigma_hat <= sigma:
            return x, t
        t_hat = self.path.sigma_inv(sigma_hat)
        s, s_hat = self.path.s(t), self.path.s(t_hat)
        lift = mp.sqrt(sigma_hat**2 - sigma**2) * real(self.churning.s_noise, "s_noise")
        return x * (s_hat / s) + self.noise(Draw(STEP, self.step)) * (s_hat * lift), t_hat

    def denoise(self, x: Combination, t: Real) -> Combination:
        """``D(x / s; sigma)``: one network evaluation at time t."""
        sigma, s = self.path.sigma(t), self.path.s(t)
        k = len(self.evaluations)
        weights = self.guidance.weights(sigma)
        scalars = self.prediction(sigma)
        known = x.symbol()
        name = known if known is not None and known.kind == "x" else Symbol("x", k)
        if name not in self.variables:
            self.variables[name] = Definition(x)
        self.evaluations.append(Evaluation(name, sigma, s, scalars, tuple(weights), self.step))
        d = Combination.of(name, scalars.c_skip / s)
        for branch, weight in weights.items():
            d = d + Combination.of(Symbol("F", k, branch), scalars.c_out * weight)
        denoised = Symbol("D", k)
        self.variables[denoised] = Definition(d, self.clip)
        return Combination.of(denoised)

    def slope(self, x: Combination, t: Real) -> tuple[Combination, Combination]:
        """``dx/dt = (sigma'/sigma + s'/s) x - sigma' s / sigma D(x / s; sigma)``, and x as the network saw it."""
        sigma, sigma_deriv = self.path.sigma(t), self.path.sigma_deriv(t)
        s, s_deriv = self.path.s(t), self.path.s_deriv(t)
        d = self.denoise(x, t)
        seen, rate = self.evaluations[-1].x, sigma_deriv / sigma
        slope = Combination.of(seen, rate + s_deriv / s) - d * (sigma_deriv * s / sigma)
        return slope, Combination.of(seen)

    def keep(self, name: str, combination: Combination) -> Combination:
        """Declare a history that later steps will read, such as a slope of a multistep method."""
        symbol = Symbol("let", self._kept, name)
        self._kept += 1
        self.variables[symbol] = Definition(combination)
        return Combination.of(symbol)

    def finish(self, x: Combination) -> Symbol:
        """Name the result."""
        symbol = Symbol("x", len(self.evaluations))
        self.variables[symbol] = Definition(x)
        return symbol
