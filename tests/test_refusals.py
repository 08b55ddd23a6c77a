"""What solvers, guidance and their users get wrong: a typed error that names the solver, its step and the thing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from test_eager import DPMPP_2M_SDE

from fastdiff.errors import PlanError
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance, RescaledGuidance
from fastdiff.maths.prediction import PREDICTIONS, edm
from fastdiff.maths.real import mp
from fastdiff.maths.registry import Registry
from fastdiff.maths.schedule import SCHEDULES, named_schedule
from fastdiff.maths.vector import weighted_square
from fastdiff.plans.compose import plan, plan_step
from fastdiff.solvers.solver import SOLVERS, Solver, solver
from fastdiff.solvers.trace import Trace

Step = Callable[..., Any]


def compiled(step: Step, **settings: Any) -> None:
    plan(solver=Solver("mine", 1, "these tests", step), **({"steps": 3} | settings))


def refused(step: Step, complaint: str, at: str = "step 0", **settings: Any) -> None:
    """Its message is ``solver 'mine', step k ... complaint``."""
    with pytest.raises(PlanError, match=f"^solver 'mine'{at and f', {at}'}.*{complaint}"):
        compiled(step, **settings)


def euler(trace, x, now, then, memory):
    return x + trace.slope(x, now) * (then.t - now.t), None


def test_the_steps_of_these_tests_are_right_but_for_their_fault() -> None:
    compiled(euler)


# Vectors.


def kept() -> Any:
    """A vector of a trace that is over."""
    vectors = []

    def keep(trace, x, now, then, memory):
        vectors.append(x)
        return euler(trace, x, now, then, memory)

    compiled(keep, steps=1)
    return vectors[0]


FOREIGN: dict[str, tuple[Callable[[Any], Step], str]] = {
    "adds": (lambda old: lambda trace, x, now, then, m: (x + old, None), "adds a vector"),
    "adds to": (lambda old: lambda trace, x, now, then, m: (old + x, None), "adds a vector"),
    "subtracts": (lambda old: lambda trace, x, now, then, m: (x - old, None), "subtracts a vector"),
    "evaluates": (
        lambda old: lambda trace, x, now, then, m: (trace.denoise(old, now), None),
        "evaluates the network at a vector",
    ),
    "remembers": (lambda old: lambda trace, x, now, then, m: (x, {"all": [old]}), "remembers a vector"),
    "returns": (lambda old: lambda trace, x, now, then, m: (old * 2, None), "returned a vector"),
    "calls with": (
        lambda old: lambda trace, x, now, then, m: (trace.call("f", x, old), None),
        "calls 'f' with a vector",
    ),
    "takes trace.dot of": (
        lambda old: lambda trace, x, now, then, m: (x * trace.dot(old, old), None),
        "takes the inner product of a vector",
    ),
    "takes x.dot of": (
        lambda old: lambda trace, x, now, then, m: (x * x.dot(old), None),
        "takes the inner product with a vector",
    ),
    "scales by": (
        lambda old: lambda trace, x, now, then, m: (x * old.dot(old), None),
        "an inner product of vectors",
    ),
    "weighs by": (
        lambda old: lambda trace, x, now, then, m: (x * weighted_square(x, old, x, atol=1.0, rtol=0.1), None),
        "weighs by a vector",
    ),
}


@pytest.mark.parametrize("how", FOREIGN)
def test_a_vector_of_another_trace_is_refused(how: str) -> None:
    """It would be taken for the vector of this trace that has the same place."""
    step, complaint = FOREIGN[how]
    # What a scalar is made of is looked at when the trace is complete.
    at = "" if how == "scales by" else "step 0"
    refused(step(kept()), f"{complaint}.* of another trace; use what (this step was given|its step got)", at=at)


RETURNS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "x alone": (lambda x: x, "returned a Vector"),
    "nothing": (lambda x: None, "returned a NoneType"),
    "a list": (lambda x: [x, None], "returned a list"),
    "three": (lambda x: (x, None, None), r"returned \(Vector, NoneType, NoneType\)"),
    "one": (lambda x: (x,), r"returned \(Vector\)"),
    "a number": (lambda x: (0.0, None), r"returned \(float, NoneType\)"),
    "the memory first": (lambda x: ([x], x), r"returned \(list, Vector\)"),
}


@pytest.mark.parametrize("what", RETURNS)
def test_a_step_returns_a_vector_and_its_memory(what: str) -> None:
    make, complaint = RETURNS[what]
    refused(lambda trace, x, now, then, m: make(x), f"{complaint}; a step returns \\(x, memory\\), and x is a vector")

    def later(trace, x, now, then, m):
        return (make(x) if then.sigma == 0 else (x, None)) if m is None else (x, None)

    refused(later, complaint, at="step 2")


NO_VECTORS: dict[str, tuple[Step, str]] = {
    "adds a number": (lambda trace, x, now, then, m: (x + 1.0, None), r"adds 1.0 \(float\); it must be a vector"),
    "is added to a number": (lambda trace, x, now, then, m: (1 + x, None), r"adds 1 \(int\); it must be a vector"),
    "subtracts None": (
        lambda trace, x, now, then, m: (x - m, None),
        r"subtracts None \(NoneType\); it must be a vector",
    ),
    "evaluates a number": (
        lambda trace, x, now, then, m: (trace.denoise(80.0, now), None),
        "evaluates the network at a float; it must be a vector",
    ),
    "evaluates what evaluate returned": (
        lambda trace, x, now, then, m: (trace.denoise(trace.evaluate(x, now), now), None),
        "evaluates the network at a Branches; it must be a vector",
    ),
    "inner product of a number": (
        lambda trace, x, now, then, m: (x * trace.dot(1.0, x), None),
        "takes the inner product of a float; it must be a vector",
    ),
    "calls with a number": (
        lambda trace, x, now, then, m: (trace.call("f", 1.0), None),
        "calls 'f' with a float; it must be a vector",
    ),
    "product": (lambda trace, x, now, then, m: (x * x, None), r"multiplies two vectors; .* is trace.dot\(u, v\)"),
    "quotient": (lambda trace, x, now, then, m: (x / x, None), "divides by a vector; .* by a number or a scalar"),
    "factor of text": (lambda trace, x, now, then, m: (x * "2", None), "a factor is '2'; it must be a real number"),
    "factor NaN": (lambda trace, x, now, then, m: (x * float("nan"), None), "a factor is nan; it must be finite"),
    "complex factor": (lambda trace, x, now, then, m: (x * mp.sqrt(mp.mpf(-1)), None), "a factor is .*real number"),
    "divides by zero": (lambda trace, x, now, then, m: (x / 0, None), "divides by zero"),
    "calls with nothing": (
        lambda trace, x, now, then, m: (x + trace.call("f"), None),
        "calls 'f' with nothing; give it vectors, from which it knows the shape",
    ),
}


@pytest.mark.parametrize("what", NO_VECTORS)
def test_what_is_no_vector_and_no_number_is_refused(what: str) -> None:
    refused(*NO_VECTORS[what])


def test_arithmetic_that_fails_at_the_last_step_names_its_points() -> None:
    """Sigma is zero there, which lambda and 1 / sigma do not survive."""
    refused(
        lambda trace, x, now, then, m: (x * (1 / then.sigma), None),
        r"divides by zero, on the way from Point\(linear, t=0.002, .*\) to Point\(linear, t=0, sigma=0\)",
        at="step 2",
    )
    refused(lambda trace, x, now, then, m: (x * then.lam, None), "a factor is \\+inf; it must be finite", at="step 2")


def test_noise_is_asked_for_within_a_step() -> None:
    chosen = named_schedule("edm")
    trace = Trace(chosen.points(3), edm(), Guidance(), Churn(), 3)
    trace.solver = "mine"
    with pytest.raises(PlanError, match=r"^solver 'mine' asks for noise outside a step; fresh noise is counted"):
        trace.noise()
    # A draw by its counter is no fresh noise.
    trace.brownian(trace.points[0])


# Scalars.


def test_a_divisor_that_can_be_zero_is_refused() -> None:
    advice = r"divides by a scalar that can be zero; give it a floor, such as scalar.at_least\(1e-12\)"
    for divide in (
        lambda x: x / x.dot(x),
        lambda x: x * (1 / x.dot(x)),
        lambda x: x / (x.dot(x) - 1),
        lambda x: x / x.dot(x).at_least(0),
        lambda x: x / x.total(),
        lambda x: x / (x.total() * x.dot(x).at_least(1)),
        lambda x: x * (x.dot(x) / 0),
        lambda x: x / (x.dot(x).at_least(1e-3) - 1e-3),
        lambda x: x / -(x.dot(x) + 1),
    ):
        refused(lambda trace, x, now, then, m, divide=divide: (divide(trace.denoise(x, now)), None), advice)
    for divide in (
        lambda x: x / x.dot(x).at_least(1e-12),
        lambda x: x / (x.dot(x) + 1),
        lambda x: x / x.size(),
        lambda x: x / (x.size() * (x.dot(x) + 1)).sqrt(),
        lambda x: x * (lambda t: t / (t * t + 1))(x.total()),
        lambda x: x * (x.dot(x) / 2),
    ):
        compiled(lambda trace, x, now, then, m, divide=divide: (divide(trace.denoise(x, now)), None))


def test_a_root_of_what_can_be_negative_is_refused() -> None:
    advice = r"takes the square root of a scalar that can be negative; give it a floor: .at_least\(0\)"
    for root in (
        lambda x: (x.dot(x) - 1).sqrt(),
        lambda x: x.total().sqrt(),
        lambda x: (-x.dot(x)).sqrt(),
        lambda x: (1 - x.dot(x)).sqrt(),
        lambda x: (x.total() * x.dot(x)).sqrt(),
        lambda x: x.total().at_least(-1).sqrt(),
    ):
        refused(lambda trace, x, now, then, m, root=root: (x * root(trace.denoise(x, now)), None), advice)
    for root in (
        lambda x: x.dot(x).sqrt(),
        lambda x: (x.dot(x) * 3 + 2).sqrt(),
        lambda x: x.total().at_least(0).sqrt(),
        lambda x: (lambda t: t * t)(x.total()).sqrt(),
    ):
        compiled(lambda trace, x, now, then, m, root=root: (x * root(trace.denoise(x, now)), None))


def test_what_is_no_number_is_refused_by_scalars_too() -> None:
    refused(lambda trace, x, now, then, m: (x * (x.dot(x) + "1"), None), "a number is '1'; it must be a real number")
    refused(lambda trace, x, now, then, m: (x * (x.dot(x) - float("inf")), None), "a number is inf; it must be finite")
    refused(lambda trace, x, now, then, m: (x * x.dot(x).at_least("0"), None), "floor is '0'; it must be a real number")


def test_an_inner_product_of_what_the_launch_itself_makes_is_refused() -> None:
    clamped = (
        r"solver 'predictor_corrector', step 1: an inner product needs D\d, which the same launch clamps or draws; "
    )
    with pytest.raises(PlanError, match=f"^{clamped}leave clip out"):
        plan(solver="predictor_corrector", steps=3, clip=1.0)

    def scaled_twice(trace, x, now, then, memory):
        y = x * trace.dot(x, x)
        return y * trace.dot(y, y), None

    refused(scaled_twice, "an inner product of a vector that is itself scaled by a scalar; multiply it out")

    def of_a_path(trace, x, now, then, memory):
        W = trace.brownian(then)
        return x + W * trace.dot(W, W), None

    refused(of_a_path, "an inner product needs W0, which the same launch clamps or draws")

    def of_a_path_alone(trace, x, now, then, memory):
        D, W = trace.denoise(x, now), trace.brownian(then)
        return D * trace.dot(W, W), None

    # Stages are compiled from the last to the first.
    refused(of_a_path_alone, "an inner product needs W2, which the same launch clamps or draws", at="step 2")


def test_an_inner_product_of_noise_alone_is_refused_where_a_row_reads_nothing() -> None:
    """It could not know how large a sample is."""

    def on_a_sphere(trace, x, now, then, memory):
        x = x / x.dot(x).at_least(1e-12).sqrt() if memory is None else x
        return euler(trace, x, now, then, memory)[0], ()

    refused(
        on_a_sphere,
        r"row 0 \(first noise\): it takes an inner product of noise alone, and reads nothing; take it after",
    )


@dataclass
class Past:
    """What a stranger might remember."""

    D: Any


@pytest.mark.parametrize(
    "wrap", [Past, lambda D: {D}, lambda D: iter([D]), lambda D: lambda: D, lambda D: [1, (Past(D),)]]
)
def test_memory_in_which_vectors_are_not_found_is_refused(wrap: Callable[[Any], Any]) -> None:
    """Such a vector would be no variable, and what it is made of would grow with every step."""
    refused(
        lambda trace, x, now, then, m: (x, wrap(trace.denoise(x, now))),
        "the memory holds a .*; keep vectors, points, numbers and text in tuples, lists and dicts",
    )


def test_memory_of_plain_things_is_taken() -> None:
    def remember(trace, x, now, then, memory):
        kept = [1, 2.5, mp.mpf(3), np.float32(4), True, None, "text", now, x.dot(x), {"x": (x,)}]
        assert memory is None or [type(a) for a in memory] == [type(b) for b in kept]
        return euler(trace, x, now, then, None)[0], kept

    compiled(remember)


# Too much.


def test_more_history_than_a_row_holds_is_refused() -> None:
    """Twenty slopes: after fifteen steps there would be 17 columns."""

    def remember(trace, x, now, then, past):
        past = [trace.slope(x, now), *(past or [])][:20]
        for slope in past:
            x = x + slope * 0.1
        return x, past

    compiled(remember, steps=15)
    refused(
        remember,
        r"row 16 \(after the evaluation at sigma = 2.15186\): a row has 17 columns; at most 16 fit in one launch; "
        "remember fewer vectors from step to step$",
        at="step 15",
        steps=30,
    )

    def many_at_once(trace, x, now, then, past):
        D = trace.denoise(x, now)
        kept = [D + trace.noise() * k for k in range(1, 8)]
        return sum(past or [], x) + D, kept

    refused(many_at_once, r"it reads \d vectors and makes \d+; a row holds 16 and 6: remember fewer", steps=3)


def test_more_noise_than_a_row_draws_is_refused() -> None:
    def draw(trace, x, now, then, memory):
        for _ in range(40):
            x = x + trace.noise() * 0.01
        return euler(trace, x, now, then, memory)

    refused(draw, r"row 0 \(first noise\): a row has 41 draws; at most 32 fit in one launch; draw less noise")


def test_noise_of_the_callers_that_does_not_fit_is_refused() -> None:
    """A caller's noise is read from columns, of which there are half as many as draws."""
    with pytest.raises(
        PlanError,
        match=r"solver 'dpmpp_2m_sde', row 0: a row has 22 columns; at most 16 fit in one launch; 22 of these are the "
        "caller's noise: use noise='counter'",
    ):
        plan(solver=DPMPP_2M_SDE, steps=5, noise="caller")


