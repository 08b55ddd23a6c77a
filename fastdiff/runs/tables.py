"""The numbers of a plan in the memory of a device, where its launches and the network read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.plans.plan import Plan
from fastdiff.rows.dtypes import STATE
from fastdiff.rows.row import Affine, Row
from fastdiff.rows.transfer import on_device, staged


class Table(NamedTuple):
    """The numbers of one row.

    Args:
        coef: coefficients ``[1, K]``; a row with a gram makes its own, of which these are the constants.
        draws: ``[1, N, 4]``.
        numbers: float64 ``[1, N]`` that the row's gram reads; of no numbers without one.
    """

    coef: Tensor
    draws: Tensor
    numbers: Tensor


class Tables:
    """Four small tensors that hold the numbers of all rows, and views of them row by row.

    Args:
        plan: whose numbers they are at first.
        device: where they live.
        network_dtype: dtype of the network's input; it is told c_noise in float64 if that is, else in float32.
    """

    def __init__(self, plan: Plan, device: torch.device, network_dtype: torch.dtype) -> None:
        conditioning = torch.float64 if network_dtype is torch.float64 else torch.float32
        self._types = STATE[plan.dtype], torch.int64, conditioning, torch.float64
        self.tensors = [
            on_device(values, dtype, device) for values, dtype in zip(_values(plan), self._types, strict=True)
        ]
        coefficients, draws, self._c_noise, numbers = self.tensors
        split = coefficients[None].split([len(row.coefficients) for row in plan.rows], dim=1)
        parted = draws.view(1, -1, 4).split([len(row.draws) for row in plan.rows], dim=1)
        shared = numbers[None].split([len(row.gram_numbers) for row in plan.rows], dim=1)
        self.rows = list(map(Table, split, parted, shared))

    def load(self, plan: Plan) -> None:
        """Put the numbers of a plan of the same structure in their place: every launch from now on reads these."""
        for flat, values, dtype in zip(self.tensors, _values(plan), self._types, strict=True):
            if values:
                flat.copy_(staged(values, dtype, flat.device), non_blocking=True)

    @property
    def told(self) -> Tensor | None:
        """The noise conditioning of all evaluations; None where torch does not count who writes into it."""
        return None if self._c_noise.is_inference() else self._c_noise

    def c_noise(self, size: int) -> tuple[Tensor, ...]:
        """The noise conditioning ``[size]`` of every evaluation."""
        return self._c_noise[:, None].expand(-1, size).unbind()


def _values(plan: Plan) -> tuple[list[float], list[int], list[float], list[float]]:
    """All coefficients, all words of all draws, c_noise of all evaluations, all grams' numbers, row by row."""
    coefficients = [number for row in plan.rows for number in _fixed(row)]
    draws = [draw for row in plan.rows for _, draw in row.draws]
    words = [word for d in draws for word in (d.purpose, d.tensor, d.draw, d.sub_draw)]
    numbers = [number for row in plan.rows for number in row.gram_numbers]
    return coefficients, words, [row.c_noise for row in plan.rows if row.network is not None], numbers


def _fixed(row: Row) -> list[float]:
    return [c.constant if isinstance(c, Affine) else c for c in row.coefficients]
