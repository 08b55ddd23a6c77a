"""Do samples have the distribution of the data? Mixtures with exact denoisers, in d = 2 and 16 (VERIFY, C3).

Two statistics whose null distribution is known, so that alpha is what it says:

* *modes*: counts of samples nearest to each mode against its weight (chi-square, K - 1 degrees of freedom; the
  modes are so far apart that assigning to the nearest misplaces less than 1e-5 of the samples);
* *features*: the mean of random Fourier features ``exp(i w x)`` against their exact expectation, which for a mixture
  of Gaussians is closed, in the metric of their covariance: a whitened maximum mean discrepancy (Chwialkowski et al.,
  *Fast Two-Sample Testing with Analytic Representations of Probability Measures*, 2015), chi-square in the limit.

Samplers have a discretisation error, so they take enough steps for it to stay below the statistical one; the
positive controls show that an error of 2 % in the noise does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from textbook import PREDICTIONS, Mixture
from torch import Tensor

from fastdiff.maths import schedule
from fastdiff.maths.churn import Churn
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan
from fastdiff.rows.row import Output, Row
from fastdiff.runs.sample import sample

ALPHA = 1e-6
SEED = 1
SCHEDULE = schedule.edm(0.005, 10.0)
CHURN = Churn(8.0, 0.01, 5.0)
STDS, WEIGHTS = [0.05, 0.06, 0.07], [0.2, 0.3, 0.5]


def corners(d: int) -> Mixture:
    """Three modes at 120 degrees, 0.52 apart, in a plane that is askew to the axes."""
    basis, _ = np.linalg.qr(np.random.default_rng(d).standard_normal((d, 2)))
    means = [0.3 * (math.cos(a) * basis[:, 0] + math.sin(a) * basis[:, 1]) for a in (0.5, 2.6, 4.7)]
    return Mixture([mean.tolist() for mean in means], STDS, WEIGHTS)


MIXTURES = {2: corners(2), 16: corners(16)}


def mode_statistic(mixture: Mixture, x: Tensor) -> tuple[float, int]:
    """Pearson's chi-square of the mode counts, and its degrees of freedom."""
    nearest = torch.cdist(x, mixture.means).argmin(1)
    counts = nearest.bincount(minlength=len(mixture.weights)).double()
    expected = mixture.weights * len(x)
    return float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1


def feature_statistic(mixture: Mixture, x: Tensor) -> tuple[float, int]:
    """``n d' S^-1 d`` for the deviation d of 24 feature means, S their sample covariance."""
    d = x.shape[1]
    normal = torch.from_numpy(np.random.default_rng(0).standard_normal((12, d))) / math.sqrt(d / 2)
    # Frequencies that see the modes' places, and frequencies that see their widths.
    w = normal * torch.tensor([4.0, 12.0], dtype=torch.float64).repeat_interleave(6)[:, None]
    angle = x @ w.T
    features = torch.cat([angle.cos(), angle.sin()], dim=1)
    weight = mixture.weights[:, None] * torch.exp(-0.5 * mixture.stds[:, None] ** 2 * (w**2).sum(1))
    angle = mixture.means @ w.T
    expected = torch.cat([(weight * angle.cos()).sum(0), (weight * angle.sin()).sum(0)])
    deviation = features.mean(0) - expected
    return len(x) * float(deviation @ torch.linalg.solve(torch.cov(features.T), deviation)), 2 * len(w)


STATISTICS: dict[str, Callable[[Mixture, Tensor], tuple[float, int]]] = {
    "modes": mode_statistic,
    "features": feature_statistic,
}


def p_values(mixture: Mixture, x: Tensor) -> dict[str, float]:
    """How probable a statistic as large as this is for samples of the mixture itself."""
    return {name: float(chi2.sf(*statistic(mixture, x.double()))) for name, statistic in STATISTICS.items()}


def draw(compiled: Plan, mixture: Mixture, n: int) -> Tensor:
    return sample(mixture.network(PREDICTIONS["edm"]), compiled, (n, mixture.means.shape[1]), SEED)


SIZES = {2: 40_000, 16: 20_000}


