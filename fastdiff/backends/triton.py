"""The ops in Triton, for NVIDIA and AMD devices: one launch for each call, nothing else on the stream.

Triton compiles one kernel for each row structure and combination of dtypes; kernels are in ``fastdiff.kernels``,
which is imported on first use, because it imports Triton.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import BackendError
from fastdiff.rows.call import Call, GramCall
from fastdiff.rows.gram import CHUNK
from fastdiff.rows.layout import CHANNELS_LAST, layout

QUADS = 128
"""Groups of four elements in a tile."""

WARPS = 2 if torch.version.hip else 4
"""So many warps give one thread to each quad; AMD's data-centre devices have warps of 64."""

GRAM_WARPS = 1
"""A thread of one warp has lanes l, l + 32, l + 64 and l + 96 of a chunk, so that these are added in its registers."""

MAX_INSTANCES = 2**31 - 1

OLDEST = (3, 6)
"""The first Triton that compiles the kernels; ``tests/gpu/test_triton_oldest.py`` runs them under it."""


def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None where it can."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    from triton.runtime import driver

    if tuple(map(int, re.findall(r"\d+", _version())[:2])) < OLDEST:
        return (
            f"Triton {_version()} is older than {OLDEST[0]}.{OLDEST[1]}, the first that compiles these kernels; "
            "pip install -U triton, or take torch 2.10 or later, which brings it along"
        )

    try:
        _ = driver.active
    except RuntimeError as error:
        return f"Triton found no GPU driver ({error})"
    return None


def details() -> str:
    """The version of Triton and the target that it compiles for."""
    from triton.runtime import driver

    target: Any = driver.active.get_current_target()
    return f"Triton {_version()} for {target.backend} {target.arch}"


def _version() -> str:
    """Of whatever is imported as triton: its distributions have several names."""
    return import_module("triton").__version__


class Tiling(NamedTuple):
    """How a launch covers a batch: its sizes, and how a tile reaches the elements of its sample."""

    batch: int
    numel: int
    channels: int
    tiles: int
    access: str
    channels_last: bool


