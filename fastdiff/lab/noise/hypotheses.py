"""The tests, each with a p-value under the hypothesis of independent standard normals.

Standard errors are exact: ``Var(x^k) = (2k-1)!! - ((k-1)!!)^2`` (the second term for even k), ``Var(x y) = 1``,
``Var((x^2 - 1)(y^2 - 1)) = 4``. With m tests each is held to ALPHA / m (Bonferroni), so that noise without a
fault is rejected by the whole battery at most once in a million seeds, however the tests depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

from fastdiff.lab.noise.draws import ANSWERS, FAR, NEIGHBOURS, Draws

ALPHA = 1e-6
FEWEST = 2**16
"""Draws below which the normal approximation of the higher moments is too rough at ALPHA."""
THRESHOLDS = (2.0, 3.0, 4.0, 4.5, 5.0)
MOMENTS = {1: (0.0, 1.0), 2: (1.0, 2.0), 3: (0.0, 15.0), 4: (3.0, 96.0)}
"""Of every power of a standard normal, its mean and its variance."""


class Verdict(NamedTuple):
    """One result.

    Args:
        group: what kind of test.
        name: what was looked at.
        found: the statistic, as people read it.
        expected: what it should be near.
        p: the probability of a statistic at least as extreme; 0 or 1 for an exact test.
        z: how many standard errors it is off, where that is the statistic.
    """

    group: str
    name: str
    found: str
    expected: str
    p: float
    z: float | None = None


def run(draws: Draws) -> list[Verdict]:
    """All tests."""
    return [*_answers(draws), *_moments(draws.x), *_shape(draws.x), *_tails(draws.x), *_correlations(draws)]


def level(tests: list[Verdict]) -> float:
    """The p-value below which one of these tests fails."""
    return ALPHA / len(tests)


def failed(tests: list[Verdict]) -> list[Verdict]:
    """Those that fail."""
    return [test for test in tests if not test.p >= level(tests)]


def _answers(draws: Draws) -> Iterator[Verdict]:
    for name, wrong, total in (
        ("every word of the counter", draws.wrong_answers, len(ANSWERS)),
        ("beyond 6 sigma", draws.wrong_far, len(FAR)),
    ):
        yield Verdict("known answers", name, f"{total - wrong} right", f"{total} right", float(wrong == 0))


def _moments(x: np.ndarray) -> Iterator[Verdict]:
    for k, (mean, variance) in MOMENTS.items():
        found = float(np.mean(x**k))
        z = (found - mean) / math.sqrt(variance / x.size)
        yield Verdict("moments", f"mean of x^{k}" if k > 1 else "mean", f"{found:.6f}", f"{mean:g}", _two_sided(z), z)


def _shape(x: np.ndarray) -> Iterator[Verdict]:
    from scipy import special, stats

    parts = {"all": x, **{f"lane {lane}": x[:, lane::4] for lane in range(4)}}
    for name, part in parts.items():
        found = stats.kstest(part.ravel(), "norm", method="asymp")
        yield Verdict("Kolmogorov-Smirnov", name, f"D = {found.statistic:.2e}", "", float(found.pvalue))
    for name, part in parts.items():
        flat = np.sort(part.ravel())
        odd = 2 * np.arange(1, flat.size + 1) - 1
        a2 = -flat.size - float(np.mean(odd * (special.log_ndtr(flat) + special.log_ndtr(-flat[::-1]))))
        # Upper tail of sum_j chi^2_j / (j (j + 1)), whose largest term leads: Anderson and Darling, 1952.
        p = 1.0 if math.isnan(a2) else min(1.0, math.sqrt(3) * math.erfc(math.sqrt(max(a2, 0.0))))
        yield Verdict("Anderson-Darling", name, f"A2 = {a2:.3f}", "", 0.0 if math.isnan(a2) else p)


def _tails(x: np.ndarray) -> Iterator[Verdict]:
    from scipy import stats

    for threshold in THRESHOLDS:
        for sign, part in (("<-", x < -threshold), (">", x > threshold)):
            chance = float(stats.norm.sf(threshold))
            count = int(part.sum())
            p = float(stats.binomtest(count, x.size, chance).pvalue)
            yield Verdict("tail counts", f"x {sign}{threshold:g}", f"{count:,}", f"{chance * x.size:,.1f}", p)
    largest = float(np.abs(x).max())
    # P(max <= m) = (1 - 2 sf(m))^n, by logarithms; two-sided.
    below = math.exp(x.size * math.log1p(-2 * float(stats.norm.sf(largest)))) if math.isfinite(largest) else 1.0
    middle = float(stats.norm.isf((1 - 0.5 ** (1 / x.size)) / 2))
    p = 2 * min(below, -math.expm1(x.size * math.log1p(-2 * float(stats.norm.sf(largest)))))
    yield Verdict("tail counts", "largest |x|", f"{largest:.3f}", f"{middle:.3f}", min(p, 1.0))


def _correlations(draws: Draws) -> Iterator[Verdict]:
    """Of x with its neighbour, and of their squares, which see what the signs hide."""
    x = draws.x
    pairs = {f"{name}": (x[:NEIGHBOURS], y) for name, y in draws.neighbours.items()}
    pairs |= {"sample + 1": (x[:-1], x[1:])}
    pairs |= {f"element + {k}": (x[:, :-k], x[:, k:]) for k in (1, 2, 3, 4)}
    pairs |= {f"lanes {a}, {b}": (x[:, a::4], x[:, b::4]) for a, b in combinations(range(4), 2)}
    for name, (a, b) in pairs.items():
        found, n = float(np.mean(a * b)), a.size
        z = found * math.sqrt(n)
        yield Verdict("correlation", name, f"{found:+.2e}", "0", _two_sided(z), z)
    for name, (a, b) in pairs.items():
        found, n = float(np.mean((a * a - 1) * (b * b - 1))) / 2, a.size
        z = found * math.sqrt(n)
        yield Verdict("correlation of squares", name, f"{found:+.2e}", "0", _two_sided(z), z)


def _two_sided(z: float) -> float:
    """The probability of a standard normal at least as far out; 0 where z is NaN, as noise with a NaN has failed."""
    return 0.0 if math.isnan(z) else math.erfc(abs(z) / math.sqrt(2))
