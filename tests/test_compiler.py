"""The compiler: what is carried between launches, in which form, and that nothing depends on rounding."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import textwrap
from pathlib import Path

import pytest
import textbook
import torch
from test_solvers import adams_bashforth
from textbook import CLOUD, LEVELS, PREDICTIONS

from fastdiff import use_backend
from fastdiff.maths import prediction
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance
from fastdiff.maths.real import mp, positive
from fastdiff.maths.schedule import SCHEDULES, named_schedule
from fastdiff.maths.vector import Combination, Symbol
from fastdiff.plans.compiler import Compiler
from fastdiff.plans.compose import plan
from fastdiff.plans.emit import Buffers, Emitter
from fastdiff.plans.plan import Plan
from fastdiff.rows.row import Bound
from fastdiff.runs.run import Run
from fastdiff.runs.sample import sample
from fastdiff.solvers.solver import SOLVERS, named_solver
from fastdiff.solvers.trace import Trace

CHURN = Churn(4.0, 0.05, 50.0, 1.003)
ONE_STEP = ["euler", "heun", "midpoint", "ralston"]
"""Solvers that remember nothing from step to step."""
FIXED = [name for name in SOLVERS if name != "predictor_corrector"]
"""Solvers whose coefficients are known beforehand."""


# The structure of published solvers, counted (DESIGN, section 2).


@pytest.mark.parametrize(("guidance", "per_evaluation"), [(1.0, 12), (2.0, 16)])
@pytest.mark.parametrize("churn", [None, CHURN])
@pytest.mark.parametrize("steps", [2, 18, 40])
def test_heun_needs_one_buffer_one_launch_and_12_bytes(
    steps: int, churn: Churn | None, guidance: float, per_evaluation: int
) -> None:
    """bf16 network, float32 state: x read and written (8), F read and z written, once for each branch (2 each).

    The first row only writes x and z, the last only reads F and reads and writes x.
    """
    compiled = plan(schedule="edm", steps=steps, churn=churn, guidance=guidance)
    assert compiled.evaluations == 2 * steps - 1
    assert len(compiled.rows) == compiled.evaluations + 1
    assert compiled.buffers == ("x",)
    first, *others, last = compiled.traffic(network_bytes=2)
    assert others == [per_evaluation] * (compiled.evaluations - 1)
    assert first + last == per_evaluation + 4
    assert max(len(row.draws) for row in compiled.rows) <= 2


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "ralston"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_one_step_solver_needs_one_buffer_without_clipping(name: str, solver: str) -> None:
    assert plan(schedule=name, prediction=name, solver=solver, steps=5).buffers == ("x",)


@pytest.mark.parametrize(("solver", "buffers"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_clipping_keeps_what_the_derived_column_needs(solver: str, buffers: int) -> None:
    """D is not a combination any more: it is made from x' and F when F is there, so x' has a buffer."""
    compiled = plan(schedule="edm", solver=solver, steps=6, clip=1.0)
    assert len(compiled.buffers) == buffers
    first = [row.outputs[0] for row in compiled.rows]
    assert [output.bound for output in first] == [None] + [1.0] * compiled.evaluations
    assert all(output.store is None for output in first[1:])


def test_the_velocity_of_the_vp_path_is_read_without_the_state() -> None:
    """v is the derivative along a circle: on the VP path no term but the base is in x, exactly.

    In 160-bit arithmetic the coefficients cancel to 1e-48; taken for numbers they would be terms, and then histories.
    """
    for solver in ONE_STEP:
        compiled = plan(schedule="vp", prediction="v", solver=solver, steps=6)
        terms = [name for row in compiled.rows[1:] for output in row.outputs for name, _ in output.terms]
        assert set(terms) == {"F_cond"}
        assert compiled.buffers == ("x",)


def test_sums_that_cancel_are_zero_and_sums_that_do_not_are_kept() -> None:
    x = Combination.of(Symbol("x", 0))
    third = mp.mpf(1) / 3
    assert not (x * third * 3 - x).terms
    assert not (x * (third + mp.ldexp(1, -150)) - x * third).terms
    assert (x * (third + mp.ldexp(1, -100)) - x * third).terms
    assert (x * mp.ldexp(1, -300) + Combination.of(Symbol("x", 1))).terms.keys() == {Symbol("x", 0), Symbol("x", 1)}


def test_combinations_are_linear() -> None:
    x, y = Combination.of(Symbol("x", 0)), Combination.of(Symbol("F", 0, "cond"))
    total = (x + y * 2 - x * mp.mpf("0.25")) * 4 + y * -1
    assert total.terms == {Symbol("x", 0): 3, Symbol("F", 0, "cond"): 7}
    assert total.only(lambda s: s.kind == "F").terms == {Symbol("F", 0, "cond"): 7}
    inner = total.replace(lambda s: y * 2 if s.kind == "x" else None)
    assert inner.terms == {Symbol("F", 0, "cond"): 13}
    assert str(Symbol("F", 3, "cond")) == "cond3"
    assert sorted([Symbol("x", 2), Symbol("D", 3), Symbol("x", 1)])[0] == Symbol("D", 3)


# The two rules: what is carried, and the form of an output.


def compiled_both_ways(solver: str, guidance: Guidance, clip: float | None, churn: Churn, name: str) -> list[Plan]:
    """The plan with its natural history, and with partial sums wherever they move less."""
    chosen, predicts = named_schedule(name), prediction.named_prediction(name)
    points = chosen.points(6, predicts.round_sigma)
    trace = Trace(points, predicts, guidance, churn, 6, None if clip is None else positive(clip, "clip"))
    result = trace.finish(trace.run(named_solver(solver)))
    stages = [Compiler(trace, result, partial_sums=sums).stages() for sums in (False, True)]
    rows = [Emitter(trace.draws, "float32", True, solver, Buffers()).rows(found) for found in stages]
    return [Plan(tuple(found), "float32") for found in rows]


@pytest.mark.parametrize("name", ["edm", "vp", "ve"])
@pytest.mark.parametrize("solver", ONE_STEP)
def test_partial_sums_are_carried_where_they_move_less_and_are_as_accurate(solver: str, name: str) -> None:
    """Strictly fewer bytes and a bound at most 1.5 times as large, else the natural history."""
    taken = []
    for guidance, clip, churn in itertools.product((1.0, 3.0), (None, 1.0), (Churn(), CHURN)):
        natural, sums = compiled_both_ways(solver, Guidance(guidance), clip, churn, name)
        fewer = sum(sums.traffic()) < sum(natural.traffic())
        accurate = sums.bound().error <= 1.5 * natural.bound().error
        chosen = plan(schedule=name, prediction=name, solver=solver, steps=6, guidance=guidance, clip=clip, churn=churn)
        assert chosen.rows == (sums if fewer and accurate else natural).rows
        assert fewer or sums.rows == natural.rows
        taken.append(fewer and accurate)
    # Where D = x +- sigma F the midpoint's second slope has no x' in it, so its natural history is x alone.
    assert any(taken) == (solver != "euler" and (solver, name) != ("midpoint", "ve"))


@pytest.mark.parametrize(("ratio", "buffers"), [(1.5, 1), (1.51, 3)])
def test_partial_sums_that_are_less_accurate_are_not_taken(
    ratio: float, buffers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No solver here has such sums, so the bound is made up: that of the plan that moves less is ``ratio`` larger."""
    natural, _ = compiled_both_ways("heun", Guidance(), None, Churn(), "edm")

    def bound(self: Plan, network: float = 1.0) -> Bound:
        return Bound(1.0, ratio if sum(self.traffic()) < sum(natural.traffic()) else 1.0)

    monkeypatch.setattr(Plan, "bound", bound)
    assert len(plan(schedule="edm", steps=6).buffers) == buffers


