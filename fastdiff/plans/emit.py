"""From stages to rows: buffers get names, outputs their form, coefficients their one rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastdiff.errors import PlanError
from fastdiff.maths.draw import Draw
from fastdiff.maths.real import mp, round_to
from fastdiff.maths.scalar import Scalar
from fastdiff.maths.vector import ONES, Combination, Symbol
from fastdiff.plans.compiler import Stage
from fastdiff.plans.scalars import Scalars
from fastdiff.rows.gram import ONE
from fastdiff.rows.program import MAX_COLUMNS, MAX_OUTPUTS
from fastdiff.rows.row import CALLED_PREFIX, GIVEN_PREFIX, NETWORK_PREFIX, NOISE_PREFIX, Coefficient, Output, Row

DENOISED = "denoised"
FIRST_BUFFER = "x"
GIVEN_STATE = ("given", 1)
ADVICE = {
    "must be finite": "; the state is DTYPE; use float64 or less extreme noise levels",
    "columns; at most": "; remember fewer vectors from step to step",
    "draws; at most": "; draw less noise between two evaluations, and ask for brownian(now) before evaluating",
}
"""What to do about a fault of a row, by words of its message."""


class Buffers:
    """Which buffer holds which carried vector; a new vector takes the buffer of one that dies, in place."""

    def __init__(self) -> None:
        self.names: dict[Symbol, str] = {}
        self._free: list[str] = []
        self._count = 0

    def place(self, stage: Stage, bases: dict[Symbol, Symbol | None]) -> dict[Symbol, str]:
        """Assign the stage's new vectors; returns where its carried-in vectors were."""
        before = dict(self.names)
        carried = set(stage.carried)
        self._free = sorted({*self._free, *(name for symbol, name in before.items() if symbol not in carried)})
        self.names = {symbol: name for symbol, name in before.items() if symbol in carried}
        wanted = {symbol: before.get(base) for symbol, base in bases.items() if base is not None}
        new = [symbol for symbol in stage.carried if symbol not in self.names]
        # Increments go onto their base; only then do the others share out what is left.
        for symbol in sorted(new, key=lambda s: wanted.get(s) not in self._free):
            self.names[symbol] = self._take(wanted.get(symbol))
        return before

    def spare(self) -> str:
        """A buffer that holds nothing that is carried."""
        name = self._take(None)
        self._free = sorted([*self._free, name])
        return name

    def _take(self, wanted: str | None) -> str:
        """The wanted name if it is free, else the last free one in the alphabet ("x" is the favourite), else new."""
        if wanted in self._free:
            self._free.remove(wanted)
            return wanted
        if self._free:
            return self._free.pop()
        self._count += 1
        return FIRST_BUFFER if self._count == 1 else f"h{self._count - 1}"


class OwnNames(Buffers):
    """Every vector keeps a name of its own: for callers who hold the vectors themselves.

    Args:
        chosen: names for some; the others are called by what they are.
        prefix: of the others' names.
    """

    def __init__(self, chosen: Mapping[Symbol, str] | None = None, prefix: str = "") -> None:
        super().__init__()
        self._chosen, self._prefix = dict(chosen or {}), prefix

    def place(self, stage: Stage, bases: dict[Symbol, Symbol | None]) -> dict[Symbol, str]:
        """See ``Buffers``."""
        before = dict(self.names)
        own = {s: f"{self._prefix}{s.kind}{s.index}{s.label}" for s in stage.carried} | self._chosen
        self.names |= {symbol: own[symbol] for symbol in stage.carried}
        return before

    def spare(self) -> str:
        """See ``Buffers``; no vector is called so."""
        return f"{self._prefix}spare"


