"""Steps: the rows of a plan on the caller's tensors, as the scheduler of another library runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_eager import DPMPP_2M_SDE, SEEDS, SHAPE, distance, elementwise, run
from textbook import CLOUD, PREDICTIONS
from torch import Tensor

from fastdiff import ops, use_backend
from fastdiff.errors import InputError
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance, RescaledGuidance
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan
from fastdiff.rows.row import Row
from fastdiff.runs.run import Run
from fastdiff.runs.steps import Steps
from fastdiff.solvers.solver import SOLVERS, Solver
from fastdiff.testing.rows import same_bits

NET = CLOUD.network(PREDICTIONS["edm"])
SCHEDULER = 2e-15
"""Nine roundings, relative to the largest value: a visible plan keeps the solver's own vectors, and the plan that
``sample`` runs may carry sums of them; both round each step a few times. 1.4e-15 was seen."""


class Scheduler:
    """A drop-in scheduler: the loop, the sample and the network are somebody else's."""

    def __init__(self, plan: Plan, seeds: Any) -> None:
        self.steps, self.seeds, self.k, self.held, self.z = Steps(plan), seeds, -1, {}, None

    def start(self, shape: Any) -> Tensor:
        return self._take({}, shape=shape)

    def scale_model_input(self, sample: Tensor, timestep: float) -> Tensor:
        return self.z

    def step(self, model_output: Tensor, timestep: float, sample: Tensor) -> Tensor:
        return self._take({f"x{self.k}": sample, "F_cond": model_output})

    def _take(self, given: Any, **shape: Any) -> Tensor:
        columns, self.k = self.held | given, self.k + 1
        last = self.k + 1 == len(self.steps.plan.rows)
        made = self.steps(self.k, columns, seeds=self.seeds, z=not last, **shape)
        self.held, self.z = self.steps.alive(self.k, columns | made), made.get("z")
        return made[f"x{self.k}"]


def scheduled(compiled: Plan, net: Any = NET, shape: Any = SHAPE, seeds: Any = SEEDS) -> tuple[Tensor, list[Tensor]]:
    """The sample, and what the network was given, as somebody else's loop draws it."""
    scheduler, seen = Scheduler(compiled, list(seeds)), []
    sample = scheduler.start(shape)
    for row in compiled.rows[:-1]:
        z = scheduler.scale_model_input(sample, row.c_noise)
        seen.append(z)
        told = torch.full((len(z),), row.c_noise, dtype=torch.float64)
        sample = scheduler.step(net(z, told), row.c_noise, sample)
    return sample, seen


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "euler_ancestral", "unipc", "lms"])
def test_a_scheduler_draws_what_sample_draws(solver: str, backend: str) -> None:
    settings = {"solver": solver, "steps": 12, "dtype": "float64"}
    with use_backend(backend):
        found, _ = scheduled(plan(visible=True, **settings))
        expected = run(plan(**settings), {"cond": NET})
    assert distance(found, expected) <= SCHEDULER


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_scheduler_has_the_bits_of_a_run(solver: str) -> None:
    """Of the same plan, states and network inputs alike: with churn, and with coefficients that a gram makes."""
    compiled = plan(solver=solver, steps=5, churn=Churn(3.0, 0.01, 50.0, 1.003), dtype="float64", visible=True)
    found, seen = scheduled(compiled)
    stepping, inputs = Run(compiled, SHAPE, SEEDS), []
    for evaluation in stepping:
        inputs.append(evaluation.z.clone())
        stepping.step(NET(evaluation.z, evaluation.c_noise))
    assert same_bits(found, stepping.finish())
    assert len(seen) == len(inputs)
    assert all(map(same_bits, seen, inputs))


def turning(trace: Any, x: Any, now: Any, then: Any, memory: Any) -> Any:
    """Euler's method on a D that a call turns by a given tensor, with fresh noise."""
    D = trace.call("turn", trace.denoise(x, now), trace.given("mask"))
    return x + (x - D) * ((then.sigma - now.sigma) / now.sigma) + trace.noise() * (then.sigma / 8), None


