"""Plans written by hand for solvers that the compiler does not know yet: the row format carries them.

Each keeps its natural history in a ring of buffers, one store per evaluation: DPM-Solver++ 2M and 2M-SDE (Lu et al.
2022), UniPC-2 (Zhao et al. 2023, B_2(h)), LMS-4 (Adams-Bashforth in sigma). Then what a batch of different samples
needs: bounds per sample, rows that are unions, several draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
import textbook
import torch
from textbook import CLOUD, LEVELS, LINEAR, PREDICTIONS
from torch import Tensor

from fastdiff import ops, use_backend
from fastdiff.backends import reference
from fastdiff.backends.registry import list_backends
from fastdiff.maths.draw import Draw
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan
from fastdiff.rows.row import Output, Row
from fastdiff.runs.sample import sample

SHAPE, SEED, STEPS = (16, 2), 5, 12
FP64 = 1e-12
EDM = PREDICTIONS["edm"]
USABLE = [report.name for report in list_backends() if report.usable and report.name in ("cpu", "reference")]


def noise(dtype: torch.dtype = torch.float64) -> textbook.Draws:
    return textbook.counter_noise(SHAPE, range(SEED, SEED + SHAPE[0]), dtype)


def output(coefficients: dict[str, float], store: str | None = None, noise: float = 0.0) -> Output:
    """``sum c_k column_k``, in the base form where x has a coefficient above 1/2 (``docs/compiler.md``)."""
    terms = dict(coefficients)
    base = "x" if terms.get("x", 0.0) > 0.5 else None
    if base:
        terms[base] -= 1.0
    drawn = (("xi0", noise),) if noise else ()
    return Output(base, tuple((name, c) for name, c in terms.items() if c), drawn, store)


def row(outputs: Sequence[Output], sigma: float, network: int | None = 0, draws: tuple = ()) -> Row:
    """A row that reads what its outputs use and feeds the network at sigma."""
    used = [(o.base, *(name for name, _ in o.terms)) for o in outputs]
    columns = tuple(dict.fromkeys(name for names in used for name in names if name is not None))
    if network is None:
        return Row(columns, tuple(outputs), draws)
    c_noise, c_in = EDM.scalars(sigma)[3], EDM.scalars(sigma)[2]
    told = {"c_noise": c_noise, "sigma": sigma, "branches": ("cond",)}
    return Row(columns, tuple(outputs), draws, network, c_in, **told)


def first(sigma: float, *stores: str) -> Row:
    """The first noise, in every buffer that starts with it."""
    outputs = [Output(noise=(("xi0", sigma),), store=store) for store in stores]
    return row(outputs, sigma, draws=(("xi0", Draw(textbook.INIT, 0)),))


def denoised(sigma: float, source: str = "x") -> dict[str, float]:
    """D of the evaluation just made, from its input and the network's output."""
    c_skip, c_out, _, _ = EDM.scalars(sigma)
    return {source: c_skip, "F_cond": c_out}


def combine(*parts: tuple[float, dict[str, float]]) -> dict[str, float]:
    """A linear combination of linear combinations, columns in order of their first use."""
    total: dict[str, float] = {}
    for weight, terms in parts:
        for name, c in terms.items():
            total[name] = total.get(name, 0.0) + weight * c
    return total


# Each solver twice: first its update on tensors, as in the paper; then its rows.


def dpmpp_2m_weights(levels: Sequence[float], i: int, eta: float) -> tuple[float, float, float, float]:
    """Weights of x, D_i, D_{i-1} and the noise in x_{i+1}; lambda = -log sigma.

    ``x <- sigma'/sigma e^{-eta h} x + (1 - e^{-(1 + eta) h}) (D + (D - D_old) / (2 r)) + n xi`` with
    ``n = sigma' sqrt(1 - e^{-2 eta h})``, h the step in lambda and r the last step over this one (Lu et al., the
    midpoint form). To sigma = 0 the step is first order and lands on D.
    """
    sigma, sigma_next = levels[i], (*levels, 0.0)[i + 1]
    if sigma_next == 0:
        return 0.0, 1.0, 0.0, 0.0
    h = math.log(sigma / sigma_next)
    gain = -math.expm1(-(1 + eta) * h)
    slope = gain / 2 * h / math.log(levels[i - 1] / sigma) if i else 0.0
    lift = sigma_next * math.sqrt(-math.expm1(-2 * eta * h))
    return sigma_next / sigma * math.exp(-eta * h), gain + slope, -slope, lift