@pytest.mark.parametrize("name", ["edm", "vp", "ve"])
@pytest.mark.parametrize("solver", FIXED)
def test_a_state_is_the_base_of_an_output_where_its_coefficient_exceeds_one_half(solver: str, name: str) -> None:
    """``base + ((c - 1) base + ...)`` if c > 1/2, else ``c base + ...``: so terms in a state lie within +-1/2."""
    with_base = 0
    for steps in (1, 2, 6, 40):
        for row in plan(schedule=name, prediction=name, solver=solver, steps=steps).rows[1:]:
            for output in row.outputs:
                terms = dict(output.terms)
                with_base += output.base is not None
                if output.base is not None:
                    assert terms.get(output.base, 0.0) > -0.5
                else:
                    assert terms.get("x", 0.0) <= 0.5
    assert with_base > 0


def test_the_rule_keeps_the_combination() -> None:
    """Heun, edm, 4 steps, row 1: c_x by hand. x' is formed from c_skip and the step; 0.12157 is not above 1/2."""
    row = plan(schedule="edm", steps=4).rows[1]
    t, t_next = LEVELS["edm"](4)[:2]
    c_skip, c_out, _, _ = PREDICTIONS["edm"].scalars(t)
    h = t_next - t
    predicted = {"x": 1 + h / t * (1 - c_skip), "F_cond": -h / t * c_out}
    assert row.outputs[1].base is None
    assert dict(row.outputs[1].terms) == pytest.approx(predicted, rel=1e-7)
    row = plan(schedule="edm", steps=40).rows[1]
    t, t_next = LEVELS["edm"](40)[:2]
    h, (c_skip, c_out, _, _) = t_next - t, PREDICTIONS["edm"].scalars(t)
    assert row.outputs[1].base == "x"
    assert dict(row.outputs[1].terms) == pytest.approx({"x": h / t * (1 - c_skip), "F_cond": -h / t * c_out}, rel=1e-7)


