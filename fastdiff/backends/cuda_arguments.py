"""What the kernels of ``fastdiff._cuda`` are given: the structures of its headers, filled from tensors."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from fastdiff.rows.call import Call, GramCall
from fastdiff.rows.dtypes import NETWORK_TYPES
from fastdiff.rows.gram import CHUNK, MAX_FACTORS, MAX_STEPS, MAX_SUMS, MAX_TERMS, MAX_VECTORS, OPERATIONS, GramProgram
from fastdiff.rows.layout import CHANNELS_LAST, layout
from fastdiff.rows.program import MAX_COEFFICIENTS, MAX_COLUMNS, MAX_DRAWS, MAX_OUTPUTS, Formula, Program

DTYPES = {dtype: code for code, dtype in enumerate(NETWORK_TYPES)}
FIRST_OUTPUT = MAX_COLUMNS
FIRST_DRAW = FIRST_OUTPUT + MAX_OUTPUTS
NOISE = Program(columns=0, outputs=(Formula(noise=(0,)),), draws=1)
"""The program of one draw and nothing else."""


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("dtype", ctypes.c_int32))


class _Output(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_int8),
        ("first", ctypes.c_uint8),
        ("terms", ctypes.c_uint8),
        ("noises", ctypes.c_uint8),
        ("bound", ctypes.c_int8),
        ("scale", ctypes.c_int8),
    )


class _Program(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int8) for name in ("columns", "draws", "network", "outputs", "c_in")),
        ("coefficients", ctypes.c_uint8),
        ("source", ctypes.c_uint8 * MAX_COEFFICIENTS),
        ("output", _Output * MAX_OUTPUTS),
    )


class StageArgs(ctypes.Structure):
    """``StageArgs`` of ``csrc/stage.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "numel", "channels")),
        *((name, ctypes.c_int32) for name in ("state", "copies")),
        *((name, ctypes.c_void_p) for name in ("coef", "present", "seeds", "draws")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("coef", "present", "seeds", "draws")),
        ("program", _Program),
        ("column", _Buffer * MAX_COLUMNS),
        ("store", _Buffer * MAX_OUTPUTS),
        ("z", _Buffer),
    )


class _Sum(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int8) for name in ("kind", "a", "b", "c"))


class _Step(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int8) for name in ("operation", "left", "right"))


class _GramProgram(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint8) for name in ("vectors", "sums", "steps", "coefficients")),
        ("terms", ctypes.c_uint16 * MAX_VECTORS),
        ("source", ctypes.c_uint8 * MAX_TERMS),
        ("sum", _Sum * MAX_SUMS),
        ("step", _Step * MAX_STEPS),
        ("factors", ctypes.c_uint16 * MAX_COEFFICIENTS),
        ("scalar", ctypes.c_uint8 * MAX_FACTORS),
        *((name, ctypes.c_int16) for name in ("tolerances", "constants", "affine")),
    )


class GramArgs(ctypes.Structure):
    """``GramArgs`` of ``csrc/cuda_gram.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "numel", "channels")),
        ("state", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("numbers", "seeds", "draws")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("numbers", "seeds", "draws")),
        *((name, ctypes.c_void_p) for name in ("coef", "scalars")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("coef", "scalars")),
        ("parts", ctypes.c_void_p),
        ("program", _GramProgram),
        ("column", _Buffer * MAX_COLUMNS),
    )


def stage_arguments(call: Call) -> StageArgs:
    """All of a row's arguments, but for columns that are None."""
    args = _arguments(next(t for t in (*call.columns, *call.stores) if t is not None), call.program)
    args.state = DTYPES[call.coef.dtype]
    args.coef, args.coef_stride = _table(call.coef)
    args.present, args.present_stride = _table(call.present)
    args.seeds, args.seeds_stride = _table(call.seeds)
    args.draws, args.draws_stride = _table(call.draws)
    for buffers, tensors in ((args.column, call.columns), (args.store, call.stores)):
        for buffer, tensor in zip(buffers, tensors, strict=False):
            if tensor is not None:
                point(buffer, tensor)
    if call.z is not None:
        args.copies = call.z.shape[0] // max(args.batch, 1)
        point(args.z, call.z)
    return args


def noise_arguments(out: Tensor, seeds: Tensor, draws: Tensor) -> StageArgs:
    """All arguments of one draw and nothing else."""
    args = _arguments(out, NOISE)
    args.state = DTYPES[torch.float64 if out.dtype is torch.float64 else torch.float32]
    args.seeds, args.seeds_stride = _table(seeds)
    args.draws, args.draws_stride = _table(draws)
    point(args.store[0], out)
    return args


