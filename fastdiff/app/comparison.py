"""Comparison: two plans side by side, and one plan on a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

from fastdiff.plans.plan import Plan
from fastdiff.rows.row import Row

FORMULA_COLUMN = 28
NARROWEST = 60


class Difference(NamedTuple):
    """The first thing in which two plans differ: where it is, and what each has."""

    row: int
    what: str
    left: str
    right: str


def differing_rows(left: Plan, right: Plan) -> list[int]:
    """The indices of rows that are not the same to the bit; a row that only one plan has counts."""
    pairs = enumerate(zip_longest(left.rows, right.rows))
    return [k for k, (a, b) in pairs if a is None or b is None or next(_differences(a, b), None) is not None]


def first_difference(left: Plan, right: Plan) -> Difference | None:
    """Where two plans part, or None if all their rows are the same."""
    for k, (a, b) in enumerate(zip_longest(left.rows, right.rows)):
        if a is None or b is None:
            return Difference(k, "number of rows", str(len(left.rows)), str(len(right.rows)))
        for what, has_a, has_b in _differences(a, b):
            return Difference(k, what, has_a, has_b)
    return None


def explain(plan: Plan, limit: int | None = None) -> str:
    """``Plan.explain`` wrapped to the width of the terminal."""
    width = max(shutil.get_terminal_size().columns, NARROWEST)
    indent = " " * (FORMULA_COLUMN + 2)
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent=indent, drop_whitespace=True, break_long_words=False)
        for line in plan.explain(limit).split("\n")
    )


def show(left_name: str, left: Plan, right_name: str, right: Plan) -> None:
    """Print a table of two plans, and where they part."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold")
    for heading in ("", left_name, right_name):
        table.add_column(heading, overflow="fold")
    for name, a, b in zip(FACTS, _facts(left), _facts(right), strict=True):
        table.add_row(name, a, b)
    console.print(table)
    rows = max(len(left.rows), len(right.rows))
    console.print(f"\n{rows - len(differing_rows(left, right))} of {rows} rows are the same to the bit")
    found = first_difference(left, right)
    if found is not None:
        console.print(f"first difference: row {found.row}, {found.what}\n  {found.left}\n  {found.right}", markup=False)
    elif left.sha256 != right.sha256:
        console.print("the rows are the same, but the state type or the way of calling the network is not")


FACTS = (
    "settings",
    "sha256",
    "state",
    "network evaluations",
    "launches",
    "buffers",
    "bytes per element per evaluation",
    "bound on the rounding error",
)


def _facts(plan: Plan) -> Iterator[str]:
    yield plan.description
    yield plan.sha256[:16]
    yield plan.dtype
    yield str(plan.evaluations)
    yield str(len(plan.rows))
    yield ", ".join(plan.buffers)
    yield f"{sum(plan.traffic()) / max(plan.evaluations, 1):.1f}"
    yield f"{plan.bound().error:.3g}"


def _differences(a: Row, b: Row) -> Iterator[tuple[str, str, str]]:
    """What two rows have that is not the same, structure first, then coefficients as hexadecimal floats."""
    structure = ("columns", "draws", "program", "copies", "branches")
    for name in structure:
        if getattr(a, name) != getattr(b, name):
            yield name, str(getattr(a, name)), str(getattr(b, name))
            return
    stores = [tuple(output.store for output in row.outputs) for row in (a, b)]
    if stores[0] != stores[1]:
        yield "stores", str(stores[0]), str(stores[1])
    scalars = [(name, getattr(a, name), getattr(b, name)) for name in ("sigma", "c_noise")]
    pairs = zip(a.labelled_coefficients(), b.labelled_coefficients(), strict=True)
    for name, x, y in [*((label, x, y) for (label, x), (_, y) in pairs), *scalars]:
        if x.hex() != y.hex():
            yield name, x.hex(), y.hex()
