"""Arguments: what an op accepts, checked before anything is written.

Values of seeds and draws are looked at on the CPU only: on another device that would wait for the device. The rules
of all ops stand here together, because most are shared, and people compare them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastdiff.errors import InputError
from fastdiff.rows.call import Call, GramCall
from fastdiff.rows.dtypes import NETWORK_TYPES, STATE_TYPES
from fastdiff.rows.layout import common_layout, layout, same_memory, samples_overlap, share_memory, span
from fastdiff.rows.program import Program
from fastdiff.rows.seeds import DRAW_WORDS, can_read, check_seeds, describe

MAX_ELEMENTS = 2**42
MAX_COPIES = 12

Named = Sequence[tuple[str, Tensor]]


def check_stage(call: Call) -> str:
    """Check the arguments of ``stage``.

    Returns:
        The layout that all tensors share.

    Raises:
        InputError: something does not fit; nothing has been written.
    """
    reads = _named("column", call.columns)
    stored = _named("store", call.stores)
    writes = [*stored, *([] if call.z is None else [("z", call.z)])]
    _check_counts(call.program, len(call.columns), len(call.stores), call.z is not None)
    if not reads and not stored:
        raise InputError("stage was given neither a column nor a store; pass one, so that the batch size is known")
    _check_tensors([*reads, *writes])
    for name, tensor in (*reads, *writes):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InputError(f"{name} requires grad; use stage_functional, or call stage under torch.no_grad()")
    shape = (reads or stored)[0][1].shape
    _check_shapes(shape, [*reads, *stored])
    if call.z is not None and (call.z.shape[1:] != shape[1:] or not _is_multiple(call.z.shape[0], shape[0])):
        raise InputError(
            f"z has shape {tuple(call.z.shape)}; with columns {tuple(shape)} it must be "
            f"[copies * {shape[0]}, *{tuple(shape[1:])}]"
        )
    tables = _check_tables(call, shape[0])
    _check_types(call.coef.dtype, [(name, tensor.dtype) for name, tensor in (*reads, *writes)])
    _check_device([*reads, *writes, *tables])
    found = check_layouts([*reads, *writes])
    _check_overlap([*reads, *tables], writes)
    return found


def check_functional(
    call: Call,
    outputs: Sequence[int],
    dtypes: Sequence[torch.dtype],
    z_dtype: torch.dtype | None,
    copies: int,
) -> str:
    """Check the arguments of ``stage_functional``, and return the layout that its columns share.

    Raises:
        InputError: something does not fit.
    """
    columns, formulas = call.columns, call.program.outputs
    if not columns:
        raise InputError("stage_functional was given no column to take its shape from; use stage or fill_noise")
    _check_counts(call.program, len(columns), len(formulas), z_dtype is not None)
    if list(outputs) != sorted(set(outputs)) or any(not 0 <= i < len(formulas) for i in outputs):
        raise InputError(f"outputs is {list(outputs)}; give increasing indices below {len(formulas)}")
    if len(dtypes) != len(outputs):
        raise InputError(f"dtypes has {len(dtypes)} entries for {len(outputs)} outputs; give one for each")
    if not 1 <= copies <= MAX_COPIES:
        raise InputError(f"copies is {copies}; 1 to {MAX_COPIES} are allowed, as gradients run through one launch")
    reads = _named("column", columns)
    _check_tensors(reads)
    _check_shapes(columns[0].shape, reads)
    tables = _check_tables(call, columns[0].shape[0])
    if call.coef.requires_grad:
        raise InputError("coef requires grad; gradients reach columns only, so pass coef.detach()")
    written = [(f"output {i}", dtype) for i, dtype in zip(outputs, dtypes, strict=True)]
    written += [] if z_dtype is None else [("z", z_dtype)]
    _check_types(call.coef.dtype, [*((name, column.dtype) for name, column in reads), *written])
    _check_device([*reads, *tables])
    return check_layouts(reads)


def check_fill_noise(out: Tensor, seeds: Tensor, draws: Tensor) -> str:
    """Check the arguments of ``fill_noise``, and return the layout of ``out``.

    Raises:
        InputError: something does not fit; nothing has been written.
    """
    _check_tensors([("out", out)])
    if out.requires_grad and torch.is_grad_enabled():
        raise InputError("out requires grad; call fill_noise under torch.no_grad()")
    if out.dim() and out.shape[1:].numel() > MAX_ELEMENTS:
        raise _too_many(out.shape)
    _check_types(torch.float64, [("out", out.dtype)])
    check_seeds(seeds, out.shape[0])
    if not isinstance(draws, Tensor) or draws.dim() != 2 or draws.shape[1] != 4:
        raise InputError(f"draws is {describe(draws)}; it must be int64 [1 or {out.shape[0]}, 4]")
    _check_table("draws", draws, torch.int64, out.shape[0])
    _check_draw_values(draws)
    _check_device([("out", out), ("seeds", seeds), ("draws", draws)])
    found = check_layouts([("out", out)])
    _check_overlap([("seeds", seeds), ("draws", draws)], [("out", out)])
    return found


def check_gram(call: GramCall) -> str:
    """Check the arguments of ``gram``.

    Returns:
        The layout that all columns share.

    Raises:
        InputError: something does not fit, or there is nothing to sum; nothing has been written.
    """
    program, reads = call.program, _named("column", call.columns)
    if len(reads) != program.columns:
        raise InputError(f"{len(reads)} columns were given; the program reads {program.columns}")
    if not reads:
        raise InputError("gram was given no column; pass one, so that the number of elements is known")
    _check_tensors(reads)
    shape = call.columns[0].shape
    _check_shapes(shape, reads)
    batch = shape[0]
    if batch and not shape[1:].numel():
        raise InputError(f"a sample of shape {tuple(shape[1:])} has no elements, so there is nothing to sum")
    _check_types(torch.float64, [(name, column.dtype) for name, column in reads])
    _check_small("numbers", call.numbers, (torch.float64,), (program.numbers,))
    _check_table("numbers", call.numbers, torch.float64, batch)
    written = [("scalars", call.scalars)]
    _check_small("scalars", call.scalars, (torch.float64,), (program.scalars,))
    if call.coef is not None:
        _check_small("coef", call.coef, STATE_TYPES, (len(program.coefficients),))
        written.append(("coef", call.coef))
    for name, tensor in written:
        if tensor.shape[0] != batch:
            raise InputError(f"{name} has {tensor.shape[0]} rows; it must have one for each of the {batch} samples")
        _check_table(name, tensor, tensor.dtype, batch)
    tables = [("numbers", call.numbers)]
    if program.draws:
        tables += _check_noise(call.seeds, call.draws, program.draws, batch)
    for name, tensor in (*reads, *tables, *written):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InputError(f"{name} requires grad; a gram has no gradient, so call it under torch.no_grad()")
    _check_device([*reads, *tables, *written])
    found = check_layouts(reads)
    # No column may be written in place here.
    _check_overlap([(f"input {name}", tensor) for name, tensor in (*reads, *tables)], written)
    return found


def _check_small(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], sizes: tuple[int, ...]) -> None:
    """Refuse anything but a tensor ``[rows, *sizes]`` of one of these dtypes."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes or tensor.shape[1:] != sizes or not tensor.dim():
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(f"{name} is {describe(tensor)}; it must be {allowed} [rows, {', '.join(map(str, sizes))}]")


