"""Compiled plans against the textbook algorithms, and against data whose every answer is known."""

from __future__ import annotations

import itertools
import math
import re
from functools import cache

import pytest
import textbook
import torch
from textbook import CLOUD, LEVELS, PATHS, PREDICTIONS
from torch import Tensor

import fastdiff.testing.textbook
from fastdiff.errors import PlanError
from fastdiff.maths import prediction, schedule
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance
from fastdiff.maths.schedule import Schedule
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan
from fastdiff.runs.sample import sample
from fastdiff.solvers.runge_kutta import second_order
from fastdiff.solvers.solver import SOLVERS, Solver, named_solver

OUR_PATHS = {
    "linear": schedule.linear_path(),
    "linear, vp scale": schedule.linear_path().with_vp_scale(),
    "vp": schedule.vp_path(),
    "vp, no scale": schedule.vp_path().without_scale(),
    "ve": schedule.ve_path(),
    "ve, vp scale": schedule.ve_path().with_vp_scale(),
}
OUR_LEVELS = {name: make().levels for name, make in schedule.SCHEDULES.items()}
OUR_PREDICTIONS = {name: prediction.named_prediction(name) for name in prediction.PREDICTIONS}
ALPHA = {"euler": None, "heun": 1.0, "midpoint": 0.5, "ralston": 2 / 3}
SHAPE, SEED = (16, 2), 7
FP64 = 1e-12
"""VERIFY A5. float64 rounds at 1e-16; the textbook's coefficients cancel a few digits, CLOUD's ODE amplifies little."""


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest value."""
    assert torch.isfinite(expected).all()
    return float((found - expected).abs().max() / expected.abs().max())


def noise(shape: tuple[int, ...] = SHAPE, seed: int = SEED, dtype: torch.dtype = torch.float64) -> textbook.Draws:
    return textbook.counter_noise(shape, range(seed, seed + shape[0]), dtype)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("predicts", ["edm", "vp", "ve", "iddpm"])
def test_every_combination_of_the_ablation_is_the_textbook_one(
    predicts: str, solver: str, path: str, levels: str
) -> None:
    """EDM, table 1: any prediction, any noise levels, any sigma(t), any s(t)."""
    steps = 6
    compiled = plan(
        schedule=Schedule(OUR_LEVELS[levels], OUR_PATHS[path]),
        prediction=OUR_PREDICTIONS[predicts],
        solver=solver,
        steps=steps,
        dtype="float64",
    )
    paper = PREDICTIONS[predicts]
    net = CLOUD.network(paper)
    expected = textbook.general(
        textbook.denoiser(net, paper),
        PATHS[path],
        LEVELS[levels](steps),
        noise(),
        ALPHA[solver],
        round_sigma=paper.round_sigma,
    )
    assert distance(sample(net, compiled, SHAPE, SEED), expected) <= FP64


@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize(
    ("predicts", "solver"),
    [
        *itertools.product(["epsilon", "x0", "v", "score", "flow"], ["euler", "heun"]),
        *itertools.product(["edm", "v"], ["midpoint", "ralston"]),
    ],
)
def test_other_predictions_and_solvers_are_the_textbook_ones(predicts: str, solver: str, path: str) -> None:
    compiled = plan(
        schedule=Schedule(OUR_LEVELS["edm"], OUR_PATHS[path]),
        prediction=OUR_PREDICTIONS[predicts],
        solver=solver,
        steps=8,
        dtype="float64",
    )
    paper = PREDICTIONS[predicts]
    net = CLOUD.network(paper)
    expected = textbook.general(textbook.denoiser(net, paper), PATHS[path], LEVELS["edm"](8), noise(), ALPHA[solver])
    assert distance(sample(net, compiled, SHAPE, SEED), expected) <= FP64


CHURNS = {
    "none": textbook.Churn(),
    "everywhere": textbook.Churn(4.0),
    "capped": textbook.Churn(100.0, s_noise=1.007),
    "interval": textbook.Churn(4.0, 0.05, 50.0, 1.003),
}


@pytest.mark.parametrize("churn", CHURNS.values(), ids=CHURNS)
@pytest.mark.parametrize(
    ("predicts", "solver", "path", "levels"),
    [
        ("edm", "heun", "linear", "edm"),
        ("edm", "euler", "linear", "edm"),
        ("edm", "midpoint", "linear", "edm"),
        ("vp", "heun", "vp", "vp"),
        ("ve", "heun", "ve", "ve"),
        ("iddpm", "heun", "linear", "iddpm"),
    ],
)
def test_churn_is_the_textbook_one(predicts: str, solver: str, path: str, levels: str, churn: textbook.Churn) -> None:
    """EDM, algorithm 2: noise before the network, interval, cap, S_noise; round_sigma where the network has one."""
    steps = 12
    compiled = plan(
        schedule=Schedule(OUR_LEVELS[levels], OUR_PATHS[path]),
        prediction=OUR_PREDICTIONS[predicts],
        solver=solver,
        steps=steps,
        dtype="float64",
        churn=Churn(churn.s_churn, churn.s_tmin, churn.s_tmax, churn.s_noise),
    )
    paper = PREDICTIONS[predicts]
    net = CLOUD.network(paper)
    expected = textbook.general(
        textbook.denoiser(net, paper),
        PATHS[path],
        LEVELS[levels](steps),
        noise(),
        ALPHA[solver],
        churn,
        paper.round_sigma,
    )
    assert distance(sample(net, compiled, SHAPE, SEED), expected) <= FP64


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("clip", [None, 0.75])
@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("guidance", [Guidance(0.0), Guidance(1.0), Guidance(2.5), Guidance(2.5, (0.1, 5.0))])
def test_guidance_and_clipping_are_the_textbook_ones(
    guidance: Guidance, solver: str, clip: float | None, batched: bool
) -> None:
    """Classifier-free guidance, everywhere or in an interval, then D clamped; with churn."""
    steps, churn = 10, textbook.Churn(4.0, 0.05, 50.0, 1.003)
    compiled = plan(
        schedule="edm",
        prediction="edm",
        solver=solver,
        steps=steps,
        dtype="float64",
        guidance=guidance,
        churn=Churn(4.0, 0.05, 50.0, 1.003),
        clip=clip,
        batched=batched,
    )
    paper = PREDICTIONS["edm"]
    net = CLOUD.network(paper)
    cond = {"tilt": torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]], dtype=torch.float64).repeat(SHAPE[0] // 2, 1)}
    uncond = {"tilt": torch.zeros(SHAPE[0], 3, dtype=torch.float64)}
    low, high = guidance.interval or (0.0, math.inf)
    denoise = textbook.guided(
        textbook.denoiser(net, paper, **cond), textbook.denoiser(net, paper, **uncond), guidance.scale, low, high
    )

    def paper_sample(denoise: textbook.Denoiser) -> Tensor:
        return textbook.general(denoise, PATHS["linear"], LEVELS["edm"](steps), noise(), ALPHA[solver], churn)

    expected = paper_sample(denoise if clip is None else textbook.clipped(denoise, clip))
    found = sample(net, compiled, SHAPE, SEED, cond=cond, uncond=uncond)
    assert distance(found, expected) <= FP64
    assert clip is None or distance(paper_sample(denoise), expected) > 1e-3


def test_the_textbook_that_ships_is_the_textbook() -> None:
    """``fastdiff.testing.textbook`` is what benchmarks run against; it is written apart from the one of the tests."""
    denoise = textbook.denoiser(CLOUD.network(PREDICTIONS["edm"]), PREDICTIONS["edm"])
    levels, churn = LEVELS["edm"](12), textbook.Churn(4.0, 0.05, 50.0, 1.003)
    for alpha in (None, 0.5, 1.0):
        draw = noise()
        steps = (k for k in range(12) if churn.gamma(levels[k], 12) > 0)
        *_, found = fastdiff.testing.textbook.sampling_steps(
            denoise,
            draw(-1) * levels[0],
            [*levels, 0.0],
            alpha=alpha,
            churn=Churn(4.0, 0.05, 50.0, 1.003),
            noise=lambda draw=draw, steps=steps: draw(next(steps)),
        )
        expected = textbook.general(denoise, PATHS["linear"], levels, noise(), alpha, churn)
        assert distance(found, expected) <= FP64


def test_a_network_that_is_told_the_wrong_noise_level_is_noticed() -> None:
    """The positive control of every test above: c_noise off by 0.1 % changes the sample by far more than 1e-12."""
    net = CLOUD.network(PREDICTIONS["edm"])
    compiled = plan(schedule="edm", steps=8, dtype="float64")
    right = sample(net, compiled, SHAPE, SEED)
    wrong = sample(lambda z, c_noise: net(z, c_noise * 1.001), compiled, SHAPE, SEED)
    assert distance(wrong, right) > 1e-4


@pytest.mark.parametrize("s_churn", [0.0, 1 / 6], ids=["deterministic", "churn"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20, 100])
def test_float32_is_as_accurate_as_eager_float32(steps: int, s_churn: float) -> None:
    """Errors against float64 at three quantiles, at most 1.5 times those of the textbook in float32 (VERIFY A5).

    Both see the same network, which reads float32 and answers in float32 what float64 gives.
    """
    shape, churn = (1500, 2), (s_churn * steps, 0.05, 50.0, 1.003)
    exact = CLOUD.network(PREDICTIONS["edm"])

    def net(z: Tensor, c_noise: Tensor) -> Tensor:
        return exact(z.double(), c_noise.double()).to(z.dtype)

    def paper(dtype: torch.dtype) -> Tensor:
        denoise = textbook.denoiser(net, PREDICTIONS["edm"])
        return textbook.general(
            denoise, PATHS["linear"], LEVELS["edm"](steps), noise(shape, dtype=dtype), 1.0, textbook.Churn(*churn)
        )

    truth = paper(torch.float64)
    ours = sample(net, plan(schedule="edm", steps=steps, churn=Churn(*churn)), shape, SEED)
    assert ours.dtype is torch.float32
    quantiles = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    found = (ours - truth).abs().flatten().quantile(quantiles)
    eager = (paper(torch.float32) - truth).abs().flatten().quantile(quantiles)
    assert (found <= 1.5 * eager).all(), (found / eager).tolist()
    assert (eager > 0).all()


# Gaussian data N(0, 1/4): D(x; sigma) = x / (1 + 4 sigma^2), so every sampler is linear in its noise.


def gaussian(z: Tensor, c_noise: Tensor) -> Tensor:
    """An EDM network (sigma_data = 1/2) that is exact for N(0, 1/4): with matching data F is 0."""
    return torch.zeros_like(z)


def noise_gains(compiled: Plan) -> Tensor:
    """The coefficient of every draw in the result of a linear network, by sampling with one-hot noise."""
    assert compiled.caller_noise
    count = sum(name.startswith("xi") for row in compiled.rows for name in row.columns)
    made = itertools.count()

    def one_hot(row: int, draw: int) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(made)]), count).double()

    return sample(gaussian, compiled, (1, count), 0, noise=one_hot)[0]


def recursion(steps: int, churn: textbook.Churn, s: float = 0.5) -> float:
    """The standard deviation of Heun with churn on N(0, s^2): ``v <- A_i^2 (v + (that^2 - t^2) S_noise^2)``."""
    times = [*LEVELS["edm"](steps), 0.0]
    v = times[0] ** 2
    for t, t_next in itertools.pairwise(times):
        t_hat = t * (1 + churn.gamma(t, steps))
        rate, h = t_hat / (s**2 + t_hat**2), t_next - t_hat
        a = 1 + h * rate
        if t_next:
            a = 1 + h / 2 * (rate + a * t_next / (s**2 + t_next**2))
        v = a**2 * (v + (t_hat**2 - t**2) * churn.s_noise**2)
    return math.sqrt(v)


@pytest.mark.parametrize(("steps", "error"), [(18, "5.5e-02"), (40, "9.8e-03"), (256, "2.1e-04")])
def test_heun_approaches_the_exact_map_of_gaussian_data(steps: int, error: str) -> None:
    """The ODE takes x at sigma to ``x s / sqrt(s^2 + sigma^2)``; Heun from 80 is off by the published amount."""
    compiled = plan(schedule="edm", steps=steps, dtype="float64", noise="caller")
    (gain,) = noise_gains(compiled).tolist()
    exact = 80 * 0.5 / math.sqrt(0.5**2 + 80.0**2)
    assert f"{gain / exact - 1:.1e}" == error


@pytest.mark.parametrize(
    ("steps", "settings", "std"),
    [
        (32, (10.0, 0.05, 50.0, 1.003), 0.52289),
        (256, (40.0, 0.05, 50.0, 1.003), 0.502488),
    ],
)
def test_the_stochastic_sampler_has_the_variance_of_its_recursion(
    steps: int, settings: tuple[float, ...], std: float
) -> None:
    compiled = plan(schedule="edm", steps=steps, dtype="float64", churn=Churn(*settings), noise="caller")
    found = float(noise_gains(compiled).norm())
    assert found == pytest.approx(recursion(steps, textbook.Churn(*settings)), rel=1e-12)
    assert found == pytest.approx(std, abs=5e-6 if steps == 32 else 5e-7)


def test_the_variance_of_drawn_samples_is_that_of_the_recursion() -> None:
    """200,000 float32 samples: 5 standard errors, alpha = 6e-7; without the noise of S_noise it would be 9 off."""
    n = 200_000
    compiled = plan(schedule="edm", steps=32, churn=Churn(10.0, 0.05, 50.0, 1.003))
    x = sample(gaussian, compiled, (8, n // 8), SEED).double()
    std = recursion(32, textbook.Churn(10.0, 0.05, 50.0, 1.003))
    error = std / math.sqrt(2 * n)
    assert abs(float(x.std()) - std) <= 5 * error
    assert abs(float(x.mean())) <= 5 * std / math.sqrt(n)


@cache
def churned_plan(low: float, high: float) -> Plan:
    return plan(schedule="edm", steps=256, churn=Churn(40.0, low, high))


@pytest.mark.parametrize(
    ("interval", "churned"), [((0.05, 50.0), 191), ((0.01, 1.0), 84), ((0.05, 1.0), 60), ((0.0, math.inf), 256)]
)
def test_churn_acts_on_the_published_number_of_steps(interval: tuple[float, float], churned: int) -> None:
    assert sum(len(row.draws) for row in churned_plan(*interval).rows) == churned + 1
    assert Churn(40.0, *interval).gamma(1.0, 256) == 0.15625


def test_the_ends_of_intervals_are_included() -> None:
    """Also where a level is such an end only up to the rounding of 160-bit arithmetic, as edm's 80 and 0.002 are."""
    for steps in (5, 18, 32):
        compiled = plan(
            schedule="edm", steps=steps, churn=Churn(1.0, 0.002, 80.0), guidance=Guidance(2.0, (0.002, 80.0))
        )
        assert sum(len(row.draws) for row in compiled.rows) == steps + 1
        # Churn lifts the first evaluation above 80.
        assert [row.copies for row in compiled.rows[:-1]] == [1] + [2] * (2 * steps - 2)
    given = plan(schedule=[8.0, 4.0, 2.0, 1.0], solver="euler", churn=Churn(1.0, 2.0, 4.0))
    assert [len(row.draws) for row in given.rows] == [1, 1, 1, 0, 0]


