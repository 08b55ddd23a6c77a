"""Timing on a machine that others use too.

One thread and its own clock (``time.thread_time``): the time for which the thread was running, whoever else had the
processor in between; wall time with more threads would measure the scheduler. On a GPU, events before and after the
work, on its stream. All contestants take turns, so that a slow minute hits them all; figures are medians, and a ratio
is the median of the ratios within each turn.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from fastdiff.lab.bench.contestant import Job
from fastdiff.lab.bench.device import CPU, Device

Starts = Mapping[str, Callable[[], Job]]


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The spread of some figures; at least one."""
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(low), float(high))


class Took(NamedTuple):
    """Seconds of one advance: by the device's clock, and of the host's thread that asked for the work."""

    seconds: float
    host: float


class Times(NamedTuple):
    """Seconds that every contestant took, turn by turn, on the device and of the host's thread."""

    seconds: dict[str, list[float]]
    host: dict[str, list[float]]

    def of(self, name: str) -> Spread:
        """Seconds for one advance."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, base: str) -> Spread:
        """How many times as long as ``base`` one took, turn by turn."""
        return Spread.of([a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True)])


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, without gradients, inside a ``with`` block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector does not run in the block."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def took(job: Job, device: Device = CPU) -> Took:
    """Time one advance, after whatever its set-up left to be done."""
    device.wait()
    host = time.thread_time()
    start = device.mark()
    job.advance()
    end = device.mark()
    host = time.thread_time() - host
    return Took(device.between(start, end), host)


def interleave(
    starts: Starts,
    *,
    budget: float,
    fewest: int,
    most: int,
    tick: Callable[[], None] = lambda: None,
    device: Device = CPU,
) -> Times:
    """Time all contestants in turns: A B C, B C A, ...

    Args:
        starts: sets up a fresh job of every contestant; not timed.
        budget: seconds of wall time after which no further turn begins.
        fewest: turns at least.
        most: turns at most.
        tick: called after every job.
        device: whose time it is.
    """
    measured: dict[str, list[Took]] = {name: [] for name in starts}
    names = list(starts)
    end = time.monotonic() + budget
    with _no_collection():
        for turn in range(most):
            if turn >= fewest and time.monotonic() > end:
                break
            this: dict[str, Took] = {}
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                this[name] = took(starts[name](), device)
                tick()
            for name, value in this.items():
                measured[name].append(value)
    return Times(
        {name: [each.seconds for each in values] for name, values in measured.items()},
        {name: [each.host for each in values] for name, values in measured.items()},
    )
