"""From a traced solver to stages: which vectors are carried between launches, and what each launch computes.

Stage ``k`` runs after event ``k - 1`` (a network evaluation or a call) and before event ``k``; stage 0 only draws the
first noise. Between stages a set of vectors is *carried* in buffers. Two sets are always possible:

* the solver's own variables that later stages refer to (the *natural* history), and
* *partial sums*: for every vector that the next stage must produce, the part of it that is known already.

Heun's corrector needs ``x``, ``x'`` and the predictor's ``D``, but only in one combination, so its partial sum is a
single tensor. The set that moves fewer tensors is carried; a tie goes to the natural one (``docs/compiler.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from fastdiff.errors import PlanError
from fastdiff.maths.scalar import Atom
from fastdiff.maths.vector import Combination, Symbol, Vector
from fastdiff.solvers.record import Definition, Event
from fastdiff.solvers.trace import Trace

ORDER = {"x": 0, "sum": 1, "let": 2, "W": 3, "D": 4}
FRESH = ("F", "out", "xi", "given", "one")
"""What a stage can read without its being carried."""


@dataclass
class Stage:
    """What one launch reads and must produce.

    Args:
        read: vectors carried in from the previous stage.
        carried: vectors that must be in buffers afterwards.
        recipes: each new vector, the next network input among them, as a combination of what is readable:
            carried vectors, outputs of the last event, draws, given tensors, and ``inner`` vectors.
        after: the event whose outputs can be read, None in the first stage.
        before: the event that follows, None in the last stage.
        inner: vectors that are made first, because several recipes use them or because they are clamped.
        dots: of every atom that coefficients need, the combinations of its vectors; arguments come first.
    """

    read: list[Symbol]
    carried: list[Symbol]
    recipes: dict[Symbol, Combination]
    after: Event | None
    before: Event | None
    inner: dict[Symbol, Definition] = field(default_factory=dict)
    dots: dict[Atom, tuple[Combination, ...]] = field(default_factory=dict)


class Compiler:
    """Decides what is carried, from the last stage back to the first.

    Args:
        trace: after the solver ran on it.
        result: the variable that is returned.
        partial_sums: allow carried sets other than the natural ones.
        visible: keep every network input in a buffer.
        kept: more variables to have at the end.
    """

    def __init__(
        self,
        trace: Trace,
        result: Symbol,
        partial_sums: bool = True,
        visible: bool = False,
        kept: Sequence[Symbol] = (),
    ) -> None:
        self._trace, self._partial_sums, self._visible = trace, partial_sums, visible
        self._last = [result, *kept]
        self._definitions = dict(trace.variables)
        self._births: dict[Symbol, int] = {}
        self._named_later: dict[Symbol, int] = {}
        self._written_out: dict[Vector, Combination] = {}
        # In the order in which they were named, so that births of what they refer to are known, but for a few.
        for symbol, known in trace.variables.items():
            made_of = self._made_of(known.combination)
            if symbol.kind != "D":
                # It is there as of then, else what is made of draws alone would be stored from the start.
                self._births[symbol] = max([known.after, *map(self._birth, made_of)])

    def stages(self, denoised: bool = False) -> list[Stage]:
        """The stages in order; with ``denoised`` also D of each evaluation whose input is at hand.

        Raises:
            PlanError: a scalar needs what is there only after the launch.
        """
        events = self._trace.events
        carried = self._last
        stages: list[Stage] = []
        for k in range(len(events), -1, -1):
            before = events[k] if k < len(events) else None
            held = list(carried)
            if before is not None and before.call is not None:
                # What the caller gives he is given back as it is.
                held += [s for s in dict.fromkeys(before.call[1]) if s not in held and s.kind != "given"]
            if self._visible and before is not None and before.x is not None and before.x not in held:
                held = [before.x, *held]
            stage = self._stage(held, before, k)
            if denoised and stage.after is not None and stage.after.x is not None:
                stage.recipes |= self._observed(k - 1, stage)
            stages.append(stage)
            carried = stage.read
        return stages[::-1]

    def _made_of(self, combination: Combination) -> list[Symbol]:
        """The symbols of a combination, and those that decide its coefficients."""
        found, atoms = list(combination), combination.atoms
        # What is added to the list while it is walked is walked too.
        for atom in atoms:
            for argument in atom.arguments:
                if isinstance(argument, Vector):
                    if argument.home is not self._trace:
                        where = f"solver {self._trace.solver!r}"
                        raise PlanError(f"{where}: an inner product of vectors of another trace; use what its step got")
                    found += argument.combination(self._written_out)
                else:
                    atoms += [inner for inner in argument.terms if inner not in atoms]
        return found

    def _birth(self, symbol: Symbol) -> int:
        """The stage at which a symbol can first be computed; a draw can be made at any stage."""
        if symbol.kind in ("xi", "given", "one"):
            return 0
        if symbol.kind in ("F", "D", "out"):
            return symbol.index + 1
        if symbol in self._births:
            return self._births[symbol]
        # What refers to it was named before it was: there it can be computed as soon as what it is made of.
        if symbol not in self._named_later:
            births = map(self._birth, self._made_of(self._definitions[symbol].combination))
            self._named_later[symbol] = max(births, default=0)
        return self._named_later[symbol]

    def _is_past(self, symbol: Symbol, k: int) -> bool:
        return symbol.kind not in FRESH and self._birth(symbol) < k

    def _stage(self, carried: list[Symbol], before: Event | None, k: int) -> Stage:
        """Stage k: its new vectors in terms of older variables, event outputs, draws and inner vectors."""

        def definition(symbol: Symbol) -> Combination | None:
            if symbol not in self._definitions or self._is_past(symbol, k):
                return None
            known = self._definitions[symbol]
            return known.combination if known.clip is None and symbol.kind != "W" else None

        targets = [s for s in carried if not self._is_past(s, k)]
        if before is not None and before.x is not None and before.x not in targets:
            targets.append(before.x)
        if (before is None and carried[0] not in targets) or not targets:
            # The event just over was of no use. The last row stores the result all the same, and any row makes
            # something: a call that is given nothing but tensors of the caller's leaves nothing else.
            called = before.call[1] if before is not None and before.call is not None else ()
            targets.insert(0, [*carried, *called][0])
        replaced: dict[Symbol, Combination | None] = {}
        recipes = {target: Combination.of(target).replace(definition, replaced) for target in targets}
        # The clamped D of the event just over is made whether or not anything uses it: it is what an observer sees.
        inner = [Symbol("D", k - 1)] if k and self._is_clipped(Symbol("D", k - 1)) else []
        inner += sorted({s for recipe in recipes.values() for s in recipe if s.kind == "W" and not self._is_past(s, k)})
        stage = Stage([], carried, recipes, self._trace.events[k - 1] if k else None, before)
        for symbol in inner:
            known = self._definitions[symbol]
            stage.inner[symbol] = replace(known, combination=known.combination.replace(definition, replaced))
        inside = [known.combination for known in stage.inner.values()]
        for atom in (atom for recipe in (*inside, *recipes.values()) for atom in recipe.atoms):
            self._expand(atom, stage, k, lambda v: v.combination(self._written_out).replace(definition, replaced))
        if k:
            self._choose(stage, k)
        return stage

    def _is_clipped(self, symbol: Symbol) -> bool:
        return symbol in self._definitions and self._definitions[symbol].clip is not None

    def _expand(self, atom: Atom, stage: Stage, k: int, written_out: Callable[[Vector], Combination]) -> None:
        """Add an atom and all that it is made of to a stage's dots."""
        if atom in stage.dots:
            return
        for argument in atom.arguments:
            for inner in () if isinstance(argument, Vector) else argument.terms:
                self._expand(inner, stage, k, written_out)
        vectors = [argument for argument in atom.arguments if isinstance(argument, Vector)]
        step = stage.after.step if stage.after else 0
        where = f"solver {self._trace.solver!r}, step {step}"
        combinations = tuple(written_out(vector) for vector in vectors)
        for combination in combinations:
            if not combination.fixed:
                raise PlanError(
                    f"{where}: an inner product of a vector that is itself scaled by a scalar; multiply it out"
                )
            # What is drawn for an inner product alone is not among the inner vectors.
            if unmade := [str(s) for s in combination if s.kind not in FRESH and not self._is_past(s, k)]:
                raise PlanError(
                    f"{where}: an inner product needs {', '.join(unmade)}, which the same launch clamps or draws; "
                    "leave clip out, or take the product of what the launch reads"
                )
        stage.dots[atom] = combinations

    def _choose(self, stage: Stage, k: int) -> None:
        """What stage k reads, and its recipes in terms of that."""
        recipes = stage.recipes
        passing = {s for s in stage.carried if s not in recipes}
        past = {target: recipe.only(lambda s: self._is_past(s, k)) for target, recipe in recipes.items()}
        needed = set(passing)
        others = [known.combination for known in stage.inner.values()] + [
            c for pair in stage.dots.values() for c in pair
        ]
        needed.update(s for combination in others for s in combination if self._is_past(s, k))
        natural = needed.union(*past.values())
        stage.read = _in_order(natural)
        sums = {
            target: Symbol("sum", k, f"[{target}]")
            for target, known in past.items()
            if len(known.terms) > 1 and known.fixed
        }
        partial = needed.union(sums.values(), *(known for target, known in past.items() if target not in sums))
        if not self._partial_sums or self._cost(partial, passing, k) >= self._cost(natural, passing, k):
            return
        for target, total in sums.items():
            self._definitions[total] = Definition(past[target])
            self._births[total] = k - 1
            recipes[target] = Combination.of(total) + (recipes[target] - past[target])
        stage.read = _in_order(partial)

    def _cost(self, carried: Iterable[Symbol], passing: set[Symbol], k: int) -> int:
        """Tensors written by stage k - 1 and read by stage k for the sake of a carried set."""
        cost = 0
        for symbol in carried:
            cost += symbol.kind == "sum" or self._birth(symbol) == k - 1
            cost += symbol not in passing
        return cost

    def _observed(self, evaluation: int, stage: Stage) -> dict[Symbol, Combination]:
        """D of the evaluation just made, if its input is among the carried vectors (or cancels)."""
        d = Symbol("D", evaluation)
        if d not in self._definitions:
            return {}
        whole = Combination.of(d).replace(
            lambda s: (
                self._definitions[s].combination
                if s.kind == "D" and s.index == evaluation and s not in stage.inner
                else None
            )
        )
        at_hand = all(s.kind in FRESH or s in stage.inner or s in stage.read for s in whole)
        return {Symbol("D", d.index, "denoised"): whole} if at_hand and whole.fixed else {}


def _in_order(symbols: Iterable[Symbol]) -> list[Symbol]:
    """States before histories, older before newer: the order of columns, hence of summation."""
    return sorted(symbols, key=lambda s: (ORDER[s.kind], s.index, s.label))
