"""What plans must reproduce, written from the papers in plain PyTorch: nothing here knows of rows.

Scalars are Python floats, tensors keep the dtype they are given. Sources: Karras et al., *Elucidating the Design
Space of Diffusion-Based Generative Models*, 2022 ("EDM": algorithms 1-3, table 1); Lu et al., *DPM-Solver++*, 2022;
Zhao et al., *UniPC*, 2023.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fastdiff.backends import reference

Function = Callable[[float], float]
Denoiser = Callable[[Tensor, float], Tensor]
"""``D(xhat; sigma)``."""
Network = Callable[..., Tensor]
"""``F(c_in xhat; c_noise)``."""
Draws = Callable[[int], Tensor]
"""The unit Gaussian noise of step i; step -1 is the first noise."""

INIT, STEP = 0, 1


@dataclass(frozen=True)
class Path:
    """sigma(t) and s(t) with derivatives and inverse, in float64 (EDM, table 1)."""

    sigma: Function
    sigma_deriv: Function
    sigma_inv: Function
    s: Function = lambda t: 1.0
    s_deriv: Function = lambda t: 0.0

    def vp_scaled(self) -> Path:
        """The same noise levels with ``s = 1 / sqrt(1 + sigma^2)``."""
        return replace(
            self,
            s=lambda t: 1 / math.sqrt(1 + self.sigma(t) ** 2),
            s_deriv=lambda t: -self.sigma(t) * self.sigma_deriv(t) * (1 + self.sigma(t) ** 2) ** -1.5,
        )


BETA_D, BETA_MIN = 19.9, 0.1
LINEAR = Path(lambda t: t, lambda t: 1.0, lambda sigma: sigma)
VE = Path(math.sqrt, lambda t: 0.5 / math.sqrt(t), lambda sigma: sigma**2)


def _vp_sigma(t: float) -> float:
    return math.sqrt(math.expm1(0.5 * BETA_D * t**2 + BETA_MIN * t))


VP = Path(
    _vp_sigma,
    lambda t: (BETA_MIN + BETA_D * t) * (_vp_sigma(t) + 1 / _vp_sigma(t)) / 2,
    lambda sigma: (math.sqrt(BETA_MIN**2 + 2 * BETA_D * math.log1p(sigma**2)) - BETA_MIN) / BETA_D,
)
PATHS = {
    "linear": LINEAR,
    "linear, vp scale": LINEAR.vp_scaled(),
    "vp": VP.vp_scaled(),
    "vp, no scale": VP,
    "ve": VE,
    "ve, vp scale": VE.vp_scaled(),
}


def iddpm_u() -> list[float]:
    """The iDDPM levels ``u_0 > ... > u_1000 = 0`` in closed form.

    Where the clamp by C_1 is not active (it is for u_0 only) the recursion of EDM's table 1 telescopes to
    ``u_j^2 + 1 = abar_M / abar_j``, which has no cancellation when written as a product of sines.
    """
    m, c_1, c_2 = 1000, 1e-3, 8e-3
    angle = [math.pi * j / (2 * m * (c_2 + 1)) for j in range(m + 1)]
    u = [math.sqrt(math.sin(angle[m] - a) * math.sin(angle[m] + a)) / math.sin(a) if a else math.nan for a in angle]
    u[0] = math.sqrt((u[1] ** 2 + 1) / c_1 - 1)
    return u


U = iddpm_u()
RISING = U[999::-1]


def nearest_u(sigma: float) -> float:
    """EDM's round_sigma for an iDDPM network."""
    return U[nearest_j(sigma)]


def nearest_j(sigma: float) -> int:
    """``argmin_j abs(u_j - sigma)`` over the levels j = 0 .. 999 that the network was trained at."""
    at = bisect_left(RISING, sigma)
    close = range(max(at - 1, 0), min(at + 1, 999) + 1)
    return 999 - min(close, key=lambda k: abs(RISING[k] - sigma))


def fractions(n: int) -> list[float]:
    return [i / (n - 1) if n > 1 else 0.0 for i in range(n)]


