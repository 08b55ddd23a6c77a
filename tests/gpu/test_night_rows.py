"""A1 at night: as many random rows and grams as there is time for, on every backend that runs here.

The bits must be those of the reference.
Each backend counts its rows in ``build/tests/night``, under a digest of the sources: what was interrupted goes on where
it was, and what was changed begins anew. A row is made again from its number alone.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import pytest
from compiled import KEPT, NVCC, ROOT

from fastdiff.backends import cpu, reference
from fastdiff.testing.gram import SIZES, GramCase, random_gram
from fastdiff.testing.rows import Case, random_case, same_bits

pytestmark = pytest.mark.night

SAVED_EVERY = 100
BIG_EVERY = 8
"""Most rows are small, because what is wrong in large ones mostly is in small ones too, and every so many is large."""


def some_case(number: int) -> Case:
    """Any row, of up to 1,025 elements in a sample, or up to 4,097."""
    return random_case(number, max_elements=4097 if number % BIG_EVERY == 0 else 1025)


def any_case(number: int) -> Case:
    """As above, and now and then of a million elements."""
    return random_case(number) if number % BIG_EVERY == 0 else some_case(number)


def case_of_a_kind(number: int) -> Case:
    """Of one of the twelve structures, because Triton compiles each one."""
    from cases import KINDS, make

    kinds = list(KINDS.values())
    return make(kinds[number % len(kinds)], number)


def some_gram(number: int) -> GramCase:
    """Any gram of samples that have elements."""
    return random_gram(number, tuple(size for size in SIZES if size))


def turn(number: int, ways: int) -> int:
    """Which of so many ways has its turn; large rows go through all of them too."""
    return (number + number // BIG_EVERY) % ways


@cache
def emulated_cuda():
    from emulated import EmulatedCuda

    return EmulatedCuda()


@cache
def executed_cuda():
    from executed import ExecutedCuda

    return ExecutedCuda("sm_90")


def run_cpu(case, number):
    """On every instruction set in turn."""
    host = cpu.host()
    isas, before = host.isas(), host.isa()
    host.set_isa(isas[turn(number, len(isas))])
    try:
        return case.run(cpu.stage)
    finally:
        host.set_isa(before)


def run_emulated(case, number):
    """In every order in turn."""
    from emulated import ORDERS

    library = emulated_cuda()
    library.order(ORDERS[1 + turn(number, 4)], number)
    return case.run(library.stage)


def run_triton(case, number):
    from pretend_gpu import PretendGpu

    from fastdiff.backends import triton

    with PretendGpu():
        return case.run(triton.stage)


def run_interpreted(case, number):
    from interpreted import interpreted

    from fastdiff.backends import triton

    with interpreted():
        return case.run(triton.stage)


def gram_on_cpu(case, number):
    """On every instruction set in turn."""
    host = cpu.host()
    isas, before = host.isas(), host.isa()
    host.set_isa(isas[turn(number, len(isas))])
    try:
        return case.run(cpu.gram)
    finally:
        host.set_isa(before)


def gram_emulated(case, number):
    """In every order in turn, but for threads of the system, which take their time."""
    from emulated import ORDERS

    library = emulated_cuda()
    library.order(ORDERS[1 + turn(number, 3)], number)
    return case.run(library.gram)


@dataclass(frozen=True)
class Quota:
    """How many rows or grams a backend owes, how one is made and run, and why that may be impossible here."""

    rows: int
    make: Callable[[int], Case | GramCase]
    run: Callable
    missing: str | None
    definition: Callable = reference.stage


GCC = None if shutil.which("g++") else "g++ is not installed"
PTX = GCC if NVCC else "nvcc is not installed"
TRITON = None if find_spec("triton") else "Triton is not installed"
QUOTAS = {
    "cpu": Quota(200_000, any_case, run_cpu, cpu.unavailable()),
    "emulated-cuda": Quota(200_000, any_case, run_emulated, GCC),
    "cuda-ptx": Quota(20_000, some_case, lambda case, _: case.run(executed_cuda().stage), PTX),
    "triton-ptx": Quota(20_000, case_of_a_kind, run_triton, TRITON),
    "triton-interpreted": Quota(2_000, some_case, run_interpreted, TRITON),
    "grams, cpu": Quota(20_000, some_gram, gram_on_cpu, cpu.unavailable(), reference.gram),
    "grams, emulated-cuda": Quota(20_000, some_gram, gram_emulated, GCC, reference.gram),
    "grams, cuda-ptx": Quota(2_000, some_gram, lambda case, _: case.run(executed_cuda().gram), PTX, reference.gram),
}


FOLDERS = ("csrc", "kernels", "fastdiff/backends", "tests/gpu/ptx", "tests/gpu/emulation")
FILES = (
    *(f"fastdiff/{name}.py" for name in ("rows/program", "rows/row", "rows/gram", "testing/rows", "testing/gram")),
    "tests/gpu/cases.py",
)


class Progress:
    """The number of the next row of a backend, in a file that outlives an interruption."""

    def __init__(self, name: str) -> None:
        found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc"]
        found = sorted(path for path in (*found, *(ROOT / file for file in FILES)) if path.is_file())
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()[:16]
        self._file = KEPT / "night" / f"{name}-{digest}"
        self.next = int(self._file.read_text()) if self._file.exists() else 0

    def save(self, number: int) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(str(number))


@pytest.mark.parametrize("name", QUOTAS)
def test_random_rows_have_the_reference_bits(name):
    quota = QUOTAS[name]
    if quota.missing:
        pytest.skip(quota.missing)
    progress = Progress(name)
    print(f"{name}: rows {progress.next} to {quota.rows - 1}")
    for number in range(progress.next, quota.rows):
        case = quota.make(number)
        got, expected = quota.run(case, number), case.run(quota.definition)
        for key, value in expected.items():
            assert same_bits(got[key], value), f"case {number} on {name}: {key} of {case.describe()}"
        if (number + 1) % SAVED_EVERY == 0:
            progress.save(number + 1)
