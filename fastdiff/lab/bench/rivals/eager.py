"""Rivals in eager PyTorch: the operations that well-known samplers make, in their order, written from the papers.

Noise levels are tensors on the sampler's device, as those libraries keep them; a comparison of one of them with a
Python number waits for the device, and is there because it is in the original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastdiff.lab.bench.contestant import Contestant, Job, Steps
from fastdiff.lab.bench.workload import S_NOISE, Model, Network, Workload
from fastdiff.testing import textbook

SIGMA_DATA = 0.5
S_MIN, S_MAX = 0.0, 1e9
BETA_D, BETA_MIN = 19.9, 0.1


def textbook_start(workload: Workload, model: Model, noise: Tensor) -> Job:
    """The textbook sampler of ``fastdiff.testing.textbook``."""
    return Steps(textbook_states(workload, model, noise), workload.steps)


def textbook_states(workload: Workload, model: Model, noise: Tensor) -> Iterator[Tensor]:
    """The states of ``fastdiff.testing.textbook`` in the type of the noise."""
    net = model.both if workload.guided else model.cond
    denoise = textbook.denoiser(net, workload.scalars, workload.guidance, workload.io)
    sigmas = workload.sigmas
    return textbook.sampling_steps(denoise, noise * sigmas[0], sigmas, alpha=workload.alpha, churn=workload.churn)


def preconditioned(net: Network, workload: Workload) -> Callable[[Tensor, Tensor], Tensor]:
    """``D(x; sigma)`` as a wrapper around the network computes it: float32, sigma a tensor (EDM, equation 7)."""
    io = workload.io

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, *(1 for _ in x.shape[1:]))
        if workload.prediction == "edm":
            total = sigma**2 + SIGMA_DATA**2
            c_skip = SIGMA_DATA**2 / total
            c_out = sigma * SIGMA_DATA / total.sqrt()
            c_in = 1 / total.sqrt()
            c_noise = sigma.log() / 4
        else:
            c_skip, c_out = 1, -sigma
            c_in = 1 / (sigma**2 + 1).sqrt()
            c_noise = 999 * ((BETA_MIN**2 + 2 * BETA_D * (sigma**2 + 1).log()).sqrt() - BETA_MIN) / BETA_D
        output = net((c_in * x).to(io), c_noise.flatten())
        return c_skip * x + c_out * output.to(torch.float32)

    return denoise


def edm(state: torch.dtype) -> Callable[[Workload, Model, Tensor], Job]:
    """EDM's algorithm 2 as its authors run it: noise levels in float64, the state in ``state``.

    Guidance is that of autoguidance: the wrapped network once for each branch, then an interpolation.
    """

    def start(workload: Workload, model: Model, noise: Tensor) -> Job:
        levels = torch.tensor(workload.sigmas, dtype=torch.float64, device=noise.device).to(state)
        x = noise.to(state) * levels[0]
        return Steps(_edm_states(workload, model, x, levels), workload.steps)

    return start


def _edm_states(workload: Workload, model: Model, x: Tensor, levels: Tensor) -> Iterator[Tensor]:
    cond, uncond = preconditioned(model.cond, workload), preconditioned(model.uncond, workload)
    state, steps = x.dtype, len(levels) - 1

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        d = cond(x, t).to(state)
        return uncond(x, t).to(state).lerp(d, workload.guidance) if workload.guided else d

    for i in range(steps):
        t, t_next = levels[i], levels[i + 1]
        if workload.s_churn:
            gamma = min(workload.s_churn / steps, math.sqrt(2) - 1) if S_MIN <= t <= S_MAX else 0
            t_hat = torch.as_tensor(t + gamma * t)
            x_hat = x + (t_hat**2 - t**2).sqrt() * S_NOISE * torch.randn_like(x)
        else:
            t_hat, x_hat = t, x
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if i < steps - 1:
            d_prime = (x - denoise(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (0.5 * d + 0.5 * d_prime)
        yield x


def guided_wrapper(model: Model, workload: Workload) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser of batches with one sigma for each sample: both branches in one call, then the difference scaled."""
    net = preconditioned(model.both if workload.guided else model.cond, workload)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if not workload.guided:
            return net(x, sigma)
        cond, uncond = net(torch.cat([x] * 2), torch.cat([sigma] * 2)).chunk(2)
        return uncond + (cond - uncond) * workload.guidance

    return denoise


def k_diffusion_ops(workload: Workload, model: Model, noise: Tensor) -> Job:
    """Euler and Heun with churn on a one-dimensional tensor of sigmas, each broadcast to the batch at every call."""
    sigmas = torch.tensor(workload.sigmas, dtype=torch.float32, device=noise.device)
    denoise = guided_wrapper(model, workload)
    return Steps(_k_diffusion_states(workload, denoise, noise.float() * sigmas[0], sigmas), workload.steps)


def _k_diffusion_states(
    workload: Workload, denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor
) -> Iterator[Tensor]:
    ones = x.new_ones([x.shape[0]])
    steps = len(sigmas) - 1

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - denoise(x, sigma * ones)) / sigma

    for i in range(steps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        gamma = min(workload.s_churn / steps, 2**0.5 - 1) if S_MIN <= sigma <= S_MAX else 0.0
        # Drawn whether it is used or not, as the original does.
        noise = torch.randn_like(x) * S_NOISE
        sigma_hat = sigma * (gamma + 1)
        if gamma > 0:
            x = x + noise * (sigma_hat**2 - sigma**2) ** 0.5
        d = slope(x, sigma_hat)
        step = sigma_next - sigma_hat
        if workload.alpha is None or sigma_next == 0:
            x = x + d * step
        else:
            d_prime = slope(x + d * step, sigma_next)
            x = x + (d + d_prime) / 2 * step
        yield x


def _heun_only(workload: Workload) -> str | None:
    return None if workload.solver == "heun" else f"it has no {workload.solver}"


def _euler_or_heun(workload: Workload) -> str | None:
    return None if workload.solver in ("euler", "heun") else f"it has no {workload.solver}"


def _float32_state(workload: Workload) -> str | None:
    return None if workload.dtype == "float32" else "its state is float32"


EAGER = (
    Contestant("textbook", "algorithm 2 of the EDM paper with CFG, scalars on the host", textbook_start),
    Contestant(
        "edm-fp64",
        "the operations of the EDM sampler and wrapper, float64 state",
        edm(torch.float64),
        _heun_only,
        draws=torch.float64,
    ),
    Contestant(
        "edm-fp32",
        "the same with a float32 state, as EDM2 runs it",
        edm(torch.float32),
        lambda workload: _heun_only(workload) or _float32_state(workload),
    ),
    Contestant(
        "k-diffusion-ops",
        "the operations of k-diffusion's sampler, denoiser and CFG wrapper",
        k_diffusion_ops,
        lambda workload: _euler_or_heun(workload) or _float32_state(workload),
    ),
)
