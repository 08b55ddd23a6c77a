"""The numbers of a plan in the memory of a device, where its launches and the network read them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.plans.plan import Plan
from fastdiff.rows.dtypes import STATE
from fastdiff.rows.program import Program
from fastdiff.rows.transfer import on_device, staged

Table = tuple[Tensor, Tensor, Program]
"""Of one row: coefficients ``[1, K]``, draws ``[1, N, 4]`` and program."""


class Tables:
    """Three small tensors that hold the numbers of all rows, and views of them row by row.

    Args:
        plan: whose numbers they are at first.
        device: where they live.
        told: dtype in which a network is told c_noise.
    """

    def __init__(self, plan: Plan, device: torch.device, told: torch.dtype) -> None:
        self._types = STATE[plan.dtype], torch.int64, told
        self.tensors = [
            on_device(values, dtype, device) for values, dtype in zip(_values(plan), self._types, strict=True)
        ]
        coefficients, draws, self._c_noise = self.tensors
        programs, used, drawn = zip(*plan.encoded, strict=True)
        split = coefficients[None].split([len(row) for row in used], dim=1)
        parted = draws.view(1, -1, 4).split([len(row) for row in drawn], dim=1)
        self.rows: list[Table] = list(zip(split, parted, programs, strict=True))

    def load(self, plan: Plan) -> None:
        """Put the numbers of a plan of the same structure in their place: every launch from now on reads these."""
        for flat, values, dtype in zip(self.tensors, _values(plan), self._types, strict=True):
            flat.copy_(staged(values, dtype, flat.device), non_blocking=True)

    def c_noise(self, size: int) -> tuple[Tensor, ...]:
        """The noise conditioning ``[size]`` of every evaluation."""
        return self._c_noise[:, None].expand(-1, size).unbind()


def _values(plan: Plan) -> tuple[list[float], list[int], list[float]]:
    """All coefficients, all words of all draws, and c_noise of all evaluations, in the order of the rows."""
    coefficients = [c for _, row, _ in plan.encoded for c in row]
    words = [word for _, _, draws in plan.encoded for draw in draws for word in draw]
    return coefficients, words, [row.c_noise for row in plan.rows if row.network is not None]
