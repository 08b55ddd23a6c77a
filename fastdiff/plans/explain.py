"""Plans as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fastdiff.rows.gram import Gram, Weighted
from fastdiff.rows.row import Affine, Coefficient, Output, Row

if TYPE_CHECKING:
    from fastdiff.plans.plan import Plan


def explain(plan: Plan, limit: int | None = None) -> str:
    """A plan as a table: one line per output of each row, at most ``limit`` rows."""
    lines = [
        plan.description,
        f"state {plan.dtype} · {plan.evaluations} network evaluations · {len(plan.rows)} launches · "
        f"buffers {', '.join(plan.buffers)} · sha256 {plan.sha256[:16]}",
        "",
        f"{'row':>4} {'sigma':>10} {'c_noise':>10}  computes",
    ]
    for k, row in enumerate(plan.rows[:limit]):
        told = f" {row.sigma:>10.4g} {row.c_noise:>10.4g}" if row.network is not None else " " * 22
        head = f"{k:>4}{told}"
        for text in formulas(row):
            lines.append(f"{head}  {text}")
            head = " " * 26
    if limit is not None and limit < len(plan.rows):
        lines.append(f" ... {len(plan.rows) - limit} more rows")
    return "\n".join(lines)


def formulas(row: Row) -> list[str]:
    """What a row computes, in order: inner products, outputs that are stored or used again, and the network input z."""
    lines = [] if row.gram is None else list(_sums(row.gram))
    again = {name for output in row.outputs for name in (output.base, *(term for term, _ in output.terms))}
    for i, output in enumerate(row.outputs):
        text, own = _output(output), f"w{i}"
        if output.store is not None:
            lines.append(f"{output.store} = {text}" if own not in again else f"{own} = {output.store} = {text}")
        elif own in again:
            lines.append(f"{own} = {text}")
        if row.network == i:
            inner = output.store or (own if own in again else f"({text})")
            lines.append(f"z = {_number(row.c_in)}·{inner}" + (f" ×{row.copies}" if row.copies > 1 else ""))
    if row.call is not None:
        name, given = row.call
        lines.append(f"out_{name} = {name}({', '.join(given)})")
    return lines


def _output(output: Output) -> str:
    text = _sum(output.base, (*output.terms, *output.noise))
    text = text if output.bound is None else f"clamp({text}, ±{_number(output.bound, 4).lstrip('+')})"
    return text if output.scale is None else f"{_number(output.scale)}·{text}"


def _sum(base: str | None, terms: Sequence[tuple[str, Coefficient]]) -> str:
    parts = [base] if base else []
    parts += [f"{_number(c, sign='+')}·{name}" for name, c in terms]
    return " ".join(parts) or "0"


def _number(value: Coefficient, digits: int = 5, sign: str = "") -> str:
    """A coefficient; one that is known at run time as a formula over the row's scalars."""
    if not isinstance(value, Affine):
        return f"{value:{sign}.{digits}g}"
    parts = [f"{value.constant:.{digits}g}"] if value.constant else []
    parts += [f"s{j}" if factor == 1 else f"{factor:.{digits}g}·s{j}" for j, factor in value.terms]
    return f"{sign}({' + '.join(parts)})"


def _sums(gram: Gram) -> Iterator[str]:
    """The scalars of a row, one a line."""
    symbols = {"add": "+", "sub": "-", "mul": "·", "div": "/"}
    vectors = [_sum(None, vector) for vector in gram.vectors]
    for i, pair in enumerate(gram.sums):
        if isinstance(pair, Weighted):
            scale = f"max({pair.atol:.3g}, {pair.rtol:.3g}·max(|{vectors[pair.b]}|, |{vectors[pair.c]}|))"
            yield f"s{i} = Σ(({vectors[pair.a]})/{scale})²"
        else:
            yield f"s{i} = <{vectors[pair.a]}, {vectors[pair.b]}>"
    for i, (operation, left, right, number) in enumerate(gram.steps, len(gram.sums)):
        texts = {"number": f"{number:.5g}", "sqrt": f"√s{left}", "max": f"max(s{left}, s{right})"}
        yield f"s{i} = " + (texts.get(operation) or f"s{left} {symbols[operation]} s{right}")
