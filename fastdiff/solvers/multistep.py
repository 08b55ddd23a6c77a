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


@solver("unipc", order=2, source="Zhao et al. 2023, UniPC-2 with B_2(h), data prediction")
def unipc(trace, x, now, then, memory):
    """A step of ``_unipc``; when D at its end is known the same step is taken again with it, as a corrector."""
    D = trace.denoise(x, now)
    if not memory:
        return _unipc(x, now, D, None, then), (x, now, D, None)
    x = _unipc(*memory, now, D)
    past = memory[1:3]
    return _unipc(x, now, D, past, then), (x, now, D, past)


def _unipc(x, now, D, past, then, D_then=None):
    """UniPC's update from now to then; ``past`` is the point and D before, ``D_then`` what the corrector knows more.

    With h the step in lambda and ``b = 1 - e^-h``, the first-order step ``e^-h x / s + b D`` plus
    ``b sum_i rho_i (D_i - D) / r_i`` over the other D, r_i being their places in units of h. With one of them rho is
    1/2, with two it fits the moments m_1, m_2 of the exponential integrator: ``sum_i rho_i r_i^(k-1) = m_k``.
    """
    decay = then.sigma / now.sigma
    y = x / now.s * decay + D * (1 - decay)
    if then.sigma and (past or D_then):
        h, b, half = then.lam - now.lam, 1 - decay, mp.mpf(1) / 2
        r = (past[0].lam - now.lam) / h if past else None
        m_1 = 1 / b - 1 / h
        at_then = ((1 / b - 2 * m_1 / h) - r * m_1) / (1 - r) if past and D_then else half
        y = y + (D_then - D) * (b * at_then) if D_then else y
        y = y + (past[1] - D) * (b * (m_1 - at_then if D_then else half) / r) if past else y
    return y * then.s