def textbook_2m(denoise: textbook.Denoiser, levels: Sequence[float], xi: textbook.Draws, eta: float) -> Tensor:
    x = levels[0] * xi(-1)
    old = torch.zeros_like(x)
    for i, sigma in enumerate(levels):
        d = denoise(x, sigma)
        sigma_next = (*levels, 0.0)[i + 1]
        if sigma_next == 0:
            return d
        h = math.log(sigma) - math.log(sigma_next)
        slanted = d if i == 0 else d + (d - old) * h / (2 * (math.log(levels[i - 1]) - math.log(sigma)))
        x = sigma_next / sigma * math.exp(-eta * h) * x + (1 - math.exp(-(1 + eta) * h)) * slanted
        x = x + sigma_next * math.sqrt(1 - math.exp(-2 * eta * h)) * xi(i)
        old = d
    raise AssertionError("the last step goes to sigma = 0")


def plan_2m(levels: Sequence[float], eta: float, dtype: str) -> Plan:
    rows = [first(levels[0], "x")]
    for i, sigma in enumerate(levels):
        a, b, c, lift = dpmpp_2m_weights(levels, i, eta)
        d = denoised(sigma)
        terms = combine((a, {"x": 1.0}), (b, d), (c, {"h1": 1.0} if c else {}))
        draws = (("xi0", Draw(textbook.STEP, i)),) if lift else ()
        if i == len(levels) - 1:
            rows.append(row([output(terms, "x")], 0.0, network=None))
        else:
            kept = [output(d, "h1")]
            rows.append(row([output(terms, "x", lift), *kept], levels[i + 1], draws=draws))
    return Plan(tuple(rows), dtype)


def adams_weights(levels: Sequence[float], i: int) -> list[float]:
    """Weights of the slopes at levels i, i - 1, ... in the step from level i, by exact integration."""
    nodes = [levels[i - j] for j in range(min(i, 3) + 1)]
    return textbook.lagrange_integrals(nodes, levels[i], (*levels, 0.0)[i + 1])


def plan_lms(levels: Sequence[float], dtype: str) -> Plan:
    """Slopes ``(x - D) / sigma`` in a ring of three buffers, each new one over the oldest."""
    rows = [first(levels[0], "x")]
    for i, sigma in enumerate(levels):
        slope = combine((1 / sigma, {"x": 1.0}), (-1 / sigma, denoised(sigma)))
        weight, *older = adams_weights(levels, i)
        history = [(w, {f"h{(i - 1 - j) % 3 + 1}": 1.0}) for j, w in enumerate(older)]
        terms = combine((1.0, {"x": 1.0}), (weight, slope), *history)
        if i == len(levels) - 1:
            rows.append(row([output(terms, "x")], 0.0, network=None))
        else:
            rows.append(row([output(terms, "x"), output(slope, f"h{i % 3 + 1}")], levels[i + 1]))
    return Plan(tuple(rows), dtype)


def unipc_weights(h: float, last: float | None) -> tuple[float, float, tuple[float, float]]:
    """UniPC-2 with B(h) = e^h - 1, data prediction: (predictor's weight of D1, corrector's of D1 and of D - D_0).

    D1 is the divided difference ``(D_{-1} - D_0) / r`` with ``r = -last / h``; the corrector solves
    ``[[1, 1], [r, 1]] rho = [b_1, b_2]`` with ``b_1 = (phi_1(-h) - 1) / -h ...`` (Zhao et al., equations 9 and 13).
    """
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    if last is None:
        return 0.0, 0.0, (0.0, 0.5)
    r = -last / h
    rho_1 = (b_2 - b_1) / (r - 1)
    return 0.5, r, (rho_1, b_1 - rho_1)


