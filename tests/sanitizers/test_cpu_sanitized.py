"""The C++ kernels for the CPU, on up to three threads, under the sanitizers of g++.

Units of work are made small (``compiled.SHORT_UNITS``), so that rows of a few hundred elements are shared between
threads. That the sanitizers notice faults is shown in ``tests/mutants``.
"""

import shutil

import pytest
from compiled import cpu_kernels
from instrumented import MEMORY, RACES, no_byte_out_of_bounds, no_race

from fastdiff.backends import cpu

MOST_ELEMENTS = 4097
HOST = cpu.host()
ISAS = [isa for isa in HOST.isas() if isa != "avx512"] if HOST else []
pytestmark = [
    pytest.mark.night,
    pytest.mark.skipif(not ISAS, reason=str(cpu.unavailable())),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
]


def test_no_byte_out_of_bounds_and_nothing_undefined():
    no_byte_out_of_bounds("cpu", cpu_kernels(*MEMORY), *ISAS, cases=400, most_elements=MOST_ELEMENTS)


def test_no_race_between_threads():
    no_race("cpu", cpu_kernels(*RACES), *ISAS, cases=300, most_elements=MOST_ELEMENTS)
