"""Ancestral samplers: a deterministic step to a lower noise level, and fresh noise back up to the wanted one."""

from __future__ import annotations

from fastdiff.errors import PlanError
from fastdiff.maths.real import mp, not_negative
from fastdiff.solvers.solver import solver


@solver("euler_ancestral", order=1, source="Song et al. 2021, appendix F, as k-diffusion states it", stochastic=True)
def euler_ancestral(trace, x, now, then, memory, *, eta=1.0):
    """``x / s = D + (x / s - D) down / sigma + up xi``, ``down^2 + up^2 = sigma'^2``.

    ``up = eta sigma' sqrt(sigma^2 - sigma'^2) / sigma``, at most sigma'; eta = 0 is Euler's method in sigma.
    """
    drop = mp.sqrt(now.sigma**2 - then.sigma**2)
    up = min(then.sigma, not_negative(eta, "eta") * then.sigma * drop / now.sigma)
    down = mp.sqrt(then.sigma**2 - up**2)
    D = trace.denoise(x, now)
    return (D + (x / now.s - D) * (down / now.sigma) + trace.noise() * up) * then.s, None


@solver("ddpm", order=1, source="Ho et al. 2020, equation 7 (posterior mean and variance)", stochastic=True)
def ddpm(trace, x, now, then, memory):
    """``q(x_{t-1} | x_t, x_0)`` at ``x_0 = D``; with ``k = (sigma' / sigma)^2`` its mean is ``k x / s + (1 - k) D``."""
    keep = (then.sigma / now.sigma) ** 2
    D = trace.denoise(x, now)
    mean = x / now.s * keep + D * (1 - keep)
    return (mean + trace.noise() * (then.sigma * mp.sqrt(1 - keep))) * then.s, None


@solver("ddim", order=1, source="Song, Meng and Ermon 2021, equations 12 and 16")
def ddim(trace, x, now, then, memory, *, eta=0.0):
    """``x / s = D + sqrt(sigma'^2 - up^2) eps + up xi``, ``up = eta sigma' sqrt(1 - (sigma' / sigma)^2)``.

    eta = 0 is deterministic, Euler's method in sigma; eta = 1 is DDPM's posterior.
    """
    share = not_negative(eta, "eta")
    if share > 1:
        raise PlanError(f"eta is {eta}; it must lie in 0 .. 1")
    up = share * then.sigma * mp.sqrt(1 - (then.sigma / now.sigma) ** 2)
    eps = trace.epsilon(x, now)
    D = x / now.s - eps * now.sigma
    return (D + eps * mp.sqrt(then.sigma**2 - up**2) + trace.noise() * up) * then.s, None
