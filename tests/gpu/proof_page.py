"""The tables of docs/proof.md: ``python tests/gpu/proof_page.py`` writes them, and a test compares.

A table stands between ``<!-- name -->`` and ``<!-- end -->``, where the name is that of a function here.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable

import test_cuda_emulated
import test_cuda_gram
import test_cuda_ptx
import test_cuda_sanitized
import test_night_rows
import test_triton_gates
import test_triton_gram
import test_triton_interpreter
import test_triton_mutants
import test_triton_stage
from cases import KINDS
from compiled import ROOT, TARGETS, resources
from test_cuda_gates import drawing, machine_code
from traffic import instructions, traffic

sys.path.append(str(ROOT / "tests" / "mutants"))
from table import MUTANTS

PAGE = ROOT / "docs" / "proof.md"
BLOCK = re.compile(r"<!-- (?P<name>\w+) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)


def rows() -> str:
    """How many random rows and grams each way of running the kernels is compared on."""
    every_run = {
        "emulated-cuda": test_cuda_emulated.CASES,
        "cuda-ptx": test_cuda_ptx.CASES_PER_KIND * len(KINDS) + test_cuda_ptx.RANDOM_CASES,
        "triton-ptx": test_triton_stage.CASES_PER_KIND * len(KINDS),
        "triton-interpreted": test_triton_interpreter.COUNT,
    }
    what = {
        "emulated-cuda": "CUDA source, compiled by g++",
        "cuda-ptx": "CUDA, nvcc's PTX executed",
        "triton-ptx": "Triton, its PTX executed",
        "triton-interpreted": "Triton, its interpreter",
    }
    lines = ["| kernels | rows in every run of the tests | rows at night |", "|---|---|---|"]
    for name, count in every_run.items():
        lines.append(f"| {what[name]} | {count:,} | {test_night_rows.QUOTAS[name].rows:,} |")
    lines.append(f"| CUDA source under ASan and UBSan | {test_cuda_sanitized.MEMORY_CASES} | |")
    lines.append(f"| CUDA source under TSan | {test_cuda_sanitized.RACE_CASES} | |")
    grams = {"emulated-cuda": test_cuda_gram.CASES, "cuda-ptx": test_cuda_gram.PTX_CASES}
    for name, count in grams.items():
        lines.append(f"| {what[name]}: grams | {count} | {test_night_rows.QUOTAS[f'grams, {name}'].rows:,} |")
    lines.append(
        f"| {what['triton-ptx']}: grams | {len(test_triton_gram.CASES)} | {len(test_triton_gram.MORE_CASES)} |"
    )
    lines.append(f"| {what['triton-interpreted']}: grams | {len(test_triton_gram.FEW_CASES)} | |")
    return "\n".join(lines)


def faults() -> str:
    """How many faults are planted where."""
    areas = {
        "CUDA kernels and their launcher": "csrc/cuda csrc/quad csrc/slots csrc/gram csrc/nvcc fastdiff/backends/cuda",
        "headers shared by CUDA and C++": "csrc/stage csrc/philox csrc/normal csrc/portable",
        "Triton kernels and their launcher": "kernels/ fastdiff/backends/triton",
        "loop in C++": "csrc/loop",
        "C++ kernels for the CPU, and their ops": "csrc/ setup",
        "Python code of the host": "fastdiff/",
    }

    def area(file: str) -> str:
        return next(name for name, starts in areas.items() if file.startswith(tuple(starts.split())))

    counts = Counter(area(mutant.file) for mutant in MUTANTS)
    lines = ["| planted in | faults |", "|---|---|", *(f"| {name} | {count} |" for name, count in counts.items())]
    every_run = len(test_triton_mutants.MUTANTS) + len(test_triton_gram.MUTANTS)
    lines.append(f"| Triton kernels, in every run of the tests | {every_run} |")
    return "\n".join(lines)


def registers() -> str:
    """The most registers that a kernel takes, by what it draws; spills and stack are refused by the gates."""
    lines = ["| target | CUDA, no noise | CUDA, with noise | Triton, no noise | Triton, with noise |"]
    lines.append("|---|---|---|---|---|")
    for target in (*TARGETS, "gfx942"):
        cells = [*_of_cuda(target), *_of_triton(target)]
        lines.append(f"| {target} | {' | '.join('' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines)


def _of_cuda(target: str) -> tuple[int | None, int | None]:
    if target not in TARGETS:
        return None, None
    used = resources(machine_code(target).with_suffix(".log").read_text())
    found: tuple[list[int], list[int]] = [], []
    for kernel, taken in used.items():
        found[drawing(kernel) > 0].append(taken["registers"])
    return max(found[0]), max(found[1])


def _of_triton(target: str) -> tuple[int | None, int | None]:
    gpu = {**test_triton_gates.NVIDIA, "gfx942": test_triton_gates.GFX942}.get(target)
    if gpu is None:
        return None, None
    found: tuple[list[int], list[int]] = [], []
    for launch, draws in test_triton_gates.launches(gpu):
        found[draws > 0].append(test_triton_gates.registers(launch))
    return max(found[0]), max(found[1])


TABLES: dict[str, Callable[[], str]] = {
    "rows": rows,
    "faults": faults,
    "registers": registers,
    "traffic": traffic,
    "instructions": instructions,
}


def written(text: str) -> str:
    """The page with its tables made anew."""
    return BLOCK.sub(lambda block: f"<!-- {block['name']} -->\n{TABLES[block['name']]()}\n<!-- end -->", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