def test_guidance_given_tensors_and_calls_are_columns() -> None:
    """A row reads F of each branch, what is given and what a call returned, and stores a call's arguments."""
    nets, shape, mask = elementwise("edm"), (3, 4, 5), torch.linspace(-1, 1, 60, dtype=torch.float64).view(3, 4, 5)
    calls = {"turn": lambda D, mask: D.flip(-1) * (1 + 0.1 * mask)}
    compiled = plan(
        solver=Solver("turning", 1, "these tests", turning, stochastic=True),
        steps=4,
        guidance=RescaledGuidance(2.0),
        dtype="float64",
        batched=False,
        visible=True,
    )
    steps, columns = Steps(compiled), {"in_mask": mask}
    for k, row in enumerate(compiled.rows):
        made = steps(k, columns, seeds=list(SEEDS)[:3], shape=shape, z=row.network is not None)
        columns = {"in_mask": mask} | columns | made
        if row.call is not None:
            columns["out_turn"] = calls["turn"](*(columns[name] for name in row.call[1]))
        told = torch.full((3,), row.c_noise, dtype=torch.float64)
        columns |= {f"F_{branch}": nets[branch](made["z"], told) for branch in row.branches}
    expected = run(compiled, nets, shape, given={"mask": mask}, calls=calls)
    assert same_bits(columns[compiled.result], expected)


# What a row does with tensors that are not its own.

COMPILED = plan(solver=DPMPP_2M_SDE, steps=8, visible=True)


def columns_of(row: Row, shape: Any = SHAPE, dtype: Any = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name in row.columns}