def textbook_unipc(denoise: textbook.Denoiser, levels: Sequence[float], xi: textbook.Draws) -> Tensor:
    """Predict with UniP-2, evaluate there, correct with UniC-2; the corrected state is never evaluated."""
    x = levels[0] * xi(-1)
    past: list[Tensor] = [denoise(x, levels[0])]
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(levels)):
        h = math.log(sigma / sigma_next)
        last = math.log(levels[i - 1] / sigma) if i else None
        weight, r, (rho_1, rho_2) = unipc_weights(h, last)
        d_0 = past[0]
        d_1 = (past[1] - d_0) / r if i else torch.zeros_like(x)
        start = sigma_next / sigma * x - math.expm1(-h) * d_0
        predicted = start - math.expm1(-h) * weight * d_1
        d_t = denoise(predicted, sigma_next)
        x = start - math.expm1(-h) * (rho_1 * d_1 + rho_2 * (d_t - d_0))
        past = [d_t, d_0]
    return past[0]


def unipc_states(levels: Sequence[float], i: int) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Predicted and corrected x_{i+1} over x (corrected x_i), D0, D1 and, for the corrected one, Dt."""
    sigma, sigma_next = levels[i], levels[i + 1]
    h = math.log(sigma / sigma_next)
    weight, r, (rho_1, rho_2) = unipc_weights(h, math.log(levels[i - 1] / sigma) if i else None)
    b = -math.expm1(-h)
    difference = {"D1": 1 / r, "D0": -1 / r} if i else {}
    start = {"x": sigma_next / sigma, "D0": b}
    predicted = combine((1.0, start), (b * weight, difference))
    corrected = combine((1.0, start), (b * rho_1, difference), (b * rho_2, {"Dt": 1.0, "D0": -1.0}))
    return start, predicted, corrected


def renamed(terms: dict[str, float], names: dict[str, dict[str, float]]) -> dict[str, float]:
    """Every symbol replaced by the combination of columns that it is."""
    return combine(*((c, names.get(name, {name: 1.0})) for name, c in terms.items()))


def plan_unipc(levels: Sequence[float], dtype: str) -> Plan:
    """Buffers: x corrected, p predicted (what the network saw), and D of the last two evaluations in a ring."""
    rows = [first(levels[0], "p", "x")]
    for i, sigma in enumerate(levels):
        new = denoised(sigma, "p")
        if i == len(levels) - 1:
            rows.append(row([output(new, "x")], 0.0, network=None))
            break
        fresh, older, oldest = f"h{i % 2 + 1}", f"h{(i - 1) % 2 + 1}", f"h{i % 2 + 1}"
        corrected = {"x": 1.0}
        if i:
            names = {"Dt": new, "D0": {older: 1.0}, "D1": {oldest: 1.0}}
            corrected = renamed(unipc_states(levels, i - 1)[2], names)
        predicted = unipc_states(levels, i)[1]
        predicted = renamed(predicted, {"x": corrected, "D0": new, "D1": {older: 1.0}})
        outputs = [output(predicted, "p"), output(corrected, "x" if i else None), output(new, fresh)]
        rows.append(row(outputs, levels[i + 1]))
    return Plan(tuple(rows), dtype)


SOLVERS: dict[str, tuple[Callable[..., Plan], Callable[..., Tensor]]] = {
    "2M": (partial(plan_2m, eta=0.0), partial(textbook_2m, eta=0.0)),
    "2M-SDE": (partial(plan_2m, eta=1.0), partial(textbook_2m, eta=1.0)),
    "2M-SDE, eta 0.4": (partial(plan_2m, eta=0.4), partial(textbook_2m, eta=0.4)),
    "LMS-4": (plan_lms, lambda denoise, levels, xi: textbook.adams_bashforth(denoise, LINEAR, levels, xi, 4)),
    "UniPC-2": (plan_unipc, textbook_unipc),
}


def written(name: str, dtype: str) -> Plan:
    return SOLVERS[name][0](LEVELS["edm"](STEPS), dtype=dtype)


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_hand_written_plan_is_the_textbook_algorithm(name: str, backend: str) -> None:
    net = CLOUD.network(EDM)
    with use_backend(backend):
        found = sample(net, written(name, "float64"), SHAPE, SEED)
    expected = SOLVERS[name][1](textbook.denoiser(net, EDM), LEVELS["edm"](STEPS), noise())
    assert (found - expected).abs().max() <= FP64 * expected.abs().max()


@pytest.mark.parametrize("name", SOLVERS)
def test_backends_agree_to_the_bit_in_float32(name: str) -> None:
    compiled = written(name, "float32")
    assert len(USABLE) > 1, f"only {USABLE} can run here: build the extension"

    def net(z: Tensor, c_noise: Tensor) -> Tensor:
        return CLOUD.network(EDM)(z.double(), c_noise.double()).float()

    found = []
    for backend in USABLE:
        with use_backend(backend):
            found.append(sample(net, compiled, SHAPE, SEED).view(torch.int32))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(("name", "buffers"), [("2M", 2), ("2M-SDE", 2), ("LMS-4", 4), ("UniPC-2", 4)])
def test_a_multistep_plan_is_one_launch_an_evaluation_and_one_store_of_history(name: str, buffers: int) -> None:
    compiled = written(name, "float32")
    assert compiled.evaluations == STEPS
    assert len(compiled.rows) == STEPS + 1
    assert len(compiled.buffers) == buffers
    assert max(sum(o.store in ("h1", "h2", "h3") for o in r.outputs) for r in compiled.rows) == 1


def test_dpmpp_2m_and_unipc_have_order_two() -> None:
    """A check of the textbook code itself, whose formulas share their weights with the plans of this file."""
    denoise = textbook.denoiser(CLOUD.network(EDM), EDM)
    truth = textbook.general(denoise, LINEAR, LEVELS["edm"](400), noise())
    for algorithm in (SOLVERS["2M"][1], SOLVERS["UniPC-2"][1]):
        errors = [
            float((algorithm(denoise, textbook.edm_levels(n), noise()) - truth).square().mean().sqrt())
            for n in (24, 48, 96)
        ]
        assert math.log2(errors[0] / errors[2]) / 2 > 1.7, errors


# Several samples in one batch that do different things.


def table(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def columns(count: int, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, generator=generator) for _ in range(count)]


@pytest.fixture(params=USABLE)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


@pytest.mark.usefixtures("backend")
def test_each_sample_has_its_own_clamp_bound() -> None:
    """Dynamic thresholding (Saharia et al. 2022): bound and scale are a quantile of each sample's own D."""
    written = Row(
        ("x", "F"),
        (
            Output(None, (("x", 0.5), ("F", -1.5)), bound=1.0, scale=1.0),
            Output(base="x", terms=(("w0", 0.25),), store="x"),
        ),
    )
    x, f = columns(2, 4)
    coef = torch.tensor([written.coefficients]).repeat(4, 1)
    assert [label for label, _ in written.labelled_coefficients()][2:4] == ["w0.bound", "w0.scale"]
    d = 0.5 * x + -1.5 * f
    bound = d.abs().quantile(0.8, dim=1).clamp(min=0.3)
    coef[:, 2], coef[:, 3] = bound, 1 / bound
    expected = x + 0.25 * ((1 / bound)[:, None] * d.clamp(-bound[:, None], bound[:, None]))
    ops.stage([x, f], coef, written.program, stores=[None, x])
    assert torch.equal(x, expected)
    assert len(set(bound.tolist())) == 4


