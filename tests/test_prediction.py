"""Predictions: what a network says about x0 and eps, converted exactly; the table of the paper; iDDPM's levels."""

from __future__ import annotations

import itertools
import math

import pytest
import textbook
import torch

from fastdiff.backends import reference
from fastdiff.errors import PlanError
from fastdiff.maths import prediction, schedule
from fastdiff.maths.prediction import PREDICTIONS, Prediction, conversion, named_prediction
from fastdiff.maths.real import mp, round_to
from fastdiff.rows.call import Call
from fastdiff.rows.row import Output, Row

SIGMAS = ("0.002", "0.4", "1", "7.5", "80")
ALL = {name: named_prediction(name) for name in PREDICTIONS} | {"score, ve": prediction.score("ve")}
# 160 bits are 48 digits; at sigma = 0.002 the differences of c_skip lose 6 of them.
EXACT = mp.mpf(10) ** -38


def truth(name: str, x0, eps, sigma):
    """The network output each definition asks for, with ``xhat = x0 + sigma eps`` (not from the preconditioning)."""
    root = mp.sqrt(1 + sigma**2)
    alpha, sigma_vp = 1 / root, sigma / root
    xhat = x0 + sigma * eps
    return {
        "epsilon": eps,
        "vp": eps,
        "iddpm": eps,
        "x0": x0,
        # The score of N(alpha x0, sigma_vp^2) at alpha x0 + sigma_vp eps, and of N(x0, sigma^2) at xhat.
        "score": -eps / sigma_vp,
        "score, ve": -eps / sigma,
        "v": alpha * eps - sigma_vp * x0,
        "flow": eps - x0,
        "ve": -eps,
        # EDM: the target that leaves D = x0 with sigma_data = 1/2 (equation 8).
        "edm": (x0 - xhat / 4 / (sigma**2 + mp.mpf(1) / 4)) / (sigma / 2 / mp.sqrt(sigma**2 + mp.mpf(1) / 4)),
    }[name]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", ALL)
def test_the_preconditioning_recovers_x0(name: str, sigma: str) -> None:
    sigma, x0, eps = mp.mpf(sigma), mp.mpf("0.3"), mp.mpf("-1.7")
    c_skip, c_out, _, _ = ALL[name](sigma)
    assert abs(c_skip * (x0 + sigma * eps) + c_out * truth(name, x0, eps, sigma) - x0) <= EXACT


@pytest.mark.parametrize("source", ALL)
def test_conversions_are_exact_and_invertible(source: str) -> None:
    for target, sigma in itertools.product(ALL, map(mp.mpf, SIGMAS)):
        x0, eps = mp.mpf("0.3"), mp.mpf("-1.7")
        given, wanted = truth(source, x0, eps, sigma), truth(target, x0, eps, sigma)
        a, b = conversion(ALL[source], ALL[target], sigma)
        back, forth = conversion(ALL[target], ALL[source], sigma)
        assert abs(a * (x0 + sigma * eps) + b * given - wanted) <= EXACT * (1 + abs(wanted)), target
        assert abs(b * forth - 1) <= EXACT, target
        assert abs(back + forth * a) <= EXACT * (1 + abs(back)), target


@pytest.mark.parametrize("pair", [("epsilon", "x0"), ("v", "score"), ("edm", "flow"), ("flow", "v")], ids="-".join)
def test_a_conversion_is_a_row(pair: tuple[str, str]) -> None:
    """One stage turns one prediction into another; float64, so within a few roundings of the exact conversion."""
    sigma = mp.mpf("0.7")
    source, target = pair
    a, b = (round_to(value, "float64") for value in conversion(ALL[source], ALL[target], sigma))
    row = Row(("xhat", "F"), (Output(terms=(("xhat", a), ("F", b)), store="out"),))
    points = [(mp.mpf(k) / 5 - 1, mp.mpf("0.9") - mp.mpf(k) / 7) for k in range(12)]
    xhat = [x0 + sigma * eps for x0, eps in points]
    given, wanted = ([truth(name, x0, eps, sigma) for x0, eps in points] for name in pair)
    xhat, given, wanted = (
        torch.tensor([[float(v) for v in values]], dtype=torch.float64).view(3, 4) for values in (xhat, given, wanted)
    )
    out = torch.empty_like(wanted)
    coef = torch.tensor([row.coefficients], dtype=torch.float64)
    reference.stage(Call([xhat, given], coef, row.program, stores=[out]))
    # Three roundings a term (coefficient, column, product), one of the sum and one of what is wanted.
    bound = 2.0**-53 * (5 * abs(a) * xhat.abs() + 5 * abs(b) * given.abs())
    assert ((out - wanted).abs() <= bound).all()


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", textbook.PREDICTIONS)
def test_scalars_agree_with_the_table_of_the_paper(name: str, sigma: str) -> None:
    found = [float(value) for value in ALL[name](mp.mpf(sigma))]
    assert found == pytest.approx(textbook.PREDICTIONS[name].scalars(float(sigma)), rel=1e-14)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_edm_preconditioning_keeps_unit_variance(sigma: str) -> None:
    """EDM, appendix B.6: unit variance of the input and of the target, and the least amplification of F's error."""
    sigma, sigma_data = mp.mpf(sigma), mp.mpf("0.3")
    c_skip, c_out, c_in, _ = prediction.edm(0.3)(sigma)
    sigma_data = mp.mpf(0.3)
    assert abs(c_in**2 * (sigma**2 + sigma_data**2) - 1) <= EXACT
    assert abs(c_out**2 - (1 - c_skip) ** 2 * sigma_data**2 - c_skip**2 * sigma**2) <= EXACT
    for other in (c_skip * mp.mpf("0.99"), c_skip * mp.mpf("1.01")):
        assert (1 - other) ** 2 * sigma_data**2 + other**2 * sigma**2 > c_out**2