def check_layouts(tensors: Named) -> str:
    """The layout that all of these share.

    Raises:
        InputError: a tensor has samples that are not dense or that overlap, or two layouts are mixed.
    """
    found = {}
    for name, tensor in tensors:
        own = layout(tensor)
        if own is None or samples_overlap(tensor):
            problem = "samples that overlap (an expanded batch)" if own else "samples that are not dense"
            raise InputError(
                f"{name} with shape {tuple(tensor.shape)} and strides {tensor.stride()} has {problem}; "
                "row-major and channels-last samples with any batch stride are allowed, so make a copy first"
            )
        found[name] = own
    common = common_layout(found.values())
    if common is None:
        raise InputError(f"the layouts differ: {found}; bring all tensors of a call to one memory format")
    return common


def _named(what: str, tensors: Sequence[Tensor | None]) -> list[tuple[str, Tensor]]:
    return [(f"{what} {i}", tensor) for i, tensor in enumerate(tensors) if tensor is not None]


def _check_counts(parsed: Program, columns: int, stores: int, z: bool) -> None:
    if columns != parsed.columns:
        raise InputError(f"{columns} columns were given; the program reads {parsed.columns}")
    if stores > len(parsed.outputs):
        raise InputError(f"{stores} stores were given; the program has {len(parsed.outputs)} outputs")
    if z and parsed.network is None:
        raise InputError("z was given; the program makes no network input, so leave z out or name an output for it")


def _check_tensors(tensors: Named) -> None:
    for name, tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor")
        if tensor.layout is not torch.strided:
            raise InputError(f"{name} is {tensor.layout}; only strided tensors are allowed")
        if tensor.dim() == 0:
            raise InputError(f"{name} has no dimensions; its first dimension must be the batch")


def _check_shapes(shape: torch.Size, tensors: Named) -> None:
    for name, tensor in tensors:
        if tensor.shape != shape:
            raise InputError(f"{name} has shape {tuple(tensor.shape)}; all must have {tuple(shape)}, as the first has")
    if shape[1:].numel() > MAX_ELEMENTS:
        raise _too_many(shape)


