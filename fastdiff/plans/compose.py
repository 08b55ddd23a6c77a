"""Composing samplers: schedule, prediction, solver and guidance, compiled to a plan; or one step of a solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from fastdiff.errors import PlanError
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance, Guide
from fastdiff.maths.point import Point
from fastdiff.maths.prediction import Prediction, named_prediction
from fastdiff.maths.real import LOCK, Real, count, positive
from fastdiff.maths.schedule import Schedule, from_sigmas, named_schedule
from fastdiff.maths.vector import Symbol, Vector
from fastdiff.plans.compiler import Compiler
from fastdiff.plans.emit import Buffers, Emitter, OwnNames
from fastdiff.plans.plan import DTYPES, Plan
from fastdiff.rows.row import Row
from fastdiff.solvers.memory import exchanged, found
from fastdiff.solvers.solver import Solver, named_solver
from fastdiff.solvers.trace import Trace


def plan(
    *positional: NoReturn,
    schedule: str | Schedule | Sequence[float] = "edm",
    prediction: str | Prediction = "edm",
    solver: str | Solver = "heun",
    steps: int | None = None,
    guidance: float | Guide = 1.0,
    churn: Churn | None = None,
    clip: float | None = None,
    dtype: str = "float32",
    batched: bool = True,
    denoised: bool = False,
    noise: str = "counter",
    visible: bool = False,
) -> Plan:
    """Compile a sampler. All settings are given by name.

    Args:
        positional: none.
        schedule: the name of one (``"edm"``, ``"vp"``, ...), a ``Schedule``, or a sequence of noise levels.
        prediction: what the network predicts: a name (``"edm"``, ``"epsilon"``, ``"v"``, ...) or a ``Prediction``.
        solver: the name of one (``"heun"``, ``"dpmpp_2m"``, ...) or a ``Solver``, such as ``ddim(eta=0.5)``.
        steps: number of noise levels; 18 if not given, or as many as the schedule's own sigmas.
        guidance: gamma of classifier-free guidance, or what guides (``Guidance`` with an interval, or your own).
        churn: stochasticity of EDM's algorithm 2.
        clip: clamp the denoised prediction to plus or minus this many data units.
        dtype: the state type, ``"float32"`` or ``"float64"``.
        batched: evaluate all branches of guidance in one network call, stacked ``[cond; uncond]``.
        denoised: also store the denoised prediction D, where it can be had without carrying more.
        noise: ``"counter"`` (a pure function of the seed) or ``"caller"`` (tensors given to the run).
        visible: keep every state x, and what the solver remembers, in tensors of their own: for callers who hold the
            vectors themselves (``Steps``).

    Raises:
        PlanError: a setting is not valid, or a coefficient overflows the state type; says which.
    """
    if positional:
        names = ("schedule", "prediction", "solver")
        written = ", ".join(f"{name}={value!r}" for name, value in zip(names, positional, strict=False))
        raise PlanError(f"plan() takes its settings by name; write plan({written}, ...)")
    with LOCK:
        chosen, known, method = schedule_of(schedule), prediction_of(prediction), solver_of(solver)
        if noise not in ("counter", "caller"):
            raise PlanError(f"noise is {noise!r}; it must be 'counter' or 'caller'")
        if steps is None:
            steps = 18 if isinstance(schedule, str | Schedule) else len([s for s in _listed(schedule) if s != 0])
        steps = count(steps, "steps")
        points = chosen.points(steps, known.round_sigma)
        trace = Trace(points, known, guide_of(guidance), churn or Churn(), steps, clip_of(clip))
        result = trace.finish(trace.run(method))
        title = _title(trace, chosen)
        _check_dtype(dtype)

        def compiled(partial_sums: bool) -> Plan:
            stages = Compiler(trace, result, partial_sums, visible).stages(denoised)
            buffers = OwnNames() if visible else Buffers()
            rows = tuple(Emitter(trace.draws, dtype, batched, trace.solver, buffers).rows(stages))
            rows = _with_caller_noise(rows, trace.solver) if noise == "caller" else rows
            return Plan(rows, dtype, title, batched, noise == "caller")

        natural = compiled(partial_sums=False)
        # Who holds the vectors himself wants those that the solver names; and a bound needs fixed coefficients.
        if visible or any(row.gram is not None for row in natural.rows):
            return natural
        # Partial sums must earn their place: fewer bytes, and an error bound at most 1.5 times the natural one.
        try:
            sums = compiled(partial_sums=True)
        except PlanError:
            # They can need more of a row than it holds where the natural form does not.
            return natural
        cheaper = sum(sums.traffic()) < sum(natural.traffic())
        return sums if cheaper and sums.bound().error <= 1.5 * natural.bound().error else natural


@dataclass(frozen=True)
class Held:
    """A vector that a solver remembers, as a tensor that the caller holds under a name between two steps."""

    name: str


@dataclass(frozen=True)
class StepPlan:
    """One step of a solver as a plan of its own.

    Args:
        plan: of step k; it reads the state as the given tensor ``xk`` and what was remembered as given tensors ``m0``,
            ``m1``, ..., and stores the new state and what is remembered in buffers of such names.
        memory: for the next step; every vector in it is a ``Held`` tensor.
    """

    plan: Plan
    memory: Any


def plan_step(
    solver: str | Solver,
    now: Point,
    then: Point,
    *,
    memory: Any = None,
    step: int = 0,
    steps: int = 1,
    prediction: str | Prediction = "edm",
    guidance: float | Guide = 1.0,
    churn: Churn | None = None,
    clip: float | None = None,
    dtype: str = "float32",
    batched: bool = True,
) -> StepPlan:
    """Compile one step of a solver, x and memory given: for adaptive methods, and for loops of other people's.

    Args:
        solver: as for ``plan``, like the settings that follow.
        now: where x is, from ``Schedule.points`` or ``Point(path, t)``.
        then: where it goes.
        memory: what the step before left in ``StepPlan.memory``.
        step: its number, which is the number of its draws.
        steps: how many there will be, which churn asks for.
        prediction: what the network predicts.
        guidance: of its branches.
        churn: stochasticity.
        clip: clamp of D.
        dtype: the state type.
        batched: all branches in one network call.

    Raises:
        PlanError: a setting is not valid; says which.
    """
    with LOCK:
        method, known = solver_of(solver), prediction_of(prediction)
        if not isinstance(step, int) or step < 0:
            raise PlanError(f"step is {step!r}; it must be an integer of at least 0")
        trace = Trace([now, then], known, guide_of(guidance), churn or Churn(), count(steps, "steps"), clip_of(clip))
        trace.solver, trace.step = method.name, step
        remembered = exchanged(memory, Held, lambda held: trace.given(held.name))
        x, left = trace.take(method, trace.given(f"x{step}", state=True), now, then, remembered)
        number = 1 + max((int(h.name[1:]) for h in found(memory, Held) if h.name.startswith("m")), default=-1)
        names: dict[Symbol, str] = {}
        for symbol in (trace.symbol_of(vector) for vector in found(left, Vector)):
            if symbol.kind != "given":
                names.setdefault(symbol, f"m{number + len(names)}")
        result = trace.finish(x)
        _check_dtype(dtype)
        stages = Compiler(trace, result, partial_sums=False, kept=tuple(names)).stages()
        buffers = OwnNames(names | {result: f"x{step + 1}"}, prefix="own_")
        rows = tuple(Emitter(trace.draws, dtype, batched, trace.solver, buffers).rows(stages))
        title = f"{method.name} · one step from sigma {float(now.sigma):.6g} to {float(then.sigma):.6g}"

        def held(vector: Vector) -> Held:
            symbol = trace.symbol_of(vector)
            return Held(symbol.label if symbol.kind == "given" else names[symbol])

        return StepPlan(Plan(rows, dtype, title, batched), exchanged(left, Vector, held))


def schedule_of(schedule: str | Schedule | Sequence[float]) -> Schedule:
    """A schedule from its name, from its noise levels, or itself."""
    if isinstance(schedule, str):
        return named_schedule(schedule)
    return schedule if isinstance(schedule, Schedule) else from_sigmas(_listed(schedule))


def _listed(sigmas: Any) -> Sequence[float]:
    """Noise levels as a list; tensors and arrays have them as numbers of their own kind."""
    return sigmas.tolist() if hasattr(sigmas, "tolist") else sigmas


def prediction_of(prediction: str | Prediction) -> Prediction:
    """A prediction from its name, or itself."""
    return prediction if isinstance(prediction, Prediction) else named_prediction(prediction)


def solver_of(solver: str | Solver) -> Solver:
    """A solver from its name, or itself."""
    return solver if isinstance(solver, Solver) else named_solver(solver)


def guide_of(guidance: float | Guide) -> Guide:
    """Classifier-free guidance from its gamma, or what guides itself."""
    return guidance if hasattr(guidance, "combine") else Guidance(guidance)  # type: ignore[arg-type, return-value]


def clip_of(clip: float | None) -> Real | None:
    """The bound on abs(D) as a real."""
    return None if clip is None else positive(clip, "clip")


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise PlanError(f"dtype is {dtype!r}; the state is one of {', '.join(DTYPES)}")


def _title(trace: Trace, schedule: Schedule) -> str:
    """The settings in words."""
    guide, churn = trace.guidance, trace.churning
    title = f"{trace.solver} · {schedule.name} schedule · {trace.prediction.name} prediction · {trace.count} steps"
    if not isinstance(guide, Guidance):
        title += f" · guidance {guide}"
    elif guide.scale != 1:
        title += f" · guidance {float(guide.scale):g}"
        title += f" on sigma in [{float(guide.interval[0]):g}, {float(guide.interval[1]):g}]" if guide.interval else ""
    title += f" · churn {float(churn.s_churn):g}" if churn.s_churn else ""
    return title if trace.clip is None else f"{title} · clip {float(trace.clip):g}"


def _with_caller_noise(rows: Sequence[Row], solver: str) -> tuple[Row, ...]:
    """The same rows with their draws read from columns."""
    made = []
    for k, row in enumerate(rows):
        names = tuple(name for name, _ in row.draws)
        try:
            made.append(replace(row, columns=row.columns + names, draws=()))
        except PlanError as error:
            advice = f"{len(names)} of these are the caller's noise: use noise='counter'"
            raise PlanError(f"solver {solver!r}, row {k}: {error}; {advice}") from None
    return tuple(made)
