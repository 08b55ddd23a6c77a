"""A Triton driver for a GPU that is not there: launches are compiled for real and their PTX runs on the CPU.

Inside ``with PretendGpu() as gpu:`` a launch ``kernel[grid](*cpu_tensors)`` takes Triton's own path, with its own
specialisation, and ``gpu.launches`` tells what it did.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from ptx import Kernel, Memory, Region, Statistics, execute, parse
from torch import Tensor
from triton.backends.compiler import GPUTarget

SM_90 = GPUTarget("cuda", 90, 32)
SCALARS = {"i1": "<?", "i32": "<i", "u32": "<I", "i64": "<q", "u64": "<Q", "fp32": "<f", "fp64": "<d"}


DEVICES: dict[tuple[str, Any], int] = {}


@dataclass(frozen=True)
class Function:
    """A loaded kernel: its compiled files by their ending."""

    name: str
    files: dict[str, Path]

    @cached_property
    def kernel(self) -> Kernel:
        return parse(self.files["ptx"].read_text(), self.name)


@dataclass(frozen=True)
class Launch:
    """One launch: its kernel's name and compiled files by their ending, the grid, and what it did if it ran."""

    name: str
    files: dict[str, Path]
    grid: int
    statistics: Statistics | None = None
    memory: Memory | None = None

    @property
    def ptx(self) -> str:
        return self.files["ptx"].read_text()


class PretendGpu:
    """Makes this driver Triton's active one inside a ``with`` block.

    Args:
        target: what is compiled for.
        run: whether launches run; only PTX can.
    """

    def __init__(self, target: GPUTarget = SM_90, run: bool = True) -> None:
        self.target, self._run = target, run
        self.utils = self
        self.launches: list[Launch] = []
        self._loading: dict[str, Path] = {}

    # What Triton asks of a driver.

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # Triton keeps compiled kernels by device, so every target is a device of its own.
        return DEVICES.setdefault((self.target.backend, self.target.arch), len(DEVICES))

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        """A module, a function, registers, spills and the most threads."""
        # No module: nothing has to be unloaded when the process ends.
        return None, Function(name, self._loading), 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """What Triton calls for every launch of a kernel."""
        types = tuple(source.signature.values())
        parameters = source.fn.arg_names

        def launch(grid: int, y: int, z: int, stream: int, function: Function, *rest: Any) -> None:
            if (y, z) != (1, 1):
                raise NotImplementedError("the executor knows one-dimensional grids")
            leaves = list(_leaves(parameters, types, rest[4:]))
            gpu = triton.runtime.driver.active
            assert isinstance(gpu, PretendGpu), "a kernel compiled for a pretend GPU is launched outside of it"
            gpu._launch(function, grid, leaves, metadata)

        return launch

    def _launch(self, function: Function, grid: int, leaves: list[tuple[str, str, Any]], metadata: Any) -> None:
        if not self._run:
            self.launches.append(Launch(function.name, function.files, grid))
            return
        memory = Memory(regions_of([(name, value) for name, kind, value in leaves if kind[0] == "*"]))
        arguments = [_argument(kind, value) for _, kind, value in leaves]
        threads = metadata.num_warps * 32
        statistics = execute(function.kernel, grid, threads, arguments, memory, dynamic_shared=metadata.shared)
        self.launches.append(Launch(function.name, function.files, grid, statistics, memory))

    def __enter__(self) -> PretendGpu:
        self._before = triton.runtime.driver._active
        self._hook = triton.knobs.runtime.kernel_load_start_hook
        triton.runtime.driver.set_active(self)  # type: ignore[arg-type]
        triton.knobs.runtime.kernel_load_start_hook = self._remember_files
        return self

    def __exit__(self, *error: object) -> None:
        triton.runtime.driver._active = self._before
        triton.knobs.runtime.kernel_load_start_hook = self._hook

    def _remember_files(self, module: Any, function: Any, name: str, files: dict[str, str], key: str) -> None:
        self._loading = {Path(path).suffix[1:]: Path(path) for path in files.values()}


def regions_of(tensors: Sequence[tuple[str, Tensor]]) -> list[Region]:
    """The memory of tensors with dense samples, at its own addresses: nothing between samples, or around them.

    A region is called after its tensors, joined by ``=`` where they share it.
    """
    shared: list[tuple[int, int, list[str]]] = []
    for start, end, name in sorted(piece for named in tensors for piece in _pieces(*named)):
        if shared and start < shared[-1][1]:
            first, last, names = shared[-1]
            shared[-1] = (first, max(end, last), names if name in names else [*names, name])
        else:
            shared.append((start, end, [name]))
    return [
        Region("=".join(names), start, np.frombuffer((ctypes.c_uint8 * (end - start)).from_address(start), np.uint8))
        for start, end, names in shared
    ]


def _pieces(name: str, tensor: Tensor) -> list[tuple[int, int, str]]:
    """First and last address, and name, of every run of samples that follow each other without a gap."""
    pieces: list[tuple[int, int, str]] = []
    for sample in tensor if tensor.numel() else ():
        start, end = sample.data_ptr(), sample.data_ptr() + sample.numel() * sample.element_size()
        if pieces and pieces[-1][1] == start:
            start = pieces.pop()[0]
        pieces.append((start, end, name))
    return pieces


def _argument(kind: str, value: Any) -> bytes:
    if kind.startswith("*"):
        return struct.pack("<Q", value.data_ptr())
    return struct.pack(SCALARS[kind], value)


def _leaves(names: Sequence[str], types: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, str, Any]]:
    """Name, type and value of every run-time argument, tuples taken apart."""
    for name, kind, value in zip(names, types, values, strict=True):
        if isinstance(kind, tuple):
            yield from _leaves([f"{name}.{i}" for i in range(len(kind))], kind, value)
        elif kind != "constexpr":
            yield name, kind, value
