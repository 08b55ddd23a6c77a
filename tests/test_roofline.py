"""The roofline: every byte is read and overwritten once, and no plain loop is faster."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from fastdiff.backends import cpu
from fastdiff.lab.bench import roofline, timing
from fastdiff.lab.bench.contestant import backend
from fastdiff.lab.bench.workload import Workload, first_noise, free_network

pytestmark = pytest.mark.skipif(cpu.host() is None, reason="the C++ backend was not built")
GUARD = 64
"""Bytes around each array, which nobody may touch; an offset below it makes an array begin inside a line."""
ALL_ONES = 0xFF


class Array:
    """An array of ``item`` bytes for each element, between guards of zeros."""

    def __init__(self, elements: int, item: int, fill: int, offset: int = 0) -> None:
        size = elements * item
        self.memory = torch.zeros(size + 4 * GUARD, dtype=torch.uint8)
        first = -self.memory.data_ptr() % GUARD + GUARD + offset
        self.bytes, self.item = self.memory[first : first + size].fill_(fill), item

    @property
    def stream(self) -> tuple[int, int]:
        """As ``Streams`` takes it."""
        return self.bytes.data_ptr(), self.item

    @property
    def guards(self) -> int:
        """Bytes that are not zero any more outside the array."""
        return int(self.memory.count_nonzero() - self.bytes.count_nonzero())


def touch(reads: list[Array], writes: list[Array], bypass: bool) -> None:
    """Touch some arrays."""
    elements = len(writes[0].bytes) // writes[0].item
    host = cpu.host()
    assert host is not None
    given = {"reads": [array.stream for array in reads], "writes": [array.stream for array in writes]}
    host.Streams(**given, elements=elements).touch(bypass)


# Two sizes of items with two arrays each, one of them overwritten in place, beside what takes the loop for any arrays.
SHAPES = [
    (reads, in_place, written)
    for wide, narrow in ((4, 4), (8, 8), (4, 2), (8, 2), (8, 4))
    for reads in ([narrow], [wide, narrow], [wide, narrow, narrow], [wide, wide, narrow, narrow], [narrow] * 5)
    for in_place in ([], [wide], [wide, wide])
    for written in ([], [narrow], [narrow, narrow], [wide, narrow], [narrow] * 4)
    if in_place or written
]
SHAPES += [([2, 4], [8], [2, 4]), ([], [4], [2])]


@pytest.mark.parametrize("bypass", [False, True])
@pytest.mark.parametrize("elements", [1, 31, 32, 333, 1024])
def test_every_byte_is_overwritten_and_nothing_else(elements: int, bypass: bool):
    for (reads, in_place, written), offset in product(SHAPES, (0, 8)):
        if not reads:
            continue
        only_read = [Array(elements, item, ALL_ONES, offset) for item in reads]
        both = [Array(elements, item, 0) for item in in_place]
        only_written = [Array(elements, item, 0, offset) for item in written]
        touch([*both, *only_read], [*both, *only_written], bypass)
        for array in (*only_read, *both, *only_written):
            assert (array.bytes == ALL_ONES).all(), (reads, in_place, written, offset)
            assert array.guards == 0, (reads, in_place, written, offset)


@pytest.mark.parametrize("bypass", [False, True])
# Whole lines of every array, or none at all: a rest of some lines is not written with all that was read in others.
@pytest.mark.parametrize("elements", [3, 1024])
def test_every_byte_is_read(elements: int, bypass: bool):
    generator = torch.Generator().manual_seed(3)
    for reads, in_place, written in SHAPES:
        arrays = [Array(elements, item, 0) for item in (*in_place, *reads)]
        writes = [*arrays[: len(in_place)], *(Array(elements, item, 0) for item in written)]
        for one in arrays:
            for at in torch.randint(len(one.bytes), (4,), generator=generator).tolist():
                for array in (*arrays, *writes):
                    array.bytes.zero_()
                one.bytes[at] = ALL_ONES
                touch(arrays, writes, bypass)
                # What is written to a tile is what was read in it, all together.
                assert sum(int(array.bytes.count_nonzero()) for array in writes) > 1, (reads, in_place, written, at)


class Launches:
    """The kernel itself, with a network that costs nothing."""

    def __init__(self, load: Workload) -> None:
        self._load, self._model, self._noise = load, free_network(load), first_noise(load)

    def __call__(self) -> timing.Job:
        return backend("cpu").start(self._load, self._model, self._noise)


@pytest.mark.parametrize("batch", [16, 1024])
def test_neither_a_copy_nor_the_kernel_is_faster(batch: int):
    load = Workload(batch, (4, 32, 32), steps=2)
    copied = roofline.Copy(load)
    starts = roofline.contestants(load) | {"copy": lambda: copied, "kernel": Launches(load)}
    with timing.one_thread():
        seconds = timing.interleave(starts, budget=0, fewest=15, most=15).seconds
    best = {name: min(taken) for name, taken in seconds.items()}
    line = min(best.pop(roofline.NAME), best.pop(roofline.BYPASSING))
    # No margin: a copy reads memory also where it writes, and the kernel computes, so that 0.5 to 0.7 of either was
    # seen. A roofline of half the speed fails.
    for name, taken in best.items():
        assert line <= taken, f"{name} took {taken * 1e6:.0f} us, the roofline {line * 1e6:.0f}"