def test_the_cap_of_churn_binds_at_0_4142_of_the_steps() -> None:
    assert float(Churn(0.4142 * 256).gamma(1.0, 256)) == pytest.approx(0.4142, rel=1e-15)
    assert float(Churn(0.4143 * 256).gamma(1.0, 256)) == pytest.approx(math.sqrt(2) - 1, rel=1e-15)


def test_the_noise_level_told_is_the_churned_one() -> None:
    """EDM, algorithm 2: the network sees t-hat, here 40/256 above the level."""
    plain, churned = plan(schedule="edm", solver="euler", steps=256), churned_plan(0.05, 50.0)
    ratio = [b.sigma / a.sigma for a, b in zip(plain.rows[:-1], churned.rows[0:-1:2], strict=True)]
    assert sum(r == pytest.approx(1.15625, rel=1e-12) for r in ratio) == 191
    assert sum(r == 1.0 for r in ratio) == 65


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_dirac_data_is_exact_in_one_step(solver: str, predicts: str) -> None:
    """D is the one data point whatever x: a straight line to it, so one step lands on it."""
    point = torch.tensor([[0.25, -0.75]], dtype=torch.float64)
    compiled = plan(schedule="edm", prediction=OUR_PREDICTIONS[predicts], solver=solver, steps=1, dtype="float64")
    c_skip, c_out, c_in, _ = PREDICTIONS[predicts].scalars(compiled.rows[0].sigma)
    found = sample(lambda z, c_noise: (point - c_skip * z / c_in) / c_out, compiled, SHAPE, SEED)
    assert compiled.evaluations == 1
    # D cancels c_skip x, which is at most 80 normals of at most 5: a dozen roundings of 400.
    assert (found - point).abs().max() <= 12 * 400 * 2.0**-53


