"""A run: one batch being sampled. It owns the buffers; a plan says what every step does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import InputError, NetworkError
from fastdiff.plans.plan import Plan
from fastdiff.rows.dtypes import MEMORY_FORMATS, NETWORK_TYPES, STATE
from fastdiff.runs.accepted import (
    CallerFunction,
    CallerNoise,
    check_noise,
    check_returned,
    checked_calls,
    checked_shape,
    found_device,
    refuse_capture,
)
from fastdiff.runs.launcher import Launcher
from fastdiff.runs.memory import Memory


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


class Progress(NamedTuple):
    """What a callback is shown after a step. Tensors are lent: ``clone()`` what is to be kept.

    Args:
        index: of the evaluation that was just made, 0 for the first.
        evaluations: how many there are.
        sigma: its noise level in data units.
        denoised: the guided D that it gave, ``[B, ...]``, for plans compiled with ``denoised=True``, else None.
        state: x after the step where a buffer holds it, else None; after the last step the sample.
    """

    index: int
    evaluations: int
    sigma: float
    denoised: Tensor | None
    state: Tensor | None


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
        self._differentiable = differentiable
        self._check(memory_format)
        check_noise(plan, noise)
        refuse_capture(self.device)
        self._calls = checked_calls(calls, plan)
        self.memory = Memory(plan, self.shape, seeds, self.device, self.network_dtype, memory_format, given)
        self.launcher = Launcher(plan, self.memory, noise, differentiable)
        self.evaluations = self._evaluations()
        # Of several samples it is one number, expanded, and torch itself refuses to write into that.
        self._told = self.memory.tables.told if self.shape[0] == 1 else None
        self._finished, self.index = False, 0
        self.restart()

    def _check(self, memory_format: torch.memory_format) -> None:
        if memory_format not in (torch.contiguous_format, *MEMORY_FORMATS):
            raise InputError(
                f"memory_format is {memory_format}; use torch.contiguous_format, channels_last or channels_last_3d"
            )
        wanted = MEMORY_FORMATS.get(memory_format, len(self.shape))
        if len(self.shape) != wanted:
            raise InputError(f"memory_format {memory_format} needs {wanted} dimensions; shape is {tuple(self.shape)}")
        if self.network_dtype not in NETWORK_TYPES:
            raise InputError(f"network_dtype is {self.network_dtype}; use float64, float32, bfloat16 or float16")
        if self.network_dtype is torch.float64 and self.state is torch.float32:
            raise InputError("network_dtype is float64 and the plan's state float32; compile it with dtype='float64'")
        if self._differentiable and torch.is_inference_mode_enabled():
            raise InputError(
                "differentiable=True was asked for in inference mode, which records no gradients; leave it"
            )
        if self._differentiable and any(row.gram is not None for row in self.plan.rows):
            raise InputError(
                "differentiable=True was asked for, and the plan has coefficients that depend on the state by a gram, "
                "through which no gradient flows; leave it out, or use a solver and guidance without inner products"
            )

    def _evaluations(self) -> list[Evaluation]:
        """What every evaluation is given: tensors of its own, though of the same memory."""
        rows = [row for row in self.plan.rows if row.network is not None]
        sizes = {row.copies: row.copies * self.shape[0] for row in rows}
        c_noise = {copies: self.memory.tables.c_noise(size) for copies, size in sizes.items()}
        return [
            Evaluation(k, self.memory.z[: sizes[row.copies]], c_noise[row.copies][k], row.sigma, row.branches)
            for k, row in enumerate(rows)
        ]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A run is not copied: two would write into one memory."""
        raise InputError("a Run cannot be copied or pickled; copy its plan, and make another Run of it")

    @property
    def denoised(self) -> Tensor | None:
        """D of the last evaluation that gave one, for plans compiled with ``denoised=True``; borrowed."""
        return self.memory.buffers.get("denoised")

    @property
    def progress(self) -> Progress:
        """How far it has come, one evaluation at least having been made."""
        row = self.plan.rows[self.launcher.row - 1]
        made = None if row.network is None else row.outputs[row.network]
        name = self.plan.result if self.index == len(self.evaluations) else None if made is None else made.store
        state = None if name is None else self.memory.buffers.get(name)
        evaluation = self.evaluations[self.index - 1]
        # A row that stores none leaves an earlier one in the buffer.
        denoised = self.denoised if any(o.store == "denoised" for o in row.outputs) else None
        return Progress(evaluation.index, len(self.evaluations), evaluation.sigma, denoised, state)

    @property
    def fused(self) -> int:
        """How many rows were run by the loop in C++, which makes its launches without torch seeing them."""
        return self.launcher.fused

    # Position --------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Go back to the first evaluation, in the same buffers: one launch, which draws the first noise.

        Raises:
            NetworkError: ``finish()`` gave the buffer of the sample away.
        """
        if self._finished:
            raise NetworkError("restart() needs the buffer that finish() gave away; use finish(copy=True)")
        if self.index:
            # What the network did to tensors that it was lent is not to be met again.
            self.evaluations = self._evaluations()
        self.index, self._version = 0, 0 if self._told is None else self._told._version
        self.launcher.rewind()
        self._advance((), checked=True)

    def __iter__(self) -> Iterator[Evaluation]:
        """The evaluations still to be made, one ``step`` after each."""
        while self.index < len(self.evaluations):
            at = self.index
            evaluation = self.evaluations[at]
            # Gradients are recorded through tensors that are new at every step.
            yield evaluation._replace(z=self.memory.z[: len(evaluation.z)]) if self._differentiable else evaluation
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
        if self._told is not None and self._told._version != self._version:
            raise NetworkError(
                f"the network wrote into c_noise at evaluation {self.index}, which belongs to the run; let it work on "
                "c_noise.clone(), and make a new Run"
            )
        self._advance(outputs)
        self.index += 1

    def _advance(self, outputs: Sequence[Tensor], checked: bool = False) -> None:
        """Run the next row on what the network returned, and those that follow calls of the caller's functions."""
        self.launcher.launch(outputs, checked)
        while (call := self.plan.rows[self.launcher.row - 1].call) is not None:
            name, arguments = call
            held = self.memory.held
            returned = self._calls[name](*(held[argument] for argument in arguments))
            check_returned(f"the call {name!r}", returned, self.shape, self.device, NetworkError)
            self.launcher.launch((returned,), checked=True)

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
            return self.memory.buffers[self.plan.result].clone()
        self._finished = True
        self.launcher.release()
        return self.memory.buffers.pop(self.plan.result)
