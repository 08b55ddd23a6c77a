"""Write the figures of a bench record into a README, between two marks.

    fastdiff bench --quick --json benchmarks/figures.json --force
    python benchmarks/update_readme.py

The block is a function of the record alone: `tests/test_bench.py` makes it again and compares, so that no figure in it
can have been typed by hand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fastdiff.lab.bench import record
from fastdiff.lab.bench.table import micro, short
from fastdiff.lab.bench.workload import FREE, format_size

ROOT = Path(__file__).parents[1]
FIGURES, README = ROOT / "benchmarks" / "figures.json", ROOT / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
RIVALS = {
    "edm-fp64": "edm, float64",
    "edm-fp32": "edm2, float32",
    "k-diffusion-ops": "k-diffusion's operations",
    "k-diffusion": "k-diffusion",
    "textbook": "textbook",
    "textbook-compiled": "textbook, compiled",
    "rows-compiled": "our algebra, compiled",
}
UPDATE = "python benchmarks/update_readme.py"


def main() -> int:
    """Update a README; exit code 1 if its marks are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, default=FIGURES, help="what fastdiff bench --json wrote")
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args()
    text = options.readme.read_text(encoding="utf-8")
    try:
        options.readme.write_text(replaced(text, block(record.read(options.record))), encoding="utf-8")
    except ValueError as error:
        print(f"{options.readme}: {error}", file=sys.stderr)
        return 1
    return 0


def replaced(text: str, new: str) -> str:
    """The text with another block between its marks.

    Raises:
        ValueError: it does not hold each mark once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the marks {BEGIN} and {END} must be there once each, in this order")
    return text[: text.index(BEGIN)] + new + text[text.index(END) + len(END) :]


def block(found: dict[str, Any]) -> str:
    """The marks with everything between them.

    Raises:
        ValueError: the record was interrupted.
    """
    if found["partial"]:
        raise ValueError("the record is of an interrupted run; run fastdiff bench to its end")
    machine = found["machine"]
    where = f"{machine['processor']}, {machine['instruction_set']}, torch {machine['torch']}, {machine['allocator']}"
    parts = [
        f"Made by `{found['command']}` and `{UPDATE}`: {where}; one thread, thread time, medians; the network costs "
        "nothing. *Times as long as fastdiff takes* for the same step:",
        _ratios([case for case in found["cases"] if case["network"] == FREE and case["prediction"] == "edm"]),
        _counts(found["cases"]),
        f"Normals a second on one core: {_normals(found['normals_per_s'])}.",
        _shares([case for case in found["cases"] if case["network"] != FREE]),
    ]
    return "\n".join([BEGIN, "\n\n".join(part for part in parts if part), END])


def _ratios(cases: list[dict[str, Any]]) -> str:
    shown = [name for name in RIVALS if any(name in case["ratio"] for case in cases)]
    lines = [["elements", "µs a step", "% of roofline", *(RIVALS[name] for name in shown)]]
    lines.append(["---"] * len(lines[0]))
    for case in cases:
        noise = ", churn" if case["s_churn"] else ""
        ratios = [short(case["ratio"][name]) if name in case["ratio"] else "" for name in shown]
        size = f"{format_size(case['elements'])}{noise}"
        lines.append([size, micro(case["us_per_step"]), f"{100 * case['roofline']:.0f}", *ratios])
    return _table(lines)


def _counts(cases: list[dict[str, Any]]) -> str:
    """Counted costs, of the first case that has each contestant."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        if case["network"] == FREE and case["s_churn"]:
            found.setdefault("fastdiff", case)
            for name, figures in case["rivals"].items():
                if figures["launches_per_nfe"] is not None and name in RIVALS:
                    found.setdefault(RIVALS[name], figures)
    columns = {
        "launches": "launches_per_nfe",
        "bytes an element": "bytes_per_element",
        "waits for the device": "syncs_per_nfe",
        "allocations": "allocations_per_nfe",
    }
    lines = [["counted, a network evaluation, churn", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(short(figures[key]) for key in columns.values())] for name, figures in found.items()]
    return _table(lines) if found else ""


def _normals(rates: dict[str, float]) -> str:
    return ", ".join(f"{name} {rate / 1e9:.2f} G" for name, rate in rates.items())


def _shares(cases: list[dict[str, Any]]) -> str:
    """Where the gain is small."""
    found = []
    for case in cases:
        figures = case["rivals"].get("textbook")
        if figures is not None:
            low, high = case["ratio_quartiles"]["textbook"]
            found.append(
                f"{case['ratio']['textbook']:.2f} (quartiles {low:.2f}–{high:.2f}) with the {case['network']} "
                f"network, batch {case['batch']}, where {100 * (1 - figures['network_share']):.1f} % of its time is "
                "outside the network"
            )
    if not found:
        return ""
    times = f"End to end the textbook sampler takes so many times as long: {'; '.join(found)}."
    return f"{times} No sampler can gain more than that part: what goes beyond it is the machine's own unrest."


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
