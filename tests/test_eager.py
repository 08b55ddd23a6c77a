"""One text, two interpreters: a plan computes what its solver says, and its solver says what its paper says.

``eager_sample`` runs a solver's step on float64 tensors, without symbols, compiler or rows. Plans are compared with it,
and it is compared with transcriptions of the papers' formulas, written here with floats and tensors alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import textbook
import torch
from scipy.integrate import quad
from textbook import CLOUD, LEVELS, PATHS, PREDICTIONS
from torch import Tensor

from fastdiff.backends import reference
from fastdiff.errors import InputError
from fastdiff.maths import schedule
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance, Guide, RescaledGuidance
from fastdiff.maths.real import mp
from fastdiff.maths.schedule import Schedule
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan
from fastdiff.runs.run import Run
from fastdiff.solvers.solver import SOLVERS, Solver
from fastdiff.testing.eager import eager_sample

SHAPE, SEEDS = (6, 2), range(7, 13)
PLAN = 1e-13
"""Both sides round a few dozen float64 operations (1e-16) a step, and CLOUD's map amplifies little: 1e-14 was seen."""
PAPER = 1e-12
"""The papers' formulas subtract coefficients that nearly cancel, which costs float64 a digit or two more."""
Nets = Mapping[str, textbook.Network]


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest value; of something that is finite."""
    assert torch.isfinite(expected).all()
    return float((found - expected).abs().max() / expected.abs().max())


def branches(predicts: str) -> Nets:
    """The exact network of CLOUD, and another one for the unconditional branch."""
    net = CLOUD.network(PREDICTIONS[predicts])
    return {"cond": net, "uncond": lambda z, c_noise: 0.9 * net(z, c_noise)}


def elementwise(predicts: str) -> Nets:
    """Networks for samples of any shape."""
    return {
        "cond": lambda z, c_noise: torch.sin(2 * z) - 0.3 * z,
        "uncond": lambda z, c_noise: torch.sin(z + 0.5) - 0.6 * z,
    }


def run(compiled: Plan, nets: Nets, shape: Sequence[int] = SHAPE, **given) -> Tensor:
    """Sample by a plan whose branches are called one after the other."""
    stepping = Run(compiled, shape, SEEDS[: shape[0]], **given)
    for evaluation in stepping:
        stepping.step(*[nets[branch](evaluation.z, evaluation.c_noise) for branch in evaluation.branches])
    return stepping.finish()


def disagreement(nets: Nets, shape: Sequence[int] = SHAPE, visible: bool = False, **settings) -> float:
    """How far a plan is from its solver's text."""
    compiled = plan(dtype="float64", batched=False, visible=visible, **settings)
    return distance(run(compiled, nets, shape), eager_sample(nets, shape, SEEDS[: shape[0]], **settings))


# A plan computes what its solver says.

SPACES = {"edm": "edm", "vp": "epsilon", "ve": "ve", "edm, flow": "flow"}
CASES = [
    (solver, space, clip)
    for solver, space, clip in itertools.product(SOLVERS, SPACES, (None, 0.75))
    # Its inner products would need the clamped D, which the same launch makes: that is refused.
    if not (clip and solver == "predictor_corrector")
]


@pytest.mark.parametrize(("solver", "space", "clip"), CASES)
def test_a_plan_computes_what_its_solver_says(solver: str, space: str, clip: float | None) -> None:
    """Every solver, in several spaces, guided or not, with or without churn, buffers shared or all kept."""
    chosen = space.partition(",")[0]
    # In six steps from 80, Euler-Maruyama overshoots: its result would be a small difference of large states.
    gentle = schedule.edm(0.02, 3.0)
    for guidance, churn in ((1.0, Churn()), (2.0, Churn(3.0, 0.01, 50.0, 1.003))):
        settings = {
            "schedule": gentle if solver == "predictor_corrector" and chosen == "edm" else chosen,
            "prediction": SPACES[space],
            "solver": solver,
            "steps": 6,
            "guidance": guidance,
            "churn": churn,
            "clip": clip,
        }
        nets = branches(SPACES[space])
        expected = eager_sample(nets, SHAPE, SEEDS, **settings)
        for visible in (False, True):
            compiled = plan(dtype="float64", batched=False, visible=visible, **settings)
            assert distance(run(compiled, nets), expected) <= PLAN


