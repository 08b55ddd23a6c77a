"""Triton's interpreter, with its rounding repaired and every access checked: a second opinion on the kernels' source.

``with interpreted() as launches:`` makes the Triton backend run the source of ``kernels/`` in numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import fastdiff.kernels
import numpy as np
import triton
import triton.language as tl
from mutants import fresh_kernels
from pretend_gpu import regions_of
from ptx import Memory
from ptx.arithmetic import bf16_from_f32, f32_from_bf16
from torch import Tensor
from triton.runtime import interpreter

from fastdiff.backends import triton as backend

QUADS = 1024
"""The interpreter takes the same time for any tile, so tiles are large."""


@contextmanager
def interpreted() -> Iterator[list[Memory]]:
    """Make the Triton backend run interpreted copies of the kernels; yields the memory of each launch."""
    launches: list[Memory] = []
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    with (
        mock.patch.object(builder, "cast_impl", _cast(builder.cast_impl)),
        mock.patch.object(builder, "create_masked_load", _load(launches)),
        mock.patch.object(builder, "create_masked_store", _store(launches)),
        mock.patch.object(executor, "_init_args_hst", _remember(executor._init_args_hst, launches)),
        mock.patch.object(backend, "QUADS", QUADS),
        triton.knobs.runtime.scope(),
        np.errstate(all="ignore"),
    ):
        # Whether a kernel is interpreted is decided when its module is imported.
        triton.knobs.runtime.interpret = True
        with fresh_kernels(list(fastdiff.kernels.__path__)):
            yield launches


def _cast(original: Any) -> Any:
    """Conversions of bfloat16: Triton's interpreter cuts bits off going down and loses subnormals going up."""

    def cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return interpreter.TensorHandle(bf16_from_f32(source.data), target.scalar)
        if source.dtype.scalar == tl.bfloat16 and target.scalar == tl.float32:
            return interpreter.TensorHandle(f32_from_bf16(source.data), target.scalar)
        return original(self, source, target)

    return cast


def _remember(original: Any, launches: list[Memory]) -> Any:
    """Register the tensors of a launch, under the names of the kernel's parameters."""

    def prepare(self: Any, arguments: Any, keywords: Any) -> Any:
        named = [(name, value) for name, value in zip(self.arg_names, arguments, strict=False)]
        launches.append(Memory(regions_of(list(_tensors(named)))))
        return original(self, arguments, keywords)

    return prepare


def _tensors(named: list[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for name, value in named:
        if isinstance(value, tuple):
            yield from _tensors([(f"{name}.{i}", part) for i, part in enumerate(value)])
        elif isinstance(value, Tensor):
            yield name, value


def _load(launches: list[Memory]) -> Any:
    def load(self: Any, pointers: Any, mask: Any, other: Any, *hints: Any) -> Any:
        kind = pointers.get_element_ty()
        dtype = interpreter._get_np_dtype(kind)
        address, chosen = np.broadcast_arrays(pointers.data, mask.data)
        fill = np.zeros(1, dtype) if other is None else other.data
        found = np.broadcast_to(fill, address.shape).astype(dtype)
        raw = launches[-1].load(address[chosen], dtype.itemsize, _instance(self, address[chosen]))
        found[chosen] = raw.view(dtype).reshape(-1)
        return interpreter.TensorHandle(found, kind)

    return load


def _store(launches: list[Memory]) -> Any:
    def store(self: Any, pointers: Any, value: Any, mask: Any, *hints: Any) -> None:
        address, chosen, data = np.broadcast_arrays(pointers.data, mask.data, value.data)
        bytes_ = np.ascontiguousarray(data[chosen])[:, None].view(np.uint8)
        launches[-1].store(address[chosen], bytes_, _instance(self, address[chosen]))

    return store


def _instance(builder: Any, lanes: np.ndarray) -> np.ndarray:
    return np.full(lanes.size, builder.grid_idx[0], np.int64)
