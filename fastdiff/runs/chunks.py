"""Networks that are evaluated on a fixed number of samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastdiff.errors import InputError
from fastdiff.rows.dtypes import memory_format_of
from fastdiff.runs.conditioning import is_text
from fastdiff.runs.network import Network, Together

ALIGNED = 64
"""Bytes. Libraries choose their code by the alignment of what they are given too, up to a vector's width."""


def in_chunks(net: Network, size: int) -> Network:
    """A network that is always evaluated on exactly ``size`` samples, the last chunk padded with zeros.

    Libraries choose other algorithms, and so other roundings, for other batch sizes. With a fixed size a sample's
    output no longer depends on how many samples are drawn together; ``size=1`` is exact for every network that
    is a function of its sample.

    Args:
        net: any network; tensors among its conditioning whose leading dimension is the batch are chunked too.
        size: samples a call, at least 1.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"network_batch is {size!r}; it must be an integer of at least 1")

    together = Together()

    def chunked(z: Tensor, c_noise: Tensor, **conditioning: Any) -> Tensor:
        total = z.shape[0]

        def call(start: int) -> Any:
            part_z, part_c_noise, part = _cut((z, c_noise, conditioning), total, start, size)
            output = net(part_z, part_c_noise, **part)
            return output[: total - start] if isinstance(output, Tensor) else output

        outputs = together([partial(call, start) for start in range(0, total, size)]) if total else []
        if not outputs or not all(isinstance(output, Tensor) for output in outputs):
            return outputs[0] if outputs else z.clone()
        return torch.cat(outputs).contiguous(memory_format=memory_format_of(z))

    return chunked


def _cut(value: Any, total: int, start: int, size: int) -> Any:
    """So many samples of whatever has ``total`` of them; prompts past the end are the last one again."""

    def part(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == total:
            return _chunk(leaf, start, size)
        if is_text(leaf) and len(leaf) == total:
            found = [*leaf[start : start + size]]
            return found + [found[-1]] * (size - len(found))
        return leaf

    return tree_map(part, value, is_leaf=is_text)


def _chunk(value: Tensor, start: int, size: int) -> Tensor:
    """So many samples from one on, which begin at a whole cache line; those past the end are zero."""
    piece, memory_format = value[start : start + size], memory_format_of(value)
    if piece.shape[0] == size and piece.data_ptr() % ALIGNED == 0 and value.is_contiguous(memory_format=memory_format):
        return piece
    whole = torch.empty((size, *value.shape[1:]), dtype=value.dtype, device=value.device, memory_format=memory_format)
    whole[: piece.shape[0]].copy_(piece)
    whole[piece.shape[0] :].zero_()
    return whole