def test_variance_preserving_inputs_have_unit_variance_for_unit_data() -> None:
    for name in ("vp", "iddpm", "epsilon", "x0", "v", "score"):
        assert abs(ALL[name](mp.mpf("1.3")).c_in ** 2 * (1 + mp.mpf("1.3") ** 2) - 1) <= EXACT


@pytest.mark.parametrize(
    ("name", "sigma_of"),
    [
        ("edm", lambda c: mp.exp(4 * c)),
        ("ve", lambda c: 2 * mp.exp(c)),
        ("vp", lambda c: schedule.vp_path().sigma(c / 999)),
        ("flow", lambda c: c / (1 - c)),
    ],
)
def test_c_noise_tells_the_noise_level(name: str, sigma_of) -> None:
    for sigma in map(mp.mpf, SIGMAS):
        assert abs(sigma_of(ALL[name](sigma).c_noise) - sigma) <= mp.mpf(10) ** -35 * sigma


def test_iddpm_knows_its_levels_and_no_others() -> None:
    """c_noise is M - 1 - j of the nearest u_j, j = 0 .. M - 1; u_M = 0 was never trained."""
    iddpm, u = ALL["iddpm"], schedule.iddpm_sigmas()
    for j in (0, 1, 2, 500, 998, 999):
        assert iddpm.round_sigma(u[j]) == u[j]
        assert iddpm(u[j]).c_noise == 999 - j
        assert iddpm.round_sigma(u[j] * (1 + mp.mpf(10) ** -9)) == u[j]
        assert iddpm.round_sigma(u[j] * (1 - mp.mpf(10) ** -9)) == u[j]
    middle = (u[500] + u[501]) / 2
    assert iddpm(middle + mp.mpf(10) ** -9).c_noise == 499
    assert iddpm(middle - mp.mpf(10) ** -9).c_noise == 498
    assert iddpm.round_sigma(mp.mpf(1) / 10**6) == u[999]
    assert iddpm.round_sigma(mp.mpf(10) ** 6) == u[0]
    for sigma in (0.0123, 0.77, 6.6, 55.0):
        assert float(iddpm.round_sigma(mp.mpf(sigma))) == pytest.approx(textbook.nearest_u(sigma), rel=1e-13)


def test_other_predictions_know_every_level() -> None:
    for name in set(ALL) - {"iddpm"}:
        assert ALL[name].round_sigma(mp.mpf("0.123")) == mp.mpf("0.123")


@pytest.mark.parametrize("make", [prediction.epsilon, prediction.x0, prediction.v, prediction.score, prediction.flow])
def test_the_network_can_be_told_the_noise_level_in_other_ways(make) -> None:
    sigma = mp.mpf("0.6")
    assert make(c_noise="log")(sigma).c_noise == mp.log(sigma) / 4
    assert make(c_noise="sigma")(sigma).c_noise == sigma
    assert make(c_noise="flow")(sigma).c_noise == sigma / (1 + sigma)
    assert make(c_noise="vp")(sigma).c_noise == ALL["vp"](sigma).c_noise


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: named_prediction("noise"), "prediction is 'noise'; known names are edm, vp, ve, iddpm, epsilon"),
        (lambda: prediction.edm(0.0), "sigma_data is 0.0; it must be positive"),
        (lambda: prediction.edm(math.nan), "sigma_data is nan; it must be finite"),
        (lambda: prediction.epsilon("log10"), "c_noise is 'log10'; it must be one of vp, log, sigma, flow"),
        (lambda: prediction.score("sub-vp"), "space is 'sub-vp'; it must be 'vp' or 've'"),
        (lambda: prediction.iddpm(c_1=-1.0), "c_1 is -1.0; it must be positive"),
        (lambda: conversion(ALL["x0"], ALL["edm"], mp.zero), "'edm' has c_out = 0 at sigma = 0.0: not invertible"),
    ],
)
def test_bad_settings_are_refused_with_the_value_and_what_is_allowed(make, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        make()


def test_a_prediction_of_ones_own_is_a_function_of_sigma() -> None:
    own = Prediction("own", lambda sigma: prediction.Scalars(mp.zero, mp.one, mp.one, sigma))
    assert conversion(own, ALL["x0"], mp.one) == (0, 1)