@pytest.mark.usefixtures("backend")
def test_two_samples_take_different_steps_in_one_batch() -> None:
    """Continuous batching: sample 0 takes a predictor row of Heun with churn, sample 1 its last Euler row.

    The union of two rows has the operations of both, and each sample's mask leaves out the other's. A base cannot be
    left out; as a noise term with coefficient 1 it can, and rounds the same. What is absent is never multiplied by
    zero: h1 holds NaN.
    """
    union = Row(
        ("x", "F", "h1"),
        (
            Output(None, (("x", 0.0), ("F", 0.0), ("h1", 0.0)), (("x", 1.0), ("xi0", 0.0)), "x"),
            Output(None, (("x", 0.0), ("F", 0.0), ("h1", 0.0))),
        ),
        (("xi0", Draw(textbook.STEP, 3)),),
        network=1,
    )
    coef = table([-0.2, 0.3, 9, 1, 0.7, 0.9, 0.1, 9, 0.5], [0.04, 0.49, 9, 1, 9, 0.04, 9, 9, 9])
    # From the last coefficient, c_in, to the first; as they stand above from right to left.
    present = torch.tensor([0b1_011_11_011, 0b0_001_00_011])
    x, f, h1 = columns(3, 2)
    h1[:] = math.nan
    seeds, draws = torch.tensor([11, 12]), torch.tensor([[[textbook.STEP, 0, 3, 0]]])
    xi = reference.normals(3, seeds, draws[:, 0])
    state = torch.stack([x[0] + (-0.2 * x[0] + 0.3 * f[0]) + 0.7 * xi[0], 0.04 * x[1] + 0.49 * f[1]])
    seen = torch.stack([0.5 * (0.9 * x[0] + 0.1 * f[0]), 0.04 * x[1]])
    z = torch.empty_like(x)
    ops.stage([x, f, h1], coef, union.program, seeds=seeds, draws=draws, present=present, stores=[x, None], z=z)
    assert torch.equal(x, state)
    assert torch.equal(z, seen)


