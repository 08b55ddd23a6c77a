"""Plans as objects: immutable, the same every time, read back from JSON, bounded; and settings that are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import textbook
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import CLOUD, PREDICTIONS

from fastdiff.backends import reference
from fastdiff.errors import PlanError
from fastdiff.maths import schedule
from fastdiff.maths.churn import Churn
from fastdiff.maths.draw import Draw
from fastdiff.maths.guidance import Guidance
from fastdiff.maths.prediction import PREDICTIONS as NAMES
from fastdiff.plans.compose import plan
from fastdiff.plans.explain import formulas
from fastdiff.plans.plan import Plan
from fastdiff.rows.call import Call
from fastdiff.rows.row import Output, Row
from fastdiff.runs.sample import sample
from fastdiff.solvers.solver import SOLVERS

CHURN = Churn(4.0, 0.05, 50.0, 1.003)
FULL = {"steps": 4, "guidance": Guidance(2.0, (0.1, 30.0)), "churn": CHURN, "clip": 1.0, "denoised": True}


def made(**settings: Any) -> Plan:
    """A plan; one whose inner products would need a clamped D is made without the clamp."""
    try:
        return plan(**settings)
    except PlanError as error:
        if "leave clip out" not in str(error):
            raise
        return plan(**settings | {"clip": None})


def plans() -> st.SearchStrategy[Plan]:
    """Plans of every setting."""
    return st.builds(
        made,
        schedule=st.sampled_from(["edm", "vp", "ve"]),
        prediction=st.sampled_from([name for name in NAMES if name != "iddpm"]),
        solver=st.sampled_from(list(SOLVERS)),
        steps=st.integers(1, 4),
        guidance=st.sampled_from([0.0, 1.0, 2.5, Guidance(2.0, (0.1, 10.0))]),
        churn=st.sampled_from([None, CHURN]),
        clip=st.sampled_from([None, 1.0]),
        dtype=st.sampled_from(["float32", "float64"]),
        batched=st.booleans(),
        denoised=st.booleans(),
        noise=st.sampled_from(["counter", "caller"]),
    )


# Identity.


@settings(max_examples=40, deadline=None)
@given(plans())
def test_a_plan_is_read_back_as_it_was_written(compiled: Plan) -> None:
    again = Plan.from_json(compiled.to_json())
    assert again == compiled
    assert again.sha256 == compiled.sha256
    assert again.to_json() == compiled.to_json()


def test_the_same_settings_give_the_same_plan() -> None:
    assert plan(**FULL) == plan(**FULL)
    assert plan(**FULL).sha256 == plan(**FULL).sha256
    assert hash(plan(**FULL)) == hash(plan(**FULL))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"guidance": 2.0},
        {"churn": Churn(4.0, 0.05, 50.0, 1.004)},
        {"clip": 1.0 + 2.0**-20},
        {"dtype": "float64"},
        {"batched": False},
        {"noise": "caller"},
        {"prediction": "vp"},
        {"solver": "ralston"},
        {"schedule": schedule.edm(0.002, 80.0, 7.0 + 1e-7)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_tells_any_two_settings_apart(change: dict[str, Any]) -> None:
    assert plan(**FULL | change).sha256 != plan(**FULL).sha256


def test_the_digest_tells_state_types_of_the_same_numbers_apart() -> None:
    compiled = plan(**FULL)
    assert dataclasses.replace(compiled, dtype="float64").sha256 != compiled.sha256


def test_the_digest_is_of_the_numbers_not_of_the_words() -> None:
    compiled = plan(**FULL)
    renamed = dataclasses.replace(compiled, description="mine")
    assert renamed.sha256 == compiled.sha256
    assert Plan.from_json(renamed.to_json()).description == "mine"


def test_a_plan_cannot_be_changed() -> None:
    compiled = plan(**FULL)
    row = compiled.rows[1]
    for thing, name in ((compiled, "dtype"), (row, "c_in"), (row.outputs[0], "store"), (row.outputs[1], "bound")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, None)
    assert isinstance(compiled.rows, tuple)
    assert all(isinstance(v, tuple) for v in (row.columns, row.outputs, row.draws, row.outputs[0].terms, row.branches))


def test_threads_compile_the_same_plan() -> None:
    """mpmath's context is shared; the lock keeps one thread's working precision from another's numbers."""
    digests: list[str] = []
    names = ["vp", "edm", "ve", "vp"]
    expected = [plan(schedule=name, prediction=name, steps=4).sha256 for name in names]

    def work(name: str, k: int) -> None:
        digests.append(f"{k} {plan(schedule=name, prediction=name, steps=4).sha256}")

    threads = [threading.Thread(target=work, args=(name, k)) for k, name in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(digests) == [f"{k} {digest}" for k, digest in enumerate(expected)]


def test_a_thousand_steps_compile() -> None:
    compiled = plan(schedule="edm", solver="euler", steps=1000)
    assert compiled.evaluations == 1000
    assert compiled.buffers == ("x",)


def test_numbers_of_numpy_and_exact_fractions_are_settings() -> None:
    expected = plan(schedule=[8.0, 0.5], prediction="edm", solver="euler", guidance=2.0, clip=1.5, churn=Churn(1.5))
    for kind in (np.float32, np.float64, Fraction):
        given = plan(
            schedule=[kind(8.0), kind(0.5)],
            prediction="edm",
            solver="euler",
            guidance=kind(2),
            clip=kind(1.5),
            churn=Churn(kind(1.5)),
        )
        assert given == expected
    assert plan(steps=np.int64(7)) == plan(steps=7)


def test_a_schedule_of_sigmas_says_how_many_steps() -> None:
    assert plan(schedule=[80.0, 5.0, 1.0], solver="euler").evaluations == 3
    assert plan(schedule=[80.0, 5.0, 1.0, 0.0], solver="euler") == plan(schedule=[80.0, 5.0, 1.0], solver="euler")
    assert plan(schedule=np.array([80.0, 5.0, 1.0]), solver="euler") == plan(schedule=[80.0, 5.0, 1.0], solver="euler")
    assert plan(solver="euler").evaluations == 18


# What it says of itself.


def test_explain_shows_every_coefficient_in_words() -> None:
    text = plan(schedule="edm", steps=3, guidance=2.0, churn=CHURN).explain()
    assert text.startswith("heun · edm schedule · edm prediction · 3 steps · guidance 2 · churn 4\n")
    assert "state float32 · 5 network evaluations · 6 launches · buffers x · sha256" in text
    assert "x = +80·xi0" in text
    assert "·F_uncond" in text
    assert "×2" in text
    assert text.count("z = ") == 5
    assert len(plan(schedule="edm", steps=18).explain(limit=3).splitlines()) < 12
    assert "... 33 more rows" in plan(schedule="edm", steps=18).explain(limit=3)
    assert "clip 1" in plan(**FULL).explain()
    assert "on sigma in [0.1, 30]" in plan(**FULL).explain()


def test_formulas_show_clamp_scale_and_base() -> None:
    row = Row(
        ("x", "F_cond"),
        (
            Output(None, (("x", 1.0), ("F_cond", -2.0)), bound=1.5, scale=0.25),
            Output("x", (("w0", 0.5),), (), "x"),
        ),
    )
    assert formulas(row) == ["w0 = 0.25·clamp(+1·x -2·F_cond, ±1.5)", "x = x +0.5·w0"]
    assert formulas(Row((), (Output(store="x"),))) == ["x = 0"]


# The bound.

rational = np.vectorize(Fraction, otypes=[object])


def exact_replay(compiled: Plan, outputs: list[dict[str, np.ndarray]], noise: list[list[np.ndarray]]) -> np.ndarray:
    """The rows of a float64 plan in rational arithmetic, given network outputs and noise."""
    held: dict[str, np.ndarray] = {}
    for k, row in enumerate(compiled.rows):
        known = dict(held)
        known |= {f"F_{b}": rational(f) for b, f in (outputs[k - 1].items() if k else ())}
        known |= {name: rational(xi) for (name, _), xi in zip(row.draws, noise[k], strict=True)}
        for i, output in enumerate(row.outputs):
            total = sum(Fraction(c) * known[name] for name, c in (*output.terms, *output.noise))
            total = total + known[output.base] if output.base is not None else total
            if output.bound is not None:
                limit = Fraction(output.bound)
                total = np.vectorize(lambda v, limit=limit: min(max(v, -limit), limit), otypes=[object])(total)
            known[f"w{i}"] = total
            if output.store is not None:
                held[output.store] = total
    return held[compiled.result]


def replay(compiled: Plan, outputs: list[dict[str, np.ndarray]], shape: tuple[int, int], seeds: torch.Tensor) -> Any:
    """The rows by the reference, with given network outputs; returns the result and the noise it drew."""
    state = torch.float64 if compiled.dtype == "float64" else torch.float32
    held: dict[str, torch.Tensor] = {}
    drawn = []
    for k, row in enumerate(compiled.rows):
        words = torch.tensor([[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in row.draws]).view(1, -1, 4)
        drawn.append([reference.normals(shape[1], seeds, words[:, j]).numpy() for j in range(words.shape[1])])
        known = held | {f"F_{b}": torch.from_numpy(f) for b, f in (outputs[k - 1].items() if k else ())}
        stores = [None if o.store is None else torch.empty(shape, dtype=state) for o in row.outputs]
        z = torch.empty(row.copies * shape[0], shape[1], dtype=state) if row.network is not None else None
        coef = torch.tensor([row.coefficients], dtype=state)
        columns = [known[name] for name in row.columns]
        reference.stage(Call(columns, coef, row.program, seeds=seeds, draws=words, stores=stores, z=z))
        held |= {o.store: w for o, w in zip(row.outputs, stores, strict=True) if o.store is not None}
    return held[compiled.result].double().numpy(), drawn


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize(("solver", "steps"), [("euler", 6), ("heun", 1), ("heun", 2), ("heun", 18), ("ralston", 6)])
@pytest.mark.parametrize("name", ["edm", "vp"])
def test_the_bound_holds_and_is_not_vacuous(name: str, solver: str, steps: int, clip: float | None) -> None:
    """float32 against the float64 plan in rational arithmetic, whose own rounding is 2**-29 times smaller."""
    single, found, exact = replayed(name, solver, steps, clip)
    error = largest(exact - found)
    bound = single.bound(network=1.0)
    assert largest(exact) <= bound.magnitude
    assert error <= bound.error
    # Worst cases add up where actual errors average out. A clamp hides how its column depends on the state; there
    # the bound must still be well below the data.
    assert error >= bound.error / 300 if clip is None else bound.error <= 0.05


def replayed(
    name: str, solver: str, steps: int, clip: float | None, change: Callable[[Plan], Plan] = lambda plan: plan
) -> tuple[Plan, np.ndarray, np.ndarray]:
    """The float32 plan, its result with given network outputs in [-1, 1] after a change, and the exact result."""
    shape, seeds = (16, 4), torch.arange(16)
    single, double = (
        plan(
            schedule=name,
            prediction=name,
            solver=solver,
            steps=steps,
            churn=CHURN,
            guidance=2.0,
            clip=clip,
            dtype=dtype,
        )
        for dtype in ("float32", "float64")
    )
    assert [row.program for row in single.rows] == [row.program for row in double.rows]
    generator = np.random.default_rng(0)
    outputs = [
        {b: generator.uniform(-1, 1, shape).astype(np.float32) for b in row.branches} for row in single.rows[:-1]
    ]
    found, drawn = replay(change(single), outputs, shape, seeds)
    return single, rational(found), exact_replay(double, outputs, drawn)


def largest(values: np.ndarray) -> float:
    return float(np.max(np.abs(values)))


def test_the_bound_is_left_by_a_wrong_coefficient() -> None:
    """Positive control: one coefficient of the last row but one is off by 1e-4, a thousand roundings."""

    def spoil(compiled: Plan) -> Plan:
        row = compiled.rows[-2]
        (name, c), *rest = row.outputs[0].terms
        wrong = dataclasses.replace(row.outputs[0], terms=((name, c * (1 + 1e-4)), *rest))
        spoiled = dataclasses.replace(row, outputs=(wrong, *row.outputs[1:]))
        return dataclasses.replace(compiled, rows=(*compiled.rows[:-2], spoiled, compiled.rows[-1]))

    single, found, exact = replayed("edm", "heun", 3, None, spoil)
    assert largest(exact - found) > single.bound().error


def test_the_bound_of_a_product_is_attained() -> None:
    """(1 + 2**-11) F for F just above 1 is rounded by up to half a unit in the last place, which is what is allowed."""
    c, u = 1 + 2.0**-11, 2.0**-24
    row = Row(("F",), (Output(None, (("F", c),), (), "x"),))
    f = 1 + torch.arange(8192) * 2.0**-23
    (bound,) = row.bound({"F": float(f.max())}, "float32")
    error = float((f.double() * c - (f * torch.tensor(c)).double()).abs().max())
    assert 0.99 * bound.error <= error <= bound.error
    assert bound.error == pytest.approx(u, rel=1e-2)
    (counted,) = row.bound({"F": 1.0}, "float32", rounded_coefficients=True)
    assert counted.error == pytest.approx(2 * u, rel=1e-3)


def test_errors_are_handed_on_from_row_to_row() -> None:
    """200 increments of 2**-25 onto 1 are all lost: the error is half a unit roundoff a row, all of one sign."""
    count, increment = 200, 2.0**-25
    start = Row((), (Output(None, store="x"),), network=0, branches=("cond",))
    first = Row(("F_cond",), (Output(None, (("F_cond", 1.0),), (), "x"),), network=0, branches=("cond",))
    middle = Row(("x", "F_cond"), (Output("x", (("F_cond", increment),), (), "x"),), network=0, branches=("cond",))
    last = dataclasses.replace(middle, network=None, branches=())
    compiled = Plan((start, first, *[middle] * (count - 1), last))
    found = sample(lambda z, c_noise: torch.ones_like(z), compiled, (1, 4), 0)
    error = 1 + count * increment - float(found[0, 0])
    assert error == count * increment
    bound = compiled.bound(network=1.0)
    assert error <= bound.error <= 2.1 * error
    assert bound.magnitude >= 1 + count * increment


def test_the_bound_grows_with_what_the_network_may_return() -> None:
    compiled = plan(schedule="edm", steps=6)
    assert compiled.bound(10.0).error > compiled.bound(1.0).error > 0
    assert compiled.bound(10.0).magnitude > compiled.bound(1.0).magnitude
    assert plan(schedule="edm", steps=6, dtype="float64").bound().error < 2.0**-28 * compiled.bound().error
    assert plan(schedule="edm", steps=6, clip=1.0).bound(1e6).magnitude < compiled.bound(1e6).magnitude
    assert (
        plan(schedule="edm", steps=6, churn=CHURN, noise="caller").bound()
        == plan(schedule="edm", steps=6, churn=CHURN).bound()
    )


def test_traffic_counts_state_and_network_bytes() -> None:
    single, double = (plan(schedule="edm", steps=2, dtype=dtype) for dtype in ("float32", "float64"))
    assert single.traffic(network_bytes=2) == [6, 12, 12, 10]
    assert single.traffic() == [8, 16, 16, 12]
    assert double.traffic(network_bytes=2) == [10, 20, 20, 18]


# Refusals: settings.


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"steps": 0}, "steps is 0; it must be an integer of at least 1"),
        ({"steps": -1}, "steps is -1; it must be an integer of at least 1"),
        ({"steps": 2.5}, "steps is 2.5; it must be an integer of at least 1"),
        ({"steps": True}, "steps is True; it must be an integer of at least 1"),
        ({"schedule": [1.0, math.nan, 0.1]}, r"sigmas\[1\] is nan; it must be finite"),
        ({"schedule": [1.0, math.inf, 0.1]}, r"sigmas\[1\] is inf; it must be finite"),
        ({"schedule": [1.0, -0.5, 0.1]}, r"sigmas\[1\] is -0.5; it must be positive"),
        ({"schedule": [1.0, 0.0, 0.1]}, r"sigmas\[1\] is 0.0; it must be positive"),
        ({"schedule": [1.0, 0.5, 0.7]}, "strictly decreasing, but level 2 is not: 0.5, 0.7"),
        ({"schedule": [1.0, 0.5, 0.5]}, "strictly decreasing, but level 2 is not: 0.5, 0.5"),
        ({"schedule": []}, "sigmas is empty"),
        ({"schedule": [1.0, 0.5], "steps": 3}, "steps is 3, but 2 sigmas were given"),
        ({"steps": np.float64(18.5)}, r"steps is .*18.5.*; it must be an integer of at least 1$"),
        ({"steps": 18.0}, "steps is 18.0; it must be an integer of at least 1; write 18"),
        ({"schedule": "cosine"}, "schedule is 'cosine'; known names are edm, vp, ve, iddpm"),
        ({"prediction": "noise"}, "prediction is 'noise'; known names are edm, vp"),
        ({"solver": "dpm"}, "solver is 'dpm'; known names are "),
        ({"guidance": math.nan}, "guidance scale is nan; it must be finite"),
        ({"guidance": math.inf}, "guidance scale is inf; it must be finite"),
        ({"guidance": "2"}, "guidance scale is '2'; it must be a real number"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive"),
        ({"clip": -1.0}, "clip is -1.0; it must be positive"),
        ({"clip": math.nan}, "clip is nan; it must be finite"),
        ({"clip": 1e39}, r"coefficient w0.bound is inf; every coefficient must be finite; the state is float32"),
        ({"dtype": "float16"}, "dtype is 'float16'; the state is one of float32, float64"),
        ({"dtype": torch.float32}, "dtype is torch.float32; the state is one of float32, float64"),
        ({"noise": "torch"}, "noise is 'torch'; it must be 'counter' or 'caller'"),
        (
            {"schedule": schedule.edm(0.002, 1e39)},
            r"row 0 \(first noise\): coefficient w0\[xi0\] is inf.*the state is float32; use float64",
        ),
        (
            {"guidance": 1e39, "steps": 3},
            r"row 1 \(after the evaluation at sigma = 80\): coefficient w0\[F_cond\] is inf.*use float64",
        ),
        ({"prediction": "iddpm", "steps": 1500, "schedule": "iddpm"}, "use fewer steps or other levels"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_with_the_value_and_what_is_allowed(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        plan(**arguments)


def test_large_noise_levels_are_not_refused_where_the_state_can_hold_them() -> None:
    assert plan(schedule=schedule.edm(0.002, 1e30), steps=3).rows[0].outputs[0].noise[0][1] == pytest.approx(1e30)
    assert plan(schedule=schedule.edm(0.002, 1e39), steps=3, dtype="float64").evaluations == 5


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Churn(-1.0), "s_churn is -1.0; it must be zero or more"),
        (lambda: Churn(math.nan), "s_churn is nan; it must be finite"),
        (lambda: Churn(math.inf), "s_churn is inf; it must be finite"),
        (lambda: Churn(1.0, s_tmin=math.nan), "s_tmin is nan; it must be finite"),
        (lambda: Churn(1.0, s_tmin=-0.1), "s_tmin is -0.1; it must be zero or more"),
        (lambda: Churn(1.0, s_tmax=math.nan), "s_tmin is 0.0 and s_tmax is nan; s_tmin must not exceed s_tmax"),
        (lambda: Churn(1.0, 2.0, 1.0), "s_tmin is 2.0 and s_tmax is 1.0; s_tmin must not exceed s_tmax"),
        (lambda: Churn(1.0, s_noise=0.0), "s_noise is 0.0; it must be positive"),
        (lambda: Churn(1.0, s_noise=math.nan), "s_noise is nan; it must be finite"),
        (lambda: Guidance(2.0, (5.0, 1.0)), r"guidance interval is \(5.0, 1.0\); low must not exceed high"),
        (lambda: Guidance(2.0, (math.nan, 1.0)), "interval low is nan; it must be finite"),
        (lambda: Guidance(2.0, (0.1, math.nan)), "interval high is nan; it must be finite"),
        (lambda: Guidance(2.0, (-1.0, 1.0)), "interval low is -1.0; it must be zero or more"),
        (lambda: Guidance(2.0, 1.0), r"guidance interval is 1.0; it must be \(low, high\)"),  # type: ignore[arg-type]
        (lambda: Guidance(True), "guidance scale is True; it must be a"),
    ],
)
def test_bad_churn_and_guidance_are_refused(make, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        make()


def test_an_open_interval_of_guidance_is_allowed() -> None:
    whole = plan(steps=3, guidance=Guidance(2.0, (0.0, math.inf)))
    assert whole.rows == plan(steps=3, guidance=2.0).rows


# Refusals: hand-written rows and plans.

DRAWN = (("xi0", Draw(0, 0)),)
START = Row((), (Output(noise=(("xi0", 80.0),), store="x"),), DRAWN, network=0, branches=("cond",))
END = Row(("x", "F_cond"), (Output("x", (("F_cond", 0.5),), (), "x"),))


def test_the_smallest_plan_is_two_rows() -> None:
    compiled = Plan((START, END))
    assert compiled.evaluations == 1
    assert compiled.result == "x"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Row(("x",), (Output("y", (), (), "x"),)), r"a row uses 'y'; it has \['x'\]"),
        (lambda: Row(("x",), (Output(None, (("F", 1.0),)),)), "a row uses 'F'"),
        (lambda: Row(("x",), (Output(None, (("w0", 1.0),)),)), "a row uses 'w0'"),
        (lambda: Row(("x",), (Output("w1"), Output("x"))), "a row uses 'w1'"),
        (lambda: Row(("x",), (Output("x"), Output(None, noise=(("w0", 1.0),)))), "a row uses 'w0'"),
        (lambda: Row(("x",), (Output("x", noise=(("xi0", 1.0),)),)), "a row uses 'xi0'"),
        (lambda: Row(("x",), (Output("x", (("x", math.nan),)),)), r"w0\[x\] is nan; every coefficient must be finite"),
        (lambda: Row(("x",), (Output("x"), Output("x", (("x", -math.inf),)))), r"w1\[x\] is -inf"),
        (lambda: Row(("x",), (Output("x"),), network=0, c_in=math.inf), "c_in is inf"),
        (lambda: Row(("x",), (Output("x"),), network=0, c_noise=math.nan), "c_noise is nan"),
        (lambda: Row(("x",), (Output("x", bound=math.inf),)), "w0.bound is inf"),
        (lambda: Row(("x",), (Output("x", bound=-1.0),)), "bound of w0 is -1.0"),
        (lambda: Row(("x",), (Output("x", scale=math.nan),)), "w0.scale is nan"),
        (lambda: Row(tuple(f"h{k}" for k in range(17)), (Output("h0"),)), "17 columns; at most 16 fit in one launch"),
        (lambda: Row(("x",), (Output("x"),) * 7), "7 outputs; at most 6"),
        (lambda: Row((), (Output(),), tuple((f"xi{k}", Draw(1, k)) for k in range(33))), "33 draws; at most 32"),
        (lambda: Row(("x",), (Output(None, (("x", 1.0),) * 65),)), "65 coefficients; at most 64"),
        (lambda: Row(("x", "x"), (Output("x"),)), "must be distinct"),
        (lambda: Row(("x", "xi0"), (Output("x"),), DRAWN), "must be distinct"),
        (lambda: Row(("w0",), (Output("w0"),)), "none called like an output"),
        (lambda: Row(("x",), (Output("x"),), network=1), "network input is output 1; the row has 1 outputs"),
        (lambda: Row(("x",), (Output("x"),), network=-1), "network input is output -1"),
        (lambda: Row(("x",), (Output("x"),), network=0, copies=0), "copies is 0; a network input needs at least one"),
        (lambda: Draw(256, 0), "draw field purpose is 256; it must lie in"),
        (lambda: Draw(1, -1), "draw field draw is -1; it must lie in"),
        (lambda: Draw(1, 2**32), "draw field draw is 4294967296; it must lie in"),
        (lambda: Draw(1, 0, 2**24), "draw field sub_draw is 16777216"),
        (lambda: Draw(1, 0, 0, 2**16), "draw field tensor is 65536"),
        (lambda: Plan(()), "a plan needs at least one row"),
        (lambda: Plan((START, END), "bfloat16"), "dtype is 'bfloat16'; the state is one of float32, float64"),
        (lambda: Plan((END,)), "row 0 reads 'x', which no earlier row has stored"),
        (
            lambda: Plan((START, END, END)),
            "row 1 of 3: all rows but the last feed the network or a call, and only they",
        ),
        (lambda: Plan((START,)), "row 0 of 1: all rows but the last feed the network"),
        (
            lambda: Plan((START, dataclasses.replace(END, columns=("x", "F_cond", "h1")))),
            "row 1 reads 'h1', which no earlier row has stored and which is no network output",
        ),
        (
            lambda: Plan((START, Row(("x", "F_uncond"), (Output("x", (), (), "x"),)))),
            "row 1 reads 'F_uncond', which no earlier row has stored",
        ),
        (
            lambda: Plan((START, Row(("x", "cond"), (Output("x", (), (), "x"),)))),
            "row 1 reads 'cond', which no earlier row has stored",
        ),
        (
            lambda: Plan((START, Row(("x", "xi0"), (Output("x", (), (("xi0", 1.0),), "x"),)))),
            "row 1 reads 'xi0', which no earlier row has stored",
        ),
        (
            lambda: Plan((START, dataclasses.replace(END, outputs=(Output("x"),)))),
            "the last row must store the result",
        ),
    ],
)
def test_bad_rows_and_plans_are_refused(make, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        make()


# Refusals: files.


def rewritten(**changes: Any) -> str:
    """A plan file with other contents and a digest that fits them."""
    body = json.loads(Plan((START, END)).to_json()) | changes
    body.pop("sha256")
    content = {key: value for key, value in body.items() if key != "description"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(body | {"sha256": hashlib.sha256(text.encode()).hexdigest()})


def changed_row(**changes: Any) -> list[dict[str, Any]]:
    rows = json.loads(Plan((START, END)).to_json())["rows"]
    return [rows[0] | changes, rows[1]]


def test_the_digest_of_the_tests_is_that_of_the_package() -> None:
    assert Plan.from_json(rewritten()) == Plan((START, END))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "this is not a plan: not JSON"),
        ("{", "this is not a plan: not JSON"),
        (Plan((START, END)).to_json()[:-40], "this is not a plan: not JSON"),
        ("\x80\x05\x95.", "this is not a plan: not JSON"),
        ("[]", "this is not a plan: it has no field 'fastdiff_plan'"),
        ('{"rows": []}', "it has no field 'fastdiff_plan'; write one with Plan.to_json()"),
        (rewritten(fastdiff_plan=3), "fastdiff_plan is 3; this version reads 1 and 2: compile the plan anew"),
        (rewritten(fastdiff_plan="1"), "fastdiff_plan is '1'; this version reads 1 and 2"),
        (rewritten(noise_format=2), "noise_format is 2; this version reads 1: compile the plan anew"),
        (Plan((START, END)).to_json().replace('"x"', '"y"', 1), "the file was changed"),
        (Plan((START, END)).to_json().replace("0x1.4", "0x1.5", 1), "the file was changed"),
        (rewritten(rows=None), "the plan is malformed"),
        (rewritten(rows=[]), "the plan is malformed.*a plan needs at least one row"),
        (rewritten(rows=[1, 2]), "the plan is malformed"),
        (rewritten(rows=changed_row(c_in="fast")), "the plan is malformed"),
        (rewritten(rows=changed_row(c_in="nan")), "the plan is malformed.*c_in is nan"),
        (rewritten(rows=changed_row(c_in="0x1p99999")), "the plan is malformed"),
        (rewritten(rows=changed_row(c_in=None)), "the plan is malformed"),
        (rewritten(rows=changed_row(network=7)), "the plan is malformed.*network input is output 7"),
        (rewritten(rows=changed_row(network="0")), "the plan is malformed"),
        (rewritten(rows=changed_row(draws=[["xi0", {"purpose": 0}]])), "the plan is malformed"),
        (rewritten(rows=changed_row(draws=[["xi0", [0, 0, 0, 0]]])), "the plan is malformed"),
        (rewritten(rows=changed_row(outputs=7)), "the plan is malformed"),
        (rewritten(rows=changed_row(gram="G")), "the plan is malformed"),
        (rewritten(rows=changed_row(c_in=["0x1p0", [[0, "0x1p0"]]])), "c_in uses scalar 0; the row's gram makes 0"),
        (rewritten(rows=changed_row(call=["f", ["x"]])), "feeds the network and the call 'f'"),
        (rewritten(dtype="float16"), "the plan is malformed.*dtype is 'float16'"),
        (rewritten(dtype=["float32"]), "the plan is malformed"),
    ],
)
def test_bad_files_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        Plan.from_json(text)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_file_with_any_one_character_changed_is_refused_or_means_the_same(data: st.DataObject) -> None:
    text = Plan((START, END)).to_json()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(max_codepoint=126))
    try:
        found = Plan.from_json(text[:at] + other + text[at + 1 :])
    except PlanError:
        return
    # White space, the case of a hexadecimal digit, or a letter of the description.
    assert found.rows == Plan((START, END)).rows
    assert found.dtype == "float32"


def test_a_plan_read_back_samples_the_same_bits() -> None:
    compiled = plan(schedule="edm", steps=3, churn=CHURN)

    def net(z: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return CLOUD.network(PREDICTIONS["edm"])(z.double(), c_noise.double()).float()

    again = Plan.from_json(compiled.to_json())
    assert torch.equal(sample(net, compiled, (4, 2), 0), sample(net, again, (4, 2), 0))
    assert textbook.counter_noise((1, 2), [0], torch.float32)(-1).shape == (1, 2)


def test_settings_without_a_name_are_refused_with_the_call_to_write() -> None:
    settings: list[Any] = ["vp", "v", "euler"]
    with pytest.raises(PlanError, match=r"write plan\(schedule='vp', prediction='v', solver='euler', \.\.\.\)"):
        plan(*settings, steps=3)
    with pytest.raises(PlanError, match=r"write plan\(schedule=\[2\.0, 0\.0\], \.\.\.\)"):
        plan([2.0, 0.0])  # type: ignore[arg-type]
