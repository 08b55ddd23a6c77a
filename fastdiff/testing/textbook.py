"""Textbook: EDM's sampler as one writes it in PyTorch, to measure against and to be checked by.

Karras et al. 2022 (arXiv:2206.00364), algorithm 2 with the preconditioning of table 1 and classifier-free guidance
on one batched call. It is written well: in-place and combined torch operations where they save a pass, no waiting
for a device, coefficients as Python numbers. It knows nothing of plans and rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.maths.churn import Churn

Denoiser = Callable[[Tensor, float], Tensor]
"""``D(x; sigma)``."""


class Scalars(NamedTuple):
    """The four numbers of a preconditioning at one noise level."""

    c_skip: float
    c_out: float
    c_in: float
    c_noise: float


def edm_scalars(sigma: float, sigma_data: float = 0.5) -> Scalars:
    """EDM preconditioning (table 1, last column)."""
    total = sigma**2 + sigma_data**2
    root = math.sqrt(total)
    return Scalars(sigma_data**2 / total, sigma * sigma_data / root, 1 / root, math.log(sigma) / 4)


def epsilon_scalars(sigma: float, beta_d: float = 19.9, beta_min: float = 0.1) -> Scalars:
    """A network that predicts the noise of a variance-preserving input (table 1, column VP)."""
    t = (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(sigma**2)) - beta_min) / beta_d
    return Scalars(1.0, -sigma, 1 / math.sqrt(sigma**2 + 1), 999 * t)


def edm_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """The noise levels of equation 5, and 0 after the last."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [*((high + i / max(steps - 1, 1) * (low - high)) ** rho for i in range(steps)), 0.0]


def denoiser(
    net: Callable[..., Tensor],
    scalars: Callable[[float], Scalars] = edm_scalars,
    guidance: float = 1.0,
    network_dtype: torch.dtype | None = None,
    **conditioning: Tensor,
) -> Denoiser:
    """``D = c_skip x + c_out F``, F guided: ``F_uncond + gamma (F_cond - F_uncond)``.

    Args:
        net: ``F(z, c_noise, **conditioning)``; called once on both branches stacked ``[cond; uncond]`` if guided.
        scalars: the preconditioning at a noise level.
        guidance: gamma; 1 evaluates the conditional branch alone.
        network_dtype: of the network's input; that of x if None.
        conditioning: tensors ``[B, ...]``, or ``[2 B, ...]`` if guided.
    """

    def denoise(x: Tensor, sigma: float) -> Tensor:
        c_skip, c_out, c_in, c_noise = scalars(sigma)
        z = (x * c_in).to(network_dtype or x.dtype)
        z = z if guidance == 1 else torch.cat([z, z])
        f = net(z, z.new_full((len(z),), c_noise), **conditioning).to(x.dtype)
        if guidance != 1:
            f_cond, f_uncond = f.chunk(2)
            f = torch.lerp(f_uncond, f_cond, guidance)
        return torch.add(x * c_skip, f, alpha=c_out)

    return denoise


def sampling_steps(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    alpha: float | None = 1.0,
    churn: Churn | None = None,
    noise: Callable[[], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Algorithm 2 one step at a time, with algorithm 3's alpha; without churn algorithm 1.

    Args:
        denoise: ``D(x; sigma)``.
        x: the first state, ``sigmas[0]`` times unit noise.
        sigmas: decreasing noise levels, the last one 0.
        alpha: 1 is Heun's method, 1/2 the midpoint method; None is Euler's, without a second evaluation.
        churn: stochasticity.
        noise: unit normals like x; ``torch.randn`` if None.

    Yields:
        The state after every step.
    """
    draw = noise or (lambda: torch.randn_like(x))
    churning, steps = churn or Churn(), len(sigmas) - 1
    for sigma, sigma_next in pairwise(sigmas):
        gamma = min(churning.s_churn / steps, math.sqrt(2) - 1) if churning.s_tmin <= sigma <= churning.s_tmax else 0
        sigma_hat = sigma * (1 + gamma)
        if gamma > 0:
            x = torch.add(x, draw(), alpha=math.sqrt(sigma_hat**2 - sigma**2) * churning.s_noise)
        d = (x - denoise(x, sigma_hat)).div_(sigma_hat)
        h = sigma_next - sigma_hat
        if alpha is not None and (sigma_next > 0 or alpha < 1):
            sigma_prime = sigma_hat + alpha * h if alpha < 1 else sigma_next
            x_prime = torch.add(x, d, alpha=alpha * h)
            d_prime = (x_prime - denoise(x_prime, sigma_prime)).div_(sigma_prime)
            d = d.lerp_(d_prime, 1 / (2 * alpha))
        x = torch.add(x, d, alpha=h)
        yield x


def edm_sampler(
    net: Callable[..., Tensor],
    shape: Sequence[int],
    *,
    sigma_data: float,
    steps: int = 18,
    guidance: float = 1.0,
    cond: Mapping[str, Tensor] | None = None,
    uncond: Mapping[str, Tensor] | None = None,
    churn: Churn | None = None,
    dtype: torch.dtype = torch.float32,
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Draw samples ``[B, ...]`` with Heun's method, rho = 7, sigma from 80 to 0.002.

    Args:
        net: ``F(z, c_noise, **conditioning)``.
        shape: ``[B, ...]``.
        sigma_data: standard deviation of the data, in data units.
        steps: number of noise levels.
        guidance: gamma; 1 evaluates the conditional branch alone.
        cond: the network's conditioning.
        uncond: the same for the unconditional branch.
        churn: stochasticity.
        dtype: of everything.
        noise: unit normals in ``shape``; ``torch.randn`` if None.
    """
    draw = noise or (lambda: torch.randn(shape, dtype=dtype))
    conditioning = dict(cond or {})
    if guidance != 1:
        conditioning = {name: torch.cat([value, (uncond or {})[name]]) for name, value in conditioning.items()}
    denoise = denoiser(net, lambda sigma: edm_scalars(sigma, sigma_data), guidance, None, **conditioning)
    sigmas = edm_sigmas(steps)
    *_, result = sampling_steps(denoise, draw() * sigmas[0], sigmas, churn=churn, noise=draw)
    return result
