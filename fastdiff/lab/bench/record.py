"""Records: what a run of ``fastdiff bench`` leaves behind, as JSON and as CSV, and how two of them compare."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fastdiff
from fastdiff.errors import InputError
from fastdiff.lab.bench import machine, roofline
from fastdiff.lab.bench.device import CPU, Device
from fastdiff.lab.bench.measure import Case
from fastdiff.lab.bench.noise import Rate
from fastdiff.lab.bench.workload import FREE

FORMAT = 1
COUNTED = ("launches_per_nfe", "bytes_per_element", "syncs_per_nfe", "allocations_per_nfe")
COMPARED = {"name", "backend", "ratio", "roofline", *COUNTED}
COLUMNS = (
    "us_per_step",
    "steps_per_s",
    *COUNTED,
    "peak_bytes_per_element",
    "host_us_per_step",
    "first_call_ms",
    "network_share",
)
HOW = {
    "time": "of the clock named here, contestants in turns, medians and quartiles; a ratio is taken within a turn",
    "ratio": "how many times as long a rival takes for the same steps",
    "launches_per_nfe": "fastdiff: rows run by the C++ loop, by its own counter, or calls of a GPU backend's stage, "
    "and whatever passed the dispatcher; others: operations that passed the dispatcher and are neither views nor bare "
    "allocations",
    "bytes_per_element": "state-size tensors read and written; fastdiff: as handed to its stage",
    "syncs_per_nfe": "values handed to Python, for which a GPU would be waited for, and copies between host and device "
    "that wait",
    "allocations_per_nfe": "as torch's allocator reports them; also the peak, per state element",
    "host_us_per_step": "of the host's thread, the same step on 16 elements",
    "first_call_ms": "wall time of the first job in this process, compilation of plan or code included",
}


@dataclass
class Record:
    """Everything one run found.

    Args:
        command: as it was typed.
        device: what was timed.
        gate: what the gate looked at.
        cases: in the order in which they were measured.
        normals: noise rates.
        partial: the run was interrupted, and some of its cases are missing.
    """

    command: str
    device: Device = CPU
    gate: str = ""
    cases: list[Case] = field(default_factory=list)
    normals: list[Rate] = field(default_factory=list)
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        cases = [case.to_dict() for case in self.cases]
        return {
            "fastdiff_bench": FORMAT,
            "version": fastdiff.__version__,
            "command": self.command,
            "partial": self.partial,
            "machine": machine.facts(),
            "device": self.device.describe(),
            "runs_on": self.device.runs_on,
            "clock": self.device.clock,
            "gate": self.gate,
            "roofline": roofline.method(self.device),
            "how": HOW,
            "cases": cases,
            "slopes": slopes(cases),
            "normals_per_s": {rate.name: rate.normals_per_s for rate in self.normals},
        }


def encode_json(record: dict[str, Any]) -> bytes:
    """The file that ``--json`` writes."""
    return (json.dumps(record, indent=1) + "\n").encode()


def encode_csv(record: dict[str, Any]) -> bytes:
    """One line for each contestant of each case."""
    out = io.StringIO()
    head = ("name", "elements", "dtype", "backend", "contestant", "ratio", "ratio_low", "ratio_high", "roofline")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*head, *COLUMNS, "partial"))
    for case in record["cases"]:
        shared = [case[name] for name in head[:4]]
        own = [f"fastdiff {case['backend']}", 1, 1, 1, case["roofline"]]
        writer.writerow([*shared, *own, *(case[name] for name in COLUMNS), record["partial"]])
        for name, figures in case["rivals"].items():
            low, high = case["ratio_quartiles"][name]
            theirs = [name, case["ratio"][name], low, high, ""]
            writer.writerow([*shared, *theirs, *(figures[column] for column in COLUMNS), record["partial"]])
    return out.getvalue().encode()


def read(path: Path) -> dict[str, Any]:
    """Read what ``--json`` wrote.

    Raises:
        InputError: it is no such file, or of another format.
    """
    advice = "write one with fastdiff bench --json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no bench record: not JSON ({error}); {advice}") from None
    if not isinstance(found, dict) or found.get("fastdiff_bench") != FORMAT:
        given = found.get("fastdiff_bench") if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{path} is no bench record of format {FORMAT} (it has {given!r}); {advice}")
    cases = found.get("cases")
    if not isinstance(cases, list) or not all(_is_comparable(case) for case in cases):
        raise InputError(f"{path} is a damaged bench record: each of its cases needs {sorted(COMPARED)}; {advice}")
    return found


def _is_comparable(case: Any) -> bool:
    """Whether it has what ``compare`` looks at, in the types in which it was written."""
    if not isinstance(case, dict) or not case.keys() >= COMPARED or not isinstance(case["ratio"], dict):
        return False
    names = (case["name"], case["backend"])
    measured = (case["roofline"], *case["ratio"].values())
    counted = [case[name] for name in COUNTED if case[name] is not None]
    return (
        all(isinstance(name, str) for name in names)
        and all(isinstance(value, int | float) and 0 < value < math.inf for value in measured)
        and all(isinstance(value, int | float) for value in counted)
    )


def check_common(old: dict[str, Any], names: Iterable[str], backends: Iterable[str], device: Device = CPU) -> None:
    """Refuse a comparison that would find nothing, before anything is measured.

    Args:
        old: what ``read`` gave.
        names: of the cases that will be measured.
        backends: on which.
        device: where.

    Raises:
        InputError: no case of the old record is among them.
    """
    wanted = {(name, backend, device.name) for name in names for backend in backends}
    if not any(_key(case) in wanted for case in old["cases"]):
        raise InputError(
            f"the two records have no case in common: {_listed(old)} before, "
            f"{', '.join(sorted(f'{name} ({backend})' for name, backend, _ in wanted))} now; compare runs of the same "
            "command line"
        )


def settings(case: dict[str, Any]) -> str:
    """What the cases of a series share: everything but the size."""
    churn = "+churn" if case["s_churn"] else ""
    types = f"{case['dtype']}/{case['network_dtype']}"
    network = "" if case["network"] == FREE else f" {case['network']}"
    return f"{case['solver']}{churn} {case['prediction']} guidance {case['guidance']:g} {types}{network}"


def slopes(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How cost grows with size: the slope of log time against log elements, by settings and contestant."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for case in cases:
        series = points.setdefault(f"{settings(case)} {case['backend']}", {})
        figures = {f"fastdiff {case['backend']}": case} | case["rivals"]
        for name, found in figures.items():
            series.setdefault(name, []).append((math.log(case["elements"]), math.log(found["us_per_step"])))
    return {
        key: {name: _slope(found) for name, found in series.items() if len({x for x, _ in found}) > 1}
        for key, series in points.items()
    }


def _slope(points: list[tuple[float, float]]) -> float:
    x, y = np.array(points).T
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


@dataclass(frozen=True)
class Change:
    """One case in two records.

    Args:
        name: the case.
        backend: fastdiff's.
        speed: how fast it is now, in units of before, as seen from what ran beside it.
        counts: counted figures that grew, with both values.
        regressed: slower than tolerated, or a count grew.
    """

    name: str
    backend: str
    speed: float
    counts: dict[str, tuple[float, float]]
    regressed: bool


def compare(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> list[Change]:
    """Cases that both records have.

    Speed is judged by what ran in the same turns: the geometric mean, over the rivals that both have and the
    roofline, of the new ratio to the old one. So a record of a busier hour, or of another machine, can be used.
    """
    before = {_key(case): case for case in old["cases"]}
    changes = []
    for case in new["cases"]:
        then = before.get(_key(case))
        if then is None:
            continue
        # Not a replay of fastdiff's: what slows fastdiff slows that too.
        rivals = [name for name in case["ratio"] if name in then["ratio"] and not name.startswith("fastdiff ")]
        pairs = [(case["ratio"][name], then["ratio"][name]) for name in rivals]
        pairs.append((case["roofline"], then["roofline"]))
        speed = math.exp(sum(math.log(now / was) for now, was in pairs) / len(pairs))
        counts = {name: (then[name], case[name]) for name in COUNTED if _grew(then[name], case[name])}
        changes.append(Change(case["name"], case["backend"], speed, counts, speed < 1 - tolerance or bool(counts)))
    return changes


def _key(case: dict[str, Any]) -> tuple[str, str, str]:
    """What makes two cases the same; early records were all of the CPU and do not say so."""
    return case["name"], case["backend"], case.get("device", CPU.name)


def _grew(was: float | None, now: float | None) -> bool:
    return was is not None and now is not None and now > was


def _listed(record: dict[str, Any]) -> str:
    return ", ".join(sorted({f"{name} ({backend})" for name, backend, _ in map(_key, record["cases"])})) or "none"