@pytest.mark.parametrize("k", range(len(COMPILED.rows)))
def test_a_row_is_the_op_on_the_callers_tensors(k: int) -> None:
    """In any order; it writes to fresh memory alone, and again gives the same bits."""
    row, steps = COMPILED.rows[k], Steps(COMPILED)
    columns = columns_of(row)
    before = {name: tensor.clone() for name, tensor in columns.items()}
    made = steps(k, columns, seeds=list(SEEDS), shape=SHAPE)
    assert all(same_bits(columns[name], before[name]) for name in columns)
    expected = {o.store: torch.full(SHAPE, torch.nan) for o in row.outputs if o.store}
    coef, draws = torch.tensor([[float(c) for c in row.coefficients]]), row.draws
    ops.stage(
        list(columns.values()),
        coef,
        row.program,
        seeds=torch.tensor(list(SEEDS)) if draws else None,
        draws=torch.tensor([[[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in draws]]) if draws else None,
        stores=[expected.get(o.store) if o.store else None for o in row.outputs],
    )
    assert made.keys() == expected.keys()
    again = steps(k, columns, seeds=list(SEEDS), shape=SHAPE)
    for name, tensor in made.items():
        assert same_bits(tensor, expected[name])
        assert same_bits(tensor, again[name])
        assert tensor.data_ptr() != again[name].data_ptr()


def test_a_sample_does_not_know_its_batch() -> None:
    steps, k = Steps(COMPILED), 4
    columns = columns_of(COMPILED.rows[k])
    together = steps(k, columns, seeds=list(SEEDS), z=True)
    for i, seed in enumerate(SEEDS):
        alone = steps(k, {name: tensor[i : i + 1] for name, tensor in columns.items()}, seeds=[seed], z=True)
        assert all(same_bits(alone[name], together[name][i : i + 1]) for name in together)


def test_layout_and_dtype_are_the_callers() -> None:
    k, shape = 3, (2, 4, 3, 5)
    columns = {n: t.to(memory_format=torch.channels_last) for n, t in columns_of(COMPILED.rows[k], shape).items()}
    plain = Steps(COMPILED)(k, columns_of(COMPILED.rows[k], shape), seeds=0)
    made = Steps(COMPILED, network_dtype=torch.bfloat16)(k, columns, seeds=0, z=True, dtype=torch.float16)
    assert made["z"].dtype is torch.bfloat16
    for name in plain:
        assert made[name].is_contiguous(memory_format=torch.channels_last)
        assert same_bits(made[name].contiguous(), plain[name].half())


def test_what_is_held_is_what_is_read_later() -> None:
    """LMS of order four remembers three slopes, however many steps there are; and after the last row nothing is."""
    compiled = plan(solver="lms", steps=8, visible=True)
    steps, held = Steps(compiled), {}
    for k, row in enumerate(compiled.rows):
        columns = held | {name: torch.zeros(SHAPE) for name in row.columns if name.startswith("F_")}
        held = steps.alive(k, columns | steps(k, columns, seeds=list(SEEDS), shape=SHAPE))
        later = {name for row in compiled.rows[k + 1 :] for name in row.columns}
        assert set(held) == {name for name in later if name in columns | held and not name.startswith("F_")}
        assert len(held) <= 4
    assert not held


def test_guided_rows_make_an_input_for_every_branch() -> None:
    compiled = plan(solver="euler", steps=3, guidance=Guidance(2.0), visible=True)
    made = Steps(compiled)(0, {}, seeds=list(SEEDS), shape=SHAPE, z=True)
    assert made["z"].shape == (2 * SHAPE[0], *SHAPE[1:])
    assert same_bits(made["z"][: SHAPE[0]], made["z"][SHAPE[0] :])


# Refusals.


@pytest.mark.parametrize("k", [-1, 9, 100])
def test_a_row_that_is_not_there_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=rf"there is no row {k}; the plan has rows 0 \.\. 8"):
        Steps(COMPILED)(k, {})


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], dict[str, Any], str]] = {
    "missing": (
        lambda c: {"x3": c["x3"]},
        {},
        r"row 4 reads 'W3', which was not given; it reads \['x3', .*'F_cond'\] and was given \['x3'\]",
    ),
    "of another shape": (
        lambda c: c | {"F_cond": c["F_cond"][:, :1]},
        {},
        r"row 4: .*shape.*\(column 0 is 'x3', .*is 'F_cond'\)",
    ),
    "of another dtype": (lambda c: c | {"F_cond": c["F_cond"].int()}, {}, r"row 4: .*int32.*column 0 is 'x3'"),
    "of another device": (lambda c: c | {"F_cond": c["F_cond"].to("meta")}, {}, r"row 4: .*meta.*column 0 is 'x3'"),
    "in another layout": (
        lambda c: c | {"x3": c["x3"].t().contiguous().t()},
        {},
        r"row 4: .*column 0 is 'x3'",
    ),
    "without seeds": (lambda c: c, {"seeds": None}, r"row 4: .*seeds"),
    "with seeds of another batch": (lambda c: c, {"seeds": [1, 2]}, "2 seeds for 6 samples"),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("what", REFUSED)
def test_columns_that_do_not_fit_are_refused(what: str, known: bool) -> None:
    """Also where the row has been run on tensors that did fit."""
    change, settings, complaint = REFUSED[what]
    steps, columns = Steps(COMPILED), columns_of(COMPILED.rows[4])
    if known:
        steps(4, columns, seeds=list(SEEDS))
    with pytest.raises(InputError, match=complaint):
        steps(4, change(columns), **{"seeds": list(SEEDS)} | settings)


def test_what_a_row_does_not_make_is_refused() -> None:
    last = len(COMPILED.rows) - 1
    with pytest.raises(InputError, match=rf"row {last} makes no network input; leave z out"):
        Steps(COMPILED)(last, columns_of(COMPILED.rows[last]), seeds=list(SEEDS), z=True)
    with pytest.raises(InputError, match=r"row 0 reads no tensor to take its shape from; pass shape=\(B, \.\.\.\)"):
        Steps(COMPILED)(0, {}, seeds=list(SEEDS))


def test_a_backend_may_be_chosen_anew_at_every_row() -> None:
    steps, columns = Steps(COMPILED), columns_of(COMPILED.rows[4])
    made = {}
    for backend in ("cpu", "reference", "cpu"):
        with use_backend(backend):
            made[backend] = steps(4, columns, seeds=list(SEEDS))
    assert all(same_bits(made["cpu"][name], made["reference"][name]) for name in made["cpu"])


def test_seeds_that_were_changed_are_looked_at_again() -> None:
    steps, columns, seeds = Steps(COMPILED), columns_of(COMPILED.rows[4]), torch.tensor(list(SEEDS))
    first = steps(4, columns, seeds=seeds)
    again = steps(4, columns, seeds=seeds.add_(1))
    expected = steps(4, columns, seeds=[seed + 1 for seed in SEEDS])
    assert all(same_bits(again[name], expected[name]) for name in expected)
    assert not all(same_bits(again[name], first[name]) for name in first)
    with pytest.raises(InputError, match="a seed is -5"):
        steps(4, columns, seeds=seeds.fill_(-5))
    with pytest.raises(InputError, match=r"seeds is torch.int64 \[6\]; it must be torch.int64 \[2\]"):
        steps(4, {name: tensor[:2] for name, tensor in columns.items()}, seeds=seeds)
