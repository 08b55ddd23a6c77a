"""Devices: all that ``fastdiff bench`` asks of what it times. Everything else is the same for every device.

``Cpu`` is one thread and its own clock. ``Cuda`` is a GPU, where a launch returns before it is done and events on the
stream tell the time. None of us has a GPU, so ``Cuda`` is nothing but calls of ``torch.cuda``, and the gate holds its
clock against a wall clock before anything is timed by it.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Made = TypeVar("Made")


class Device(ABC):
    """What samplers run on while they are timed.

    ``name`` is what ``--device`` calls it, ``place`` where torch puts tensors, ``backends`` what fastdiff has for it,
    fastest first. On a ``gpu`` launches return before they are done, and whole samplings can be recorded. ``scale`` is
    how many times as much as one thread of a CPU it is given to do in one turn. ``runs_on`` and ``clock`` say in
    reports what was timed, and by what.
    """

    name: str
    place: torch.device
    backends: tuple[str, ...]
    gpu: bool
    scale: int
    runs_on: str
    clock: str

    @abstractmethod
    def refusal(self) -> str | None:
        """Why nothing can be timed on it here and what to do, or None."""

    @abstractmethod
    def describe(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def wait(self) -> None:
        """Return when everything that was launched is done."""

    @abstractmethod
    def mark(self) -> Any:
        """Where its work has come to."""

    @abstractmethod
    def between(self, start: Any, end: Any) -> float:
        """Seconds from one mark to a later one; waits until that is reached."""

    @abstractmethod
    def free_memory(self) -> int | None:
        """Bytes that can be had, or None where nobody says."""

    @abstractmethod
    def memory(self, set_up: Callable[[], Made], work: Callable[[Made], object]) -> tuple[int, int]:
        """How often ``work`` allocates, and the most bytes held at once while it runs, with what ``set_up`` left."""

    @abstractmethod
    def generators(self) -> Sequence[int]:
        """Of which devices torch keeps generators beside the CPU's: what ``torch.random.fork_rng`` takes."""


class Cpu(Device):
    """One thread of the processor, by its own clock: the time for which it was running, whoever else wanted it."""

    name, place, backends, gpu, scale = "cpu", torch.device("cpu"), ("cpu",), False, 1
    runs_on, clock = "one thread", "thread time"

    def refusal(self) -> str | None:
        """Never."""
        return None

    def describe(self) -> str:
        """The name; the processor is among the facts about the machine."""
        return self.name

    def wait(self) -> None:
        """There is nothing to wait for."""

    def mark(self) -> Any:
        """Thread time, in seconds."""
        return time.thread_time()

    def between(self, start: Any, end: Any) -> float:
        """See ``Device``."""
        return end - start

    def free_memory(self) -> int | None:
        """Without swapping."""
        try:
            with open("/proc/meminfo") as file:
                lines = dict(line.split(":") for line in file)
            return int(lines["MemAvailable"].split()[0]) * 1024
        except (OSError, KeyError, ValueError):
            return None

    def memory(self, set_up: Callable[[], Made], work: Callable[[Made], object]) -> tuple[int, int]:
        """As torch's allocator reports it to the profiler."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as setting_up:
            made = set_up()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as working:
            work(made)
        changes = _allocator_events(working)
        total = most = sum(_allocator_events(setting_up))
        for change in changes:
            total += change
            most = max(most, total)
        return sum(change > 0 for change in changes), most

    def generators(self) -> Sequence[int]:
        """None."""
        return ()


class Cuda(Device):
    """The current GPU, timed by events on the current stream."""

    name, place, backends, gpu, scale = "cuda", torch.device("cuda"), ("cuda", "triton"), True, 64
    runs_on, clock = "one GPU", "events on the stream"

    def refusal(self) -> str | None:
        """See ``Device``."""
        if torch.cuda.is_available():
            return None
        built = torch.version.cuda or torch.version.hip
        if built is None:
            why, what = "was built without CUDA", "install a build of torch for CUDA"
        else:
            why, what = f"was built for {built} and finds none", "see what nvidia-smi says of driver and GPU"
        return (
            f"a GPU is needed, and torch {torch.__version__} {why}; {what}, or measure the CPU: leave --device out, "
            "and --backend cuda and triton"
        )

    def describe(self) -> str:
        """Name, capability and memory."""
        major, minor = torch.cuda.get_device_capability()
        memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        return f"{torch.cuda.get_device_name()}, capability {major}.{minor}, {memory:.0f} GiB"

    def wait(self) -> None:
        """See ``Device``."""
        torch.cuda.synchronize()

    def mark(self) -> Any:
        """An event, recorded on the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """See ``Device``."""
        end.synchronize()
        milliseconds = start.elapsed_time(end)
        return milliseconds / 1e3

    def free_memory(self) -> int | None:
        """Of the GPU's own."""
        free, _ = torch.cuda.mem_get_info()
        return free

    def memory(self, set_up: Callable[[], Made], work: Callable[[Made], object]) -> tuple[int, int]:
        """As torch's allocator counts it, in blocks of 512 bytes."""
        before = torch.cuda.memory_allocated()
        made = set_up()
        allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.reset_peak_memory_stats()
        work(made)
        allocations = torch.cuda.memory_stats()["allocation.all.allocated"] - allocations
        return allocations, torch.cuda.max_memory_allocated() - before

    def generators(self) -> Sequence[int]:
        """The GPU's."""
        return (torch.cuda.current_device(),)


CPU = Cpu()
DEVICES: dict[str, Device] = {"cpu": CPU, "cuda": Cuda()}


def _allocator_events(recorded: Any) -> list[int]:
    """Bytes by which every call of the allocator changed what is held."""
    events = recorded.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]"]
