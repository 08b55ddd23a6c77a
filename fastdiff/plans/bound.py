"""Bounds on a plan's result and on its rounding error, from the coefficients alone (``docs/compiler.md``).

Buffers are correlated: Heun's ``x`` and ``x'`` carry the same noise and the same errors, and their differences cancel
most of it. So every buffer is followed as a combination of independent sources (affine arithmetic: Stolfi and de
Figueiredo, *Self-Validated Numerical Methods*, 1997), and absolute values are taken only at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count

from fastdiff.rows.row import CALLED_PREFIX, GIVEN_PREFIX, NETWORK_PREFIX, NOISE_PREFIX, Bound, Output, Row, fixed

MAX_NORMAL = 6.77
"""No draw of noise format 1 exceeds sqrt(66 log 2) = 6.7637 (``docs/noise.md``)."""
MOST_SOURCES = 256
"""Above this many the smallest are lumped: a plan of a thousand steps has thousands."""
ROUNDING = "rounding"
_fresh = count()


class Spread:
    """``sum_s c_s e_s`` plus or minus ``rest``, where every ``e_s`` lies in [-1, 1] and is shared between spreads."""

    __slots__ = ("rest", "sources")

    def __init__(self, sources: dict[int, float] | None = None, rest: float = 0.0) -> None:
        self.sources, self.rest = sources or {}, rest
        if len(self.sources) > MOST_SOURCES:
            smallest = sorted(self.sources, key=lambda s: abs(self.sources[s]))[: MOST_SOURCES // 2]
            self.rest += sum(abs(self.sources.pop(s)) for s in smallest)

    @classmethod
    def source(cls, size: float) -> Spread:
        """A quantity of its own, within plus or minus size."""
        return cls({next(_fresh): size})

    @property
    def size(self) -> float:
        """The largest absolute value."""
        return sum(map(abs, self.sources.values())) + self.rest


EXACT = Spread()


def combine(terms: Iterable[tuple[str, float]], known: Mapping[str, Spread]) -> Spread:
    """``sum_k c_k column_k``; a column that is not known is exact, and contributes nothing."""
    weights: dict[str, float] = {}
    for name, c in terms:
        weights[name] = weights.get(name, 0.0) + c
    scaled = [(c, known[name]) for name, c in weights.items() if name in known]
    rest = sum(abs(c) * spread.rest for c, spread in scaled)
    # The one with the most sources is copied whole, which is a good deal faster than adding it term by term.
    scaled.sort(key=lambda pair: len(pair[1].sources))
    c, largest = scaled.pop() if scaled else (1.0, EXACT)
    sources = {source: c * size for source, size in largest.sources.items()} if c != 1 else largest.sources.copy()
    for c, spread in scaled:
        known_size = sources.get
        sources |= {source: known_size(source, 0.0) + c * size for source, size in spread.sources.items()}
    return Spread(sources, rest)


def result_bound(rows: Sequence[Row], result: str, dtype: str, network: float) -> Bound:
    """Bounds on the buffer ``result`` after the last row; see ``Plan.bound``."""
    values: dict[str, Spread] = {}
    errors: dict[str, Spread] = {}
    for row in rows:
        value, error = dict(values), dict(errors)
        drawn = (name for name in row.columns if name.startswith(NOISE_PREFIX))
        value |= {name: Spread.source(MAX_NORMAL) for name in (*dict(row.draws), *drawn)}
        value |= {name: Spread.source(network) for name in row.columns if name.startswith(NETWORK_PREFIX)}
        # What a caller gives or computes is taken to be as large as what the network says.
        value |= {n: Spread.source(network) for n in row.columns if n.startswith((GIVEN_PREFIX, CALLED_PREFIX))}
        # What was computed lies within the error of the value, so this bounds it.
        read = (*row.columns, *dict(row.draws))
        sizes = {name: value[name].size + (error[name].size if name in error else 0.0) for name in read}
        local = row.bound(sizes, dtype, rounded_coefficients=True)
        for i, (output, new) in enumerate(zip(row.outputs, local, strict=True)):
            # What is inherited only: the row's own bound counts what is made here, in earlier outputs too.
            w = f"w{i}"
            value[w], error[w] = _output(output, value), _output(output, error, errors=True)
            if output.store is not None:
                made = {"inherited": error[w], ROUNDING: Spread.source(new.error)}
                values[output.store] = value[w]
                errors[output.store] = combine([("inherited", 1.0), (ROUNDING, 1.0)], made)
    return Bound(values[result].size + errors[result].size, errors[result].size)


def _output(output: Output, known: dict[str, Spread], errors: bool = False) -> Spread:
    """An output's value, or the error it inherits; a clamp cuts both, and cuts their correlations."""
    terms = [(name, fixed(c)) for name, c in (*output.terms, *output.noise)]
    terms += [(output.base, 1.0)] if output.base is not None else []
    w = combine(terms, known)
    if output.bound is not None:
        w = Spread.source(min(w.size, (2 if errors else 1) * fixed(output.bound)))
    return w if output.scale is None else combine([("w", fixed(output.scale))], {"w": w})
