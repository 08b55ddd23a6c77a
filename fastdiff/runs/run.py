"""A run: one batch being sampled. It owns the buffers; a plan says what every step does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.backends import registry
from fastdiff.backends.registry import use_backend
from fastdiff.errors import InputError, NetworkError
from fastdiff.ops import schema as ops
from fastdiff.plans.plan import Plan
from fastdiff.rows.call import Call, GramCall
from fastdiff.rows.dtypes import MEMORY_FORMATS, NETWORK_TYPES, STATE
from fastdiff.rows.layout import layout, span
from fastdiff.rows.row import CALLED_PREFIX, NETWORK_PREFIX, NOISE_PREFIX, Row
from fastdiff.rows.seeds import normalise_seeds
from fastdiff.runs import loop
from fastdiff.runs.accepted import (
    CallerFunction,
    CallerNoise,
    check_noise,
    checked_calls,
    checked_given,
    checked_shape,
    found_device,
    refuse_capture,
)
from fastdiff.runs.network import check_called, check_outputs
from fastdiff.runs.tables import Tables


class Evaluation(NamedTuple):
    """What one network evaluation is given.

    Args:
        index: 0 for the first.
        z: network input, ``[copies * B, ...]``, already scaled by c_in; valid until the next step.
        c_noise: noise conditioning, ``[copies * B]``.
        sigma: noise level in data units.
        branches: names of the branches stacked in z, or to be called one after the other on it.
    """

    index: int
    z: Tensor
    c_noise: Tensor
    sigma: float
    branches: tuple[str, ...]


class Run:
    """One batch being sampled: buffers, seeds and the position in the plan. Not for use from two threads.

        run = Run(plan, shape, seeds)
        for evaluation in run:
            run.step(net(evaluation.z, evaluation.c_noise))
        sample = run.finish()

    Args:
        plan: what to compute.
        shape: ``[B, ...]``.
        seeds: an int s (sample i draws with s + i), a sequence of B ints, or an int64 tensor ``[B]``.
        device: where the buffers live.
        network_dtype: dtype of z; the state type if None.
        memory_format: contiguous, channels_last or channels_last_3d; network outputs must have the same.
        noise: with a plan of caller's noise, a function of (row, draw) that returns a tensor of this shape.
        given: tensors that the plan asks for by name, ``[B, ...]``; they are read at every step, and not kept.
        calls: functions that the plan calls by name, on tensors ``[B, ...]`` that they may read until they return.
        differentiable: record gradients through every step; buffers are then new tensors each time.

    Raises:
        InputError: an argument does not fit, or the device's stream is being captured; says what is allowed.
        BackendError: no backend can run this plan on this device.
    """

    def __init__(
        self,
        plan: Plan,
        shape: Sequence[int],
        seeds: int | Sequence[int] | Tensor,
        *,
        device: torch.device | str = "cpu",
        network_dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        noise: CallerNoise | None = None,
        given: Mapping[str, Tensor] | None = None,
        calls: Mapping[str, CallerFunction] | None = None,
        differentiable: bool = False,
    ) -> None:
        self.plan, self.shape = plan, checked_shape(shape)
        self.device, self.state = found_device(device), STATE[plan.dtype]
        self.network_dtype = network_dtype or self.state
        self._noise, self._format, self._differentiable = noise, memory_format, differentiable
        self._check()
        self._calls = checked_calls(calls, plan)
        self.seeds = normalise_seeds(seeds, self.shape[0], self.device)
        self.tables = Tables(plan, self.device, self.network_dtype)
        self._buffers = {name: self._empty(1, self.state) for name in plan.buffers}
        self._z = self._empty(max([1, *(row.copies for row in plan.rows)]), self.network_dtype)
        self._given = checked_given(given, plan, self._empty(1, self.state) if plan.given else self._z)
        kind = layout(self._z) or "row-major"
        types = {self.state, self.network_dtype, *(tensor.dtype for tensor in self._given.values())}
        self._backend = registry.choose(self.device.type, list(types), kind)
        self._grams = [self._bound_gram(row) for row in plan.rows]
        self.evaluations = self._evaluations()
        self._finished = False
        self._loop = self._bind()
        self._launches = self._bound_launches() if self._loop is None else []
        self._own = [span(tensor) for tensor in (self._z, *self._buffers.values())] if self._launches else []
        self.restart()

    def _check(self) -> None:
        wanted = MEMORY_FORMATS.get(self._format, len(self.shape))
        if len(self.shape) != wanted:
            raise InputError(f"memory_format {self._format} needs {wanted} dimensions; shape is {tuple(self.shape)}")
        if self.network_dtype not in NETWORK_TYPES:
            raise InputError(f"network_dtype is {self.network_dtype}; use float64, float32, bfloat16 or float16")
        if self.network_dtype is torch.float64 and self.state is torch.float32:
            raise InputError("network_dtype is float64 and the plan's state float32; compile it with dtype='float64'")
        if self._differentiable and any(row.gram is not None for row in self.plan.rows):
            raise InputError(
                "differentiable=True was asked for, and the plan has coefficients that depend on the state by a gram, "
                "through which no gradient flows; leave it out, or use a solver and guidance without inner products"
            )
        check_noise(self.plan, self._noise)
        refuse_capture(self.device)

    # Memory ----------------------------------------------------------------------------------------------------

    def _empty(self, copies: int, dtype: torch.dtype) -> Tensor:
        shape = (copies * self.shape[0], *self.shape[1:])
        return torch.empty(shape, dtype=dtype, device=self.device, memory_format=self._format)

    def _bound_gram(self, row: Row) -> tuple[Tensor, Tensor] | None:
        """The scalars and coefficients that a row's gram makes; None for a row whose coefficients are fixed."""
        if row.gram_program is None:
            return None
        self._backend.make_gram  # noqa: B018  (a backend that makes none is refused before anything runs)
        scalars = torch.empty((self.shape[0], row.gram_program.scalars), dtype=torch.float64, device=self.device)
        coef = torch.empty((self.shape[0], len(row.coefficients)), dtype=self.state, device=self.device)
        return scalars, coef

    def _coef(self, k: int) -> Tensor:
        gram = self._grams[k]
        return self.tables.rows[k].coef if gram is None else gram[1]

    def _evaluations(self) -> list[Evaluation]:
        rows = [row for row in self.plan.rows if row.network is not None]
        sizes = {row.copies: row.copies * self.shape[0] for row in rows}
        z = {copies: self._z[:size] for copies, size in sizes.items()}
        c_noise = {copies: self.tables.c_noise(size) for copies, size in sizes.items()}
        return [
            Evaluation(k, z[row.copies], c_noise[row.copies][k], row.sigma, row.branches) for k, row in enumerate(rows)
        ]

    def _outputs(self, row: Row) -> tuple[list[Tensor | None], Tensor | None]:
        """Where a row stores its outputs, and its network input."""
        stores = [None if o.store is None else self._buffers[o.store] for o in row.outputs]
        return stores, None if row.network is None else self._z[: row.copies * self.shape[0]]

    @property
    def tensors(self) -> list[Tensor]:
        """All memory that the launches read and write, network outputs apart."""
        made = [tensor for gram in self._grams if gram is not None for tensor in gram]
        tables = [tensor for tensor in self.tables.tensors if tensor.numel()]
        return [self.seeds, self._z, *self._buffers.values(), *self._given.values(), *made, *tables]

    @property
    def denoised(self) -> Tensor | None:
        """D of the last evaluation that gave one, for plans compiled with ``denoised=True``; borrowed."""
        return self._buffers.get("denoised")

    @property
    def fused(self) -> int:
        """How many rows were run by the loop in C++, which makes its launches without torch seeing them."""
        return 0 if self._loop is None else self._loop.index

    # Launches bound beforehand ---------------------------------------------------------------------------------

    def _keeps_tensors(self) -> bool:
        """Whether all steps work on the same plain tensors, network outputs apart."""
        plain = type(self._z) is Tensor and self._z.numel() > 0 and not torch.compiler.is_compiling()
        return plain and not self._differentiable and self._noise is None

    def _bind(self) -> Any:
        """The loop in C++, where it serves this run."""
        if self._backend.name != "cpu" or not self._keeps_tensors():
            return None
        tables = [(self._coef(k), table.draws) for k, table in enumerate(self.tables.rows)]
        held = self._buffers | self._given
        return loop.bind(self.plan, tables, held, self._z, self.seeds, self.shape[0])

    def _bound_launches(self) -> list[tuple[registry.Prepared, list[int]]]:
        """The launch of every row, and the branches whose outputs it takes; none where each step makes new tensors."""
        if not self._keeps_tensors():
            return []
        launches, fresh = [], ()
        held = self._buffers | self._given
        for k, (row, table) in enumerate(zip(self.plan.rows, self.tables.rows, strict=True)):
            columns = [held.get(name) for name in row.columns]
            chosen = [fresh.index(name) for name in row.columns if name not in held]
            stores, z = self._outputs(row)
            call = Call(columns, self._coef(k), row.program, self.seeds, table.draws, None, stores, z)  # type: ignore[arg-type]
            launches.append((self._backend.prepared(call), chosen))
            fresh = _fresh(row)
        return launches

    # Position --------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Go back to the first evaluation, in the same buffers: one launch, which draws the first noise.

        Raises:
            NetworkError: ``finish()`` gave the buffer of the sample away.
        """
        if self._finished:
            raise NetworkError("restart() needs the buffer that finish() gave away; use finish(copy=True)")
        self.index, self._next = 0, 0
        if self._loop is not None:
            self._loop.index = 0
        self._advance((), checked=True)

    def __iter__(self) -> Iterator[Evaluation]:
        """The evaluations still to be made, one ``step`` after each."""
        while self.index < len(self.evaluations):
            at = self.index
            yield self.evaluations[at]._replace(z=self._z) if self._differentiable else self.evaluations[at]
            if self.index == at:
                raise NetworkError(f"evaluation {at} was not followed by step(); call step(F) once in every turn")

    def __len__(self) -> int:
        return len(self.evaluations)

    def step(self, *outputs: Tensor) -> None:
        """Take the network outputs of the current evaluation and make the next network input: one launch.

        Args:
            outputs: the branches stacked in one tensor, or one tensor ``[B, ...]`` for each, in z's layout. They are
                read now and not kept.

        Raises:
            NetworkError: an output is not a tensor of the promised shape, dtype, device and layout. Nothing has
                been written: the step can be repeated.
        """
        if self.index >= len(self.evaluations):
            raise NetworkError(f"all {len(self.evaluations)} evaluations were made; call finish()")
        self._advance(outputs)
        self.index += 1

    def _advance(self, outputs: Sequence[Tensor], checked: bool = False) -> None:
        """Run the next row on what the network returned, and those that follow calls of the caller's functions."""
        self._launch(outputs, checked)
        while (call := self.plan.rows[self._next - 1].call) is not None:
            name, arguments = call
            held = self._buffers | self._given
            returned = self._calls[name](*(held[argument] for argument in arguments))
            check_called(name, returned, self._z[: self.shape[0]])
            self._launch((returned,), checked=True)

    def _launch(self, outputs: Sequence[Tensor], checked: bool = False) -> None:
        """Run the next row, by the fastest way that takes these outputs."""
        gram = self._grams[self._next]
        if gram is None and self._loop is not None and not _record_gradients(outputs) and self._run_loop(outputs):
            self._next += 1
            return
        expected = bool(self._launches) and self._is_expected(outputs)
        if not (checked or expected):
            evaluation = self.evaluations[self.index]
            check_outputs(outputs, evaluation.z, evaluation.branches, self.shape[0])
        split = self._split(outputs)
        if gram is not None:
            self._make_coefficients(split, *gram)
        if expected:
            launch, chosen = self._launches[self._next]
            launch([split[branch] for branch in chosen])
        elif gram is None or self._loop is None or _record_gradients(outputs) or not self._loop.step(*outputs):
            self._launch_checked(split)
        self._next += 1
        if self._loop is not None:
            self._loop.index = self._next

    def _run_loop(self, outputs: Sequence[Tensor]) -> bool:
        """Run the next row in C++; False, and nothing done, where it does not take these outputs."""
        if self._next:
            return self._loop.step(*outputs)
        self._loop.start()
        return True

    def _is_expected(self, outputs: Sequence[Tensor]) -> bool:
        """Whether the outputs are what z is, in memory of their own: then a launch has nothing left to check."""
        fresh = self._fresh()
        if not fresh:
            return not outputs
        like = self._z if self.plan.rows[self._next - 1].network is not None else next(iter(self._buffers.values()))
        per_output = len(fresh) // max(len(outputs), 1) * self.shape[0]
        if len(outputs) not in (1, len(fresh)) or torch.compiler.is_compiling() or _record_gradients(outputs):
            return False
        for output in outputs:
            if type(output) is not Tensor or output.layout is not torch.strided or output.dtype is not like.dtype:
                return False
            if output.shape[0] != per_output or output.shape[1:] != like.shape[1:] or output.device != like.device:
                return False
            if not output.is_contiguous(memory_format=self._format):
                return False
            start, end = span(output)
            if any(start < other_end and other_start < end for other_start, other_end in self._own):
                return False
        return True

    def _fresh(self) -> tuple[str, ...]:
        """The columns that what happened since the last launch gives to the next row."""
        return _fresh(self.plan.rows[self._next - 1]) if self._next else ()

    def _split(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """One tensor for each branch."""
        batch, branches = self.shape[0], len(self._fresh())
        if len(outputs) == branches:
            return outputs
        return [outputs[0][b * batch : (b + 1) * batch] for b in range(branches)]

    def _columns(self, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the next row can read."""
        named = self._buffers | self._given | dict(zip(self._fresh(), outputs, strict=True))
        if self._noise is not None:
            row = self.plan.rows[self._next]
            names = (name for name in row.columns if name.startswith(NOISE_PREFIX))
            named |= {name: self._noise(self._next, j) for j, name in enumerate(names)}
        return named

    def _make_coefficients(self, outputs: Sequence[Tensor], scalars: Tensor, coef: Tensor) -> None:
        """Run the gram of the next row."""
        row, table = self.plan.rows[self._next], self.tables.rows[self._next]
        named = self._columns(outputs)
        columns, draws = [named[name] for name in row.columns], table.draws if row.draws else None
        assert row.gram_program is not None
        self._backend.make_gram(GramCall(columns, table.numbers, row.gram_program, scalars, self.seeds, draws, coef))

    def _launch_checked(self, outputs: Sequence[Tensor]) -> None:
        """Run the next row by the op, which checks everything."""
        row, table = self.plan.rows[self._next], self.tables.rows[self._next]
        named = self._columns(outputs)
        columns = [named[name] for name in row.columns]
        if self._differentiable and columns:
            self._record(row, columns, self._next)
            return
        stores, z = self._outputs(row)
        tables = {"seeds": self.seeds, "draws": table.draws}
        with use_backend(self._backend.name):
            ops.stage(columns, self._coef(self._next), row.program, **tables, stores=stores, z=z)

    def _record(self, row: Row, columns: list[Tensor], k: int) -> None:
        """Run a row out of place, so that autograd can follow."""
        stored = [i for i, output in enumerate(row.outputs) if output.store is not None]
        made = ops.stage_functional(
            columns,
            self._coef(k),
            row.program,
            seeds=self.seeds,
            draws=self.tables.rows[k].draws,
            outputs=stored,
            z_dtype=self.network_dtype if row.network is not None else None,
            copies=row.copies,
        )
        self._buffers |= {str(row.outputs[i].store): tensor for i, tensor in zip(stored, made, strict=False)}
        if row.network is not None:
            self._z = made[-1]

    def finish(self, *, copy: bool = False) -> Tensor:
        """The sample, ``[B, ...]`` in the state type.

        Args:
            copy: return a copy, so that the run can ``restart``. Otherwise the run gives its buffer away and cannot
                be used again.

        Raises:
            NetworkError: evaluations are still to be made, or the sample was given away already.
        """
        left = len(self.evaluations) - self.index
        if left or self._finished:
            what = f"{left} network evaluations are still to be made" if left else "the sample was taken already"
            raise NetworkError(f"finish() was called too early or twice: {what}")
        if copy:
            return self._buffers[self.plan.result].clone()
        self._finished, self._launches = True, []
        return self._buffers.pop(self.plan.result)


def _fresh(row: Row) -> tuple[str, ...]:
    """The columns that what follows a row gives to the next one."""
    if row.call is not None:
        return (CALLED_PREFIX + row.call[0],)
    return tuple(NETWORK_PREFIX + branch for branch in row.branches)


def _record_gradients(outputs: Sequence[Tensor]) -> bool:
    """Whether autograd would follow these; the loop in C++ cannot, and the op refuses with advice."""
    return torch.is_grad_enabled() and any(getattr(output, "requires_grad", False) for output in outputs)
