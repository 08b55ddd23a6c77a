"""Plans as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastdiff.rows.row import Output, Row

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
    """What a row computes, in order: D, every stored output, and the network input z."""
    lines = []
    if row.derived is not None:
        inner = _sum(None, row.derived.terms)
        inner = inner if row.derived.bound is None else f"clamp({inner}, ±{row.derived.bound:.4g})"
        lines.append(f"D = {inner}" if row.derived.scale is None else f"D = {row.derived.scale:.5g}·{inner}")
    for i, output in enumerate(row.outputs):
        text = _output(output)
        if output.store is not None:
            lines.append(f"{output.store} = {text}")
        if row.network == i:
            inner = f"({text})" if output.store is None else output.store
            lines.append(f"z = {row.c_in:.5g}·{inner}" + (f" ×{row.copies}" if row.copies > 1 else ""))
    return lines


def _output(output: Output) -> str:
    return _sum(output.base, (*output.terms, *output.noise))


def _sum(base: str | None, terms: Sequence[tuple[str, float]]) -> str:
    parts = [base] if base else []
    parts += [f"{c:+.5g}·{name}" for name, c in terms]
    return " ".join(parts) or "0"
