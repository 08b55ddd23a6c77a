"""Report: what a campaign found, as a table of 80 columns or as JSON."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastdiff.lab.fuzz.campaign import Failure, Summary
from fastdiff.lab.fuzz.variants import REFERENCE

KINDS = {"row": "rows", "sampler": "samplers"}


def show(summary: Summary, console: Console) -> None:
    """Print the tables and the verdict."""
    drawn = ", ".join(f"{summary.cases[kind]:,} {name}" for kind, name in KINDS.items())
    table = Table(box=None, header_style="bold", title=f"{drawn} in {summary.seconds:.1f} s, seed {summary.seed}")
    for heading in ("variant", "cases", "bytes compared", "seconds", "differences"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for name, tally in summary.variants.items():
        compared = "" if name == REFERENCE else f"{tally.bytes:,}"
        failed = f"[bold red]{tally.failed:,}[/]" if tally.failed else "0"
        table.add_row(name, f"{tally.cases:,}", compared, f"{tally.seconds:.1f}", failed)
    console.print(table)
    if summary.bounded:
        console.print(
            f"\n{summary.bounded:,} samplers against 160-bit arithmetic: "
            f"the worst error is {summary.worst:.2f} of plan.bound()"
        )
    _show_coverage(summary.coverage, console)
    partial = "partial: interrupted; " if summary.partial else ""
    if summary.differences:
        console.print(f"\n[bold red]{partial}{summary.differences:,} differences[/]")
    else:
        console.print(f"\n{partial}no differences")


def show_failure(failure: Failure, console: Console, plugin: Path | None = None) -> None:
    """Print what is wrong and the command that shows it again, on one line however wide the terminal is."""
    options = "" if plugin is None else f" --plugin {shlex.quote(str(plugin))}"
    console.print(f"\n[bold red]{failure.variant}[/]: {escape(failure.fault.text)}")
    size = f"{len(failure.original):,} to {len(failure.line):,} characters"
    console.print(f"made smaller in {failure.tried} tries, from {size}; to see it again:")
    console.print(f"fastdiff fuzz --replay '{failure.line}'{options}", markup=False, soft_wrap=True)


def as_json(summary: Summary) -> str:
    """Everything as JSON."""
    failures = [asdict(failure) | {"fault": failure.fault._asdict()} for failure in summary.failures]
    body: dict[str, Any] = {
        "seed": summary.seed,
        "partial": summary.partial,
        "seconds": round(summary.seconds, 3),
        "cases": dict(summary.cases),
        "differences": summary.differences,
        "bytes_compared": sum(t.bytes for name, t in summary.variants.items() if name != REFERENCE),
        "worst_error_of_bound": summary.worst,
        "samplers_bounded": summary.bounded,
        "variants": {name: asdict(tally) for name, tally in summary.variants.items()},
        "coverage": {name: dict(_ordered(seen)) for name, seen in summary.coverage.items()},
        "failures": failures,
    }
    return json.dumps(body, indent=1)


def _show_coverage(coverage: dict[str, Counter[str]], console: Console) -> None:
    if not coverage:
        return
    table = Table(box=None, header_style="bold", title="\nwhat was seen, and how often")
    table.add_column("property", no_wrap=True)
    table.add_column("values")
    for name, seen in sorted(coverage.items()):
        table.add_row(name, "  ".join(f"{value}:[dim]{times}[/]" for value, times in _ordered(seen)))
    console.print(table)


def _ordered(seen: Counter[str]) -> list[tuple[str, int]]:
    """By value, numbers as numbers."""
    return sorted(seen.items(), key=lambda item: (0, int(item[0]), "") if item[0].isdigit() else (1, 0, item[0]))
