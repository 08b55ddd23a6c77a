"""Charts: ratios, the roofline and cost against size, as PNG and in one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from itertools import cycle
from typing import Any

from fastdiff.errors import InputError
from fastdiff.lab.bench.device import CPU
from fastdiff.lab.bench.record import settings
from fastdiff.lab.bench.workload import FREE, format_size


def check_matplotlib() -> None:
    """Refuse before anything is measured.

    Raises:
        InputError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--png and --html need matplotlib; install it, or fastdiff-sampler[plot], or leave them out")


def encode_png(record: dict[str, Any]) -> bytes:
    """Three panels over the size: how many times as long rivals take, the roofline reached, and cost."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.5), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    series = _series(record)
    _draw_ratios(panels[0], series)
    _draw_own(panels[1], series, "roofline", 100, "% of the roofline of the same streams")
    _draw_own(panels[2], series, "us_per_step", 1, "fastdiff, µs a step")
    panels[1].axhline(100, color="black", linewidth=1)
    panels[1].set_ylim(bottom=0)
    panels[2].set_yscale("log")
    for axes in (panels[0], panels[2]):
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    every = [case for cases in series.values() for case in cases]
    compared = [case for case in every if case["ratio"]]
    for axes, cases in zip(panels, (compared, every, every), strict=True):
        marks = sorted({case["elements"] for case in cases})
        axes.set_xscale("log", base=2)
        axes.set_xticks(marks, [format_size(n) for n in marks])
        axes.minorticks_off()
        axes.margins(x=0.08)
        axes.set_xlabel("elements")
        axes.grid(alpha=0.3)
    figure.legend(handles=_legend(series), loc="outside lower center", ncols=4, fontsize=8)
    interrupted = " · INTERRUPTED, cases are missing" if record["partial"] else ""
    figure.suptitle(f"{_where(record)}, {record['runs_on']} · {record['command']}{interrupted}", fontsize=10)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _where(record: dict[str, Any]) -> str:
    """The processor, or the GPU, that was timed."""
    return record["machine"]["processor"] if record["device"] == CPU.name else record["device"]


Series = dict[str, list[dict[str, Any]]]
STYLES: tuple[Any, ...] = ("-", "--", ":", "-.")


def _series(record: dict[str, Any]) -> Series:
    """Cases without a network, by what they share, in order of size."""
    found: Series = {}
    for case in sorted(record["cases"], key=lambda case: case["elements"]):
        if case["network"] == FREE:
            found.setdefault(f"{settings(case)}, {case['backend']}", []).append(case)
    return found


def _rivals(series: Series) -> list[str]:
    return list(dict.fromkeys(name for cases in series.values() for case in cases for name in case["ratio"]))


def _draw_ratios(axes: Any, series: Series) -> None:
    for style, cases in zip(cycle(STYLES), series.values(), strict=False):
        for i, name in enumerate(_rivals(series)):
            points = [(case["elements"], case["ratio"][name]) for case in cases if name in case["ratio"]]
            if points:
                axes.plot(*zip(*points, strict=True), style, marker=".", color=f"C{i}")
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.set_title("time of others / time of fastdiff")


def _draw_own(axes: Any, series: Series, name: str, factor: float, title: str) -> None:
    for style, cases in zip(cycle(STYLES), series.values(), strict=False):
        values = [factor * case[name] for case in cases]
        axes.plot([case["elements"] for case in cases], values, style, marker="o", color="black")
    axes.set_title(title)


def _legend(series: Series) -> list[Any]:
    """A line style for each setting, a colour for each rival."""
    from matplotlib.lines import Line2D

    styles = zip(cycle(STYLES), series, strict=False)
    lines = [Line2D([], [], color="black", linestyle=style, label=label) for style, label in styles]
    return lines + [Line2D([], [], color=f"C{i}", marker=".", label=n) for i, n in enumerate(_rivals(series))]


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>fastdiff bench</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; margin: .5em 0 2em; display: block; overflow-x: auto; }}
th, td {{ padding: .2em .6em; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
td {{ white-space: nowrap; }}
tr.own {{ font-weight: bold; background: #f3f7ff; }}
.partial {{ color: #a00; font-weight: bold; }}
img {{ max-width: 100%; }}
dt {{ font-weight: bold; }}
</style>
</head>
<body>
<h1>fastdiff bench</h1>
{partial}
<p>Made by <code>{command}</code>, fastdiff {version}.</p>
<p>{machine}</p>
<p>Gate: {gate}.</p>
<img alt="Ratios, roofline and cost over size" src="data:image/png;base64,{image}">
{cases}
<h2>Growth with size</h2>
<p>The slope of log time against log elements: 1 where only the elements cost, 0 where only the calls do.</p>
{growth}
<h2>Normals a second, {runs_on}</h2>
{normals}
<h2>How it was measured</h2>
<dl>{how}</dl>
</body>
</html>
"""


