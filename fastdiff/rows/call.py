"""What the ops are given, each as one value: flat arguments exist only where torch's dispatcher wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastdiff.rows.gram import GramProgram
from fastdiff.rows.program import Program


class Call(NamedTuple):
    """One run of a row.

    Args:
        columns: tensors ``[B, ...]`` of one shape, any floating dtype; widened to the state type on load. None stands
            for a column that a prepared launch is given later.
        coef: ``[1 or B, K]`` in the state type.
        program: the row's structure.
        seeds: int64 ``[B]``; needed when the program draws noise.
        draws: int64 ``[1 or B, N, 4]``: purpose, tensor, draw, sub_draw of each draw.
        present: int64 ``[1 or B]``; bit k clear means that coefficient k's operation is skipped.
        stores: a tensor ``[B, ...]`` or None per output.
        z: network input ``[copies * B, ...]``, or None.
    """

    columns: Sequence[Tensor]
    coef: Tensor
    program: Program
    seeds: Tensor | None = None
    draws: Tensor | None = None
    present: Tensor | None = None
    stores: Sequence[Tensor | None] = ()
    z: Tensor | None = None

    @property
    def written(self) -> list[Tensor]:
        """The tensors that are written."""
        return [tensor for tensor in (*self.stores, self.z) if tensor is not None]


class GramCall(NamedTuple):
    """One run of a row's gram.

    Args:
        columns: tensors ``[B, ...]`` of one shape, any floating dtype; widened to float64.
        numbers: float64 ``[1 or B, N]``: what the program reads, in its order.
        program: the gram's structure.
        scalars: float64 ``[B, S]``, written: sums, then steps.
        seeds: int64 ``[B]``; needed when the program draws noise.
        draws: int64 ``[1 or B, D, 4]``: purpose, tensor, draw, sub_draw of each draw.
        coef: ``[B, K]`` in the state type, written: the coefficients of the row; or None.
    """

    columns: Sequence[Tensor]
    numbers: Tensor
    program: GramProgram
    scalars: Tensor
    seeds: Tensor | None = None
    draws: Tensor | None = None
    coef: Tensor | None = None