def test_advice_on_the_state_type_is_given_where_it_helps() -> None:
    refused(
        lambda trace, x, now, then, m: (trace.denoise(x * 1e38, now), None),
        r"row 0 \(first noise\): coefficient w0\[xi0\] is inf; every .*; the state is float32; use float64 or less",
    )
    with pytest.raises(PlanError) as caught:
        plan(solver="predictor_corrector", steps=3, clip=1.0)
    assert "float64" not in str(caught.value)


# Names and settings.


@pytest.mark.parametrize("name", ["not an identifier", "", "a-b", "1st", 7, None])
def test_what_a_caller_gives_has_a_pythonic_name(name: Any) -> None:
    complaint = f"a given tensor or call is named {re.escape(repr(name))}; use a Python identifier"
    refused(lambda trace, x, now, then, m: (x + trace.given(name), None), complaint)
    refused(lambda trace, x, now, then, m: (trace.call(name, x), None), complaint)


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("ddim", {"etta": 1}, "solver 'ddim' was given etta; its settings are eta"),
        ("ddim", {"trace": 1}, "solver 'ddim' was given trace; its settings are eta"),
        ("ddpm", {"eta": 1}, "solver 'ddpm' was given eta; it has no settings"),
        ("lms", {"order": 2.5}, r"solver 'lms\(order=2.5\)', step 0: order is 2.5; it must be an integer"),
        ("lms", {"order": 0}, r"solver 'lms\(order=0\)', step 0: order is 0; it must be an integer of at least 1"),
        ("ddim", {"eta": -1}, r"solver 'ddim\(eta=-1\)', step 0: eta is -1; it must be zero or more"),
        ("ddim", {"eta": 2}, r"solver 'ddim\(eta=2\)', step 0: eta is 2; it must lie in 0 .. 1"),
        ("ddim", {"eta": "1"}, r"solver \"ddim\(eta='1'\)\", step 0: eta is '1'; it must be a real number"),
        ("euler_ancestral", {"eta": float("nan")}, r"\(eta=nan\)', step 0: eta is nan; it must be finite"),
        ("heun", {"alpha": 0}, r"solver 'heun\(alpha=0\)', step 0: alpha is 0; it must be positive"),
        ("predictor_corrector", {"snr": 0}, r"step 0: snr is 0; it must be positive"),
    ],
)
def test_settings_that_a_solver_does_not_have_or_take_are_refused(
    name: str, settings: Mapping[str, Any], complaint: str
) -> None:
    with pytest.raises(PlanError, match=complaint):
        plan(solver=SOLVERS[name](**settings), steps=2)