@pytest.mark.parametrize(
    "guidance", [RescaledGuidance(3.0), RescaledGuidance(3.0, (0.1, 20.0), phi=1.0)], ids=["everywhere", "interval"]
)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("solver", ["euler_ancestral", "heun", "unipc"])
def test_a_plan_rescales_guidance_as_the_text_does(solver: str, clip: float | None, guidance: Guide) -> None:
    """Through ``gram``. The plan forms the variance from rows' sums, the text from D's: a little cancels."""
    settings = {"solver": solver, "steps": 6, "guidance": guidance, "clip": clip, "churn": Churn(2.0)}
    assert disagreement(elementwise("edm"), (4, 3, 5), **settings) <= PLAN
    assert disagreement(elementwise("edm"), (4, 3, 5), visible=True, **settings) <= PLAN


def test_another_solver_is_noticed() -> None:
    """The positive control: eta off by 0.1 % is seen from 1e-13 by ten orders of magnitude."""
    nets = branches("edm")
    right = run(plan(solver="euler_ancestral", steps=6, dtype="float64"), nets)
    wrong = eager_sample(nets, SHAPE, SEEDS, solver=SOLVERS["euler_ancestral"](eta=0.999), steps=6)
    assert distance(right, wrong) > 1e-5


def dpmpp_2m_sde(trace, x, now, then, memory):
    """SDE-DPM-Solver++ (2M) on one Brownian path (Lu et al. 2022, equation 20), which remembers where the path is."""
    before, D_before, W = memory or (None, None, trace.brownian(now))
    D = E = trace.denoise(x, now)
    if before is not None and then.sigma:
        E = D + (D - D_before) * ((then.lam - now.lam) / (2 * (now.lam - before.lam)))
    keep = (then.sigma / now.sigma) ** 2
    y = x / now.s * keep + E * (1 - keep)
    if not then.sigma:
        return y * then.s, None
    W_then = trace.brownian(then)
    xi = (W - W_then) / mp.sqrt(trace.elapsed(now, then))
    return (y + xi * (then.sigma * mp.sqrt(1 - keep))) * then.s, (now, D, W_then)


DPMPP_2M_SDE = Solver("dpmpp_2m_sde", 2, "Lu et al. 2022, equation 20", dpmpp_2m_sde, stochastic=True)


@pytest.mark.parametrize(("space", "clip"), [("edm", None), ("vp", None), ("edm", 0.75)])
def test_a_plan_follows_the_brownian_path_of_the_text(space: str, clip: float | None) -> None:
    nets = branches(SPACES[space])
    settings = {"schedule": space, "prediction": SPACES[space], "solver": DPMPP_2M_SDE, "clip": clip}
    for steps in (5, 7):
        assert disagreement(nets, steps=steps, **settings) <= PLAN
    assert disagreement(nets, steps=7, visible=True, **settings) <= PLAN


def everything(trace, x, now, then, memory):
    """A step that uses all a trace offers."""
    mask = trace.given("mask")
    found = trace.evaluate(x, now)
    D = found["cond"] * 0.75 + found["uncond"] * mp.mpf("0.25") - -mask * 0.01
    turned = trace.call("turn", D, mask)
    u, v = D - turned, turned * 2 - mask
    size = (u.dot(u) * 3 / (v.dot(v) * 2 + 1) + 0.5).at_least(0.25).sqrt()
    mean = turned.total() / turned.size()
    other = (1 - trace.dot(mask, mask) * 0.125) * 0.125 - trace.dot(u, v) / trace.dot(v, v).at_least(1e-3)
    pushed = (1 / (v.dot(v) * v.dot(v) + 2) - mean * 0.01) * mask
    y = (turned + (x / now.s - turned) * (then.sigma / now.sigma)) * then.s
    y = y + mask / (size + 1) * 0.1 + (0.01 * turned) * other + pushed
    return y + trace.noise() * (then.sigma / 8) + trace.noise() * (then.sigma / 16), {"kept": [turned]}


EVERYTHING = Solver("everything", 1, "these tests", everything)


@pytest.mark.parametrize("shape", [(3, 2, 5), (1, 7), (2, 300)])
def test_scalars_calls_given_tensors_and_dicts_are_what_the_text_says(shape: tuple[int, ...]) -> None:
    """Sums of up to 300 products are added in another order, which moves them by 300 roundings at the most."""
    mask = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape)
    given = {"given": {"mask": mask}, "calls": {"turn": lambda D, mask: D.flip(-1) * (1 + 0.1 * mask)}}
    nets, settings = elementwise("edm"), {"solver": EVERYTHING, "steps": 4, "guidance": 2.0}
    expected = eager_sample(nets, shape, SEEDS[: shape[0]], **settings, **given)
    for visible in (False, True):
        compiled = plan(dtype="float64", batched=False, visible=visible, **settings)
        assert distance(run(compiled, nets, shape, **given), expected) <= 300 * 2.0**-53 + PLAN


