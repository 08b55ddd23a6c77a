"""The tensors of a run: buffers, network input, and the numbers that its launches read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastdiff.plans.plan import Plan
from fastdiff.rows.dtypes import STATE
from fastdiff.rows.row import Row
from fastdiff.rows.seeds import normalise_seeds
from fastdiff.runs.accepted import checked_given
from fastdiff.runs.tables import Tables


class Memory:
    """All memory that a run's launches read and write, network outputs apart.

    Args:
        plan: whose rows are run.
        shape: ``[B, ...]``.
        seeds: as for ``Run``; int64 ``[B]`` afterwards.
        device: of everything.
        network_dtype: dtype of the network input.
        memory_format: of buffers and network input.
        given: tensors of the caller's by name; they are not copied.

    Raises:
        InputError: seeds or given tensors do not fit.
    """

    def __init__(
        self,
        plan: Plan,
        shape: torch.Size,
        seeds: int | Sequence[int] | Tensor,
        device: torch.device,
        network_dtype: torch.dtype,
        memory_format: torch.memory_format,
        given: Mapping[str, Tensor] | None,
    ) -> None:
        self.shape, self.batch, self.state = shape, shape[0], STATE[plan.dtype]
        self.network_dtype, self.format = network_dtype, memory_format

        def empty(copies: int, dtype: torch.dtype) -> Tensor:
            whole = (copies * shape[0], *shape[1:])
            return torch.empty(whole, dtype=dtype, device=device, memory_format=memory_format)

        self.seeds = normalise_seeds(seeds, self.batch, device)
        if self.seeds is seeds:
            # What the caller does with his tensor later is his affair.
            self.seeds = self.seeds.clone()
        self.tables = Tables(plan, device, network_dtype)
        self.buffers = {name: empty(1, self.state) for name in plan.buffers}
        self.z = empty(max([1, *(row.copies for row in plan.rows)]), network_dtype)
        self.given = checked_given(given, plan, empty(1, self.state) if plan.given else self.z)
        self.grams = [self._gram(row, device) for row in plan.rows]

    def _gram(self, row: Row, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The scalars and coefficients that a row's gram makes; None for a row whose coefficients are fixed."""
        if row.gram_program is None:
            return None
        scalars = torch.empty((self.batch, row.gram_program.scalars), dtype=torch.float64, device=device)
        return scalars, torch.empty((self.batch, len(row.coefficients)), dtype=self.state, device=device)

    @property
    def held(self) -> dict[str, Tensor]:
        """What rows and calls can read by name: buffers, and what is given."""
        return self.buffers | self.given

    @property
    def tensors(self) -> list[Tensor]:
        """All of it."""
        made = [tensor for gram in self.grams if gram is not None for tensor in gram]
        tables = [tensor for tensor in self.tables.tensors if tensor.numel()]
        return [self.seeds, self.z, *self.buffers.values(), *self.given.values(), *made, *tables]

    def coef(self, k: int) -> Tensor:
        """The coefficients of row k, ``[1 or B, K]``."""
        gram = self.grams[k]
        return self.tables.rows[k].coef if gram is None else gram[1]

    def outputs(self, row: Row) -> tuple[list[Tensor | None], Tensor | None]:
        """Where a row stores its outputs, and its network input."""
        stores = [None if o.store is None else self.buffers[o.store] for o in row.outputs]
        return stores, None if row.network is None else self.z[: row.copies * self.batch]