@pytest.mark.parametrize("churn", [None, CHURN], ids=["deterministic", "churn"])
@pytest.mark.parametrize("d", MIXTURES)
def test_samples_are_distributed_as_the_data(d: int, churn: Churn | None) -> None:
    found = p_values(MIXTURES[d], draw(plan(schedule=SCHEDULE, steps=64, churn=churn), MIXTURES[d], SIZES[d]))
    assert min(found.values()) > ALPHA, found


@pytest.mark.parametrize("d", MIXTURES)
def test_exact_samples_pass_and_their_statistics_have_the_stated_distribution(d: int) -> None:
    """40 sets of exact samples: mean and variance of a chi-square with k degrees are k and 2k, within 5 errors."""
    mixture = MIXTURES[d]
    for name, statistic in STATISTICS.items():
        values, degrees = zip(*(statistic(mixture, mixture.draw(5_000, seed)) for seed in range(40)), strict=True)
        k = degrees[0]
        assert np.mean(values) == pytest.approx(k, abs=5 * math.sqrt(2 * k / 40)), name
        assert max(chi2.sf(values, k)) > 0.5 > min(chi2.sf(values, k)) > ALPHA, name


def tampered(compiled: Plan, change: Callable[[int, Row], Row]) -> Plan:
    """The plan with every row changed."""
    return replace(compiled, rows=tuple(change(k, row) for k, row in enumerate(compiled.rows)))


def scaled_noise(factor: float) -> Callable[[int, Row], Row]:
    """Rows whose churn noise is too large, or gone."""

    def output(given: Output) -> Output:
        noise = tuple((name, factor * c) for name, c in given.noise)
        return replace(given, noise=noise if factor else ())

    return lambda k, row: replace(row, outputs=tuple(map(output, row.outputs))) if k else row


def swapped(at: int) -> Callable[[int, Row], Row]:
    """One row whose first two coefficients are exchanged."""

    def change(k: int, row: Row) -> Row:
        if k != at:
            return row
        first, *others = row.outputs
        (a, p), (b, q), *rest = first.terms
        return replace(row, outputs=(replace(first, terms=((a, q), (b, p), *rest)), *others))

    return change


FAULTS = {
    "churn noise x 1.02": (CHURN, scaled_noise(1.02), None),
    "dropped churn": (CHURN, scaled_noise(0.0), 4_000),
    "one wrong row": (None, swapped(61), 4_000),
    # Fresh noise heals an early mistake (row 61 passes), so with churn the wrong row is a late one.
    "one wrong row, churn": (CHURN, swapped(91), 4_000),
}


@pytest.mark.parametrize("d", MIXTURES)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str, d: int) -> None:
    """The positive controls of the tests above."""
    churn, change, n = FAULTS[fault]
    broken = tampered(plan(schedule=SCHEDULE, steps=64, churn=churn), change)
    found = p_values(MIXTURES[d], draw(broken, MIXTURES[d], n or SIZES[d]))
    assert min(found.values()) < ALPHA, found


def test_wrong_mode_weights_are_rejected() -> None:
    wrong = Mixture(MIXTURES[2].means.tolist(), STDS, [0.22, 0.28, 0.5])
    assert p_values(MIXTURES[2], wrong.draw(SIZES[2], SEED))["modes"] < ALPHA


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """Mean over 16 directions of the 1-Wasserstein distance of the projections of two sets of one size."""
    directions = torch.from_numpy(np.random.default_rng(0).standard_normal((x.shape[1], 16)))
    directions = directions / directions.norm(dim=0)
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean())


@pytest.mark.night
@pytest.mark.parametrize("d", MIXTURES)
def test_the_sliced_wasserstein_distance_is_below_its_99_9_percent_null_quantile(d: int) -> None:
    """The null is drawn: 1,000 pairs of exact sets of 10,000."""
    n, mixture = 10_000, MIXTURES[d]
    null = [sliced_wasserstein(mixture.draw(n, 2 * k), mixture.draw(n, 2 * k + 1)) for k in range(1, 1001)]
    limit = float(np.quantile(null, 0.999))
    exact = mixture.draw(n, 0)
    for churn in (None, CHURN):
        compiled = plan(schedule=SCHEDULE, steps=64, churn=churn)
        assert sliced_wasserstein(draw(compiled, mixture, n).double(), exact) < limit
    broken = tampered(plan(schedule=SCHEDULE, steps=64, churn=CHURN), scaled_noise(1.2))
    assert sliced_wasserstein(draw(broken, mixture, n).double(), exact) > limit
