"""Doctor: what works on this machine, what does not, and why."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import fastdiff
from fastdiff.app.digits import CHECKPOINT, load_digits
from fastdiff.backends import cpu, reference, registry
from fastdiff.backends.registry import list_backends
from fastdiff.errors import FastdiffError
from fastdiff.plans.file import NOISE_FORMAT

OK, NOTE, FAILED = "ok", "note", "FAILED"
SELF_TEST_SECONDS = 0.5
SELF_TEST_ELEMENTS = 1025

PHILOX_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
"""Counter, key and output of Philox4x32-10, from the known answers of Random123."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, ``"ok"``, ``"note"`` or ``"FAILED"``, and what was found."""

    section: str
    name: str
    status: str
    text: str


@dataclass(frozen=True)
class Examination:
    """Everything that was found."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed that should work; what was not built is no failure."""
        return all(finding.status != FAILED for finding in self.findings)


def examine() -> Examination:
    """Look at versions, backends, compiled parts, floating point and data, and test the backends; about a second."""
    sections = (
        ("versions", _versions),
        ("backends", _backends),
        ("compiled", _compiled),
        ("process", _process),
        ("data", _data),
        ("self test", _self_test),
    )
    return Examination(tuple(Finding(name, *line) for name, look in sections for line in look()))


def show(found: Examination, as_json: bool = False) -> None:
    """Print the findings as a table, or as JSON."""
    if as_json:
        sections: dict[str, list[dict[str, str]]] = {}
        for finding in found.findings:
            line = asdict(finding)
            sections.setdefault(line.pop("section"), []).append(line)
        print(json.dumps({"healthy": found.healthy, **sections}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    for width in (9, 13, 6):
        table.add_column(min_width=width, no_wrap=True)
    table.add_column(overflow="fold")
    style = {OK: "green", NOTE: "yellow", FAILED: "bold red"}
    section = None
    for finding in found.findings:
        if section not in (None, finding.section):
            table.add_row()
        shown = "" if section == finding.section else finding.section
        section = finding.section
        status = Text(finding.status, style[finding.status])
        table.add_row(Text(shown, "bold"), Text(finding.name), status, Text(finding.text))
    console = Console(highlight=False)
    console.print(table)
    console.print("\neverything that was built works" if found.healthy else "\nsomething FAILED that should work")


Lines = Iterator[tuple[str, str, str]]


def _versions() -> Lines:
    yield (
        "fastdiff",
        OK,
        f"{fastdiff.__version__}, noise format {NOISE_FORMAT}, in {Path(fastdiff.__file__).parent}",
    )
    yield "python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", OK, torch.__version__
    for package, need in (
        ("triton", "for the Triton backend"),
        ("numpy", "for tests"),
        ("mpmath", "for plans"),
    ):
        try:
            yield package, OK, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, NOTE, f"not installed; needed {need}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    yield "gpu", OK if gpu else NOTE, gpu or "none that torch can use"


def _backends() -> Lines:
    for report in list_backends():
        yield (
            report.name,
            OK if report.usable else NOTE,
            report.details if report.usable else str(report.reason),
        )


def _compiled() -> Lines:
    host = cpu.host()
    if host is None:
        yield "C++ kernels", NOTE, f"not usable: {cpu.unavailable()}"
        return
    yield "C++ kernels", OK, f"fastdiff._host and fastdiff._C, compiler {host.compiler}"
    yield "CPU has", OK, f"{', '.join(host.isas())}; in use: {host.isa()}"


def _process() -> Lines:
    yield "threads", OK, f"{torch.get_num_threads()} of torch, on {os.cpu_count()} CPUs"
    if flushes_subnormals():
        yield (
            "subnormals",
            NOTE,
            "this process flushes them to zero; the C++ kernels undo that, the reference cannot",
        )
    else:
        yield "subnormals", OK, "kept (FTZ and DAZ are off)"


def flushes_subnormals() -> bool:
    """Whether the calling thread takes subnormal numbers for zero, as inputs (DAZ) or as results (FTZ)."""
    smallest = float(sys.float_info.min)
    subnormal = float.fromhex("0x1p-1060")
    return smallest * 0.5 == 0.0 or subnormal * 2.0**60 == 0.0


def _data() -> Lines:
    try:
        _, facts = load_digits()
    except (FastdiffError, OSError) as error:
        yield "checkpoint", FAILED, str(error)
        return
    size = CHECKPOINT.stat().st_size / 1e6
    yield "checkpoint", OK, f"{CHECKPOINT.name}, {facts.get('parameters', '?')} parameters, {size:.1f} MB"


def _self_test() -> Lines:
    wrong = [answer for answer in PHILOX_ANSWERS if _philox(*answer[:2]) != answer[2]]
    yield (
        "Philox",
        FAILED if wrong else OK,
        f"{len(wrong)} of 3 known answers are wrong" if wrong else "3 known answers",
    )
    for report in list_backends():
        if report.usable and report.name != "reference" and _on_cpu(report.name):
            for name, isa in _variants(report.name):
                with isa:
                    yield name, *_against_reference(report.name)


def _philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    words = reference.philox(
        tuple(torch.tensor(word) for word in counter),  # type: ignore[arg-type]
        tuple(torch.tensor(word) for word in key),  # type: ignore[arg-type]
    )
    return tuple(int(word) for word in words)


def _on_cpu(name: str) -> bool:
    """Whether a backend runs on the CPU tensors of the self test."""
    return any(backend.name == name and backend.devices in ((), ("cpu",)) for backend in registry.BACKENDS)


def _variants(backend: str) -> Iterator[tuple[str, AbstractContextManager[None]]]:
    """A backend, or each of its instruction sets."""
    host = cpu.host() if backend == "cpu" else None
    if host is None:
        yield backend, _instruction_set(lambda _: None, "", "")
        return
    for isa in host.isas():
        yield f"{backend} {isa}", _instruction_set(host.set_isa, isa, host.isa())


@contextmanager
def _instruction_set(choose: Callable[[str], None], isa: str, before: str) -> Iterator[None]:
    choose(isa)
    try:
        yield
    finally:
        choose(before)


def _against_reference(backend: str) -> tuple[str, str]:
    """Random rows on a backend and on the reference, bit for bit, for a fraction of a second."""
    from fastdiff.testing.rows import random_case, same_bits

    cases, end = 0, time.monotonic() + SELF_TEST_SECONDS
    while not cases or time.monotonic() < end:
        case = random_case(cases, max_elements=SELF_TEST_ELEMENTS)
        try:
            ours, right = case.run(backend), case.run("reference")
        except (AssertionError, FastdiffError, RuntimeError) as error:
            return FAILED, str(error)
        for name in right:
            if not same_bits(ours[name], right[name]):
                return FAILED, f"other bits than the reference in {name}: {case.describe()}"
        cases += 1
    return OK, f"the same bits as the reference on {cases} random rows"
