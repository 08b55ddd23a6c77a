"""Seeds and draws: the parts of the noise counter that people give, made into the tensors that ops take.

Values of tensors are looked at on the CPU only: on another device that would wait for the device.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastdiff.errors import InputError
from fastdiff.rows.transfer import on_device

MAX_SEED = 2**63 - 1
DRAW_WORDS = (("purpose", 8), ("tensor", 16), ("draw", 32), ("sub_draw", 24))


def normalise_seeds(seeds: int | Sequence[int] | Tensor, batch: int, device: torch.device | str = "cpu") -> Tensor:
    """One noise key per sample: int64 ``[batch]`` on ``device``.

    Args:
        seeds: an int s gives sample i the seed s + i (so that consecutive ints overlap, on purpose); a sequence or
            an int64 tensor ``[batch]`` on ``device`` gives one seed each. Seeds lie in 0 .. 2**63 - 1.
        batch: how many samples there are.
        device: where the noise is drawn.

    Raises:
        InputError: a seed is not an integer, out of range, or there are not ``batch`` of them.
    """
    if getattr(seeds, "ndim", None) == 0 and (not isinstance(seeds, Tensor) or can_read(seeds)):
        # One number, of torch or numpy.
        seeds = seeds.item()  # type: ignore[union-attr]
    if isinstance(seeds, Tensor):
        check_seeds(seeds, batch)
        if seeds.device.type != torch.device(device).type:
            raise InputError(f"seeds are on {seeds.device} and the noise is drawn on {device}; move them there")
        return seeds
    if _is_listed(seeds):
        values = [_integer("a seed", seed) for seed in seeds]  # type: ignore[union-attr]
        if len(values) != batch:
            raise InputError(f"there are {len(values)} seeds for {batch} samples; give one for each")
    else:
        first = _integer("seeds", seeds)
        values = range(first, first + batch)
    for value in values:
        if not 0 <= value <= MAX_SEED:
            raise InputError(f"a seed is {value}; seeds lie in 0 .. 2**63 - 1 (sample i of an int s uses s + i)")
    return on_device(list(values), torch.int64, torch.device(device))


def draw_table(words: dict[str, int | Sequence[int] | Tensor], batch: int, device: torch.device) -> Tensor:
    """One draw, int64 ``[1 or batch, 4]``, from its words ``DRAW_WORDS``, each shared or one per sample.

    Raises:
        InputError: a word is not an integer, out of range, or there are not ``batch`` of it.
    """
    columns = []
    for name, bits in DRAW_WORDS:
        value = words[name]
        listed = value.tolist() if isinstance(value, Tensor) else value
        values = [_integer(name, v) for v in (listed if _is_listed(listed) else [listed])]  # type: ignore[union-attr]
        if _is_listed(listed) and len(values) != batch:
            raise InputError(f"{name} has {len(values)} entries for {batch} samples; give an int or one for each")
        for v in values:
            if not 0 <= v < 2**bits:
                raise InputError(f"{name} is {v}; it must lie in 0 .. 2**{bits} - 1")
        columns.append(values if _is_listed(listed) else values * batch)
    shared = not any(_is_listed(value) or isinstance(value, Tensor) for value in words.values())
    rows = list(zip(*columns, strict=True))
    return on_device(rows[:1] if shared else rows, torch.int64, device).view(-1, 4)


def check_seeds(seeds: Tensor, batch: int) -> None:
    """Refuse anything but an int64 tensor ``[batch]`` of seeds that are not negative."""
    if not isinstance(seeds, Tensor) or seeds.dtype is not torch.int64 or seeds.shape != (batch,):
        raise InputError(f"seeds is {describe(seeds)}; it must be torch.int64 [{batch}], one for each sample")
    if not seeds.is_contiguous():
        raise InputError(f"seeds has strides {seeds.stride()}; pass seeds.contiguous()")
    if can_read(seeds) and seeds.numel() and int(seeds.min()) < 0:
        raise InputError(f"a seed is {int(seeds.min())}; seeds lie in 0 .. 2**63 - 1")


def can_read(tensor: Tensor) -> bool:
    """Whether values of a tensor can be looked at without waiting for a device or breaking a trace."""
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor) and not torch.compiler.is_compiling()


def describe(value: object) -> str:
    """What something is, for an error message: the dtype and shape of a tensor, else its type."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _is_listed(value: object) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes)


def _integer(what: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{what} is {value!r}; it must be an integer in 0 .. 2**63 - 1") from None