@pytest.mark.parametrize("steps", [1, 2, 18, 40])
def test_network_evaluations_are_those_of_the_paper(steps: int) -> None:
    assert plan(schedule="edm", solver="euler", steps=steps).evaluations == steps
    assert plan(schedule="edm", solver="heun", steps=steps).evaluations == 2 * steps - 1
    assert plan(schedule="edm", solver="midpoint", steps=steps).evaluations == 2 * steps


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_says_its_name_order_and_source(name: str) -> None:
    solver = named_solver(name)
    assert solver.order in (1, 2, 3)
    assert re.search(r"(19|20)\d\d", solver.source), "a source has a year"
    assert solver.name == name
    assert solver.step.__doc__


def adams_bashforth(order: int) -> Solver:
    """A multistep method with variable steps, as a user would write one; slopes are its history."""

    def step(trace, x, now, then, past):
        past = [(now.t, trace.slope(x, now)), *(past or [])][:order]
        weights = textbook.lagrange_integrals([time for time, _ in past], now.t, then.t)
        for weight, (_, slope) in zip(weights, past, strict=True):
            x = x + slope * weight
        return x, past

    return Solver(f"ab{order}", order, "Hairer, Norsett, Wanner, Solving ODEs I, III.5", step)


@pytest.mark.parametrize("clip", [None, 0.75])
@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_multistep_solver_of_a_users_own_is_the_textbook_one(order: int, path: str, clip: float | None) -> None:
    compiled = plan(
        schedule=Schedule(OUR_LEVELS["edm"], OUR_PATHS[path]),
        prediction="edm",
        solver=adams_bashforth(order),
        steps=14,
        dtype="float64",
        clip=clip,
    )
    denoise = textbook.denoiser(CLOUD.network(PREDICTIONS["edm"]), PREDICTIONS["edm"])
    denoise = denoise if clip is None else textbook.clipped(denoise, clip)
    expected = textbook.adams_bashforth(denoise, PATHS[path], LEVELS["edm"](14), noise(), order)
    found = sample(CLOUD.network(PREDICTIONS["edm"]), compiled, SHAPE, SEED)
    assert distance(found, expected) <= FP64
    assert compiled.evaluations == 14


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5, math.nan])
def test_an_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(PlanError, match=r"alpha is .*; it must"):
        second_order(alpha)
    with pytest.raises(PlanError, match=r"solver 'heun\(alpha=.*\)', step 0: alpha is|must be a"):
        plan(solver=SOLVERS["heun"](alpha=alpha), steps=2)


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(PlanError, match=r"solver is 'rk4'; known names are .*heun, .*or pass a Solver"):
        plan(solver="rk4", steps=2)
