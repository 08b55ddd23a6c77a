"""Report: the battery's results as a table, as JSON, and as one page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
import math
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from fastdiff.lab.noise.hypotheses import ALPHA, Verdict, failed, level

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #333; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
img { width: 100%; height: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .8rem; text-align: left; border-bottom: 1px solid #ddd } td.n { text-align: right }
.failed { color: #b00020; font-weight: bold } .ok { color: #1b7f3b }
"""


@dataclass(frozen=True)
class Facts:
    """What was tested: the backend's name, how many draws, the first seed, and the package's version."""

    backend: str
    draws: int
    seed: int
    version: str

    @property
    def title(self) -> str:
        """In one line."""
        return f"fastdiff {self.version}, backend {self.backend}, {self.draws:,} draws, seed {self.seed}"


def conclusion(verdicts: list[Verdict]) -> str:
    """What came out, and at which level."""
    wrong = failed(verdicts)
    rule = f"{len(verdicts)} tests, each at {level(verdicts):.1e} so that all together are at {ALPHA:.0e} (Bonferroni)"
    least = min(verdict.p for verdict in verdicts)
    return f"{len(wrong)} FAILED of {rule}" if wrong else f"passed: {rule}; the smallest p-value is {least:.2g}"


def show(facts: Facts, verdicts: list[Verdict], console: Console) -> None:
    """Print the table; groups of many tests that pass are one line, which shows the worst."""
    table = Table(box=None, header_style="bold", title=facts.title)
    for heading, side in (("test", "left"), ("of", "left"), ("found", "right"), ("expected", "right"), ("z", "right"),
                          ("p", "right"), ("", "left")):  # fmt: skip
        table.add_column(heading, justify=side, no_wrap=heading != "of")  # type: ignore[arg-type]
    limit, before = level(verdicts), ""
    for verdict in _shown(verdicts):
        z = "" if verdict.z is None else f"{verdict.z:+.1f}"
        state = "[green]ok[/]" if verdict.p >= limit else "[bold red]FAILED[/]"
        group = SHORT.get(verdict.group, verdict.group) if verdict.group != before else ""
        before = verdict.group
        table.add_row(group, verdict.name, verdict.found, verdict.expected, z, f"{verdict.p:.2g}", state)
    console.print(table)
    console.print(f"\n{conclusion(verdicts)}")


SHORT = {"Kolmogorov-Smirnov": "K-S", "Anderson-Darling": "A-D", "correlation of squares": "corr. of x²"}
WORST_OF = ("correlation", "correlation of squares")
"""Groups of so many tests that only the worst and what failed is shown."""


def as_json(facts: Facts, verdicts: list[Verdict]) -> str:
    """Everything as JSON."""
    body: dict[str, Any] = {
        "backend": facts.backend,
        "draws": facts.draws,
        "seed": facts.seed,
        "version": facts.version,
        "alpha": ALPHA,
        "correction": "Bonferroni",
        "level": level(verdicts),
        "passed": not failed(verdicts),
        "tests": [verdict._asdict() | {"z": _number(verdict.z), "p": verdict.p} for verdict in verdicts],
    }
    return json.dumps(body, indent=1)


def as_html(facts: Facts, verdicts: list[Verdict], picture: bytes) -> str:
    """One page with the picture and every test."""
    limit = level(verdicts)
    rows = []
    for v in verdicts:
        state = "ok" if v.p >= limit else "failed"
        numbers = (v.found, v.expected, "" if v.z is None else f"{v.z:+.2f}", f"{v.p:.3g}")
        cells = "".join(f'<td class="n">{html.escape(text)}</td>' for text in numbers)
        rows.append(
            f"<tr><td>{html.escape(v.group)}</td><td>{html.escape(v.name)}</td>{cells}"
            f'<td class="{state}">{state}</td></tr>'
        )
    encoded = base64.b64encode(picture).decode()
    verdict = "failed" if failed(verdicts) else "ok"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>fastdiff noise</title>
<style>{STYLE}</style>
<h1>fastdiff noise</h1>
<p>{html.escape(facts.title)}</p>
<p class="{verdict}">{html.escape(conclusion(verdicts))}</p>
<p><img alt="Histogram, quantiles, tails, moments and correlations" src="data:image/png;base64,{encoded}"></p>
<table>
<tr><th>test</th><th>of</th><th>found</th><th>expected</th><th>z</th><th>p</th><th></th></tr>
{chr(10).join(rows)}
</table>
</html>
"""


def _shown(verdicts: list[Verdict]) -> list[Verdict]:
    limit = level(verdicts)
    worst = {group: min((v for v in verdicts if v.group == group), key=lambda v: v.p) for group in WORST_OF}
    return [
        v._replace(name=f"worst: {v.name}") if v is worst.get(v.group) else v
        for v in verdicts
        if v.group not in WORST_OF or v is worst[v.group] or v.p < limit
    ]


def _number(z: float | None) -> float | None:
    return z if z is not None and math.isfinite(z) else None
