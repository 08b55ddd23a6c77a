"""A run: one batch being sampled. It owns the buffers; a plan says what every step does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.backends import registry
from fastdiff.backends.registry import use_backend
from fastdiff.errors import BackendError, InputError, NetworkError
from fastdiff.plans.plan import Plan
from fastdiff.rows.call import Call
from fastdiff.rows.dtypes import MEMORY_FORMATS, NETWORK_TYPES, STATE
from fastdiff.rows.layout import layout
from fastdiff.rows.row import NETWORK_PREFIX, NOISE_PREFIX, Row
from fastdiff.rows.seeds import normalise_seeds
from fastdiff.runs import loop as hostloop
from fastdiff.runs.network import check_outputs
from fastdiff.runs.tables import Table, Tables

CallerNoise = Callable[[int, int], Tensor]


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
        differentiable: bool = False,
    ) -> None:
        self.plan, self.shape = plan, checked_shape(shape)
        self.device, self.state = found_device(device), STATE[plan.dtype]
        self.network_dtype = network_dtype or self.state
        self._noise, self._format, self._differentiable = noise, memory_format, differentiable
        self._check()
        self.seeds = normalise_seeds(seeds, self.shape[0], self.device)
        told = torch.float64 if self.network_dtype is torch.float64 else torch.float32
        self.tables = Tables(plan, self.device, told)
        self._buffers = {name: self._empty(1, self.state) for name in plan.buffers}
        self._z = self._empty(max(row.copies for row in plan.rows), self.network_dtype)
        kind = layout(self._z) or "row-major"
        self._backend = registry.choose(self.device.type, [self.state, self.network_dtype], kind)
        self.evaluations = self._evaluations()
        self._finished = False
        self._loop = self._bind()
        self._launches = self._bound_launches() if self._loop is None else []
        self._own = [_span(tensor) for tensor in (self._z, *self._buffers.values())] if self._launches else []
        self.restart()

    def _check(self) -> None:
        wanted = MEMORY_FORMATS.get(self._format, len(self.shape))
        if len(self.shape) != wanted:
            raise InputError(f"memory_format {self._format} needs {wanted} dimensions; shape is {tuple(self.shape)}")
        if self.network_dtype not in NETWORK_TYPES:
            raise InputError(f"network_dtype is {self.network_dtype}; use float64, float32, bfloat16 or float16")
        if self.network_dtype is torch.float64 and self.state is torch.float32:
            raise InputError("network_dtype is float64 and the plan's state float32; compile it with dtype='float64'")
        check_noise(self.plan, self._noise)
        refuse_capture(self.device)

    def _bind(self) -> Any:
        """The C++ loop, where it serves this run."""
        if self._backend.name != "cpu" or not self._keeps_tensors():
            return None
        return hostloop.bind(self.plan, self.tables.rows, self._buffers, self._z, self.seeds, self.shape[0])

    def _keeps_tensors(self) -> bool:
        """Whether all steps work on the same plain tensors, network outputs apart."""
        plain = type(self._z) is Tensor and self._z.numel() > 0 and not torch.compiler.is_compiling()
        return plain and not self._differentiable and self._noise is None

    def _empty(self, copies: int, dtype: torch.dtype) -> Tensor:
        shape = (copies * self.shape[0], *self.shape[1:])
        return torch.empty(shape, dtype=dtype, device=self.device, memory_format=self._format)

    def _evaluations(self) -> list[Evaluation]:
        rows = self.plan.rows[:-1]
        sizes = {row.copies: row.copies * self.shape[0] for row in rows}
        z = {copies: self._z[:size] for copies, size in sizes.items()}
        c_noise = {copies: self.tables.c_noise(size) for copies, size in sizes.items()}
        return [
            Evaluation(k, z[row.copies], c_noise[row.copies][k], row.sigma, row.branches) for k, row in enumerate(rows)
        ]

    def _bound_launches(self) -> list[tuple[registry.Prepared, list[int]]]:
        """The launch of every row, and the branches whose outputs it takes; none where each step makes new tensors."""
        if not self._keeps_tensors():
            return []
        launches, branches = [], ()
        for row, (coef, draws, program) in zip(self.plan.rows, self.tables.rows, strict=True):
            columns = [self._buffers.get(name) for name in row.columns]
            network = [name for name, column in zip(row.columns, columns, strict=True) if column is None]
            chosen = [branches.index(name.removeprefix(NETWORK_PREFIX)) for name in network]
            stores, z = self._outputs(row)
            call = Call(columns, coef, program, self.seeds, draws, None, stores, z)
            launch = self._backend.prepared(call)
            launches.append((launch, chosen))
            branches = row.branches
        return launches

    def _outputs(self, row: Row) -> tuple[list[Tensor | None], Tensor | None]:
        """Where a row stores its outputs, and its network input."""
        stores = [None if o.store is None else self._buffers[o.store] for o in row.outputs]
        return stores, None if row.network is None else self._z[: row.copies * self.shape[0]]

    def restart(self) -> None:
        """Go back to the first evaluation, in the same buffers: one launch, which draws the first noise.

        Raises:
            NetworkError: ``finish()`` gave the buffer of the sample away.
        """
        if self._finished:
            raise NetworkError("restart() needs the buffer that finish() gave away; use finish(copy=True)")
        self.index = -1
        if self._loop is not None:
            self._loop.start()
            self.index = 0
        elif self._launches:
            self._launch_bound(())
        else:
            self._launch(())

    def __iter__(self) -> Iterator[Evaluation]:
        """The evaluations still to be made, one ``step`` after each."""
        while self.index < len(self.evaluations):
            at = self.index
            yield self.evaluations[at]._replace(z=self._z) if self._differentiable else self.evaluations[at]
            if self.index == at:
                raise NetworkError(f"evaluation {at} was not followed by step(); call step(F) once in every turn")

    def __len__(self) -> int:
        return len(self.evaluations)

    @property
    def tensors(self) -> list[Tensor]:
        """All memory that the launches read and write, network outputs apart."""
        return [self.seeds, self._z, *self._buffers.values(), *self.tables.tensors]

    @property
    def denoised(self) -> Tensor | None:
        """D of the last evaluation that gave one, for plans compiled with ``denoised=True``; borrowed."""
        return self._buffers.get("denoised")

    def step(self, *outputs: Tensor) -> None:
        """Take the network outputs of the current evaluation and make the next network input: one launch.

        Args:
            outputs: the branches stacked in one tensor, or one tensor ``[B, ...]`` for each, in z's layout. They are
                read now and not kept.

        Raises:
            NetworkError: an output is not a tensor of the promised shape, dtype, device and layout. Nothing has
                been written: the step can be repeated.
        """
        if self._loop is not None and not _record_gradients(outputs) and self._loop.step(*outputs):
            self.index += 1
            return
        if self.index >= len(self.evaluations):
            raise NetworkError(f"all {len(self.evaluations)} evaluations were made; call finish()")
        evaluation = self.evaluations[self.index]
        if self._launches and self._is_expected(outputs, evaluation):
            self._launch_bound(self._split(outputs, evaluation))
            return
        check_outputs(outputs, evaluation.z, evaluation.branches, self.shape[0])
        self._launch(self._split(outputs, evaluation))

    def _is_expected(self, outputs: Sequence[Tensor], evaluation: Evaluation) -> bool:
        """Whether the outputs are what z is, in memory of their own: then a launch has nothing left to check."""
        z = evaluation.z
        if len(outputs) * (len(z) // self.shape[0]) != len(evaluation.branches):
            return False
        if torch.compiler.is_compiling() or _record_gradients(outputs):
            return False
        for output in outputs:
            if type(output) is not Tensor or output.layout is not torch.strided or output.dtype is not z.dtype:
                return False
            if output.shape != z.shape or output.device != z.device:
                return False
            if not output.is_contiguous(memory_format=self._format):
                return False
            start, end = _span(output)
            if any(start < other_end and other_start < end for other_start, other_end in self._own):
                return False
        return True

    def _split(self, outputs: Sequence[Tensor], evaluation: Evaluation) -> Sequence[Tensor]:
        """One tensor for each branch."""
        batch, branches = self.shape[0], len(evaluation.branches)
        if len(outputs) == branches:
            return outputs
        return [outputs[0][b * batch : (b + 1) * batch] for b in range(branches)]

    def _launch_bound(self, outputs: Sequence[Tensor]) -> None:
        """Run the next row on network outputs that are as expected: nothing is left to check."""
        launch, branches = self._launches[self.index + 1]
        launch([outputs[branch] for branch in branches])
        self.index += 1

    def _launch(self, outputs: Sequence[Tensor]) -> None:
        """Run the next row on these network outputs, one for each branch of the evaluation just made; check all."""
        at = self.index + 1
        row, (coef, draws, program) = self.plan.rows[at], self.tables.rows[at]
        named = dict(self._buffers)
        if outputs:
            named |= {f"{NETWORK_PREFIX}{b}": f for b, f in zip(self.plan.rows[at - 1].branches, outputs, strict=True)}
        if self._noise is not None:
            names = (name for name in row.columns if name.startswith(NOISE_PREFIX))
            named |= {name: self._noise(at, j) for j, name in enumerate(names)}
        columns = [named[name] for name in row.columns]
        if self._differentiable and columns:
            self._record(row, columns, self.tables.rows[at])
        else:
            stores, z = self._outputs(row)
            with use_backend(self._backend.name):
                ops.stage(columns, coef, program, seeds=self.seeds, draws=draws, stores=stores, z=z)
        self.index = at
        if self._loop is not None:
            self._loop.index = at + 1

    def _record(self, row: Row, columns: list[Tensor], table: Table) -> None:
        """Run a row out of place, so that autograd can follow."""
        coef, draws, program = table
        stored = [i for i, output in enumerate(row.outputs) if output.store is not None]
        made = ops.stage_functional(
            columns,
            coef,
            program,
            seeds=self.seeds,
            draws=draws,
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


def checked_shape(shape: Sequence[int]) -> torch.Size:
    """The shape of a batch; raises ``InputError`` unless it is one."""
    if len(shape) == 0 or min(shape) < 0:
        raise InputError(f"shape is {tuple(shape)}; it must be [batch, ...] without negative sizes")
    return torch.Size(shape)


def check_noise(plan: Plan, noise: CallerNoise | None) -> None:
    """Raises ``InputError`` unless a caller's noise is given for a plan of it, and for no other."""
    if plan.caller_noise != (noise is not None):
        given = "was given" if noise is not None else "is missing"
        made = "'caller'" if plan.caller_noise else "'counter'"
        raise InputError(f"noise {given}, and the plan was compiled with noise={made}; the two go together")


def refuse_capture(device: torch.device) -> None:
    """Raises ``InputError`` while the device's current stream is being captured."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            raise InputError(
                "the current stream is being captured, and to set up a sampling numbers are copied to the device, "
                "which a capture forbids; make the Run before the capture, or call sample() outside it"
            )


def found_device(device: torch.device | str) -> torch.device:
    """A device with its index; raises ``BackendError`` where torch cannot use it."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, ImportError) as error:
        reason = str(error).partition(". ")[0]
        raise BackendError(
            f"torch cannot use the device {str(device)!r} here ({reason}); install a build of torch for it, or use "
            "device='cpu'"
        ) from None


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte, and the one after the last, of a dense tensor."""
    start = tensor.data_ptr()
    return start, start + tensor.numel() * tensor.element_size()


def _record_gradients(outputs: Sequence[Tensor]) -> bool:
    """Whether autograd would follow these; the loop in C++ cannot, and the op refuses with advice."""
    return torch.is_grad_enabled() and any(getattr(output, "requires_grad", False) for output in outputs)