def _is_multiple(rows: int, batch: int) -> bool:
    return rows >= batch and rows % batch == 0 if batch else rows == 0


def _too_many(shape: torch.Size) -> InputError:
    return InputError(f"a sample of shape {tuple(shape[1:])} has more than 2**42 elements, more than the counter holds")


def _check_types(state: torch.dtype, dtypes: Sequence[tuple[str, torch.dtype]]) -> None:
    for name, dtype in dtypes:
        if dtype not in NETWORK_TYPES:
            allowed = "float64, float32, bfloat16 and float16"
            raise InputError(f"{name} is {dtype}; {allowed} are allowed, so convert it first")
        if dtype is torch.float64 and state is torch.float32:
            raise InputError(f"{name} is torch.float64 and coef is torch.float32; float64 needs a float64 coef")


def _check_tables(call: Call, batch: int) -> list[tuple[str, Tensor]]:
    """Check the small tensors of a stage and return those that were given, with their names."""
    _, coef, parsed, seeds, draws, present, *_ = call
    if not isinstance(coef, Tensor) or coef.dtype not in STATE_TYPES:
        raise InputError(f"coef is {describe(coef)}; it must be a float32 or float64 tensor, the state type")
    if coef.dim() != 2 or coef.shape[1] != parsed.coefficients:
        raise InputError(f"coef has shape {tuple(coef.shape)}; it must be [1 or {batch}, {parsed.coefficients}]")
    _check_table("coef", coef, coef.dtype, batch)
    found = [("coef", coef)]
    if present is not None:
        if not isinstance(present, Tensor) or present.dim() != 1:
            raise InputError(f"present is {describe(present)}; it must be int64 [1 or {batch}]")
        _check_table("present", present, torch.int64, batch)
        found.append(("present", present))
    return found + _check_noise(seeds, draws, parsed.draws, batch) if parsed.draws else found


def _check_noise(seeds: Tensor | None, draws: Tensor | None, count: int, batch: int) -> list[tuple[str, Tensor]]:
    """Check seeds and draws of a program that draws noise, and return them with their names."""
    if seeds is None or draws is None:
        missing = "seeds" if seeds is None else "draws"
        raise InputError(f"{missing} is None; the program draws noise, so pass seeds [{batch}] and draws")
    if not isinstance(draws, Tensor) or draws.dim() != 3 or draws.shape[1:] != (count, 4):
        raise InputError(f"draws is {describe(draws)}; it must be int64 [1 or {batch}, {count}, 4]")
    _check_table("draws", draws, torch.int64, batch)
    check_seeds(seeds, batch)
    _check_draw_values(draws)
    return [("seeds", seeds), ("draws", draws)]


def _check_table(name: str, table: Tensor, dtype: torch.dtype, batch: int) -> None:
    if table.shape[0] not in (1, batch):
        raise InputError(f"{name} has {table.shape[0]} rows; 1 or one for each of the {batch} samples are allowed")
    if table.dtype is not dtype:
        raise InputError(f"{name} is {table.dtype}; it must be {dtype}")
    if not table.is_contiguous():
        raise InputError(f"{name} has strides {table.stride()}; pass {name}.contiguous()")


def _check_draw_values(draws: Tensor) -> None:
    if not can_read(draws) or not draws.numel():
        return
    lows, highs = (values.tolist() for values in draws.reshape(-1, 4).aminmax(dim=0))
    for (name, bits), low, high in zip(DRAW_WORDS, lows, highs, strict=True):
        if low < 0 or high >= 2**bits:
            raise InputError(f"draws has a {name} outside 0 .. 2**{bits} - 1; its words are {DRAW_WORDS}")


def _check_device(tensors: Named) -> None:
    name, first = tensors[0]
    for other, tensor in tensors:
        if tensor.device != first.device:
            raise InputError(f"{other} is on {tensor.device} and {name} on {first.device}; move all to one device")


def _check_overlap(reads: Named, writes: Named) -> None:
    """Refuse an output that shares memory with anything but a column that is the very same memory."""
    if any(isinstance(tensor, FakeTensor) or tensor.device.type == "meta" for _, tensor in writes):
        return
    spans = [(name, tensor, *span(tensor)) for name, tensor in (*reads, *writes)]
    for i, (name, out, start, end) in enumerate(spans[len(reads) :], len(reads)):
        for other, tensor, other_start, other_end in spans[:i]:
            if start >= other_end or other_start >= end:
                continue
            identical = other.startswith("column") and same_memory(out, tensor)
            if not identical and share_memory(out, tensor):
                raise InputError(
                    f"{name} overlaps {other}; an output may be a column in place (same address, strides and dtype), "
                    "any other overlap is refused, so give it memory of its own"
                )
