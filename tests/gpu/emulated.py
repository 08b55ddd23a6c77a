"""The CUDA backend on CPU tensors: ``fastdiff.backends.cuda`` itself, over kernels that g++ compiled.

library = EmulatedCuda()
library.order("shuffled", 7)
case.run(library.stage)
library.launched().grid

with registered(library):
    with fastdiff.use_backend("emulated-cuda"): ...
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from compiled import emulated

from fastdiff.backends import registry
from fastdiff.backends.cuda import Library
from fastdiff.backends.registry import Backend

ORDERS = ("none", "serial", "reversed", "shuffled", "two threads", "ends")
"""How the threads of a launch run: not at all, by number, backwards, in random order, on two threads of the system,
or only the first and last few blocks."""


class Launched(ctypes.Structure):
    """What was launched, and how many launches there have been."""

    _fields_ = (
        ("launches", ctypes.c_int64),
        ("kernel_name", ctypes.c_char_p),
        ("grid_sizes", ctypes.c_uint32 * 3),
        ("block_sizes", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint64),
        ("argument_at", ctypes.c_void_p),
        ("argument_size", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
        ("device", ctypes.c_int32),
        ("current_device", ctypes.c_int32),
        ("error", ctypes.c_int32),
    )

    @property
    def kernel(self) -> str:
        """The kernel's symbol, which is its name in PTX as well."""
        return self.kernel_name.decode()

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.grid_sizes)

    @property
    def block(self) -> tuple[int, ...]:
        return tuple(self.block_sizes)

    @property
    def argument(self) -> bytes:
        """The kernel's parameter."""
        return ctypes.string_at(self.argument_at, self.argument_size)


class EmulatedCuda(Library):
    """The backend's own library class over the emulated build.

    Each opens a copy of its own: a file that is opened twice is loaded once, and one's order would be the other's.
    """

    def __init__(self, path: Path | None = None) -> None:
        folder = tempfile.mkdtemp(prefix="fastdiff-")
        # Not before: sanitizers look up lines in the file.
        weakref.finalize(self, shutil.rmtree, folder)
        copy = shutil.copy(path or emulated(), folder)
        super().__init__(Path(copy))
        self._emulation = ctypes.CDLL(copy)
        self.order("serial")

    def order(self, order: str, number: int = 0) -> None:
        """Choose an order; the number is the seed of a shuffle, or how many blocks an end has."""
        self._emulation.emulation_order(ORDERS.index(order), ctypes.c_uint64(number))

    def devices(self, count: int) -> None:
        """Choose how many devices the runtime finds."""
        self._emulation.emulation_devices(count)

    def launched(self, ago: int = 0) -> Launched:
        """The last launch, or one of the few before it."""
        found = Launched()
        self._emulation.emulation_launched(ctypes.byref(found), ago)
        return found


@contextmanager
def registered(library: Library, name: str = "emulated-cuda") -> Iterator[None]:
    """Make a library a backend for CPU tensors, the preferred one."""
    backend = Backend(
        name=name,
        devices=("cpu",),
        unavailable=library.refusal,
        details=lambda: ", ".join(library.targets),
        stage=library.stage,
        fill_noise=library.fill_noise,
        gram=library.gram,
        prepare=library.prepare,
    )
    with mock.patch.object(registry, "BACKENDS", (backend, *registry.BACKENDS)):
        yield
