"""Steps: the rows of a plan on the caller's tensors, without buffers, position or loop.

Whoever owns the loop, as the scheduler of another library does, holds the tensors himself:

    steps = Steps(plan)                                    # compiled with visible=True
    made = steps(k + 1, held | {"F_cond": output, x: sample}, seeds=seeds, z=True)
    held = steps.alive(k + 1, held | made)

A ``Run`` is the same with buffers of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastdiff.backends import registry
from fastdiff.errors import InputError
from fastdiff.plans.plan import Plan
from fastdiff.rows.call import Call, GramCall
from fastdiff.rows.checks import check_gram, check_stage
from fastdiff.rows.dtypes import STATE, memory_format_of
from fastdiff.rows.row import CALLED_PREFIX, NETWORK_PREFIX, Row
from fastdiff.rows.seeds import normalise_seeds
from fastdiff.runs.network import version_of
from fastdiff.runs.tables import Tables

Z = "z"
"""What the network input is called among the tensors that a step makes."""


class Steps:
    """The rows of a plan, to be run on tensors of the caller's in any order. Threads may share it.

    Args:
        plan: what to compute; ``visible=True`` keeps every state in a tensor of its own.
        device: where the tensors are.
        network_dtype: dtype of network inputs; the state type if None.
    """

    def __init__(
        self, plan: Plan, *, device: torch.device | str = "cpu", network_dtype: torch.dtype | None = None
    ) -> None:
        self.plan, self.device, self.state = plan, torch.device(device), STATE[plan.dtype]
        self.network_dtype = network_dtype or self.state
        self.tables = Tables(plan, self.device, self.network_dtype)
        self._read_later = _read_later(plan.rows)
        # What was checked once needs no second look: the same row on tensors that look the same, into fresh memory.
        self._known: dict[tuple, registry.Backend] = {}
        self._seeds: tuple[Tensor, int, int] | None = None

    def __call__(
        self,
        k: int,
        columns: Mapping[str, Tensor],
        *,
        seeds: int | Sequence[int] | Tensor | None = None,
        shape: Sequence[int] | None = None,
        z: bool = False,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Run row k.

        Args:
            k: its number; row 0 makes the first state, and row k comes after network evaluation k - 1.
            columns: tensors ``[B, ...]`` by the names that the row reads; others are not looked at.
            seeds: as for ``Run``; needed where the row draws noise.
            shape: ``[B, ...]``, for a row that reads nothing.
            z: make the network input too, ``[copies * B, ...]``, in the same launch.
            dtype: of the tensors made; the state type if None.

        Returns:
            Fresh tensors by the names of the buffers that the row stores, and the network input as ``"z"``.

        Raises:
            InputError: a column is missing or does not fit; names the row and the tensor.
        """
        row, table = self._row(k), self.tables.rows[k]
        reads = self._reads(k, row, columns)
        like = reads[0] if reads else self._first(k, shape)
        keys = None if seeds is None or not row.draws else self._keys(seeds, like.shape[0])
        made = {o.store: torch.empty_like(like, dtype=dtype or self.state) for o in row.outputs if o.store}
        if z:
            made[Z] = self._network_input(k, row, like)
        stores = [made.get(o.store) if o.store else None for o in row.outputs]
        coef, draws = table.coef, table.draws if row.draws else None
        if row.gram_program is not None:
            coef = like.new_empty((like.shape[0], table.coef.shape[1]), dtype=self.state)
            scalars = like.new_empty((like.shape[0], row.gram_program.scalars), dtype=torch.float64)
            gram = GramCall(reads, table.numbers, row.gram_program, scalars, keys, draws, coef)
            self._backend(k, gram, reads).gram(gram)
        call = Call(reads, coef, row.program, keys, draws, None, stores, made.get(Z))
        self._backend(k, call, reads).stage(call)
        return made

    def alive(self, k: int, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the tensors that rows after k still read."""
        return {name: tensor for name, tensor in columns.items() if name in self._read_later[k]}

    def _keys(self, seeds: int | Sequence[int] | Tensor, batch: int) -> Tensor:
        """The seeds as a tensor; one that was looked at and has not been written to since needs no second look."""
        if not isinstance(seeds, Tensor):
            return normalise_seeds(seeds, batch, self.device)
        looked_at = (seeds, version_of(seeds), batch)
        before = self._seeds
        if before is None or before[0] is not seeds or before[1:] != looked_at[1:]:
            keys = normalise_seeds(seeds, batch, self.device)
            if keys is not seeds or seeds.is_inference():
                return keys
            self._seeds = looked_at
        return seeds

    def _row(self, k: int) -> Row:
        if not 0 <= k < len(self.plan.rows):
            raise InputError(f"there is no row {k}; the plan has rows 0 .. {len(self.plan.rows) - 1}")
        return self.plan.rows[k]

    def _reads(self, k: int, row: Row, columns: Mapping[str, Tensor]) -> list[Tensor]:
        try:
            return [columns[name] for name in row.columns]
        except KeyError as error:
            raise InputError(
                f"row {k} reads {error.args[0]!r}, which was not given; it reads {list(row.columns)} and was given "
                f"{sorted(columns)}"
            ) from None

    def _first(self, k: int, shape: Sequence[int] | None) -> Tensor:
        if shape is None:
            raise InputError(f"row {k} reads no tensor to take its shape from; pass shape=(B, ...)")
        return torch.empty(tuple(shape), dtype=self.state, device=self.device)

    def _network_input(self, k: int, row: Row, like: Tensor) -> Tensor:
        if row.network is None:
            raise InputError(f"row {k} makes no network input; leave z out")
        shape = (row.copies * like.shape[0], *like.shape[1:])
        return torch.empty(shape, dtype=self.network_dtype, device=like.device, memory_format=memory_format_of(like))

    def _backend(self, k: int, call: Call | GramCall, reads: list[Tensor]) -> registry.Backend:
        """The backend for a call; the call is checked unless one that looks the same was."""
        looks = tuple((t.dtype, t.shape, t.stride(), t.device, type(t)) for t in reads)
        written = (call.z is not None, tuple(t.dtype for t in call.written)) if isinstance(call, Call) else None
        key = (
            k,
            written,
            looks,
            call.seeds is None,
            registry.forced_backend(),
            torch.is_grad_enabled() and any(tensor.requires_grad for tensor in reads),
        )
        if key not in self._known:
            try:
                layout = check_stage(call) if isinstance(call, Call) else check_gram(call)
            except InputError as error:
                names = ", ".join(f"column {i} is {name!r}" for i, name in enumerate(self.plan.rows[k].columns))
                raise InputError(f"row {k}: {error} ({names})") from None
            dtypes = [self.state, *(tensor.dtype for tensor in reads)]
            dtypes += [tensor.dtype for tensor in call.written] if isinstance(call, Call) else []
            self._known[key] = registry.choose(self.device.type, dtypes, layout)
        return self._known[key]


def _read_later(rows: Sequence[Row]) -> list[set[str]]:
    """For every row the names that later ones read, but for what only the next one can be given."""
    fleeting = (NETWORK_PREFIX, CALLED_PREFIX)
    later: set[str] = set()
    found = []
    for row in reversed(rows):
        found.append(set(later))
        later |= {name for name in row.columns if not name.startswith(fleeting)}
    return found[::-1]