# Rows are complete and read nothing that is not there.


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("solver", FIXED)
def test_every_buffer_is_written_before_it_is_read_and_every_output_is_used(solver: str, clip: float | None) -> None:
    compiled = plan(schedule="edm", solver=solver, steps=5, guidance=2.0, churn=CHURN, clip=clip)
    written: set[str] = set()
    unread: set[str] = set()
    for row in compiled.rows:
        state = {name for name in row.columns if not name.startswith("F_")}
        assert state <= written
        assert len(set(row.columns)) == len(row.columns)
        stores = {output.store for output in row.outputs if output.store}
        unread -= state
        assert not stores & unread, "a store is lost"
        written |= stores
        unread |= stores
        again = {name for output in row.outputs for name, _ in output.terms}
        assert all(output.store or row.network == i or f"w{i}" in again for i, output in enumerate(row.outputs))
    assert unread == {compiled.result}


def test_guided_rows_read_both_branches_and_ask_for_both_inputs() -> None:
    compiled = plan(schedule="edm", steps=12, guidance=Guidance(2.0, (0.1, 5.0)))
    for before, after in itertools.pairwise(compiled.rows):
        inside = 0.1 <= before.sigma <= 5.0
        assert before.copies == (2 if inside else 1)
        assert before.branches == (("cond", "uncond") if inside else ("cond",))
        assert {name for name in after.columns if name.startswith("F_")} == {f"F_{b}" for b in before.branches}


@pytest.mark.parametrize("name", prediction.PREDICTIONS)
def test_plans_of_one_step_run_on_the_reference(name: str) -> None:
    """An x0-network's only step does not need the noise again: still the op must see how large the batch is."""
    compiled = plan(schedule="edm", prediction=name, solver="euler", steps=1)
    with use_backend("reference"):
        found = sample(lambda z, c_noise: torch.full_like(z, 0.25), compiled, (3, 2), 0)
    assert found.shape == (3, 2)
    assert name != "x0" or (found == 0.25).all()


@pytest.mark.parametrize(("scale", "branches"), [(0.0, ("uncond",)), (1.0, ("cond",)), (2.0, ("cond", "uncond"))])
def test_branches_of_weight_zero_are_not_evaluated(scale: float, branches: tuple[str, ...]) -> None:
    assert {row.branches for row in plan(schedule="edm", steps=3, guidance=scale).rows[:-1]} == {branches}


def test_unbatched_plans_write_one_input_for_all_branches() -> None:
    batched, apart = (plan(schedule="edm", steps=3, guidance=2.0, batched=batched) for batched in (True, False))
    assert {row.copies for row in batched.rows[:-1]} == {2}
    assert {row.copies for row in apart.rows[:-1]} == {1}
    assert [row.outputs for row in batched.rows] == [row.outputs for row in apart.rows]


