"""The sampling loop: a run owns the buffers, a plan says what every step does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fastdiff import hostloop, ops
from fastdiff.backends import registry
from fastdiff.backends.registry import use_backend
from fastdiff.errors import InputError, NetworkError
from fastdiff.layout import layout
from fastdiff.network import Branches, Conditioning, Network, check_outputs, in_chunks
from fastdiff.plan import Plan
from fastdiff.row import NETWORK_PREFIX, NOISE_PREFIX, Row
from fastdiff.seeds import normalise_seeds

STATE = {"float32": torch.float32, "float64": torch.float64}
MEMORY_FORMATS = {torch.channels_last: 4, torch.channels_last_3d: 5}
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
        InputError: an argument does not fit; says what is allowed.
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
        self.plan, self.shape = plan, torch.Size(shape)
        self.device, self.state = torch.device(device), STATE[plan.dtype]
        self.network_dtype = network_dtype or self.state
        self._noise, self._format, self._differentiable = noise, memory_format, differentiable
        self._check()
        self.seeds = normalise_seeds(seeds, self.shape[0], self.device)
        self._tables = _tables(plan, self.state, self.device)
        self._buffers = {name: self._empty(1, self.state) for name in plan.buffers}
        self._z = self._empty(max(row.copies for row in plan.rows), self.network_dtype)
        kind = layout(self._z) or "row-major"
        self._backend = registry.choose(self.device.type, [self.state, self.network_dtype], kind)
        self.evaluations = self._evaluations()
        self.index = -1
        self._finished = False
        self._loop = self._bind()
        if self._loop is None:
            self._launch(())
        else:
            self._loop.start()
            self.index = 0

    def _check(self) -> None:
        if len(self.shape) == 0 or min(self.shape) < 0:
            raise InputError(f"shape is {tuple(self.shape)}; it must be [batch, ...] without negative sizes")
        wanted = MEMORY_FORMATS.get(self._format, len(self.shape))
        if len(self.shape) != wanted:
            raise InputError(f"memory_format {self._format} needs {wanted} dimensions; shape is {tuple(self.shape)}")
        if self.network_dtype not in registry.NETWORK_TYPES:
            raise InputError(f"network_dtype is {self.network_dtype}; use float64, float32, bfloat16 or float16")
        if self.network_dtype is torch.float64 and self.state is torch.float32:
            raise InputError("network_dtype is float64 and the plan's state float32; compile it with dtype='float64'")
        if self.plan.caller_noise != (self._noise is not None):
            given = "was given" if self._noise is not None else "is missing"
            made = "'caller'" if self.plan.caller_noise else "'counter'"
            raise InputError(f"noise {given}, and the plan was compiled with noise={made}; the two go together")

    def _bind(self) -> Any:
        """The C++ loop, where it serves this run."""
        plain = type(self._z) is Tensor and self._z.numel() and not torch.compiler.is_compiling()
        if self._backend.name != "cpu" or self._differentiable or self._noise is not None or not plain:
            return None
        return hostloop.bind(self.plan, self._tables, self._buffers, self._z, self.seeds, self.shape[0])

    def _empty(self, copies: int, dtype: torch.dtype) -> Tensor:
        shape = (copies * self.shape[0], *self.shape[1:])
        return torch.empty(shape, dtype=dtype, device=self.device, memory_format=self._format)

    def _evaluations(self) -> list[Evaluation]:
        batch, rows = self.shape[0], self.plan.rows[:-1]
        told = torch.float64 if self.network_dtype is torch.float64 else torch.float32
        c_noise = torch.tensor([[row.c_noise] for row in rows], dtype=told, device=self.device)
        sizes = {row.copies: row.copies * batch for row in rows}
        z = {copies: self._z[:size] for copies, size in sizes.items()}
        levels = {copies: c_noise.expand(len(rows), size).unbind() for copies, size in sizes.items()}
        return [
            Evaluation(k, z[row.copies], levels[row.copies][k], row.sigma, row.branches) for k, row in enumerate(rows)
        ]

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
        check_outputs(outputs, evaluation.z, evaluation.branches, self.shape[0])
        self._launch(self._split(outputs, len(evaluation.branches)))

    def _split(self, outputs: Sequence[Tensor], branches: int) -> Sequence[Tensor]:
        batch = self.shape[0]
        if len(outputs) == branches:
            return outputs
        return [outputs[0][b * batch : (b + 1) * batch] for b in range(branches)]

    def _launch(self, outputs: Sequence[Tensor]) -> None:
        """Run the next row on these network outputs, one for each branch of the evaluation just made."""
        at = self.index + 1
        row, (coef, draws, program) = self.plan.rows[at], self._tables[at]
        named = dict(self._buffers)
        if outputs:
            named |= {f"{NETWORK_PREFIX}{b}": f for b, f in zip(self.plan.rows[at - 1].branches, outputs, strict=True)}
        if self._noise is not None:
            names = (name for name in row.columns if name.startswith(NOISE_PREFIX))
            named |= {name: self._noise(at, j) for j, name in enumerate(names)}
        columns = [named[name] for name in row.columns]
        if self._differentiable and columns:
            self._record(row, columns, coef, draws, program)
        else:
            stores = [None if o.store is None else self._buffers[o.store] for o in row.outputs]
            z = self._z[: row.copies * self.shape[0]] if row.network is not None else None
            with use_backend(self._backend.name):
                ops.stage(columns, coef, program, seeds=self.seeds, draws=draws, stores=stores, z=z)
        self.index = at
        if self._loop is not None:
            self._loop.index = at + 1

    def _record(self, row: Row, columns: list[Tensor], coef: Tensor, draws: Tensor, program: list[int]) -> None:
        """Run a row out of place, so that autograd can follow."""
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

    def finish(self) -> Tensor:
        """The sample, ``[B, ...]`` in the state type; the run gives it away and cannot be used again.

        Raises:
            NetworkError: evaluations are still to be made, or the sample was taken already.
        """
        left = len(self.evaluations) - self.index
        if left or self._finished:
            what = f"{left} network evaluations are still to be made" if left else "the sample was taken already"
            raise NetworkError(f"finish() was called too early or twice: {what}")
        self._finished = True
        return self._buffers.pop(self.plan.result)


def sample(
    net: Network,
    plan: Plan,
    shape: Sequence[int],
    seeds: int | Sequence[int] | Tensor,
    *,
    cond: Conditioning | None = None,
    uncond: Conditioning | None = None,
    device: torch.device | str = "cpu",
    network_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    network_batch: int | None = None,
    noise: CallerNoise | None = None,
    callback: Callable[[Run, Evaluation], None] | None = None,
    progress: bool = False,
    differentiable: bool = False,
) -> Tensor:
    """Draw samples.

    Args:
        net: any callable ``F(z, c_noise, **conditioning)`` that returns a tensor in z's shape; z ``[n, ...]`` is
            scaled by c_in already and c_noise is ``[n]``.
        plan: from ``fastdiff.plan``.
        shape: ``[B, ...]``.
        seeds: an int s (sample i draws with s + i), a sequence of B ints, or an int64 tensor ``[B]``.
        cond: keyword arguments of the network; tensors have leading dimension B.
        uncond: the same for the unconditional branch of guidance. Guided evaluations of a plan compiled batched
            are one call on ``[cond; uncond]``.
        device: where to sample.
        network_dtype: dtype of the network's input; the state type if None.
        memory_format: of all tensors: contiguous, channels_last or channels_last_3d.
        network_batch: evaluate the network on exactly this many samples a call, so that results do not depend on
            how many samples are drawn together (1 is exact for every network).
        noise: with a plan of caller's noise, a function of (row, draw) that returns a tensor of this shape.
        callback: called after every step with the run and the evaluation just made.
        progress: show a progress bar.
        differentiable: record gradients, to the network's parameters and conditioning.

    Returns:
        ``[B, ...]`` in the plan's state type.

    Raises:
        InputError, NetworkError, BackendError: say what was given, what is allowed and what to do.
    """
    call = net if network_batch is None else in_chunks(net, network_batch)
    with torch.set_grad_enabled(differentiable):
        run = Run(
            plan,
            shape,
            seeds,
            device=device,
            network_dtype=network_dtype,
            memory_format=memory_format,
            noise=noise,
            differentiable=differentiable,
        )
        rows = [evaluation.branches for evaluation in run.evaluations]
        conditioning = Branches(cond, uncond, run.shape[0], plan.batched, rows)
        for evaluation in tqdm(run, desc="sampling", unit="eval", disable=not progress):
            run.step(*conditioning.call(call, evaluation.z, evaluation.c_noise, evaluation.branches))
            if callback is not None:
                callback(run, evaluation)
        return run.finish()


def _record_gradients(outputs: Sequence[Tensor]) -> bool:
    """Whether autograd would follow these; the loop in C++ cannot, and the op refuses with advice."""
    return torch.is_grad_enabled() and any(getattr(output, "requires_grad", False) for output in outputs)


def _tables(plan: Plan, state: torch.dtype, device: torch.device) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Coefficients ``[1, K]``, draws ``[1, N, 4]`` and program of every row; two copies to the device in all."""
    programs, coefficients, draws = zip(*plan.encoded, strict=True)
    flat = torch.tensor([c for row in coefficients for c in row], dtype=state).to(device)
    drawn = torch.tensor([d for row in draws for d in row], dtype=torch.int64).view(-1, 4).to(device)
    split = flat[None].split([len(row) for row in coefficients], dim=1)
    parted = drawn[None].split([len(row) for row in draws], dim=1)
    return list(zip(split, parted, programs, strict=True))