def edm_levels(n: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> list[float]:
    a, b = high ** (1 / rho), low ** (1 / rho)
    return [(a + f * (b - a)) ** rho for f in fractions(n)]


LEVELS: dict[str, Callable[[int], list[float]]] = {
    "edm": edm_levels,
    "vp": lambda n: [_vp_sigma(1 + f * (1e-3 - 1)) for f in fractions(n)],
    "ve": lambda n: [100.0 * (0.02 / 100.0) ** f for f in fractions(n)],
    "iddpm": lambda n: [U[math.floor(8 + (1000 - 1 - 8) * f + 0.5)] for f in fractions(n)],
}


@dataclass(frozen=True)
class Prediction:
    """``(c_skip, c_out, c_in, c_noise)`` of sigma, and sigma of a tensor of c_noise."""

    scalars: Callable[[float], tuple[float, float, float, float]]
    sigma_of: Callable[[Tensor], Tensor]
    round_sigma: Function = lambda sigma: sigma


def _vp_time(c_noise: Tensor) -> Tensor:
    t = c_noise / 999
    return torch.sqrt(torch.expm1(0.5 * BETA_D * t**2 + BETA_MIN * t))


def _iddpm_sigma(c_noise: Tensor) -> Tensor:
    u = torch.tensor(U, dtype=c_noise.dtype)
    return u[(999 - c_noise).long()]


def _edm(sigma: float) -> tuple[float, float, float, float]:
    total = sigma**2 + 0.5**2
    return 0.25 / total, sigma * 0.5 / math.sqrt(total), 1 / math.sqrt(total), math.log(sigma) / 4


def _vp_in(sigma: float) -> tuple[float, float]:
    return 1 / math.sqrt(1 + sigma**2), 999 * VP.sigma_inv(sigma)


PREDICTIONS = {
    "edm": Prediction(_edm, lambda c: torch.exp(4 * c)),
    "vp": Prediction(lambda s: (1.0, -s, *_vp_in(s)), _vp_time),
    "ve": Prediction(lambda s: (1.0, s, 1.0, math.log(s / 2)), lambda c: 2 * torch.exp(c)),
    "iddpm": Prediction(lambda s: (1.0, -s, _vp_in(s)[0], 999.0 - nearest_j(s)), _iddpm_sigma, nearest_u),
    "epsilon": Prediction(lambda s: (1.0, -s, *_vp_in(s)), _vp_time),
    "x0": Prediction(lambda s: (0.0, 1.0, *_vp_in(s)), _vp_time),
    "v": Prediction(lambda s: (1 / (1 + s**2), -s / math.sqrt(1 + s**2), *_vp_in(s)), _vp_time),
    "score": Prediction(lambda s: (1.0, s**2 * _vp_in(s)[0], *_vp_in(s)), _vp_time),
    "flow": Prediction(lambda s: (1 / (1 + s), -s / (1 + s), 1 / (1 + s), s / (1 + s)), lambda c: c / (1 - c)),
}


class Mixture:
    """A mixture of isotropic Gaussians with its exact denoiser: data whose every answer is known.

    Args:
        means: ``[K, d]``.
        stds: ``[K]``.
        weights: ``[K]``, positive, of sum 1.
    """

    def __init__(self, means: Sequence[Sequence[float]], stds: Sequence[float], weights: Sequence[float]) -> None:
        self.means = torch.tensor(means, dtype=torch.float64)
        self.stds = torch.tensor(stds, dtype=torch.float64)
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def score(self, xhat: Tensor, sigma: Tensor, tilt: Tensor | None = None) -> Tensor:
        """``grad log p(xhat; sigma)``, ``[n, d]``; sigma is ``[n]``, ``tilt`` ``[n, K]`` adds to the log weights."""
        means, stds, weights = (value.to(xhat.dtype) for value in (self.means, self.stds, self.weights))
        variance = stds**2 + sigma[:, None] ** 2
        offset = means - xhat[:, None]
        log = weights.log() - 0.5 * xhat.shape[1] * variance.log() - (offset**2).sum(-1) / (2 * variance)
        share = torch.softmax(log if tilt is None else log + tilt, dim=1) / variance
        return (share[..., None] * offset).sum(1)

    def denoise(self, xhat: Tensor, sigma: Tensor, tilt: Tensor | None = None) -> Tensor:
        """``E[x_0 | xhat]``, ``[n, d]``, by Tweedie's formula."""
        return xhat + sigma[:, None] ** 2 * self.score(xhat, sigma, tilt)

    def network(self, prediction: Prediction) -> Network:
        """The raw network whose preconditioned output is the exact denoiser; it knows sigma by c_noise only."""

        def net(z: Tensor, c_noise: Tensor, tilt: Tensor | None = None) -> Tensor:
            sigma = prediction.sigma_of(c_noise)
            scalars = [prediction.scalars(float(level)) for level in sigma.unique()]
            at = torch.searchsorted(sigma.unique(), sigma)
            c_skip, c_out, c_in, _ = torch.tensor(scalars, dtype=z.dtype)[at].T[..., None]
            xhat = z / c_in
            return ((1 - c_skip) * xhat + sigma[:, None] ** 2 * self.score(xhat, sigma, tilt)) / c_out

        return net

    def draw(self, n: int, seed: int) -> Tensor:
        """Exact samples, ``[n, d]``."""
        generator = np.random.default_rng(seed)
        which = generator.choice(len(self.weights), n, p=self.weights.numpy())
        normal = torch.from_numpy(generator.standard_normal((n, self.means.shape[1])))
        return self.means[which] + self.stds[which, None] * normal


RING = Mixture(
    means=[[math.cos(2.5 * k), math.sin(2.5 * k)] for k in range(5)],
    stds=[0.10, 0.15, 0.20, 0.25, 0.30],
    weights=[0.10, 0.15, 0.20, 0.25, 0.30],
)
"""Five modes on the unit circle, well apart: for distributions."""
CLOUD = Mixture([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], stds=[0.5, 0.6, 0.7], weights=[0.5, 0.3, 0.2])
"""Three modes that overlap: its ODE map amplifies rounding little, so that it can be compared to 1e-12."""


def denoiser(net: Network, prediction: Prediction, **conditioning: Tensor) -> Denoiser:
    """``D(xhat; sigma) = c_skip xhat + c_out F(c_in xhat; c_noise)`` (EDM, equation 7)."""

    def denoise(xhat: Tensor, sigma: float) -> Tensor:
        c_skip, c_out, c_in, c_noise = prediction.scalars(sigma)
        told = torch.full(xhat.shape[:1], c_noise, dtype=xhat.dtype)
        return c_skip * xhat + c_out * net(c_in * xhat, told, **conditioning)

    return denoise


def guided(cond: Denoiser, uncond: Denoiser, gamma: float, low: float = 0.0, high: float = math.inf) -> Denoiser:
    """``gamma D_cond + (1 - gamma) D_uncond`` for sigma in [low, high], elsewhere the conditional branch."""

    def denoise(xhat: Tensor, sigma: float) -> Tensor:
        if not low <= sigma <= high:
            return cond(xhat, sigma)
        return gamma * cond(xhat, sigma) + (1 - gamma) * uncond(xhat, sigma)

    return denoise


def clipped(denoise: Denoiser, bound: float) -> Denoiser:
    """D clamped to +-bound."""
    return lambda xhat, sigma: denoise(xhat, sigma).clamp(-bound, bound)


def counter_noise(shape: Sequence[int], seeds: Sequence[int], dtype: torch.dtype) -> Draws:
    """The noise of the counter contract: purpose 0 for the first, purpose 1 and the step's number after it."""
    keys = torch.tensor(seeds)

    def draw(step: int) -> Tensor:
        words = [INIT, 0, 0, 0] if step < 0 else [STEP, 0, step, 0]
        flat = reference.normals(math.prod(shape[1:]), keys, torch.tensor([words]))
        return flat.reshape(tuple(shape)).to(dtype)

    return draw


@dataclass(frozen=True)
class Churn:
    """S_churn, S_tmin, S_tmax and S_noise of EDM's algorithm 2."""

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def gamma(self, sigma: float, steps: int) -> float:
        return min(self.s_churn / steps, math.sqrt(2) - 1) if self.s_tmin <= sigma <= self.s_tmax else 0.0


def slope(denoise: Denoiser, path: Path, x: Tensor, t: float) -> Tensor:
    """``dx/dt = (sigma'/sigma + s'/s) x - sigma' s / sigma D(x / s; sigma)`` (EDM, equation 4)."""
    sigma, s, rate = path.sigma(t), path.s(t), path.sigma_deriv(t)
    return (rate / sigma + path.s_deriv(t) / s) * x - rate * s / sigma * denoise(x / s, sigma)


def general(
    denoise: Denoiser,
    path: Path,
    levels: Sequence[float],
    xi: Draws,
    alpha: float | None = 1.0,
    churn: Churn = Churn(),
    round_sigma: Function = lambda sigma: sigma,
    end: float | None = 0.0,
) -> Tensor:
    """EDM's algorithm 1 for any path, with algorithm 3's alpha (None: Euler) and algorithm 2's noise.

    ``end`` is the time at which sigma is 0, None to stop at the last level.
    """
    n = len(levels)
    times = [path.sigma_inv(round_sigma(sigma)) for sigma in levels] + ([] if end is None else [end])
    x = path.s(times[0]) * path.sigma(times[0]) * xi(-1)
    for i in range(len(times) - 1):
        t, sigma = times[i], path.sigma(times[i])
        gamma = churn.gamma(sigma, n)
        sigma_hat = round_sigma(sigma + gamma * sigma) if gamma else sigma
        t_hat = path.sigma_inv(sigma_hat) if gamma else t
        if sigma_hat > sigma:
            lift = path.s(t_hat) * churn.s_noise * math.sqrt(sigma_hat**2 - sigma**2)
            x = path.s(t_hat) / path.s(t) * x + lift * xi(i)
        h = times[i + 1] - t_hat
        d = slope(denoise, path, x, t_hat)
        t_prime = t_hat + (1.0 if alpha is None else alpha) * h
        if alpha is None or path.sigma(t_prime) == 0:
            x = x + h * d
        else:
            d_prime = slope(denoise, path, x + alpha * h * d, t_prime)
            x = x + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_prime)
    return x


