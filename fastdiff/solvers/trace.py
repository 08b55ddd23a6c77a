"""Tracing: a solver runs once on symbols, and leaves behind everything it computed.

A solver's step asks the trace for what the network says, for noise and for what the caller gives, and adds and scales
vectors. A vector that the network has seen, and one that the next step remembers, becomes a variable where it stands:
expansion stops there, whatever the order of the solver's statements.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from fastdiff.errors import PlanError
from fastdiff.maths.brownian import snapped, weights
from fastdiff.maths.churn import Churn
from fastdiff.maths.draw import INIT, STEP, Draw
from fastdiff.maths.guidance import Guide
from fastdiff.maths.point import Point
from fastdiff.maths.prediction import Prediction
from fastdiff.maths.real import Real, mp, real
from fastdiff.maths.scalar import Scalar
from fastdiff.maths.vector import Combination, Symbol, Vector
from fastdiff.solvers.memory import found
from fastdiff.solvers.record import Definition, Event
from fastdiff.solvers.solver import Solver

VARIABLES = ("x", "let", "D", "W", "given")


class Branches(dict[str, Any]):
    """D of every branch by its name."""

    def __missing__(self, name: str) -> Any:
        raise PlanError(f"branch {name!r} is not evaluated here; guidance asks for {', '.join(self)}")


class Trace:
    """Everything that a solver's step may ask for, recorded.

    Args:
        points: where the steps begin and end.
        prediction, guidance, churn: see their modules.
        steps: number of noise levels, which churn asks for.
        clip: bound on abs(D), or None.
    """

    def __init__(
        self,
        points: Sequence[Point],
        prediction: Prediction,
        guidance: Guide,
        churn: Churn,
        steps: int,
        clip: Real | None = None,
    ) -> None:
        self.prediction, self.guidance, self.churning = prediction, guidance, churn
        self.points = list(points)
        self.count, self.clip = steps, clip
        self.step: int | None = None
        self.events: list[Event] = []
        self.draws: dict[Symbol, Draw] = {}
        self.solver = ""
        self._drawn = 0
        self._known: dict[Draw, Vector] = {}
        self._paths: dict[Real, Any] = {}
        self._named: list[tuple[Symbol, Vector, Real | None, int]] = []

    @property
    def where(self) -> str:
        """The solver and its step, for messages."""
        return f"solver {self.solver!r}" + ("" if self.step is None else f", step {self.step}")

    # The loop --------------------------------------------------------------------------------------------------

    def run(self, solver: Solver) -> Any:
        """Fold the solver's step over the schedule, from pure noise.

        Raises:
            PlanError: the step does not return a vector and its memory, or misuses a vector; names solver and step.
        """
        self.solver = solver.name
        x, memory = self.start(), None
        for step, (now, then) in enumerate(pairwise(self.points)):
            self.step = step
            x, memory = self.take(solver, x, now, then, memory)
        self.step = None
        return x

    def take(self, solver: Solver, x: Any, now: Point, then: Point, memory: Any) -> tuple[Any, Any]:
        """One step; what it remembers becomes variables."""
        self._drawn = 0
        try:
            made = solver.step(self, x, now, then, memory, **solver.settings)
        except PlanError as error:
            raise error if str(error).startswith("solver ") else PlanError(f"{self.where}: {error}") from None
        except ZeroDivisionError:
            raise PlanError(f"{self.where} divides by zero, on the way from {now} to {then}") from None
        if not isinstance(made, tuple) or len(made) != 2 or not self._is_vector(made[0]):
            what = (
                f"a {type(made).__name__}"
                if not isinstance(made, tuple)
                else f"({', '.join(type(m).__name__ for m in made)})"
            )
            raise PlanError(f"{self.where} returned {what}; a step returns (x, memory), and x is a vector")
        self._check_own(made[0], "returned")
        self._remember(made[1])
        return made

    def start(self) -> Any:
        """``x = s(t_0) sigma(t_0) xi``."""
        first = self.points[0]
        return self.draw(Draw(INIT, 0)) * (first.s * first.sigma)

    def finish(self, x: Vector) -> Symbol:
        """Name the result."""
        return self._name(Vector(self, {x: mp.one}), Symbol("x", len(self.events)))

    @cached_property
    def variables(self) -> dict[Symbol, Definition]:
        """All variables in the order in which they came about; ask when the solver is done."""
        known: dict[Vector, Combination] = {}
        return {symbol: Definition(x.written_out(known), clip, after) for symbol, x, clip, after in self._named}

    # Noise -----------------------------------------------------------------------------------------------------

    def noise(self) -> Any:
        """Fresh unit normals: the step's number is the draw, how many it has drawn before is the sub-draw."""
        if self.step is None:
            raise PlanError(f"{self.where} asks for noise outside a step; fresh noise is counted by steps")
        self._drawn += 1
        return self.draw(Draw(STEP, self.step, self._drawn - 1))

    def draw(self, draw: Draw) -> Any:
        """The unit normals of a counter; the same counter is the same vector."""
        if draw not in self._known:
            symbol = Symbol("xi", len(self.draws), f"xi{draw.purpose}.{draw.draw}.{draw.sub_draw}.")
            self.draws[symbol] = draw
            self._known[draw] = Vector(self, {}, symbol)
        return self._known[draw]

    def brownian(self, at: Point) -> Any:
        """``W(v)``, ``v = sigma / (1 + sigma)``: one path of the sample (``fastdiff.maths.brownian``).

        ``elapsed`` says what variance two points have between them. The same point is the same vector, so that a step
        may ask for where the path is now, before it evaluates, and for where it will be then.
        """
        v = snapped(at)
        if v not in self._paths:
            drawn = [self.draw(draw) * weight for draw, weight in weights(v).items()]
            self._paths[v] = self._variable(sum(drawn[1:], drawn[0]), "W")
        return self._paths[v]

    def elapsed(self, now: Point, then: Point) -> Real:
        """The variance of ``brownian(now) - brownian(then)``."""
        return snapped(now) - snapped(then)

    def churn(self, x: Any, at: Point) -> tuple[Any, Point]:
        """Raise the noise level by fresh noise; returns the new x and its point (EDM, algorithm 2)."""
        gamma = self.churning.gamma(at.sigma, self.count)
        sigma_hat = self.prediction.round_sigma(at.sigma * (1 + gamma)) if gamma else at.sigma
        if sigma_hat <= at.sigma:
            return x, at
        hat = Point(at.path, at.path.sigma_inv(sigma_hat))
        lift = mp.sqrt(sigma_hat**2 - at.sigma**2) * real(self.churning.s_noise, "s_noise")
        return x * (hat.s / at.s) + self.noise() * (hat.s * lift), hat

    # The network -----------------------------------------------------------------------------------------------

    def evaluate(self, x: Any, at: Point) -> dict[str, Any]:
        """``D(x / s; sigma)`` of every branch that guidance asks for: one network evaluation."""
        self._check_own(x, "evaluates the network at")
        k, scalars, branches = len(self.events), self.prediction(at.sigma), self._branches(at)
        if x.symbol is None or x.symbol.kind not in VARIABLES:
            # A draw has a symbol already; what the network sees is a multiple of it.
            seen = x if x.symbol is None else Vector(self, {x: mp.one})
            self._name(seen, Symbol("x", k))
        else:
            seen = x
        self.events.append(Event(self.step or 0, seen.symbol, at, scalars, branches))
        outputs = {branch: Vector(self, {}, Symbol("F", k, branch)) for branch in branches}
        denoised = Branches()
        for branch, output in outputs.items():
            d = seen * (scalars.c_skip / at.s) + output * scalars.c_out
            self._name(d, Symbol("D", k, branch))
            denoised[branch] = d
        return denoised

    def denoise(self, x: Any, at: Point) -> Any:
        """The guided, clipped ``D(x / s; sigma)``: one network evaluation."""
        guided = self.guidance.combine(at.sigma, self.evaluate(x, at))
        self._check_own(guided, "is guided by")
        d = Vector(self, {guided: mp.one})
        self._name(d, Symbol("D", len(self.events) - 1), self.clip)
        return d

    def slope(self, x: Any, at: Point) -> Any:
        """``dx/dt = (sigma'/sigma + s'/s) x - sigma' s / sigma D(x / s; sigma)`` (EDM, equation 4)."""
        d, rate = self.denoise(x, at), at.sigma_deriv / at.sigma
        return x * (rate + at.s_deriv / at.s) - d * (at.sigma_deriv * at.s / at.sigma)

    def score(self, x: Any, at: Point) -> Any:
        """``grad log p_t(x) = (s D - x) / (s sigma)^2``."""
        return (self.denoise(x, at) * at.s - x) / (at.s * at.sigma) ** 2

    def epsilon(self, x: Any, at: Point) -> Any:
        """The predicted noise ``(x / s - D) / sigma``."""
        return (x / at.s - self.denoise(x, at)) / at.sigma

    def dot(self, u: Any, v: Any) -> Scalar:
        """``<u, v>`` of every sample, in float64: a number that is known when the row runs."""
        for vector in (u, v):
            self._check_own(vector, "takes the inner product of")
        return u.dot(v)

    # What the caller gives -------------------------------------------------------------------------------------

    def given(self, name: str, *, state: bool = False) -> Any:
        """A tensor of the caller's, of the sample's shape, there at every step: ``Run(..., given={name: tensor})``.

        Args:
            name: a Python identifier.
            state: it is the state of a sampler that the caller steps himself.
        """
        return Vector(self, {}, Symbol("given", int(state), _identifier(name)))

    def call(self, name: str, *vectors: Any) -> Any:
        """What the caller's function returns for these vectors: ``Run(..., calls={name: function})``.

        For what is no linear combination: masks, rotations, learned variances. It costs a launch and a store of
        each vector.
        """
        if not vectors:
            raise PlanError(f"{self.where} calls {name!r} with nothing; give it vectors, from which it knows the shape")
        for vector in vectors:
            self._check_own(vector, f"calls {name!r} with")
        arguments = tuple(self.symbol_of(vector) for vector in vectors)
        self.events.append(Event(self.step or 0, call=(_identifier(name), arguments)))
        returned = Vector(self, {}, Symbol("out", len(self.events) - 1, name))
        return self._variable(Vector(self, {returned: mp.one}), "let")

    # Names -----------------------------------------------------------------------------------------------------

    def _is_vector(self, value: Any) -> bool:
        return isinstance(value, Vector)

    def _check_own(self, value: Any, doing: str) -> None:
        """Something that must be a vector of this trace."""
        if not self._is_vector(value):
            raise PlanError(f"{self.where} {doing} a {type(value).__name__}; it must be a vector")
        if value.home is not self:
            raise PlanError(f"{self.where} {doing} a vector of another trace; use what this step was given")

    def _remember(self, memory: Any) -> None:
        """Make variables of all vectors in what a step remembers."""
        try:
            vectors = found(memory, Vector)
        except PlanError as error:
            raise PlanError(f"{self.where}: {error}") from None
        for vector in vectors:
            self.symbol_of(vector)

    def _branches(self, at: Point) -> tuple[str, ...]:
        """What guidance asks for."""
        branches = self.guidance.branches(at.sigma)
        if isinstance(branches, str) or not branches or len(set(branches)) < len(branches):
            raise PlanError(
                f"{self.where}: guidance asks for the branches {branches!r}; it must be a tuple of one or more names, "
                "each once"
            )
        return branches

    def _name(self, x: Vector, symbol: Symbol, clip: Real | None = None) -> Symbol:
        """Make a vector a variable."""
        x.symbol = symbol
        self._named.append((symbol, x, clip, len(self.events)))
        return symbol

    def _variable(self, x: Any, kind: Any) -> Any:
        self._name(x, Symbol(kind, sum(symbol.kind == kind for symbol, *_ in self._named)))
        return x

    def symbol_of(self, x: Any) -> Symbol:
        """The symbol of a vector that outlives its step; it becomes a variable unless it has a symbol."""
        self._check_own(x, "remembers")
        return x.symbol or self._variable(x, "let").symbol


def _identifier(name: str) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise PlanError(f"a given tensor or call is named {name!r}; use a Python identifier")
    return name
