"""Schedules: inverses, derivatives and levels against high-precision mathematics and the papers' formulas."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import textbook
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath.ctx_mp_python import PythonMPContext

from fastdiff.errors import PlanError
from fastdiff.maths import prediction, schedule
from fastdiff.maths.prediction import PREDICTIONS, conversion, epsilon, v
from fastdiff.maths.real import expm1, log1p, mp, real, round_to
from fastdiff.maths.schedule import Path, Schedule

PATHS = {
    "linear": schedule.linear_path(),
    "linear, vp scale": schedule.linear_path().with_vp_scale(),
    "vp": schedule.vp_path(),
    "vp, no scale": schedule.vp_path().without_scale(),
    "ve": schedule.ve_path(),
    "ve, vp scale": schedule.ve_path().with_vp_scale(),
    "smld": schedule.smld_path(),
    "smld, vp scale": schedule.smld_path().with_vp_scale(),
}
TIMES = ("0.001", "0.1", "0.37", "0.75", "0.999")
# 160 bits are 48 digits; the functions lose a few of them.
DIGITS_40 = mp.mpf(10) ** -40


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_sigma_inv_undoes_sigma(path: Path, t: str) -> None:
    t = mp.mpf(t)
    assert abs(path.sigma_inv(path.sigma(t)) - t) <= DIGITS_40 * t


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_derivatives_are_those_of_a_central_difference(path: Path, t: str) -> None:
    """(f(t + h) - f(t - h)) / 2h is off by h^2 f''' / 6 (1e-38 times less than 1e8) and by 1e-48 / h in rounding."""
    t, h = mp.mpf(t), mp.mpf(10) ** -19
    for f, derivative in ((path.sigma, path.sigma_deriv), (path.s, path.s_deriv)):
        slope = (f(t + h) - f(t - h)) / (2 * h)
        assert abs(derivative(t) - slope) <= mp.mpf(10) ** -26 * (1 + abs(slope))


@pytest.mark.parametrize("name", textbook.PATHS)
def test_paths_agree_with_the_table_of_the_paper(name: str) -> None:
    """Float64 formulas of the textbook: a few roundings each, of which log1p and the square root lose the most."""
    ours, paper = PATHS[name], textbook.PATHS[name]
    for t in (0.001, 0.25, 0.9):
        sigma = paper.sigma(t)
        for f in ("sigma", "sigma_deriv", "s", "s_deriv"):
            assert float(getattr(ours, f)(mp.mpf(t))) == pytest.approx(getattr(paper, f)(t), rel=2e-14), f
        assert float(ours.sigma_inv(mp.mpf(sigma))) == pytest.approx(paper.sigma_inv(sigma), rel=2e-14)


def test_smld_goes_from_sigma_max_to_sigma_min_and_no_further() -> None:
    path = schedule.smld_path(0.5, 8.0)
    assert path.sigma(mp.zero) == mp.mpf("0.5")
    assert abs(path.sigma(mp.one) - 8) <= DIGITS_40 * 8
    assert path.end is None
    assert len(Schedule(schedule.ve_levels(0.5, 8.0), path).grid(7)) == 7


def test_score_sde_and_ablation_ve_are_different_samplers() -> None:
    """Same levels, 100 to 0.02 in 18, but Euler steps in log sigma or in sigma^2: on Gaussian data a factor of 28.

    For data N(0, 1/4) Euler multiplies x by ``1 + h sigma' sigma / (1/4 + sigma^2)``.
    """

    def shrinks(path: Path) -> float:
        times = Schedule(schedule.ve_levels(), path).grid(18)[:18]
        factor = mp.one
        for t, t_next in pairwise(times):
            sigma = path.sigma(t)
            factor *= 1 + (t_next - t) * path.sigma_deriv(t) * sigma / (mp.mpf(1) / 4 + sigma**2)
        return float(factor)

    exact = math.sqrt((0.25 + 0.02**2) / (0.25 + 100.0**2))
    assert shrinks(schedule.ve_path()) / exact == pytest.approx(3.181, abs=1e-3)
    assert shrinks(schedule.smld_path()) / exact == pytest.approx(0.1154, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 5, 18])
@pytest.mark.parametrize("name", textbook.LEVELS)
def test_levels_agree_with_the_table_of_the_paper(name: str, n: int) -> None:
    levels = schedule.SCHEDULES[name]().levels(n)
    assert [float(level) for level in levels] == pytest.approx(textbook.LEVELS[name](n), rel=1e-13)


def test_edm_levels_have_the_published_ends() -> None:
    levels = schedule.edm_levels()(18)
    assert float(levels[0]) == 80.0
    assert float(levels[-1]) == 0.002
    roots = [level ** (mp.one / 7) for level in levels]
    steps = [float(b - a) for a, b in pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * 17, rel=1e-14)


def test_iddpm_levels_are_those_of_the_recursion_and_of_its_closed_form() -> None:
    u = schedule.iddpm_sigmas()
    assert len(u) == 1001
    assert u[1000] == 0
    assert [float(level) for level in u[:1000]] == pytest.approx(textbook.U[:1000], rel=1e-13)
    # The recursion itself in float64 (EDM, table 1). u_999^2 = 1/ratio - 1 is 4e-5: 1e-16 becomes 3e-12 of it.
    m, c_1, c_2 = 1000, 0.001, 0.008
    abar = np.sin(np.pi / 2 * np.arange(m + 1) / (m * (c_2 + 1))) ** 2
    plain = np.zeros(m + 1)
    for j in range(m, 0, -1):
        plain[j - 1] = np.sqrt((plain[j] ** 2 + 1) / max(abar[j - 1] / abar[j], c_1) - 1)
    assert np.allclose(plain[:m], np.array([float(level) for level in u[:m]]), rtol=1e-11, atol=0)


def test_iddpm_levels_start_at_j_0() -> None:
    u = schedule.iddpm_sigmas()
    for n in (2, 18, 250):
        levels = schedule.iddpm_levels()(n)
        assert levels[0] == u[8]
        assert levels[-1] == u[999]


def test_grid_ends_where_sigma_is_zero() -> None:
    for name in schedule.SCHEDULES:
        chosen = schedule.named_schedule(name)
        grid = chosen.grid(6)
        assert len(grid) == 7
        assert chosen.path.sigma(grid[-1]) == 0
        assert all(a > b for a, b in pairwise(grid))


def test_points_are_at_the_times_of_the_grid() -> None:
    chosen = schedule.named_schedule("vp")
    assert [(point.path, point.t) for point in chosen.points(4)] == [(chosen.path, t) for t in chosen.grid(4)]
    assert [point.sigma for point in schedule.edm(1.0, 80.0).points(5, mp.nint)] == [80, 34, 13, 4, 1, 0]


def test_a_schedule_of_given_levels_visits_exactly_these() -> None:
    for sigmas in ([10.0, 1.0, 0.1], [10.0, 1.0, 0.1, 0.0]):
        assert schedule.from_sigmas(sigmas).grid(3) == [10, 1, mp.mpf(0.1), 0]


def test_a_network_moves_levels_to_those_it_knows() -> None:
    assert schedule.edm(1.0, 80.0).grid(5, round_sigma=mp.nint) == [80, 34, 13, 4, 1, 0]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: schedule.edm_levels(sigma_min=-1.0), "sigma_min is -1.0; it must be positive"),
        (lambda: schedule.edm_levels(sigma_max=math.nan), "sigma_max is nan; it must be finite"),
        (lambda: schedule.edm_levels(sigma_max=math.inf), "sigma_max is inf; it must be finite"),
        (lambda: schedule.edm_levels(80.0, 0.002), "sigma_min must be the smaller"),
        (lambda: schedule.edm_levels(rho=0.0), "rho is 0.0; it must be positive"),
        (lambda: schedule.edm_levels(rho="7"), "rho is '7'; it must be a real number"),  # type: ignore[arg-type]
        (lambda: schedule.smld_path(1.0, 1.0), "sigma_min must be the smaller"),
        (lambda: schedule.vp_path(beta_min=-0.1), "beta_min is -0.1; it must be zero or more"),
        (lambda: schedule.from_sigmas([]), "sigmas is empty; give at least one"),
        (lambda: schedule.from_sigmas([1.0, math.nan]), r"sigmas\[-1\] is nan; it must be finite"),
        (lambda: schedule.from_sigmas([1.0, -0.5, 0.0]), r"sigmas\[1\] is -0.5; it must be positive"),
        (lambda: schedule.from_sigmas([1.0, 2.0]).grid(2), "strictly decreasing, but level 1 is not: 1, 2;"),
        (lambda: schedule.from_sigmas([1.0, 1.0]).grid(2), "strictly decreasing, but level 1 is not: 1, 1;"),
        (lambda: schedule.from_sigmas([1.0, 0.5]).grid(3), "steps is 3, but 2 sigmas were given"),
        (lambda: schedule.named_schedule("karras"), "schedule is 'karras'; known names are edm, vp, ve, iddpm"),
        (lambda: schedule.named_schedule("iddpm").grid(2000), "use fewer steps or other levels"),
        *[
            (lambda n=n: schedule.named_schedule("edm").grid(n), "it must be an integer of at least 1")
            for n in (0, -1, 2.5, True, "3", math.nan, np.int64(0), np.True_, np.float32(2.5))
        ],
        (
            lambda: schedule.named_schedule("edm").grid(4.0),
            "steps is 4.0; it must be an integer of at least 1; write 4",
        ),
    ],
)
def test_bad_settings_are_refused_with_the_value_and_what_is_allowed(make, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        make()


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int16])
def test_steps_may_be_an_integer_of_another_library(kind) -> None:
    assert schedule.named_schedule("edm").grid(kind(5)) == schedule.named_schedule("edm").grid(5)


@settings(max_examples=300, deadline=None)
@given(st.integers(-(2**160), 2**160), st.integers(-1300, -155))
def test_expm1_and_log1p_are_rounded_once(mantissa: int, exponent: int) -> None:
    """Against mpmath with 2,000 bits: half a unit in the last of 160 bits, and the error of 20 guard bits."""
    x = mp.ldexp(mantissa, exponent)
    with mpmath.workprec(2000):
        wide = mpmath.mpf(mantissa) * mpmath.mpf(2) ** exponent
        cases = [(expm1, mpmath.expm1)] + ([(log1p, mpmath.log1p)] if x > -1 else [])
        for ours, exact in cases:
            true = exact(wide)
            unit = mpmath.mpf(2) ** (mpmath.mag(true) - 160)
            assert abs(mpmath.mpf(ours(x)) - true) <= unit * (mpmath.mpf(1) / 2 + mpmath.mpf(2) ** -18)


def formulas() -> list[object]:
    """Every formula of this package at a few places."""
    paths = [schedule.vp_path(), schedule.smld_path(), *PATHS.values()]
    times = [mp.mpf(t) for t in TIMES]
    values: list[object] = [
        f(t)
        for path in paths
        for t in times
        for f in (path.sigma, path.sigma_deriv, path.sigma_inv, path.s, path.s_deriv)
    ]
    values += [schedule.named_schedule(name).levels(5) for name in schedule.SCHEDULES]
    values += [PREDICTIONS[name]().scalars(t) for name in PREDICTIONS for t in times]
    values += [conversion(epsilon(), v(), t) for t in times]
    return values


def test_no_formula_changes_the_precision_that_threads_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """mpmath's own expm1 and log1p do, for a while: another thread's numbers would then be rounded elsewhere."""

    def refuse(context: object, bits: int) -> None:
        raise AssertionError(f"the precision was set to {bits}")

    expected = formulas()
    monkeypatch.setattr(PythonMPContext, "prec", property(lambda context: context._prec, refuse))
    assert formulas() == expected
    with pytest.raises(AssertionError, match="the precision was set"):
        mp.expm1(mp.one)


@pytest.mark.parametrize(
    "call",
    [
        lambda: schedule.named_schedule("vp").grid(4),
        lambda: prediction.edm()(mp.mpf(3)),
        lambda: conversion(epsilon(), v(), mp.mpf(3)),
    ],
    ids=["grid", "prediction", "conversion"],
)
def test_a_direct_call_waits_for_a_formula_that_raises_the_precision(call: Callable[[], object]) -> None:
    expected = call()
    raised, found, seen = threading.Event(), threading.Event(), []

    def levels(n: int) -> list[object]:
        with mp.workprec(400):
            raised.set()
            # Without the lock the other thread is done long before this ends.
            found.wait(0.3)
        return [mp.mpf(2), mp.one]

    def other() -> None:
        raised.wait()
        seen.append(call())
        found.set()

    thread = threading.Thread(target=other)
    thread.start()
    Schedule(levels, schedule.linear_path()).grid(2)
    thread.join()
    assert seen == [expected]


@pytest.mark.parametrize("value", [True, "1", None, 1j, [1.0]])
def test_a_real_is_a_number(value: object) -> None:
    with pytest.raises(PlanError, match=r"x is .*; it must be a"):
        real(value, "x")


@pytest.mark.parametrize("value", [np.float64(0.1), np.float32(0.1), np.int64(3), Fraction(1, 3), mpmath.mpf(2)])
def test_numbers_of_other_libraries_are_taken_exactly(value) -> None:
    exact = Fraction(*value.as_integer_ratio()) if hasattr(value, "as_integer_ratio") else Fraction(int(value))
    assert abs(real(value, "x") - mp.mpf(exact.numerator) / exact.denominator) <= DIGITS_40


def nearest(value: Fraction, digits: int, smallest: int) -> Fraction:
    """The binary floating-point number nearest to a positive rational, ties to even, without an upper limit."""
    exponent = smallest
    while value >= Fraction(2) ** (exponent + digits):
        exponent += 1
    # Python rounds a Fraction to an integer half to even.
    return round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2**150 - 1), st.integers(-1230, 40), st.sampled_from(["float32", "float64"]))
def test_coefficients_are_rounded_once_to_nearest_even(mantissa: int, exponent: int, dtype: str) -> None:
    exact = Fraction(mantissa) * Fraction(2) ** exponent
    digits, smallest, largest = (24, -149, 2**128) if dtype == "float32" else (53, -1074, 2**1024)
    expected = nearest(exact, digits, smallest)
    found = round_to(mp.ldexp(mp.mpf(mantissa), exponent), dtype)
    assert found == (math.inf if expected >= largest else float(expected))
    assert round_to(-mp.ldexp(mp.mpf(mantissa), exponent), dtype) == -found


@pytest.mark.parametrize(("dtype", "digits", "smallest"), [("float32", 24, -149), ("float64", 53, -1074)])
def test_ties_and_near_ties_are_rounded_to_even(dtype: str, digits: int, smallest: int) -> None:
    for scale in (0, smallest, smallest + 3, smallest + digits):
        for whole in (0, 1, 2, 3, 2**digits - 1, 2 ** (digits - 1) + 1):
            for nudge in (-1, 0, 1):
                exact = (whole + Fraction(1, 2) + nudge * Fraction(1, 2**80)) * Fraction(2) ** scale
                value = mp.mpf(exact.numerator) / exact.denominator
                assert round_to(value, dtype) == float(nearest(exact, digits, smallest))
    assert round_to(mp.zero, dtype) == 0.0
    assert math.isnan(round_to(mp.nan, dtype))
