"""Tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdiff.lab.bench.record import Change
from fastdiff.lab.bench.workload import FREE, format_size

WIDTH = 80


def console(**options: Any) -> Console:
    """A console that is never wider than 80 columns."""
    made = Console(highlight=False, **options)
    return made if made.width <= WIDTH else Console(highlight=False, width=WIDTH, **options)


def case_table(case: dict[str, Any]) -> RenderableType:
    """One case: what a step costs, fastdiff first, then everyone beside it."""
    real = case["network"] != FREE
    title = Text(case["name"], style="bold")
    facts = [f"{format_size(case['elements'])} elements", f"{case['turns']} turns"]
    if not real:
        facts.append(f"{case['roofline']:.0%} of the roofline ({case['roofline_gb_per_s']:.1f} GB/s)")
    line = Text(" · ".join(facts))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    for heading in ("µs/step", "ratio", "quartiles", "launches", "B/elem", "syncs", "peak B", *["net"] * real):
        table.add_column(heading, justify="right", no_wrap=True)
    rows: list[tuple[str, dict[str, Any], str, str]] = [(f"fastdiff {case['backend']}", case, "1", "")]
    for name, figures in case["rivals"].items():
        low, high = case["ratio_quartiles"][name]
        rows.append((name, figures, short(case["ratio"][name]), f"{short(low)}–{short(high)}"))
    for name, figures, ratio, quartiles in rows:
        cells = [name, micro(figures["us_per_step"]), ratio, quartiles, *counts(figures)]
        cells += ["–" if figures["network_share"] is None else f"{figures['network_share']:.0%}"] if real else []
        table.add_row(*cells, style="bold" if figures is case else "")
    return Group(title, line, table)


def counts(figures: dict[str, Any]) -> list[str]:
    """Launches, bytes, syncs and peak; a dash where they cannot be counted."""
    names = ("launches_per_nfe", "bytes_per_element", "syncs_per_nfe", "peak_bytes_per_element")
    return ["–" if figures[name] is None else short(figures[name]) for name in names]


def short(value: float) -> str:
    """Three figures, no exponent, no empty decimals."""
    if value >= 100 or value == round(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def micro(us: float) -> str:
    """Microseconds, three figures, thousands separated."""
    return f"{us:,.0f}" if us >= 100 else f"{us:.3g}"


def summary(record: dict[str, Any]) -> list[RenderableType]:
    """What is said once: noise, host time, first call, slopes, and where the gain is small."""
    parts: list[RenderableType] = []
    if record["normals_per_s"]:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column(f"normals, {record['runs_on']}", no_wrap=True)
        table.add_column("G/s", justify="right")
        for name, rate in record["normals_per_s"].items():
            table.add_row(name, short(rate / 1e9))
        parts.append(table)
    free = [case for case in record["cases"] if case["network"] == FREE]
    if free:
        host = min(case["host_us_per_step"] for case in free)
        parts.append(Text(f"host: {host:.2f} µs a step; first call {min(c['first_call_ms'] for c in free):.0f} ms"))
    slopes = [(name, found) for name, found in record["slopes"].items() if found]
    if slopes:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("growth with size (slope, log–log)", overflow="fold")
        table.add_column("fastdiff", justify="right")
        table.add_column("others", justify="right", no_wrap=True)
        for name, found in slopes:
            own, *others = found.values()
            span = f"{min(others):.2f}–{max(others):.2f}" if others else "–"
            table.add_row(name, f"{own:.2f}", span)
        parts.append(table)
    compared = {name for case in record["cases"] for name in case["rivals"]}
    absent = {name: why for case in record["cases"] for name, why in case["absent"].items() if name not in compared}
    if absent:
        parts.append(Text("not compared: " + "; ".join(f"{name} ({why})" for name, why in absent.items())))
    return parts


def shares(record: dict[str, Any]) -> RenderableType | None:
    """With a real network: how much of the time is the steps, and what fastdiff changes end to end."""
    real = [case for case in record["cases"] if case["network"] != FREE]
    if not real:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("end to end", "compared with", "speed-up", "steps' share", "with fastdiff"):
        table.add_column(heading, justify="left" if heading[0] in "ec" else "right", overflow="fold")
    for case in real:
        for name, figures in case["rivals"].items():
            table.add_row(
                f"{case['network']}, batch {case['batch']}",
                name,
                f"{case['ratio'][name]:.2f}x",
                "–" if figures["network_share"] is None else f"{1 - figures['network_share']:.1%}",
                f"{1 - case['network_share']:.1%}",
            )
    return table


def changes_table(changes: Iterable[Change]) -> RenderableType:
    """What ``--compare`` found."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("compared with before", overflow="fold")
    table.add_column("speed", justify="right")
    table.add_column("", overflow="fold")
    for change in changes:
        grew = ", ".join(f"{name} {was:g} → {now:g}" for name, (was, now) in change.counts.items())
        verdict = ("REGRESSION " + grew).strip() if change.regressed else "ok"
        table.add_row(
            f"{change.name} ({change.backend})",
            f"{change.speed:.2f}x",
            Text(verdict, style="bold red" if change.regressed else ""),
        )
    return table
