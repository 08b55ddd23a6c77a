"""The roofline: what the memory of this machine allows for the same bytes, measured in the same turns.

For every timed row the same arrays are read and overwritten, in tiles as a launch does it, with nothing computed
(``csrc/roofline.cpp``); the faster of plain and cache-bypassing stores counts. Where the C++ module is missing, one
torch copy of as many bytes stands in, and the report says so. On a GPU it is a copy within its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fastdiff.backends import cpu
from fastdiff.lab.bench.contestant import Job
from fastdiff.lab.bench.device import CPU, Device
from fastdiff.lab.bench.workload import Workload
from fastdiff.rows.row import NETWORK_PREFIX, Row

NAME = "roofline"
BYPASSING = "roofline, stores past the caches"


def method(device: Device = CPU) -> str:
    """How the roofline is measured on a device of this machine."""
    if device.gpu:
        return "one torch copy within the memory of the GPU for each launch, of as many bytes"
    if cpu.host() is None:
        return "one torch copy of as many bytes (approximate: the C++ module is missing)"
    return "the same streams read and overwritten in C++, nothing computed"


def contestants(workload: Workload) -> dict[str, Callable[[], Job]]:
    """Jobs to be timed along with the others; the fastest of them in a turn is the roofline."""
    if workload.device.gpu or cpu.host() is None:
        copied = Copy(workload)
        return {NAME: lambda: copied}
    streams = Streams(workload)
    return {NAME: lambda: streams.job(False), BYPASSING: lambda: streams.job(True)}


class Streams:
    """The arrays of a run, and the streams of its timed rows.

    Args:
        workload: what is sampled.
    """

    def __init__(self, workload: Workload) -> None:
        plan, self._elements = workload.plan, workload.elements
        # Ones, because untouched zeros would all be one page of the system's.
        self._arrays = {name: torch.ones(workload.elements, dtype=workload.state) for name in plan.buffers}
        copies = max(row.copies for row in plan.rows)
        self._z = torch.ones(copies, workload.elements, dtype=workload.io)
        self._outputs = torch.ones(copies, workload.elements, dtype=workload.io)
        timed = plan.rows[workload.timed_rows]
        before = plan.rows[: len(timed)]
        self._rows = [self._streams(row, last.branches) for row, last in zip(timed, before, strict=True)]

    def _streams(self, row: Row, branches: tuple[str, ...]) -> Any:
        host = cpu.host()
        if host is None:
            raise RuntimeError("streams are measured in C++, which is not there")
        outputs = {f"{NETWORK_PREFIX}{name}": part for name, part in zip(branches, self._outputs, strict=False)}
        known = self._arrays | outputs
        reads = [_stream(known[name]) for name in row.columns]
        writes = [_stream(self._arrays[output.store]) for output in row.outputs if output.store is not None]
        writes += [_stream(part) for part in islice(self._z, row.copies)]
        return host.Streams(reads=reads, writes=writes, elements=self._elements)

    def job(self, bypass: bool) -> Job:
        """One pass over all timed rows."""
        return _Pass(self._rows, bypass)


class _Pass:
    def __init__(self, rows: list[Any], bypass: bool) -> None:
        self._rows, self._bypass = rows, bypass

    def advance(self) -> None:
        """Touch everything once."""
        for row in self._rows:
            row.touch(self._bypass)

    def finish(self) -> Tensor:
        """Nothing was sampled."""
        return torch.empty(0)


class Copy:
    """A torch copy of as many bytes as the timed rows move.

    Args:
        workload: what is sampled.
    """

    def __init__(self, workload: Workload) -> None:
        size = workload.io.itemsize
        moved = [bytes_ * workload.elements // 2 for bytes_ in workload.plan.traffic(size)[workload.timed_rows]]
        self._to = torch.ones(max(moved), dtype=torch.uint8, device=workload.device.place)
        self._from, self._moved = torch.ones_like(self._to), moved

    def advance(self) -> None:
        """Copy once for each row."""
        for count in self._moved:
            self._to[:count].copy_(self._from[:count])

    def finish(self) -> Tensor:
        """Nothing was sampled."""
        return torch.empty(0)


def _stream(array: Tensor) -> tuple[int, int]:
    """Address and bytes of an element."""
    return array.data_ptr(), array.element_size()
