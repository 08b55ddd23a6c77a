"""Noise: standard normals a second on one thread, fastdiff's beside torch's and numpy's.

Everyone fills the same tensor ``FILLS`` times a turn, after one fill that is not timed: the first one after somebody
else's turn finds cold caches, which costs the fastest maker a tenth and the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.backends import cpu
from fastdiff.backends.registry import use_backend
from fastdiff.lab.bench import timing
from fastdiff.lab.bench.contestant import Job
from fastdiff.lab.bench.device import CPU, Device

ELEMENTS = {"reference": 2**14}
FILLED = 2**20
FILLS = 4
"""Of one turn."""


@dataclass(frozen=True)
class Rate:
    """Standard normals a second.

    Args:
        name: who makes them.
        normals_per_s: in float32, into a tensor that exists.
    """

    name: str
    normals_per_s: float


class Filling:
    """A job that fills a tensor ``FILLS`` times, and once before.

    Args:
        fill: does it once.
        before: set-up that is not timed.
        after: what undoes it.
    """

    def __init__(
        self,
        fill: Callable[[], Any],
        before: Callable[[], Any] = lambda: None,
        after: Callable[[], Any] = lambda: None,
    ) -> None:
        self._fill, self._after = fill, after
        before()
        fill()

    def advance(self) -> None:
        """Fill it ``FILLS`` times."""
        try:
            for _ in range(FILLS):
                self._fill()
        finally:
            self._after()

    def finish(self) -> Tensor:
        """Nothing was sampled."""
        return torch.empty(0)


def normal_rates(backend: str, budget: float, fewest: int = 5, most: int = 101, device: Device = CPU) -> list[Rate]:
    """How fast noise is made, in turns.

    Args:
        backend: of fastdiff; ``cpu`` is tried on every instruction set of this machine.
        budget: seconds.
        fewest: turns at least.
        most: turns at most.
        device: where; numpy takes part on the CPU only.
    """
    out = torch.empty(16, ELEMENTS.get(backend, FILLED * device.scale) // 16, device=device.place)
    host = cpu.host() if backend == "cpu" else None
    made: dict[str, Callable[[], Job]] = {}
    for isa in [None] if host is None else host.isas():
        name = f"fastdiff {backend}" + (f" {isa}" if isa else "")
        made[name] = lambda isa=isa: _filled_by(out, backend, isa)
    made["torch.randn"] = lambda: Filling(lambda: torch.randn(out.shape, out=out))
    if not device.gpu:
        array, generator = out.numpy(), np.random.Generator(np.random.SFC64(1))
        made["numpy ziggurat"] = lambda: Filling(lambda: generator.standard_normal(dtype=np.float32, out=array))
    times = timing.interleave(made, budget=budget, fewest=fewest, most=most, device=device)
    return [Rate(name, FILLS * out.numel() / times.of(name).median) for name in made]


def _filled_by(out: Tensor, backend: str, isa: str | None) -> Job:
    """``fastdiff.ops.fill_noise`` on one backend, and on the CPU with one instruction set."""

    def fill() -> None:
        with use_backend(backend):
            ops.fill_noise(out, 0)

    host = cpu.host()
    if isa is None or host is None:
        return Filling(fill)
    used = host.isa()
    return Filling(fill, lambda: host.set_isa(isa), lambda: host.set_isa(used))
