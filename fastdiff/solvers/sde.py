"""Discretisations of the reverse SDE, with and without a Langevin corrector."""

from __future__ import annotations

from fastdiff.maths.real import mp, positive
from fastdiff.solvers.solver import solver


@solver("reverse_sde", order=1, source="Song et al. 2021, equation 6, Euler-Maruyama", stochastic=True)
def reverse_sde(trace, x, now, then, memory):
    """``x <- x + (f x - g^2 score) h + g sqrt(-h) xi``; no noise where the path ends at sigma = 0."""
    h = then.t - now.t
    x = x + (x * now.f - trace.score(x, now) * now.g2) * h
    return (x + trace.noise() * mp.sqrt(-h * now.g2) if then.sigma else x), None


@solver("predictor_corrector", order=1, source="Song et al. 2021, algorithms 1, 4 and 5", stochastic=True)
def predictor_corrector(trace, x, now, then, memory, *, snr=0.16):
    """The reverse SDE's step, then a Langevin step at the new level: ``x + alpha score + sqrt(2 alpha) xi``.

    ``alpha = 2 (snr |xi| / |score|)^2`` for each sample by itself, so that a sample does not depend on its batch.
    """
    x, _ = reverse_sde.step(trace, x, now, then, None)
    if not then.sigma:
        return x, None
    score, xi = trace.score(x, then), trace.noise()
    alpha = trace.dot(xi, xi) / trace.dot(score, score).at_least(1e-30) * (2 * positive(snr, "snr") ** 2)
    return x + score * alpha + xi * (alpha * 2).sqrt(), None