def eulers(x: Any, D: Any, now: Any, then: Any) -> Any:
    """Euler's method in sigma, for a path without a scale."""
    return x + (D - x) * (1 - then.sigma / now.sigma)


UNUSUAL: dict[str, Callable[..., tuple[Any, Any]]] = {
    "evaluates one state twice": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(x, now) * 0.25 + trace.denoise(x, now) * 0.75, now, then),
        None,
    ),
    "evaluates one state at two points": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(x, now) * 0.75 + trace.denoise(x, trace.points[0]) * 0.25, now, then),
        None,
    ),
    "evaluates what the network said": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(trace.denoise(x, now), now), now, then),
        None,
    ),
    "evaluates a given tensor": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(trace.given("mask"), now), now, then),
        None,
    ),
    "evaluates noise": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(trace.noise(), now), now, then),
        None,
    ),
    "evaluates a path": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(trace.brownian(now), now), now, then),
        None,
    ),
    "evaluates what it remembers": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(x if memory is None else memory, now), now, then),
        x * 0.5,
    ),
    "evaluates for the next step": lambda trace, x, now, then, memory: (
        lambda y: (y, trace.denoise(y, then if then.sigma else now))
    )(eulers(x, trace.denoise(x, now) if memory is None else memory, now, then)),
    "calls with noise": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(x, now), now, then) + trace.call("turn", trace.noise(), x) * then.sigma,
        None,
    ),
    "calls what a call returned": lambda trace, x, now, then, memory: (
        trace.call("turn", trace.call("turn", eulers(x, trace.denoise(x, now), now, then), x), x),
        None,
    ),
    "calls with one vector twice": lambda trace, x, now, then, memory: (
        (lambda y: trace.call("turn", y, y))(eulers(x, trace.denoise(x, now), now, then)),
        None,
    ),
    "calls before it evaluates": lambda trace, x, now, then, memory: (
        (lambda y: eulers(y, trace.denoise(y, now), now, then))(trace.call("turn", x, trace.given("mask"))),
        None,
    ),
    "calls for D": lambda trace, x, now, then, memory: (
        eulers(x, trace.call("turn", trace.denoise(x, now), x), now, then),
        None,
    ),
    "calls for nothing": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(x, now), now, then),
        trace.call("turn", x, x),
    ),
    "scales by a product of what it remembers": lambda trace, x, now, then, memory: (
        eulers(x, trace.denoise(x, now) / (trace.dot(*(memory or [x, x])).at_least(1) + 1), now, then),
        [x, x],
    ),
}


@pytest.mark.parametrize("clip", [None, 0.75])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_texts_are_compiled_to_what_they_say(name: str, clip: float | None) -> None:
    mask = torch.linspace(-1, 1, 12, dtype=torch.float64).view(SHAPE)
    solver, nets = Solver("unusual", 1, "these tests", UNUSUAL[name]), branches("edm")
    turn = {"turn": lambda a, b: a.flip(1) * 0.5 + b * 0.001}
    settings = {"solver": solver, "steps": 4, "clip": clip}
    expected = eager_sample(nets, SHAPE, SEEDS, given={"mask": mask}, calls=turn, **settings)
    for visible in (False, True):
        compiled = plan(dtype="float64", visible=visible, **settings)
        given = {"given": {"mask": mask}} if compiled.given else {}
        calls = {"calls": turn} if any(row.call for row in compiled.rows) else {}
        assert distance(run(compiled, nets, **given, **calls), expected) <= PLAN


def test_what_eager_needs_and_was_not_given_is_named() -> None:
    nets, settings = elementwise("edm"), {"solver": EVERYTHING, "steps": 1, "guidance": 2.0}
    with pytest.raises(InputError, match=r"'mask' is not among given \(which is empty\); give it there"):
        eager_sample(nets, SHAPE, SEEDS, **settings)
    given = {"mask": torch.zeros(SHAPE)}
    with pytest.raises(InputError, match=r"'turn' is not among calls \(bend\); give it there"):
        eager_sample(nets, SHAPE, SEEDS, given=given, calls={"bend": lambda D, mask: D}, **settings)
    with pytest.raises(InputError, match=r"'uncond' is not among net \(cond\); give it there"):
        eager_sample(nets["cond"], SHAPE, SEEDS, given=given, **settings)


