"""The eager loop in C++: a plan's rows bound once to a run's buffers, so that a step costs one call.

It runs the kernels that the CPU backend registers with torch, without the dispatcher; what it cannot take (a tensor
subclass, another layout) it leaves to the op, which gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.backends import cpu
from fastdiff.rows.layout import CHANNELS_LAST, layout
from fastdiff.rows.row import CALLED_PREFIX, NETWORK_PREFIX

if TYPE_CHECKING:
    from fastdiff.plans.plan import Plan

Buffer = tuple[int, int, str]
"""Address, batch stride in elements, dtype name."""


def bind(
    plan: Plan,
    tables: Sequence[tuple[Tensor, Tensor]],
    buffers: Mapping[str, Tensor],
    z: Tensor,
    seeds: Tensor,
    batch: int,
) -> Any:
    """A ``_host.Loop`` over all rows of a plan, or None where the host module is not there.

    Args:
        plan: with counter noise.
        tables: coefficients ``[1 or batch, K]`` and draws ``[1, N, 4]`` of each row; kept alive by the caller.
        buffers: the run's state tensors ``[batch, ...]``, and those of the caller that rows read.
        z: network input with room for the largest number of copies.
        seeds: int64 ``[batch]``.
        batch: samples.
    """
    host = cpu.host()
    if host is None:
        return None
    shape = z.shape[1:]
    channels = shape[0] if layout(z) == CHANNELS_LAST else 1
    loop = host.Loop(
        batch=batch,
        numel=shape.numel(),
        channels=channels,
        state=plan.dtype,
        threads=torch.get_num_threads(),
        seeds=seeds.data_ptr(),
    )
    held = {name: _buffer(tensor) for name, tensor in buffers.items()}
    network_input = _buffer(z)
    fresh: tuple[str, ...] = ()
    for row, (coef, draws) in zip(plan.rows, tables, strict=True):
        loop.add_row(
            program=row.program.integers,
            coef=(coef.data_ptr(), 0 if coef.shape[0] == 1 else coef.stride(0)),
            draws=(draws.data_ptr(), 0),
            sources=[held[name] if name in held else fresh.index(name) for name in row.columns],
            stores=[None if o.store is None else held[o.store] for o in row.outputs],
            z=network_input if row.network is not None else None,
            copies=row.copies,
        )
        fresh = tuple(NETWORK_PREFIX + branch for branch in row.branches)
        fresh = fresh if row.call is None else (CALLED_PREFIX + row.call[0],)
    one = z[:batch]
    loop.expect(dtype=_name(z.dtype), shape=list(one.shape), strides=list(one.stride()))
    return loop


def _buffer(tensor: Tensor) -> Buffer:
    return tensor.data_ptr(), tensor.stride(0), _name(tensor.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
