"""Multistep methods: they remember what the network said at earlier steps, and ask it once a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastdiff.maths.real import Real, count, mp
from fastdiff.solvers.solver import solver


@solver("dpmpp_2m", order=2, source="Lu et al. 2022, DPM-Solver++, algorithm 2")
def dpmpp_2m(trace, x, now, then, memory):
    """``x / s = sigma' / sigma x / s + (1 - sigma' / sigma) E``, E extrapolated in ``lambda = -log sigma``.

    The first step, and one to sigma = 0, take ``E = D``.
    """
    D = E = trace.denoise(x, now)
    if memory and then.sigma:
        before, D_before = memory
        E = D + (D - D_before) * ((then.lam - now.lam) / (2 * (now.lam - before.lam)))
    decay = then.sigma / now.sigma
    return (x / now.s * decay + E * (1 - decay)) * then.s, (now, D)


@solver("lms", order=2, source="Adams-Bashforth with variable steps (Hairer, Norsett and Wanner 1993, section III.5)")
def lms(trace, x, now, then, memory, *, order=4):
    """``x <- x + int p(t) dt``, p through the last ``order`` slopes.

    It starts with one slope, then two, and so on, which makes it second order as a whole.
    """
    past = [(now.t, trace.slope(x, now)), *(memory or [])][: count(order, "order")]
    for (_, slope), weight in zip(past, _weights([t for t, _ in past], now.t, then.t), strict=True):
        x = x + slope * weight
    return x, past[: order - 1]


def _weights(times: Sequence[Real], start: Real, end: Real) -> Iterator[Real]:
    """The integrals from start to end of the Lagrange polynomials on ``times``, in the variable ``t - start``."""
    nodes = [t - start for t in times]
    for i, node in enumerate(nodes):
        powers = [mp.one]
        for other in nodes[:i] + nodes[i + 1 :]:
            shifted, scaled = [mp.zero, *powers], [*(other * c for c in powers), mp.zero]
            powers = [(a - b) / (node - other) for a, b in zip(shifted, scaled, strict=True)]
        yield sum(c * (end - start) ** (k + 1) / (k + 1) for k, c in enumerate(powers))


@solver("unipc", order=3, source="Zhao et al. 2023, UniPC-2 with B_2(h), data prediction")
def unipc(trace, x, now, then, memory):
    """A step of ``_unipc``; when D at its end is known the same step is taken again with it, as a corrector.

    The predictor is second order; the corrector, which asks for nothing more, makes the method third order.
    """
    D, past = trace.denoise(x, now), []
    if memory:
        x, before, D_before, earlier = memory
        x, past = _unipc(x, before, D_before, now, [*earlier, (now, D)]), [(before, D_before)]
    return _unipc(x, now, D, then, past), (x, now, D, past)


def _unipc(x, now, D, then, others):
    """UniPC's update from now to then; ``others`` are one or two more points with D there.

    With h the step in lambda and ``b = 1 - e^-h``, the first-order step ``e^-h x / s + b D`` plus
    ``b sum_i rho_i (D_i - D) / r_i``, r_i being the places of the others in units of h. For one of them rho is 1/2, for
    two it fits the moments m_1, m_2 of the exponential integrator: ``sum_i rho_i r_i^(k-1) = m_k``.
    """
    decay = then.sigma / now.sigma
    y = x / now.s * decay + D * (1 - decay)
    if then.sigma and others:
        h, b = then.lam - now.lam, 1 - decay
        r = [(point.lam - now.lam) / h for point, _ in others]
        m_1, rho = 1 / b - 1 / h, [mp.mpf(1) / 2]
        if len(r) == 2:
            last = (1 / b - 2 * m_1 / h - r[0] * m_1) / (r[1] - r[0])
            rho = [m_1 - last, last]
        for place, weight, (_, D_other) in zip(r, rho, others, strict=True):
            y = y + (D_other - D) * (b * weight / place)
    return y * then.s
