"""The emulated CUDA kernels under the sanitizers of g++: memory, undefined behaviour, and races between threads.

That they notice faults is shown in ``tests/mutants``.
"""

from compiled import emulated
from instrumented import MEMORY, RACES, no_byte_out_of_bounds, no_race

MEMORY_CASES, RACE_CASES = 150, 100
MOST_ELEMENTS = 129


def test_no_byte_out_of_bounds_and_nothing_undefined():
    no_byte_out_of_bounds("cuda", emulated(*MEMORY), "shuffled", cases=MEMORY_CASES, most_elements=MOST_ELEMENTS)


def test_no_race_between_threads():
    no_race("cuda", emulated(*RACES), "two threads", cases=RACE_CASES, most_elements=MOST_ELEMENTS)