def test_callers_noise_is_read_from_columns() -> None:
    # Churn at the first level too, so that row 0 has two draws.
    counter, caller = (plan(schedule="edm", steps=4, churn=Churn(4.0), noise=noise) for noise in ("counter", "caller"))
    assert [len(row.draws) for row in counter.rows] == [2, 0, 1, 0, 1, 0, 1, 0]
    for a, b in zip(counter.rows, caller.rows, strict=True):
        assert b.draws == ()
        assert b.columns == a.columns + tuple(name for name, _ in a.draws)
        assert b.outputs == a.outputs
    draw = textbook.counter_noise((4, 3), range(4), torch.float32)
    order = [[d.draw if d.purpose else -1 for _, d in row.draws] for row in counter.rows]

    def noise(row: int, j: int) -> torch.Tensor:
        return draw(order[row][j])

    def net(z: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return 0.5 * z

    assert torch.equal(sample(net, counter, (4, 3), 0), sample(net, caller, (4, 3), 0, noise=noise))


@pytest.mark.parametrize("clip", [None, 0.6])
@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_the_denoised_prediction_is_d_of_the_evaluation(solver: str, clip: float | None) -> None:
    """Where its input is at hand; a plan that does not ask for it gives the same sample."""
    compiled = plan(schedule="edm", solver=solver, steps=5, dtype="float64", clip=clip, denoised=True)
    exact = CLOUD.network(PREDICTIONS["edm"])
    denoise = textbook.denoiser(exact, PREDICTIONS["edm"])
    denoise = denoise if clip is None else textbook.clipped(denoise, clip)
    run = Run(compiled, (8, 2), 0)
    seen = 0
    for k, evaluation in enumerate(run):
        expected = denoise(evaluation.z / PREDICTIONS["edm"].scalars(evaluation.sigma)[2], evaluation.sigma)
        run.step(exact(evaluation.z, evaluation.c_noise))
        if any(output.store == "denoised" for output in compiled.rows[k + 1].outputs):
            assert run.denoised is not None
            assert (run.denoised - expected).abs().max() <= 1e-12
            seen += 1
    # Without clipping a corrector's input x' is never stored, so D there cannot be had for nothing.
    corrections = 0 if solver == "euler" or clip else 4 if solver == "heun" else 5
    assert seen == compiled.evaluations - corrections
    plain = plan(schedule="edm", solver=solver, steps=5, dtype="float64", clip=clip)
    assert torch.equal(run.finish(), sample(exact, plain, (8, 2), 0))


def test_clipped_d_is_a_first_output_that_the_others_read() -> None:
    row = plan(schedule="edm", solver="euler", steps=3, clip=0.5, guidance=2.0).rows[1]
    first, *others = row.outputs
    assert (first.bound, first.store) == (0.5, None)
    assert [name for name, _ in first.terms] == ["x", "F_cond", "F_uncond"]
    assert [name for output in others for name, _ in output.terms] == ["x", "w0"]


def test_a_step_to_sigma_zero_is_an_euler_step() -> None:
    """EDM, algorithms 1-3: no second evaluation where sigma(t') = 0; the result of exact data is D itself."""
    compiled = plan(schedule="edm", prediction="x0", steps=3, dtype="float64")
    last = compiled.rows[-1].outputs[0]
    assert last.base is None
    assert last.terms == (("F_cond", 1.0),)
    assert compiled.rows[-2].sigma == 0.002


def test_the_documented_plan_is_what_the_command_prints() -> None:
    """docs/compiler.md names a command and shows its output."""
    text = (Path(__file__).parents[1] / "docs" / "compiler.md").read_text(encoding="utf-8")
    found = re.search(r"    \$ python -c \"(.*)\"\n((?:    .*\n|\n)+)", text)
    assert found is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(found[1], {})
    assert textwrap.dedent(found[2]).strip() == printed.getvalue().strip()


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_multistep_history_stays_in_a_ring(order: int, clip: float | None) -> None:
    """order buffers, two stores an evaluation: the state and one slope, over the oldest."""
    compiled = plan(schedule="edm", solver=adams_bashforth(order), steps=10, clip=clip)
    assert len(compiled.buffers) == order
    stores = [sum(output.store is not None for output in row.outputs) for row in compiled.rows]
    assert max(stores) == 2
    assert stores[1:8] == [2] * 7