class Emitter:
    """Makes the rows of a plan.

    Args:
        draws: the counter of every noise symbol.
        dtype: the state type to which coefficients are rounded.
        batched: guided evaluations are one network call on stacked inputs.
        solver: its name, for messages.
        buffers: where carried vectors go.
    """

    def __init__(self, draws: dict[Symbol, Draw], dtype: str, batched: bool, solver: str, buffers: Buffers) -> None:
        self._draws, self._dtype, self._batched, self._solver = draws, dtype, batched, solver
        self._buffers = buffers

    def rows(self, stages: list[Stage]) -> list[Row]:
        """All rows, from the compiler's stages in order.

        Raises:
            PlanError: a coefficient is NaN or infinite in the state type, or a row would hold too much; names the row,
                its noise level, the solver and its step.
        """
        return [self._named_row(k, stage) for k, stage in enumerate(stages)]

    def _named_row(self, k: int, stage: Stage) -> Row:
        step = stage.after.step if stage.after else 0
        at = stage.after.at if stage.after else None
        where = (
            f"after the evaluation at sigma = {float(at.sigma):.6g}" if at else "after a call" if k else "first noise"
        )
        if len(stage.read) > MAX_COLUMNS or len(stage.recipes) + len(stage.inner) > MAX_OUTPUTS:
            held, made = len(stage.read), len(stage.recipes) + len(stage.inner)
            raise PlanError(
                f"solver {self._solver!r}, step {step}, row {k} ({where}): it reads {held} vectors and makes {made}; a "
                f"row holds {MAX_COLUMNS} and {MAX_OUTPUTS}: remember fewer vectors from step to step"
            )
        try:
            return self._row(stage)
        except PlanError as error:
            advice = next((advice for fault, advice in ADVICE.items() if fault in str(error)), "")
            advice = advice.replace("DTYPE", self._dtype)
            raise PlanError(f"solver {self._solver!r}, step {step}, row {k} ({where}): {error}{advice}") from None

    def _row(self, stage: Stage) -> Row:
        bases = {target: _base(recipe, stage.read) for target, recipe in stage.recipes.items()}
        where = self._buffers.place(stage, bases)
        names = {symbol: where[symbol] for symbol in stage.read}
        inner = [known.combination for known in stage.inner.values()]
        together = [*stage.recipes.values(), *inner, *(c for pair in stage.dots.values() for c in pair)]
        symbols = {symbol for combination in together for symbol in combination}
        for kind, prefix in (("given", GIVEN_PREFIX), ("F", NETWORK_PREFIX), ("out", CALLED_PREFIX)):
            names |= {s: f"{prefix}{s.label}" for s in sorted(symbols) if s.kind == kind}
        columns = [name for symbol, name in names.items() if symbol in symbols]
        drawn = {s: d for s, d in self._draws.items() if s in symbols}
        names |= {s: f"{NOISE_PREFIX}{j}" for j, s in enumerate(drawn)}
        scalars = Scalars(stage.dots, names | {ONES: ONE})
        if scalars.gram is not None and not columns:
            raise PlanError("it takes an inner product of noise alone, and reads nothing; take it after evaluating")

        outputs, network = [], None
        for symbol, known in stage.inner.items():
            terms, noise = self._terms(known.combination, names, scalars)
            bound = None if known.clip is None else round_to(known.clip, self._dtype)
            names[symbol] = f"w{len(outputs)}"
            outputs.append(Output(None, terms, noise, bound=bound))
        for target, recipe in stage.recipes.items():
            if stage.before is not None and target == stage.before.x:
                network = len(outputs)
            store = DENOISED if target.label == DENOISED else self._buffers.names.get(target)
            # A next network input that was carried in already is not stored again.
            store = None if target in stage.read and network == len(outputs) else store
            base = bases[target]
            rest = recipe if base is None else recipe + Combination.of(base, -mp.one)
            terms, noise = self._terms(rest, names, scalars)
            outputs.append(Output(None if base is None else names[base], terms, noise, store))
        if not columns and not any(output.store for output in outputs):
            # An op learns how large the batch is from a tensor that it reads or stores.
            outputs[0] = replace(outputs[0], store=self._buffers.spare())
        before = stage.before
        row = Row(
            columns=tuple(columns),
            outputs=tuple(outputs),
            draws=tuple((names[s], d) for s, d in drawn.items()),
            gram=scalars.gram,
        )
        if before is None:
            return row
        if before.call is not None:
            name, arguments = before.call
            held = self._buffers.names
            named = tuple(GIVEN_PREFIX + s.label if s.kind == "given" else held[s] for s in arguments)
            return replace(row, call=(name, named))
        assert before.scalars is not None
        assert before.at is not None
        return replace(
            row,
            network=network,
            c_in=round_to(before.scalars.c_in / before.at.s, self._dtype),
            copies=len(before.branches) if self._batched else 1,
            c_noise=round_to(before.scalars.c_noise, self._dtype),
            sigma=float(before.at.sigma),
            branches=before.branches,
        )

    def _terms(
        self, combination: Combination, names: dict[Symbol, str], scalars: Scalars
    ) -> tuple[tuple[tuple[str, Coefficient], ...], tuple[tuple[str, Coefficient], ...]]:
        """Name and coefficient of each term in column order, noise apart; one that rounds to zero is left out."""
        terms = combination.terms
        assert names.keys() >= terms.keys(), f"a stage cannot read {terms.keys() - names.keys()}"
        rounded = [(s, name, scalars.coefficient(terms[s], self._dtype)) for s, name in names.items() if s in terms]
        kept = [(s.kind, (name, c)) for s, name, c in rounded if c]
        return tuple(t for kind, t in kept if kind != "xi"), tuple(t for kind, t in kept if kind == "xi")


def _base(recipe: Combination, read: list[Symbol]) -> Symbol | None:
    """The carried state that an output is an increment of: the largest, if its coefficient exceeds 1/2.

    Measured: pure increments are up to 2x more accurate at 20 steps and more, and 400x worse at 2.
    """
    # The state of a single step is held by the caller.
    states = {s for s in recipe if s[:2] == GIVEN_STATE or (s in read and s.kind in ("x", "sum"))}
    fixed = {s: c for s, c in recipe.terms.items() if s in states and not isinstance(c, Scalar)}
    largest = max(fixed, key=lambda s: abs(fixed[s]), default=None)
    return largest if largest is not None and fixed[largest] > 0.5 else None