def encode_html(record: dict[str, Any]) -> bytes:
    """One page with everything in it; it loads nothing from anywhere."""
    facts = record["machine"] | ({} if record["device"] == CPU.name else {"GPU": record["device"]})
    how = {"clock": record["clock"], "roofline": record["roofline"]} | record["how"]
    rates = [[name, f"{rate / 1e9:.3f} G/s"] for name, rate in record["normals_per_s"].items()]
    page = PAGE.format(
        partial='<p class="partial">Interrupted: cases are missing.</p>' if record["partial"] else "",
        command=html.escape(record["command"]),
        version=html.escape(record["version"]),
        machine=html.escape(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())),
        gate=html.escape(record["gate"]),
        image=base64.b64encode(encode_png(record)).decode(),
        cases="".join(_case_html(case) for case in record["cases"]),
        growth=_growth(record["slopes"]),
        runs_on=record["runs_on"],
        normals=_rows(["", "rate"], rates),
        how="".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in how.items()),
    )
    return page.encode()


FIELDS = {
    "µs a step": "us_per_step",
    "launches": "launches_per_nfe",
    "bytes an element": "bytes_per_element",
    "syncs": "syncs_per_nfe",
    "allocations": "allocations_per_nfe",
    "peak bytes an element": "peak_bytes_per_element",
    "host µs a step": "host_us_per_step",
    "first call, ms": "first_call_ms",
    "time in the network": "network_share",
}


def _case_html(case: dict[str, Any]) -> str:
    rows = [[f"fastdiff {case['backend']}", "1", "", *_cells(case)]]
    for name, figures in case["rivals"].items():
        low, high = case["ratio_quartiles"][name]
        rows.append([name, f"{case['ratio'][name]:.2f}", f"{low:.2f} – {high:.2f}", *_cells(figures)])
    real = case["network"] != FREE
    facts = [f"{case['elements']:,} elements", f"{case['turns']} turns"]
    if not real:
        facts.append(f"{case['roofline']:.0%} of the roofline ({case['roofline_gb_per_s']:.1f} GB/s)")
    title = f"<h2>{html.escape(case['name'])}</h2><p>{'; '.join(facts)}.</p>"
    headings = ["", "ratio", "quartiles", *FIELDS]
    if not real:
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    absent = "; ".join(f"{name} ({reason})" for name, reason in case["absent"].items())
    return title + _rows(headings, rows, own=True) + (f"<p>Sat out: {html.escape(absent)}.</p>" if absent else "")


def _growth(slopes: dict[str, dict[str, float]]) -> str:
    """A line for each contestant, a column for each series of sizes."""
    measured = {series: found for series, found in slopes.items() if found}
    names = dict.fromkeys(name for found in measured.values() for name in found)
    rows = [[n, *(f"{found[n]:.2f}" if n in found else "–" for found in measured.values())] for n in names]
    return _rows(["", *measured], rows) if rows else "<p>One size only.</p>"


def _cells(figures: dict[str, Any]) -> list[str]:
    return [_figure(figures[name]) for name in FIELDS.values()]


def _figure(value: float | None) -> str:
    """Four figures, never an exponent; a dash where it is not known."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _rows(headings: list[str], rows: list[list[str]], own: bool = False) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        body += f'<tr class="own">{cells}</tr>' if own and i == 0 else f"<tr>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