def test_eager_starts_from_a_state_that_is_given() -> None:
    """The state that it draws itself is s sigma xi."""
    nets = branches("edm")
    drawn = eager_sample(nets, SHAPE, SEEDS, steps=4)
    assert torch.equal(eager_sample(nets, SHAPE, SEEDS, steps=4, state=80.0 * normals(-1)), drawn)


# A solver says what its paper says.


def normals(step: int, sub_draw: int = 0, shape: Sequence[int] = SHAPE) -> Tensor:
    """The noise of the counter contract: purpose 0 for the first, purpose 1 and the step's number after it."""
    words = [textbook.INIT, 0, 0, 0] if step < 0 else [textbook.STEP, 0, step, sub_draw]
    flat = reference.normals(math.prod(shape[1:]), torch.tensor(SEEDS[: shape[0]]), torch.tensor([words]))
    return flat.reshape(tuple(shape)).double()


EDM = textbook.denoiser(CLOUD.network(PREDICTIONS["edm"]), PREDICTIONS["edm"])
EPSILON = CLOUD.network(PREDICTIONS["epsilon"])
STEPS = 9
SIGMAS = [*LEVELS["edm"](STEPS), 0.0]
VP_SIGMAS = [*LEVELS["vp"](STEPS), 0.0]
ABAR = [1 / (1 + sigma**2) for sigma in VP_SIGMAS]
VP = {"schedule": "vp", "prediction": "epsilon"}


def epsilon(x: Tensor, sigma: float) -> Tensor:
    """The noise that the VP network sees in x."""
    return EPSILON(x, torch.full((len(x),), PREDICTIONS["epsilon"].scalars(sigma)[3], dtype=torch.float64))


def euler_ancestral(eta: float) -> Tensor:
    """k-diffusion's ``get_ancestral_step`` and Euler's method in sigma."""
    x = SIGMAS[0] * normals(-1)
    for i, (sigma, sigma_next) in enumerate(pairwise(SIGMAS)):
        up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
        down = math.sqrt(sigma_next**2 - up**2)
        d = (x - EDM(x, sigma)) / sigma
        x = x + d * (down - sigma) + normals(i) * up
    return x


def ddpm() -> Tensor:
    """Ho et al. 2020, algorithm 2, with the posterior's variance (equation 7)."""
    x = math.sqrt(1 - ABAR[0]) * normals(-1)
    for i, (abar, abar_prev) in enumerate(pairwise(ABAR)):
        alpha = abar / abar_prev
        beta = 1 - alpha
        mean = (x - beta * epsilon(x, VP_SIGMAS[i]) / math.sqrt(1 - abar)) / math.sqrt(alpha)
        x = mean + math.sqrt(beta * (1 - abar_prev) / (1 - abar)) * normals(i)
    return x


def ddim(eta: float) -> Tensor:
    """Song, Meng and Ermon 2021, equation 12 with equation 16's sigma."""
    x = math.sqrt(1 - ABAR[0]) * normals(-1)
    for i, (abar, abar_prev) in enumerate(pairwise(ABAR)):
        eps = epsilon(x, VP_SIGMAS[i])
        sigma = eta * math.sqrt((1 - abar_prev) / (1 - abar)) * math.sqrt(1 - abar / abar_prev)
        predicted = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        x = math.sqrt(abar_prev) * predicted + math.sqrt(max(1 - abar_prev - sigma**2, 0.0)) * eps + sigma * normals(i)
    return x


def predicted_x0(x: Tensor, sigma: float) -> Tensor:
    """``x_theta(x_t, t)`` of the VP network."""
    alpha = 1 / math.sqrt(1 + sigma**2)
    return (x - alpha * sigma * epsilon(x, sigma)) / alpha