def _arguments(tensor: Tensor, program: Program) -> StageArgs:
    """Arguments with a program, and with the sizes and layout that all tensors of a call have."""
    args = StageArgs()
    args.batch, args.numel, args.channels = _sizes(tensor)
    args.copies = 1
    args.program = _program(program)
    return args


def _sizes(tensor: Tensor) -> tuple[int, int, int]:
    """Samples, elements in each, and the channels between neighbours in memory."""
    # Which layouts a shape allows does not depend on the tensor, so those of a call agree beyond "either".
    channels = tensor.shape[1] if layout(tensor) == CHANNELS_LAST else 1
    return tensor.shape[0], tensor.shape[1:].numel(), channels


@lru_cache(maxsize=1024)
def _program(program: Program) -> _Program:
    """A program as kernels read it: the source of every coefficient, and where each output's begin."""

    def source(index: int) -> int:
        return index if index < program.columns else FIRST_OUTPUT + index - program.columns

    found, sources = _Program(columns=program.columns, draws=program.draws), []
    for i, output in enumerate(program.outputs):
        found.output[i] = _Output(
            base=-1 if output.base is None else source(output.base),
            first=len(sources),
            terms=len(output.terms),
            noises=len(output.noise),
            bound=program.bound_at(i) if output.clamp else -1,
            scale=program.scale_at(i) if output.scale else -1,
        )
        sources += map(source, output.terms)
        sources += [FIRST_DRAW + r if r >= 0 else -1 - r for r in output.noise]
        # Bound and scale multiply the output itself.
        sources += [0] * (output.clamp + output.scale)
    found.network = found.c_in = -1
    if program.network is not None:
        found.network, found.c_in = program.network, program.c_in_at
        sources.append(0)
    found.outputs, found.coefficients = len(program.outputs), len(sources)
    found.source[: len(sources)] = sources
    return found


def gram_arguments(call: GramCall) -> tuple[GramArgs, Tensor | None]:
    """All of a gram's arguments, and the memory of its parts, which torch may give to others afterwards."""
    args, parts = GramArgs(), None
    args.program = _gram_program(call.program)
    args.batch, args.numel, args.channels = _sizes(call.columns[0])
    args.numbers, args.numbers_stride = _table(call.numbers)
    args.seeds, args.seeds_stride = _table(call.seeds)
    args.draws, args.draws_stride = _table(call.draws)
    if call.coef is not None:
        args.state, args.coef, args.coef_stride = DTYPES[call.coef.dtype], *_table(call.coef)
    args.scalars, args.scalars_stride = _table(call.scalars)
    for buffer, column in zip(args.column, call.columns, strict=False):
        point(buffer, column)
    if args.numel > CHUNK:
        # By torch's allocator, so that it may happen while a graph is recorded.
        chunks = -(-args.numel // CHUNK)
        parts = call.scalars.new_empty(args.batch, len(call.program.sums), chunks)
        args.parts = parts.data_ptr()
    return args, parts


@lru_cache(maxsize=1024)
def _gram_program(program: GramProgram) -> _GramProgram:
    """A gram's program as kernels read it."""
    found = _GramProgram(vectors=len(program.vectors), sums=len(program.sums), steps=len(program.steps))
    found.coefficients = len(program.coefficients)
    found.terms[: found.vectors] = list(map(len, program.vectors))
    found.factors[: found.coefficients] = list(map(len, program.coefficients))
    sources = [source for vector in program.vectors for source in vector]
    scalars = [scalar for terms in program.coefficients for scalar in terms]
    # Kernels count draws from a place of their own.
    one = program.columns + program.draws
    shift = {program.columns + d: MAX_COLUMNS + d for d in range(program.draws)} | {one: MAX_COLUMNS + MAX_DRAWS}
    found.source[: len(sources)] = [shift.get(source, source) for source in sources]
    found.scalar[: len(scalars)] = scalars
    for i, total in enumerate(program.sums):
        found.sum[i] = _Sum(*total)
    for i, step in enumerate(program.steps):
        found.step[i] = _Step(*step)
    found.tolerances = len(sources)
    found.constants = found.tolerances + 2 * sum(kind for kind, *_ in program.sums)
    found.affine = found.constants + sum(OPERATIONS[operation] == "number" for operation, *_ in program.steps)
    return found


def _table(table: Tensor | None) -> tuple[int | None, int]:
    """Address, and the stride between samples: 0 where all share one row."""
    if table is None:
        return None, 0
    return table.data_ptr(), 0 if table.shape[0] == 1 else table.stride(0)


def point(buffer: _Buffer, tensor: Tensor) -> None:
    """Let a buffer be a tensor's memory."""
    buffer.data, buffer.batch_stride, buffer.dtype = tensor.data_ptr(), tensor.stride(0), DTYPES[tensor.dtype]
