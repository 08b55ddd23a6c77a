"""The second interpreter of solvers: the very text that is traced for a plan, run at once on float64 tensors.

No plan, no row and no compiler is involved, so that what a plan computes can be checked against what its solver says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.backends import reference
from fastdiff.errors import InputError
from fastdiff.maths.churn import Churn
from fastdiff.maths.draw import Draw
from fastdiff.maths.guidance import COND, Guide
from fastdiff.maths.point import Point
from fastdiff.maths.prediction import Prediction
from fastdiff.maths.real import LOCK
from fastdiff.maths.schedule import Schedule
from fastdiff.plans.compose import clip_of, guide_of, prediction_of, schedule_of, solver_of
from fastdiff.rows.seeds import normalise_seeds
from fastdiff.solvers.solver import Solver
from fastdiff.solvers.trace import Branches, Trace

Network = Callable[[Tensor, Tensor], Tensor]
"""``F(z, c_noise)``."""


def eager_sample(
    net: Network | Mapping[str, Network],
    shape: Sequence[int],
    seeds: int | Sequence[int] | Tensor,
    *,
    schedule: str | Schedule | Sequence[float] = "edm",
    prediction: str | Prediction = "edm",
    solver: str | Solver = "heun",
    steps: int = 18,
    guidance: float | Guide = 1.0,
    churn: Churn | None = None,
    clip: float | None = None,
    given: Mapping[str, Tensor] | None = None,
    calls: Mapping[str, Callable[..., Tensor]] | None = None,
    state: Tensor | None = None,
) -> Tensor:
    """Sample by the solver's own text, in float64 on the CPU.

    Args:
        net: ``F(z, c_noise)``, z ``[B, ...]`` float64 and c_noise ``[B]``; of each branch where there are several.
        shape: ``[B, ...]``.
        seeds: as for ``fastdiff.sample``; the same noise is drawn.
        schedule: as for ``fastdiff.plan``, like all settings below.
        prediction: what the network predicts.
        solver: the sampler.
        steps: number of noise levels.
        guidance: of the branches.
        churn: stochasticity.
        clip: clamp of D.
        given: tensors that the solver asks for by name.
        calls: functions that the solver calls by name.
        state: the first state, in place of drawn noise.

    Returns:
        ``[B, ...]`` float64.
    """
    with LOCK:
        chosen, known = schedule_of(schedule), prediction_of(prediction)
        points = chosen.points(steps, known.round_sigma)
        trace = Eager(points, known, guide_of(guidance), churn or Churn(), steps, clip_of(clip))
        trace.networks = net if isinstance(net, Mapping) else {COND: net}
        trace.shape, trace.seeds = torch.Size(shape), normalise_seeds(seeds, shape[0])
        trace.tensors, trace.functions, trace.state = given or {}, calls or {}, state
        return trace.run(solver_of(solver)).value


class Eager(Trace):
    """What a trace offers, at once and on tensors."""

    networks: Mapping[str, Network]
    shape: torch.Size
    seeds: Tensor
    tensors: Mapping[str, Tensor]
    functions: Mapping[str, Callable[..., Tensor]]
    state: Tensor | None

    def start(self) -> Value:
        """The state given, or noise."""
        return super().start() if self.state is None else Value(self.state.double())

    def draw(self, draw: Draw) -> Value:
        """The unit normals of a counter."""
        words = torch.tensor([draw.purpose, draw.tensor, draw.draw, draw.sub_draw])
        return Value(reference.normals(self.shape[1:].numel(), self.seeds, words).view(self.shape).double())

    def evaluate(self, x: Value, at: Point) -> dict[str, Value]:
        """D of every branch."""
        scalars, xhat = self.prediction(at.sigma), x / at.s
        told = torch.full((self.shape[0],), float(scalars.c_noise), dtype=torch.float64)
        z = (xhat * scalars.c_in).value
        found = Branches()
        for name in self._branches(at):
            found[name] = xhat * scalars.c_skip + Value(self._network(name)(z, told)) * scalars.c_out
        return found

    def denoise(self, x: Value, at: Point) -> Value:
        """The guided, clamped D."""
        d = self.guidance.combine(at.sigma, self.evaluate(x, at))
        return d if self.clip is None else Value(d.value.clamp(-float(self.clip), float(self.clip)))

    def given(self, name: str) -> Value:
        """A tensor of the caller's."""
        return Value(self._found(self.tensors, name, "given").double())

    def call(self, name: str, *vectors: Value) -> Value:
        """What the caller's function returns."""
        return Value(self._found(self.functions, name, "calls")(*(v.value for v in vectors)).double())

    def _network(self, branch: str) -> Network:
        return self._found(self.networks, branch, "net")

    @staticmethod
    def _found(known: Mapping[str, Any], name: str, argument: str) -> Any:
        if name not in known:
            raise InputError(
                f"{name!r} is not among {argument} ({', '.join(known) or 'which is empty'}); give it there"
            )
        return known[name]

    def _is_vector(self, value: Any) -> bool:
        return isinstance(value, Value)

    def _remember(self, memory: Any) -> None:
        """Tensors need no names."""

    def _check_own(self, value: Any, doing: str) -> None:
        """Tensors belong to no trace."""

    def _variable(self, x: Any, kind: Any) -> Any:
        return x


class Value:
    """A float64 tensor that behaves as a vector of a trace."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __add__(self, other: Value) -> Value:
        return Value(self.value + other.value)

    def __sub__(self, other: Value) -> Value:
        return Value(self.value - other.value)

    def __mul__(self, factor: Any) -> Value:
        if isinstance(factor, Numbers):
            return Value(self.value * factor.value.view(-1, *(1 for _ in self.value.shape[1:])))
        return Value(self.value * float(factor))

    __rmul__ = __mul__

    def __neg__(self) -> Value:
        return Value(-self.value)

    def __truediv__(self, divisor: Any) -> Value:
        return self * (1 / divisor) if isinstance(divisor, Numbers) else Value(self.value / float(divisor))

    def dot(self, other: Value) -> Numbers:
        """The inner product of each sample."""
        return Numbers((self.value * other.value).flatten(1).sum(1))

    def total(self) -> Numbers:
        """The sum of each sample's elements."""
        return Numbers(self.value.flatten(1).sum(1))

    def size(self) -> Numbers:
        """How many elements a sample has."""
        return Numbers(torch.full(self.value.shape[:1], float(self.value.shape[1:].numel()), dtype=torch.float64))


class Numbers:
    """A float64 number of each sample that behaves as a scalar of a trace."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    @staticmethod
    def _of(other: Any) -> Any:
        return other.value if isinstance(other, Numbers) else float(other)

    def __add__(self, other: Any) -> Numbers:
        return Numbers(self.value + self._of(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Numbers:
        return Numbers(self.value - self._of(other))

    def __rsub__(self, other: Any) -> Numbers:
        return Numbers(self._of(other) - self.value)

    def __mul__(self, other: Any) -> Any:
        return other * self if isinstance(other, Value) else Numbers(self.value * self._of(other))

    __rmul__ = __mul__

    def __neg__(self) -> Numbers:
        return Numbers(-self.value)

    def __truediv__(self, other: Any) -> Numbers:
        return Numbers(self.value / self._of(other))

    def __rtruediv__(self, other: Any) -> Numbers:
        return Numbers(self._of(other) / self.value)

    def sqrt(self) -> Numbers:
        """The square root."""
        return Numbers(self.value.sqrt())

    def at_least(self, floor: float) -> Numbers:
        """The larger of the number and a floor."""
        return Numbers(self.value.clamp(min=float(floor)))