@pytest.mark.usefixtures("backend")
def test_samples_of_different_solver_lengths_share_a_batch() -> None:
    """Euler with 2, 3 and 5 steps, one launch a step for all: each sample has the bits it has alone."""
    plans = [plan(schedule="edm", solver="euler", steps=steps) for steps in (2, 3, 5)]
    alone = [sample(affine, compiled, (1, 3), 31 + b)[0] for b, compiled in enumerate(plans)]
    x, z = torch.empty(3, 3), torch.empty(3, 3)
    draws = torch.zeros(1, 1, 4, dtype=torch.int64)
    coef = table(*(compiled.rows[0].coefficients for compiled in plans))
    ops.stage([], coef, plans[0].rows[0].program, seeds=torch.tensor([31, 32, 33]), draws=draws, stores=[x], z=z)
    union = Row(("x", "F"), (Output(None, (("x", 0.0), ("F", 0.0)), (("x", 1.0),), "x"),), network=0)
    for k in range(1, 6):
        c_noise = torch.tensor([p.rows[min(k, len(p.rows) - 1) - 1].c_noise for p in plans])
        rows = [p.rows[k] if k < len(p.rows) else None for p in plans]
        coef, present = zip(*map(as_union, rows), strict=True)
        f = affine(z, c_noise)
        ops.stage([x, f], table(*coef), union.program, present=torch.tensor(present), stores=[x], z=z)
    assert torch.equal(x, torch.stack(alone))


def as_union(given: Row | None) -> tuple[list[float], int]:
    """Coefficients and presence mask of an Euler row for ``a x + b F [+ x]``; a finished sample keeps its x."""
    if given is None:
        return [math.nan, math.nan, 1.0, math.nan], 0b0100
    (only,) = given.outputs
    terms = dict(only.terms)
    has = ("x" in terms, True, only.base is not None, given.network is not None)
    return [terms.get("x", 0.0), terms["F_cond"], 1.0, given.c_in], sum(bit << k for k, bit in enumerate(has))


def affine(z: Tensor, c_noise: Tensor) -> Tensor:
    """A network that is cheap and the same for every batch size."""
    return 0.5 * z - 0.1 * c_noise[:, None]


@pytest.mark.usefixtures("backend")
def test_several_draws_in_one_row_are_added_in_order() -> None:
    """As a Brownian bridge needs: 21 draws with weights, purposes and sub-draws of their own, per sample."""
    count = 21
    drawn = tuple((f"xi{j}", Draw(2, 7, j, tensor=j % 3)) for j in range(count))
    weights = [(-0.9) ** j for j in range(count)]
    noise_terms = tuple((name, w) for (name, _), w in zip(drawn, weights, strict=True))
    written = Row(("x",), (Output("x", (), noise_terms, "x"),), drawn)
    (x,) = columns(1, 2)
    seeds = torch.tensor([4, 2**62])
    words = torch.tensor([[[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in drawn]])
    expected = x.clone()
    for j, c in enumerate(table(written.coefficients)[0]):
        expected = expected + c * reference.normals(3, seeds, words[:, j])
    ops.stage([x], table(written.coefficients), written.program, seeds=seeds, draws=words, stores=[x])
    assert torch.equal(x, expected)