def tiling(tensors: Sequence[Tensor], batch: int, tile: int) -> Tiling:
    """Cover a batch with tiles.

    Args:
        tensors: all tensors ``[B, ...]`` and the network input ``[copies * B, ...]``, sharing one layout.
        batch: B.
        tile: elements in a tile.

    Raises:
        BackendError: the launch would need more program instances than a grid holds.
    """
    first = tensors[0]
    numel = first.shape[1:].numel()
    channels_last = any(layout(tensor) == CHANNELS_LAST for tensor in tensors)
    access = "elements" if not all(map(_quads_aligned, tensors)) else "quads" if numel % 4 == 0 else "tail"
    tiles = max(-(-numel // tile), 1)
    if batch * tiles > MAX_INSTANCES:
        raise BackendError(
            f"{batch} samples of {numel} elements need {batch * tiles} program instances; a launch holds "
            f"{MAX_INSTANCES}. Split the batch: samples do not depend on each other"
        )
    return Tiling(batch, numel, first.shape[1] if first.dim() > 1 else 1, tiles, access, channels_last)


def stage(call: Call) -> None:
    """Run one row in one launch."""
    kernels, structures = import_module("fastdiff.kernels.stage"), import_module("fastdiff.kernels.structure")
    stored = [store for store in call.stores if store is not None]
    tensors, z = [*call.columns, *stored], call.z
    batch = tensors[0].shape[0]
    if tensors[0].numel() == 0:
        return
    cover = tiling([*tensors, z] if z is not None else tensors, batch, 4 * QUADS)
    row = structures.structure(
        call.program, tuple(store is not None for store in call.stores), 0 if z is None else z.shape[0] // batch
    )
    with _device(call.coef):
        kernels.stage_kernel[(batch * cover.tiles,)](
            tuple(call.columns),
            tuple(map(_stride, call.columns)),
            call.coef,
            _table_stride(call.coef),
            call.present,
            _table_stride(call.present),
            call.seeds,
            call.draws,
            _table_stride(call.draws),
            tuple(stored),
            tuple(map(_stride, stored)),
            z,
            0 if z is None else _stride(z),
            batch,
            cover.numel,
            cover.channels,
            cover.tiles,
            ROW=row,
            **_constants(cover),
        )


def fill_noise(out: Tensor, seeds: Tensor, draws: Tensor) -> None:
    """Fill ``out`` with normals; arguments as for ``fastdiff.backends.reference.fill_noise``, in one launch."""
    if out.numel() == 0:
        return
    kernels = import_module("fastdiff.kernels.stage")
    cover = tiling([out], out.shape[0], 4 * QUADS)
    with _device(out):
        kernels.fill_noise_kernel[(cover.batch * cover.tiles,)](
            out,
            _stride(out),
            seeds,
            draws,
            _table_stride(draws),
            cover.numel,
            cover.channels,
            cover.tiles,
            **_constants(cover),
        )


def gram(call: GramCall) -> None:
    """Make the scalars and coefficients of a gram: in one launch where a sample is one chunk, else in two.

    (In three from 2**24 elements on, in which chunks of chunks are chunks again.)
    """
    batch = call.scalars.shape[0]
    if batch == 0:
        return
    kernels, structures = import_module("fastdiff.kernels.gram"), import_module("fastdiff.kernels.structure")
    cover = tiling(call.columns, batch, CHUNK)
    # The order of sums is the logical one, in which the places of channels-last elements are scattered.
    access = "elements" if cover.channels_last else cover.access
    structure = structures.gram_structure(call.program)
    parts = _parts(call, cover.tiles)
    with _device(call.scalars):
        kernels.gram_kernel[(batch * cover.tiles,)](
            tuple(call.columns),
            tuple(map(_stride, call.columns)),
            call.numbers,
            _table_stride(call.numbers),
            call.seeds,
            call.draws,
            _table_stride(call.draws),
            parts,
            *_made(call),
            cover.numel,
            cover.channels,
            cover.tiles,
            GRAM=structure,
            ACCESS=access,
            CHANNELS_LAST=cover.channels_last,
            num_warps=GRAM_WARPS,
            enable_fp_fusion=False,
        )
        while parts is not None:
            parts = _sum_parts(call, parts)


def _sum_parts(call: GramCall, parts: Tensor) -> Tensor | None:
    """Sum the sums of chunks ``[B, sums, count]`` in chunks of their own: returns their sums, or None, and finishes."""
    kernels, structures = import_module("fastdiff.kernels.gram"), import_module("fastdiff.kernels.structure")
    batch, _, count = parts.shape
    chunks = -(-count // CHUNK)
    rest = _parts(call, chunks)
    kernels.gram_parts_kernel[(batch * chunks,)](
        parts,
        count,
        call.numbers,
        _table_stride(call.numbers),
        rest,
        *_made(call),
        chunks,
        GRAM=structures.gram_structure(call.program),
        num_warps=GRAM_WARPS,
        enable_fp_fusion=False,
    )
    return rest


def _parts(call: GramCall, chunks: int) -> Tensor | None:
    """Memory for the sums of several chunks."""
    return call.scalars.new_empty((call.scalars.shape[0], len(call.program.sums), chunks)) if chunks > 1 else None


def _made(call: GramCall) -> tuple[Tensor, int, Tensor | None, int]:
    """What a gram writes, with strides between samples."""
    return call.scalars, call.scalars.stride(0), call.coef, 0 if call.coef is None else call.coef.stride(0)


def _constants(cover: Tiling) -> dict[str, Any]:
    """What is compiled into a kernel beside the row: the tiling, and no contraction of products and sums."""
    return {
        "ACCESS": cover.access,
        "CHANNELS_LAST": cover.channels_last,
        "QUADS": QUADS,
        "num_warps": WARPS,
        "enable_fp_fusion": False,
    }


def _device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, so make it the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _quads_aligned(tensor: Tensor) -> bool:
    """Whether every sample starts where four of its elements can be moved at once, 16 bytes at most."""
    size = tensor.element_size()
    width = min(4 * size, 16)
    return tensor.data_ptr() % width == 0 and (tensor.shape[0] == 1 or tensor.stride(0) * size % width == 0)


def _stride(tensor: Tensor) -> int:
    """The batch stride as the kernels take it."""
    return tensor.stride(0) << import_module("fastdiff.kernels.stage").STRIDE_SHIFT.value


def _table_stride(table: Tensor | None) -> int:
    """The stride between samples of coefficients, presence or draws; 0 where all samples share them."""
    return 0 if table is None or table.shape[0] == 1 else table.stride(0)
