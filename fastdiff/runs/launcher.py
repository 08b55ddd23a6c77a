"""How a run's rows are launched: each by the fastest way that takes what the network returned.

On the CPU a loop in C++ runs them; elsewhere a launch whose tensors are all known is bound beforehand; what neither
takes (another dtype, a caller's noise, gradients that are asked for) goes through the op, which checks everything. All
give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.backends import registry
from fastdiff.backends.registry import use_backend
from fastdiff.ops import schema as ops
from fastdiff.plans.plan import Plan
from fastdiff.rows.call import Call, GramCall
from fastdiff.rows.layout import layout, span
from fastdiff.rows.row import CALLED_PREFIX, NETWORK_PREFIX, NOISE_PREFIX, Row
from fastdiff.runs import loop
from fastdiff.runs.accepted import CallerNoise, drawn_by
from fastdiff.runs.memory import Memory
from fastdiff.runs.network import check_outputs


class Launcher:
    """The launches of a run, one row after the other.

    Args:
        plan: whose rows are launched.
        memory: what they read and write.
        noise: of the caller, for a plan of it.
        differentiable: record gradients: every launch then makes new tensors.

    Raises:
        BackendError: no backend can run this plan on this device.
    """

    def __init__(self, plan: Plan, memory: Memory, noise: CallerNoise | None, differentiable: bool) -> None:
        self._plan, self._memory, self._noise, self._differentiable = plan, memory, noise, differentiable
        z = memory.z
        types = {memory.state, memory.network_dtype, *(tensor.dtype for tensor in memory.given.values())}
        self._backend = registry.choose(z.device.type, list(types), layout(z) or "row-major")
        # Whether all launches work on the same plain tensors, network outputs apart.
        plain = type(z) is Tensor and z.numel() > 0 and not torch.compiler.is_compiling()
        fixed = plain and not differentiable and noise is None
        self._loop: Any = self._bound_loop() if fixed and self._backend.name == "cpu" else None
        self._launches = self._bound_launches() if fixed and self._loop is None else []
        self._own = [span(tensor) for tensor in (z, *memory.buffers.values())] if plain and not differentiable else []
        self.row = 0

    def _bound_loop(self) -> Any:
        """The loop in C++, where it is there."""
        memory = self._memory
        tables = [(memory.coef(k), table.draws) for k, table in enumerate(memory.tables.rows)]
        return loop.bind(self._plan, tables, memory.held, memory.z, memory.seeds, memory.batch)

    def _bound_launches(self) -> list[tuple[registry.Prepared, list[int]]]:
        """The launch of every row, and the branches whose outputs it takes."""
        launches, fresh, memory = [], (), self._memory
        held = memory.held
        for k, (row, table) in enumerate(zip(self._plan.rows, memory.tables.rows, strict=True)):
            columns = [held.get(name) for name in row.columns]
            chosen = [fresh.index(name) for name in row.columns if name not in held]
            stores, z = memory.outputs(row)
            call = Call(columns, memory.coef(k), row.program, memory.seeds, table.draws, None, stores, z)  # type: ignore[arg-type]
            launches.append((self._backend.prepared(call), chosen))
            fresh = fresh_columns(row)
        return launches

    @property
    def fused(self) -> int:
        """How many rows the loop in C++ has run, which makes its launches without torch seeing them."""
        return 0 if self._loop is None else self._loop.index

    def rewind(self) -> None:
        """Go back to the first row."""
        self.row = 0
        if self._loop is not None:
            self._loop.index = 0

    def release(self) -> None:
        """Let go of the memory that launches are bound to."""
        self._launches = []

    def launch(self, outputs: Sequence[Tensor], checked: bool = False) -> None:
        """Run the next row.

        Args:
            outputs: what the network or the caller's function returned since the last row.
            checked: they need no look.

        Raises:
            NetworkError: an output is not what the plan promised; nothing has been written.
        """
        if not self._differentiable and torch.is_grad_enabled():
            # A run samples; gradients are recorded where they are asked for.
            outputs = [o.detach() if isinstance(o, Tensor) and o.requires_grad else o for o in outputs]
        gram = self._memory.grams[self.row]
        if gram is None and self._loop is not None and self._run_loop(outputs):
            self.row += 1
            return
        expected = bool(self._launches) and self._is_expected(outputs)
        if not (checked or expected):
            before = self._plan.rows[self.row - 1]
            z = self._memory.z[: before.copies * self._memory.batch]
            check_outputs(outputs, z, before.branches, self._memory.batch)
        if not expected and self._own:
            # What is in the run's own memory would be read while it is written.
            outputs = [o.clone() if self._is_own(o) else o for o in outputs]
        split = self._split(outputs)
        # Asked for once: a caller's noise may be another one the second time.
        columns = self._columns(split) if gram is not None or not expected else []
        if gram is not None:
            self._make_coefficients(columns, *gram)
        if expected:
            launch, chosen = self._launches[self.row]
            launch([split[branch] for branch in chosen])
        elif gram is None or self._loop is None or not self._loop.step(*outputs):
            self._launch_checked(columns)
        self.row += 1
        if self._loop is not None:
            self._loop.index = self.row

    def _run_loop(self, outputs: Sequence[Tensor]) -> bool:
        """Run the next row in C++; False, and nothing done, where it does not take these outputs."""
        if self.row:
            return self._loop.step(*outputs)
        self._loop.start()
        return True

    def _is_expected(self, outputs: Sequence[Tensor]) -> bool:
        """Whether the outputs are what z is, in memory of their own: then a launch has nothing left to check."""
        fresh, memory = self._fresh(), self._memory
        if not fresh:
            return not outputs
        like = memory.z if self._plan.rows[self.row - 1].network is not None else next(iter(memory.buffers.values()))
        per_output = len(fresh) // max(len(outputs), 1) * memory.batch
        if len(outputs) not in (1, len(fresh)) or torch.compiler.is_compiling():
            return False
        for output in outputs:
            if type(output) is not Tensor or output.layout is not torch.strided or output.is_nested:
                return False
            if output.dtype is not like.dtype:
                return False
            if output.shape[0] != per_output or output.shape[1:] != like.shape[1:] or output.device != like.device:
                return False
            if not output.is_contiguous(memory_format=memory.format):
                return False
            if self._is_own(output):
                return False
        return True

    def _is_own(self, output: Tensor) -> bool:
        """Whether an output may lie in the memory of the run."""
        start, end = span(output)
        return any(start < other_end and other_start < end for other_start, other_end in self._own)

    def _fresh(self) -> tuple[str, ...]:
        """The columns that what happened since the last launch gives to the next row."""
        return fresh_columns(self._plan.rows[self.row - 1]) if self.row else ()

    def _split(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """One tensor for each branch."""
        batch, branches = self._memory.batch, len(self._fresh())
        if len(outputs) == branches:
            return outputs
        return [outputs[0][b * batch : (b + 1) * batch] for b in range(branches)]

    def _columns(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """What the next row reads."""
        row = self._plan.rows[self.row]
        named = self._memory.held | dict(zip(self._fresh(), outputs, strict=True))
        if self._noise is not None:
            names = [name for name in row.columns if name.startswith(NOISE_PREFIX)]
            for j, name in enumerate(names):
                drawn = drawn_by(self._noise, self.row, j, self._memory.shape, self._memory.z.device)
                # The caller may fill one tensor again and again.
                named[name] = drawn.clone() if j + 1 < len(names) else drawn
        return [named[name] for name in row.columns]

    def _make_coefficients(self, columns: list[Tensor], scalars: Tensor, coef: Tensor) -> None:
        """Run the gram of the next row."""
        row, table = self._plan.rows[self.row], self._memory.tables.rows[self.row]
        draws = table.draws if row.draws else None
        assert row.gram_program is not None
        seeds = self._memory.seeds
        self._backend.gram(GramCall(columns, table.numbers, row.gram_program, scalars, seeds, draws, coef))

    def _launch_checked(self, columns: list[Tensor]) -> None:
        """Run the next row by the op, which checks everything."""
        row = self._plan.rows[self.row]
        tables: dict[str, Any] = {"seeds": self._memory.seeds, "draws": self._memory.tables.rows[self.row].draws}
        coef = self._memory.coef(self.row)
        if self._differentiable and columns:
            self._record(row, columns, coef, tables)
            return
        stores, z = self._memory.outputs(row)
        with use_backend(self._backend.name):
            ops.stage(columns, coef, row.program, **tables, stores=stores, z=z)

    def _record(self, row: Row, columns: list[Tensor], coef: Tensor, tables: dict[str, Any]) -> None:
        """Run a row out of place, so that autograd can follow."""
        stored = [i for i, output in enumerate(row.outputs) if output.store is not None]
        z_dtype = self._memory.network_dtype if row.network is not None else None
        made = ops.stage_functional(
            columns, coef, row.program, **tables, outputs=stored, z_dtype=z_dtype, copies=row.copies
        )
        self._memory.buffers |= {str(row.outputs[i].store): tensor for i, tensor in zip(stored, made, strict=False)}
        if row.network is not None:
            self._memory.z = made[-1]


def fresh_columns(row: Row) -> tuple[str, ...]:
    """The columns that what follows a row gives to the next one."""
    if row.call is not None:
        return (CALLED_PREFIX + row.call[0],)
    return tuple(NETWORK_PREFIX + branch for branch in row.branches)