def test_settings_of_settings_add_up_and_the_name_tells_them() -> None:
    half = SOLVERS["ddim"](eta=0.5)
    assert half.name == "ddim(eta=0.5)"
    assert half(eta=0.25).name == "ddim(eta=0.25)"
    assert half(eta=0.25).settings == {"eta": 0.25}
    assert SOLVERS["ddim"].settings == {}
    assert plan(solver=SOLVERS["ddim"](eta=0.0), steps=3).rows == plan(solver="ddim", steps=3).rows
    assert plan(solver=half, steps=3).description.startswith("ddim(eta=0.5) · edm schedule")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(PlanError, match="there is a solver 'ddim' already; choose another name"):
        solver("ddim", order=1, source="these tests")(euler)
    things: Registry[int] = Registry("thing")
    assert things.add("one", 1) == 1
    with pytest.raises(PlanError, match="there is a thing 'one' already; choose another name"):
        things.add("one", 2)
    assert dict(things) == {"one": 1}
    with pytest.raises(PlanError, match="thing is 'two'; known names are one, or pass a Thing"):
        things.named("two")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"solver": "rk4"}, f"solver is 'rk4'; known names are {', '.join(SOLVERS)}, or pass a Solver"),
        ({"solver": 7}, "solver is 7; known names are euler, "),
        ({"solver": euler}, "solver is <function euler .*; known names are euler, "),
        ({"prediction": "eps"}, f"prediction is 'eps'; known names are {', '.join(PREDICTIONS)}, or pass a Prediction"),
        ({"prediction": None}, "prediction is None; known names are edm, "),
        ({"schedule": "karras"}, f"schedule is 'karras'; known names are {', '.join(SCHEDULES)}, or pass a Schedule"),
        ({"dtype": "float16"}, "dtype is 'float16'; the state is one of float32, float64"),
        ({"noise": "mine"}, "noise is 'mine'; it must be 'counter' or 'caller'"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive"),
    ],
)
def test_what_is_not_known_by_name_is_refused_with_what_is(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        plan(**({"steps": 2} | settings))


# Guidance.


class Guide:
    """Guidance of a user's own, right but for what is passed."""

    def __init__(self, branches: Any = ("a", "b"), combine: Callable[[Any], Any] = lambda d: d["a"] + d["b"]) -> None:
        self._branches, self._combine = branches, combine

    def branches(self, sigma: Any) -> Any:
        return self._branches

    def combine(self, sigma: Any, denoised: Any) -> Any:
        return self._combine(denoised)


def test_guidance_has_free_names() -> None:
    found = plan(solver="euler", steps=2, guidance=Guide(("weak", "strong", "cond"), lambda d: d["weak"] - d["strong"]))
    assert found.rows[0].branches == ("weak", "strong", "cond")
    assert {"F_weak", "F_strong"} <= set(found.rows[1].columns)


@pytest.mark.parametrize(
    ("guide", "complaint"),
    [
        (Guide(combine=lambda d: d["a"] + d["c"]), "branch 'c' is not evaluated here; guidance asks for a, b"),
        (Guide(()), r"guidance asks for the branches \(\); it must be a tuple of one or more names, each once"),
        (Guide(("a", "a")), r"guidance asks for the branches \('a', 'a'\); it must be a tuple"),
        (Guide("cond"), "guidance asks for the branches 'cond'; it must be a tuple"),
        (Guide(combine=lambda d: 1.0), "is guided by a float; it must be a vector"),
        (Guide(combine=lambda d: d["a"] * d["b"]), "multiplies two vectors"),
        (Guide(combine=lambda d: d["a"] * d["a"].dot(d["b"]).sqrt()), "takes the square root of a scalar"),
    ],
)
def test_guidance_that_does_not_fit_is_refused(guide: Guide, complaint: str) -> None:
    refused(euler, complaint, guidance=guide)


def test_a_solver_that_asks_for_a_branch_that_is_not_there_is_told_which_are() -> None:
    def unguided(trace, x, now, then, memory):
        return trace.evaluate(x, now)["uncond"], None

    refused(unguided, "branch 'uncond' is not evaluated here; guidance asks for cond")
    compiled(unguided, guidance=2.0)


@pytest.mark.parametrize("phi", [-0.1, 1.1, float("nan"), "1"])
def test_a_rescale_that_is_no_share_is_refused(phi: Any) -> None:
    with pytest.raises(PlanError, match=r"phi is .*; it must"):
        RescaledGuidance(2.0, phi=phi)


# One step.


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"step": -1}, "step is -1; it must be an integer of at least 0"),
        ({"step": 0.5}, "step is 0.5; it must be an integer of at least 0"),
        ({"steps": 0}, "steps is 0; it must be an integer of at least 1"),
        ({"dtype": "float16"}, "dtype is 'float16'; the state is one of float32, float64"),
        ({"solver": "rk4"}, "solver is 'rk4'; known names are euler, "),
        ({"guidance": Guide(())}, r"^solver 'heun', step 0: guidance asks for the branches \(\)"),
    ],
)
def test_one_step_refuses_what_a_plan_refuses(settings: dict[str, Any], complaint: str) -> None:
    chosen = named_schedule("edm")
    now, then, *_ = chosen.points(3)
    with pytest.raises(PlanError, match=complaint):
        plan_step(**({"solver": "heun", "now": now, "then": then} | settings))