def dpmpp_2m() -> Tensor:
    """Lu et al. 2022, DPM-Solver++, algorithm 2, in alpha, sigma and lambda of VP; the last step is first order."""
    alpha = [1 / math.sqrt(1 + sigma**2) for sigma in VP_SIGMAS]
    sigma = [a * level for a, level in zip(alpha, VP_SIGMAS, strict=True)]
    lam = [math.log(a / s) if s else math.inf for a, s in zip(alpha, sigma, strict=True)]
    x, q = sigma[0] * normals(-1), []
    for i in range(1, len(VP_SIGMAS)):
        h = lam[i] - lam[i - 1]
        q.append(predicted_x0(x, VP_SIGMAS[i - 1]))
        d = q[-1]
        if i > 1 and math.isfinite(h):
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * q[-1] - 1 / (2 * r) * q[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * math.expm1(-h) * d
    return x


def unipc() -> Tensor:
    """Zhao et al. 2023, algorithms 5 to 8: UniP-2 and UniC-2 with B_2(h) = e^h - 1, on data prediction (VP)."""
    alpha = [1 / math.sqrt(1 + sigma**2) for sigma in VP_SIGMAS]
    sigma = [a * level for a, level in zip(alpha, VP_SIGMAS, strict=True)]
    lam = [math.log(a / s) if s else math.inf for a, s in zip(alpha, sigma, strict=True)]

    def update(x: Tensor, i: int, others: list[tuple[float, Tensor]], m: Tensor) -> Tensor:
        """From point i - 1, where the model says m, to point i; others are (lambda, model there)."""
        h = lam[i] - lam[i - 1]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * math.expm1(-h) * m
        if not others or math.isinf(h):
            return x
        r = torch.tensor([(place - lam[i - 1]) / h for place, _ in others], dtype=torch.float64)
        b_h, phi, b = math.expm1(-h), math.expm1(-h) / -h - 1, []
        for k in range(1, len(others) + 1):
            # phi_k(h) k! / B(h); the recursion of equation 6 of the paper's appendix.
            b.append(phi * math.factorial(k) / b_h)
            phi = phi / -h - 1 / math.factorial(k + 1)
        powers = torch.stack([r**k for k in range(len(others))])
        rho = torch.linalg.solve(powers, torch.tensor(b, dtype=torch.float64)) if len(b) > 1 else torch.tensor([0.5])
        return x - alpha[i] * b_h * sum(w * (m_k - m) / r_k for w, r_k, (_, m_k) in zip(rho, r, others, strict=True))

    predicted = sigma[0] * normals(-1)
    corrected: list[Tensor] = []
    models: list[Tensor] = []
    for i in range(len(VP_SIGMAS) - 1):
        m = predicted_x0(predicted, VP_SIGMAS[i])
        past = [(lam[i - 2], models[i - 2])] if i > 1 else []
        corrected.append(update(corrected[-1], i, [*past, (lam[i], m)], models[-1]) if i else predicted)
        predicted = update(corrected[-1], i + 1, [(lam[i - 1], models[-1])] if i else [], m)
        models.append(m)
    return predicted


def lms() -> Tensor:
    """Adams-Bashforth of order 4 in sigma; Lagrange's polynomials are integrated by quadrature."""
    x, past = SIGMAS[0] * normals(-1), []
    for start, end in pairwise(SIGMAS):
        past = [(start, (x - EDM(x, start)) / start), *past][:4]
        for j, (node, slope) in enumerate(past):
            others = [other for k, (other, _) in enumerate(past) if k != j]

            def basis(tau: float, node: float = node, others: list[float] = others) -> float:
                return math.prod((tau - other) / (node - other) for other in others)

            x = x + quad(basis, start, end, epsabs=0, epsrel=1e-13)[0] * slope
    return x


def reverse_sde(steps: int = STEPS, corrector: float = 0.0) -> Tensor:
    """Euler-Maruyama on the VP SDE's reverse (Song et al. 2021, equation 6), f = -beta x / 2 and g^2 = beta.

    ``corrector`` is the signal-to-noise ratio of a Langevin step after each (algorithms 4 and 5, one step a level).
    """
    times = [PATHS["vp"].sigma_inv(sigma) for sigma in VP_SIGMAS]
    x = math.sqrt(1 - ABAR[0]) * normals(-1)

    def score(x: Tensor, i: int) -> Tensor:
        # sqrt(1 - abar), without the digits that abar near 1 has lost.
        return -epsilon(x, VP_SIGMAS[i]) / (VP_SIGMAS[i] * math.sqrt(ABAR[i]))

    for i, (t, t_next) in enumerate(pairwise(times)):
        beta, dt = 0.1 + 19.9 * t, t_next - t
        x = x + (-beta * x / 2 - beta * score(x, i)) * dt
        if t_next:
            x = x + math.sqrt(beta) * math.sqrt(-dt) * normals(i)
        if t_next and corrector:
            z, g = normals(i, 1), score(x, i + 1)
            step = 2 * (corrector * z.norm(dim=1) / g.norm(dim=1)) ** 2
            x = x + step[:, None] * g + torch.sqrt(2 * step)[:, None] * z
    return x


TRANSCRIPTIONS: dict[str, tuple[Callable[[], Tensor], str | Solver, dict[str, str]]] = {
    "euler_ancestral": (lambda: euler_ancestral(1.0), "euler_ancestral", {}),
    "euler_ancestral, eta 0.5": (lambda: euler_ancestral(0.5), SOLVERS["euler_ancestral"](eta=0.5), {}),
    "euler_ancestral, eta 2": (lambda: euler_ancestral(2.0), SOLVERS["euler_ancestral"](eta=2.0), {}),
    "ddpm": (ddpm, "ddpm", VP),
    "ddim": (lambda: ddim(0.0), "ddim", VP),
    "ddim, eta 0.5": (lambda: ddim(0.5), SOLVERS["ddim"](eta=0.5), VP),
    "dpmpp_2m": (dpmpp_2m, "dpmpp_2m", VP),
    "unipc": (unipc, "unipc", VP),
    "lms": (lms, "lms", {}),
    "reverse_sde": (reverse_sde, "reverse_sde", VP),
    "predictor_corrector": (lambda: reverse_sde(corrector=0.16), "predictor_corrector", VP),
}


@pytest.mark.parametrize("name", TRANSCRIPTIONS)
def test_a_solver_says_what_its_paper_says(name: str) -> None:
    paper, solver, space = TRANSCRIPTIONS[name]
    nets = branches(space.get("prediction", "edm"))
    assert distance(eager_sample(nets, SHAPE, SEEDS, solver=solver, steps=STEPS, **space), paper()) <= PAPER


@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize(("solver", "alpha"), [("euler", None), ("heun", 1.0), ("midpoint", 0.5), ("ralston", 2 / 3)])
def test_a_runge_kutta_method_says_what_its_paper_says(solver: str, alpha: float | None, path: str) -> None:
    """Karras et al. 2022, algorithms 1 to 3, with churn."""
    ours = schedule.linear_path() if path == "linear" else schedule.vp_path()
    churn = (3.0, 0.05, 50.0, 1.003)
    chosen = Schedule(schedule.edm_levels(), ours)
    found = eager_sample(
        branches("edm"), SHAPE, SEEDS, schedule=chosen, solver=solver, steps=STEPS, churn=Churn(*churn)
    )
    expected = textbook.general(EDM, PATHS[path], SIGMAS[:-1], normals, alpha, textbook.Churn(*churn))
    assert distance(found, expected) <= PAPER


def test_every_solver_has_a_transcription_of_its_paper() -> None:
    runge_kutta = {"euler", "heun", "midpoint", "ralston"}
    assert {name.partition(",")[0] for name in TRANSCRIPTIONS} | runge_kutta == set(SOLVERS)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaled_guidance_says_what_its_paper_says(phi: float) -> None:
    """Lin et al. 2024, equations 15 and 16; the ratio of deviations is the same with n and with n - 1."""
    nets, shape, scale = elementwise("edm"), (4, 3, 5), 3.0

    def denoise(xhat: Tensor, sigma: float) -> Tensor:
        cond, uncond = (textbook.denoiser(nets[name], PREDICTIONS["edm"])(xhat, sigma) for name in ("cond", "uncond"))
        guided = uncond + scale * (cond - uncond)
        rescaled = guided * (cond.flatten(1).std(1) / guided.flatten(1).std(1))[:, None, None]
        return phi * rescaled + (1 - phi) * guided

    def draws(step: int) -> Tensor:
        return normals(step, shape=shape)

    found = eager_sample(nets, shape, SEEDS[:4], steps=STEPS, guidance=RescaledGuidance(scale, phi=phi))
    assert distance(found, textbook.general(denoise, PATHS["linear"], SIGMAS[:-1], draws)) <= PAPER


def test_a_rescale_of_nothing_is_plain_guidance() -> None:
    nets = elementwise("edm")
    plain, rescaled = (
        eager_sample(nets, (4, 3, 5), SEEDS[:4], steps=4, guidance=guidance)
        for guidance in (Guidance(2.0), RescaledGuidance(2.0, phi=0.0))
    )
    assert distance(rescaled, plain) <= PLAN
