"""From a traced solver to stages: which vectors are carried between launches, and what each launch computes.

Stage ``k`` runs after network evaluation ``k - 1`` and before evaluation ``k``; stage 0 only draws the first noise.
Between stages a set of vectors is *carried* in buffers. Two sets are always possible:

* the solver's own variables that later stages refer to (the *natural* history), and
* *partial sums*: for every vector that the next stage must produce, the part of it that is known already.

Heun's corrector needs ``x``, ``x'`` and the predictor's ``D``, but only in one combination, so its partial sum is a
single tensor. The set that moves fewer tensors is carried; a tie goes to the natural one (``docs/compiler.md``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastdiff.maths.vector import Combination, Symbol
from fastdiff.solvers.trace import Definition, Evaluation, Ode

ORDER = {"x": 0, "sum": 1, "let": 2, "D": 3}


@dataclass
class Stage:
    """What one launch reads and must produce.

    Args:
        read: vectors carried in from the previous stage.
        carried: vectors that must be in buffers afterwards.
        recipes: each new vector, the next network input among them, as a combination of what is readable:
            carried vectors, outputs of the last evaluation, draws, and D if it is clipped.
        clipped: the symbol of the last evaluation's D and its definition, if it is clipped.
        after: the evaluation whose outputs can be read, None in the first stage.
        before: the evaluation that follows, None in the last stage.
    """

    read: list[Symbol]
    carried: list[Symbol]
    recipes: dict[Symbol, Combination]
    clipped: tuple[Symbol, Definition] | None
    after: Evaluation | None
    before: Evaluation | None


class Compiler:
    """Decides what is carried, from the last stage back to the first.

    Args:
        ode: the trace, after the solver ran on it.
        result: the variable that is returned.
        partial_sums: allow carried sets other than the natural ones.
    """

    def __init__(self, ode: Ode, result: Symbol, partial_sums: bool = True) -> None:
        self._ode, self._result, self._partial_sums = ode, result, partial_sums
        self._definitions = dict(ode.variables)
        self._births: dict[Symbol, int] = {}
        # In the order of their definition, so that births of what they refer to are known.
        for symbol, known in ode.variables.items():
            if symbol.kind != "D":
                self._births[symbol] = max((self._birth(s) for s in known.combination), default=0)

    def stages(self, denoised: bool = False) -> list[Stage]:
        """The stages in order; with ``denoised`` also D of each evaluation whose input is at hand."""
        evaluations = self._ode.evaluations
        carried = [self._result]
        stages: list[Stage] = []
        for k in range(len(evaluations), -1, -1):
            before = evaluations[k] if k < len(evaluations) else None
            recipes = self._recipes(carried, before, k)
            clipped = self._clipped(k - 1) if k else None
            read, recipes = self._choose(carried, recipes, clipped, k) if k else ([], recipes)
            after = evaluations[k - 1] if k else None
            if denoised and after is not None:
                recipes |= self._observed(k - 1, read)
            stages.append(Stage(read, carried, recipes, clipped, after, before))
            carried = read
        return stages[::-1]

    def _birth(self, symbol: Symbol) -> int:
        """The stage at which a symbol can first be computed; a draw can be made at any stage."""
        if symbol.kind == "xi":
            return 0
        if symbol.kind in ("F", "D"):
            return symbol.index + 1
        return self._births[symbol]

    def _is_past(self, symbol: Symbol, k: int) -> bool:
        return symbol.kind not in ("F", "xi") and self._birth(symbol) < k

    def _recipes(self, carried: list[Symbol], before: Evaluation | None, k: int) -> dict[Symbol, Combination]:
        """The vectors that stage k makes, in terms of older variables, network outputs, draws and a clipped D."""

        def definition(symbol: Symbol) -> Combination | None:
            if symbol not in self._definitions or self._is_past(symbol, k):
                return None
            known = self._definitions[symbol]
            return known.combination if known.clip is None else None

        targets = [s for s in carried if not self._is_past(s, k)]
        if before is not None and before.x not in targets:
            targets.append(before.x)
        replaced: dict[Symbol, Combination | None] = {}
        return {target: Combination.of(target).replace(definition, replaced) for target in targets}

    def _clipped(self, evaluation: int) -> tuple[Symbol, Definition] | None:
        d = Symbol("D", evaluation)
        return (d, self._definitions[d]) if self._definitions[d].clip is not None else None

    def _choose(
        self,
        carried: list[Symbol],
        recipes: dict[Symbol, Combination],
        clipped: tuple[Symbol, Definition] | None,
        k: int,
    ) -> tuple[list[Symbol], dict[Symbol, Combination]]:
        """What stage k reads, and its recipes in terms of that."""
        passing = {s for s in carried if s not in recipes}
        past = {target: recipe.only(lambda s: self._is_past(s, k)) for target, recipe in recipes.items()}
        needed = set(passing)
        if clipped is not None:
            needed.update(s for s in clipped[1].combination if self._is_past(s, k))
        natural = needed.union(*past.values())
        sums = {target: Symbol("sum", k, f"[{target}]") for target, known in past.items() if len(known.terms) > 1}
        partial = needed.union(sums.values(), *(known for target, known in past.items() if target not in sums))
        if not self._partial_sums or self._cost(partial, passing, k) >= self._cost(natural, passing, k):
            return _in_order(natural), recipes
        chosen = dict(recipes)
        for target, total in sums.items():
            self._definitions[total] = Definition(past[target])
            self._births[total] = k - 1
            chosen[target] = Combination.of(total) + (recipes[target] - past[target])
        return _in_order(partial), chosen

    def _cost(self, carried: Iterable[Symbol], passing: set[Symbol], k: int) -> int:
        """Tensors written by stage k - 1 and read by stage k for the sake of a carried set."""
        cost = 0
        for symbol in carried:
            cost += symbol.kind == "sum" or self._birth(symbol) == k - 1
            cost += symbol not in passing
        return cost

    def _observed(self, evaluation: int, read: list[Symbol]) -> dict[Symbol, Combination]:
        """D of the evaluation just made, if its input is among the carried vectors (or cancels)."""
        d = Symbol("D", evaluation)
        known = self._definitions[d]
        if any(s.kind != "F" and s not in read for s in known.combination):
            return {}
        return {Symbol("D", d.index, "denoised"): Combination.of(d) if known.clip else known.combination}


def _in_order(symbols: Iterable[Symbol]) -> list[Symbol]:
    """States before histories, older before newer: the order of columns, hence of summation."""
    return sorted(symbols, key=lambda s: (ORDER[s.kind], s.index, s.label))