def lagrange_integrals(nodes: Sequence, a, b) -> list:
    """Integrals from a to b of the Lagrange basis on these nodes, exactly, in whatever numbers are given."""
    found = []
    for j, node in enumerate(nodes):
        polynomial = [1]
        for k, other in enumerate(nodes):
            if k != j:
                # Multiply by (t - other) / (node - other); coefficients rise with the power of t.
                shifted, scaled = [0, *polynomial], [*(-other * c for c in polynomial), 0]
                polynomial = [(p + q) / (node - other) for p, q in zip(shifted, scaled, strict=True)]
        found.append(sum(c * (b ** (p + 1) - a ** (p + 1)) / (p + 1) for p, c in enumerate(polynomial)))
    return found


def adams_bashforth(denoise: Denoiser, path: Path, levels: Sequence[float], xi: Draws, order: int) -> Tensor:
    """Adams-Bashforth with variable steps (LMS where sigma = t): the interpolant of past slopes, integrated.

    Gauss-Legendre quadrature with 4 points is exact for polynomials of degree 7.
    """
    nodes, weights = np.polynomial.legendre.leggauss(4)
    times = [*map(path.sigma_inv, levels), 0.0]
    x = path.s(times[0]) * path.sigma(times[0]) * xi(-1)
    past: list[tuple[float, Tensor]] = []
    for t, t_next in pairwise(times):
        past = [(t, slope(denoise, path, x, t)), *past][:order]
        for j, (t_j, d_j) in enumerate(past):
            others = [t_k for k, (t_k, _) in enumerate(past) if k != j]
            at = [(t + t_next + (t_next - t) * node) / 2 for node in nodes]
            basis = [math.prod((tau - t_k) / (t_j - t_k) for t_k in others) for tau in at]
            x = x + (t_next - t) / 2 * float(np.dot(weights, basis)) * d_j
    return x
