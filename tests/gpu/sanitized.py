"""Runs random rows and random grams on a build made with a sanitizer.

It ends with status 0 if there was nothing to report.

    LD_PRELOAD=<libasan.so> python tests/gpu/sanitized.py cuda <library> <cases> <most elements> <order> ...
    LD_PRELOAD=<libasan.so> python tests/gpu/sanitized.py cpu <library> <cases> <most elements> <instruction set> ...

Under the address sanitizer every byte around the tensors of a call, between their samples too, is out of bounds.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from emulated import EmulatedCuda
from torch import Tensor

from fastdiff.backends.cuda import Library
from fastdiff.backends.reference import gram
from fastdiff.rows.call import Call, GramCall
from fastdiff.testing.gram import random_gram
from fastdiff.testing.rows import random_case, same_bits

PROCESS = ctypes.CDLL(None)
MOST_THREADS = 3
GRAM_SIZES = {"cuda": (0, 3, 33, 126, 513, 4097), "cpu": (3, 33, 126, 513, 4097)}
"""The op refuses samples of no elements; the CUDA kernels take them all the same."""


class CpuKernels(Library):
    """The kernels for the CPU, opened as if they were those for a device (``tests/sanitizers/cpu.cpp``)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._driver = ctypes.CDLL(str(path))

    def order(self, isa: str, number: int) -> None:
        """Choose an instruction set, and from a number how many threads there are."""
        self._driver.cpu_choose(self.targets.index(isa), ctypes.c_int64(1 + number % MOST_THREADS))


LIBRARIES = {"cuda": EmulatedCuda, "cpu": CpuKernels}


def out_of_bounds(tensors: Sequence[Tensor], poison: bool) -> None:
    """Poison the storages of tensors except for their elements, or lift all poison."""
    forbid, allow = PROCESS.__asan_poison_memory_region, PROCESS.__asan_unpoison_memory_region
    for tensor in tensors:
        storage = tensor.untyped_storage()
        (forbid if poison else allow)(ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes()))
    for tensor in tensors if poison else ():
        size = tensor.shape[1:].numel() * tensor.element_size()
        for start in range(tensor.shape[0]):
            at = tensor.data_ptr() + start * tensor.stride(0) * tensor.element_size()
            allow(ctypes.c_void_p(at), ctypes.c_size_t(size))


def guarded(op: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same function, with poison around its tensors while it runs."""

    def run(call: Call | GramCall) -> None:
        written = call.written if isinstance(call, Call) else [call.coef, call.scalars]
        tensors = [tensor for tensor in (*call.columns, *written) if tensor is not None and tensor.numel()]
        out_of_bounds(tensors, poison=True)
        try:
            op(call)
        finally:
            out_of_bounds(tensors, poison=False)

    return run


def main(kind: str, path: str, cases: str, most_elements: str, orders: Iterable[str]) -> int:
    """Run so many cases in each of the orders; returns how many went wrong."""
    torch.set_num_threads(1)
    library = LIBRARIES[kind](Path(path))
    guard = guarded if hasattr(PROCESS, "__asan_poison_memory_region") else lambda op: op
    stage, wrong = guard(library.stage), 0
    for order in orders:
        for seed in range(int(cases)):
            library.order(order, seed)
            case = random_case(seed, max_elements=int(most_elements))
            got, expected = case.run(stage), case.run("reference")
            wrong += not all(same_bits(got[key], value) for key, value in expected.items())
        for seed in range(int(cases) // 10):
            library.order(order, seed)
            case = random_gram(seed, GRAM_SIZES[kind])
            got, expected = case.run(guard(library.gram)), case.run(gram)
            wrong += not all(same_bits(got[key], value) for key, value in expected.items())
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:5], sys.argv[5:]) else 0)
