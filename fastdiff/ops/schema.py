"""The ops ``stage``, ``stage_functional``, ``gram`` and ``fill_noise``: schemas, meaning and gradients.

The schemas of the library ``fastdiff`` are defined here, once. A compiled backend registers its kernels for its own
dispatch key; behind every other key stands Python that checks the arguments, chooses a backend and calls it. The
public functions do the same without the detour. While ``torch.compile`` traces, the checks run in the fakes. It is one
module because a schema, its kernels and its fake must be registered together, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastdiff.backends import reference
from fastdiff.backends.registry import choose, fill_noise_by_dispatcher, forced_backend
from fastdiff.ops.gradient import arriving, column_gradients, dtype_codes
from fastdiff.rows.call import Call, GramCall
from fastdiff.rows.checks import check_fill_noise, check_functional, check_gram, check_layouts, check_stage
from fastdiff.rows.dtypes import NETWORK_TYPES, channels_last
from fastdiff.rows.gram import GramProgram, parse_gram
from fastdiff.rows.layout import CHANNELS_LAST
from fastdiff.rows.program import MAX_OUTPUTS, Program, parse
from fastdiff.rows.seeds import draw_table, normalise_seeds

__all__ = ["fill_noise", "gram", "normalise_seeds", "stage", "stage_functional"]

_library = torch.library.Library("fastdiff", "DEF")
_library.define(
    "stage(Tensor[] columns, Tensor coef, Tensor? present, Tensor? seeds, Tensor? draws, int[] program, "
    "Tensor(a!)? w0, Tensor(b!)? w1, Tensor(c!)? w2, Tensor(d!)? w3, Tensor(e!)? w4, Tensor(f!)? w5, "
    "Tensor(g!)? z) -> ()"
)
_library.define(
    "gram(Tensor[] columns, Tensor numbers, Tensor? seeds, Tensor? draws, int[] program, Tensor(a!)? coef, "
    "Tensor(b!) scalars) -> ()"
)
_library.define("fill_noise(Tensor(a!) out, Tensor seeds, Tensor draws) -> ()")
_library.define(
    "stage_functional(Tensor[] columns, Tensor coef, Tensor? present, Tensor? seeds, Tensor? draws, int[] program, "
    "int[] outputs, int[] dtypes, ScalarType? z_dtype, int copies) -> Tensor[]"
)


def stage(
    columns: Sequence[Tensor],
    coef: Tensor,
    program: Program | Sequence[int],
    *,
    seeds: Tensor | None = None,
    draws: Tensor | None = None,
    present: Tensor | None = None,
    stores: Sequence[Tensor | None] = (),
    z: Tensor | None = None,
) -> None:
    """Run one row and write what it makes into ``stores`` and ``z``; see ``docs/row-format.md``.

    Args:
        columns: tensors ``[B, ...]`` of one shape and layout, float64 (with a float64 ``coef``) or narrower.
        coef: ``[1 or B, K]``, float32 or float64: the state type.
        program: the row's structure, ``fastdiff.rows.row.Row.program`` or its integers.
        seeds: int64 ``[B]``; needed where the program draws noise.
        draws: int64 ``[1 or B, N, 4]``: purpose, tensor, draw, sub_draw of each draw.
        present: int64 ``[1 or B]``; bit k clear skips the operation of coefficient k.
        stores: a tensor ``[B, ...]`` or None for each output; it may be a column, in place.
        z: the network input ``[copies * B, ...]``.

    Raises:
        InputError: an argument does not fit; nothing has been written.
        BackendError: no backend can run the call.
    """
    if _is_traced(coef) and not _reference_forced():
        padded = (*stores, *(None for _ in range(MAX_OUTPUTS - len(stores))))
        torch.ops.fastdiff.stage(columns, coef, present, seeds, draws, _integers(program), *padded, z)
        return
    run = reference.stage if _is_traced(coef) else _checked_stage
    run(Call(columns, coef, _parsed(program), seeds, draws, present, stores, z))


def stage_functional(
    columns: Sequence[Tensor],
    coef: Tensor,
    program: Program | Sequence[int],
    *,
    seeds: Tensor | None = None,
    draws: Tensor | None = None,
    present: Tensor | None = None,
    outputs: Sequence[int] = (0,),
    dtypes: Sequence[torch.dtype] | None = None,
    z_dtype: torch.dtype | None = None,
    copies: int = 1,
) -> list[Tensor]:
    """Run one row out of place; gradients flow to the columns, through casts and clamps, to any order.

    Args:
        columns: as for ``stage``; at least one.
        coef: as for ``stage``; it cannot require grad.
        program: as for ``stage``.
        seeds: as for ``stage``.
        draws: as for ``stage``.
        present: as for ``stage``.
        outputs: which outputs to return, in increasing order.
        dtypes: the dtype of each of them; the state type by default.
        z_dtype: the dtype of the network input, which is returned last; None returns none.
        copies: how many copies of the network input are stacked along the batch.

    Returns:
        The outputs ``[B, ...]`` asked for, then the network input ``[copies * B, ...]``: fresh tensors.

    Raises:
        InputError: an argument does not fit.
        BackendError: no backend can run the call.
    """
    dtypes = [coef.dtype for _ in outputs] if dtypes is None else dtypes
    if not torch.compiler.is_compiling():
        call = Call(columns, coef, _parsed(program), seeds, draws, present)
        check_functional(call, outputs, dtypes, z_dtype, copies)
    tables = coef, present, seeds, draws, _integers(program)
    return torch.ops.fastdiff.stage_functional(columns, *tables, list(outputs), dtype_codes(dtypes), z_dtype, copies)


def gram(
    columns: Sequence[Tensor],
    numbers: Tensor,
    program: GramProgram | Sequence[int],
    *,
    scalars: Tensor,
    coef: Tensor | None = None,
    seeds: Tensor | None = None,
    draws: Tensor | None = None,
) -> None:
    """Inner products of every sample, and the coefficients that follow from them; see ``docs/gram.md``.

    Args:
        columns: tensors ``[B, ...]`` of one shape and layout, in any floating dtype; at least one. None may require
            grad: what is made has no gradient.
        numbers: float64 ``[1 or B, N]``: all numbers of the program, in its order.
        program: the structure, ``fastdiff.rows.row.Row.gram_program`` or its integers.
        scalars: float64 ``[B, S]``, written: sums, then steps.
        coef: float32 or float64 ``[B, K]``, written: the coefficients of a row in its state type.
        seeds: int64 ``[B]``; needed where the program draws noise.
        draws: int64 ``[1 or B, D, 4]``: purpose, tensor, draw, sub_draw of each draw.

    Raises:
        InputError: an argument does not fit, or there is nothing to sum; nothing has been written.
        BackendError: no backend can run the call.
    """
    if _is_traced(scalars) and not _reference_forced():
        integers = program.integers if isinstance(program, GramProgram) else list(program)
        torch.ops.fastdiff.gram(columns, numbers, seeds, draws, integers, coef, scalars)
        return
    parsed = program if isinstance(program, GramProgram) else parse_gram(program)
    run = reference.gram if _is_traced(scalars) else _checked_gram
    run(GramCall(columns, numbers, parsed, scalars, seeds, draws, coef))


def fill_noise(
    out: Tensor,
    seeds: int | Sequence[int] | Tensor,
    purpose: int | Sequence[int] | Tensor = 4,
    draw: int | Sequence[int] | Tensor = 0,
    sub_draw: int | Sequence[int] | Tensor = 0,
    tensor: int | Sequence[int] | Tensor = 0,
) -> None:
    """Fill ``out`` ``[B, ...]`` with standard normals that depend on seed, element and draw only.

    Args:
        out: float64, float32, bfloat16 or float16; float32 normals are rounded or widened to it.
        seeds: see ``normalise_seeds``.
        purpose: what the noise is for, 0 .. 255 (0 init, 1 step, 2 Brownian, 3 training, 4 user); like the words
            below, one for all samples or one for each.
        draw: 0 .. 2**32 - 1.
        sub_draw: 0 .. 2**24 - 1.
        tensor: 0 .. 2**16 - 1.

    Raises:
        InputError: an argument does not fit; nothing has been written.
        BackendError: no backend can run the call.
    """
    batch = out.shape[0] if out.dim() else 1
    keys = normalise_seeds(seeds, batch, out.device)
    words = {"purpose": purpose, "tensor": tensor, "draw": draw, "sub_draw": sub_draw}
    draws = draw_table(words, batch, out.device)
    run = _checked_fill_noise
    if _is_traced(out):
        run = reference.fill_noise if _reference_forced() else fill_noise_by_dispatcher
    run(out, keys, draws)


def _is_traced(tensor: Tensor) -> bool:
    """Whether a call is recorded by the compiler, or made on tensors without memory: then it must be one op."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)


def _reference_forced() -> bool:
    return forced_backend() == "reference"


# What torch.compiler.assume_constant_result sets; calling that would import all of dynamo, which takes seconds.
_reference_forced._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _parsed(program: Program | Sequence[int]) -> Program:
    return program if isinstance(program, Program) else parse(program)


def _integers(program: Program | Sequence[int]) -> list[int]:
    return program.integers if isinstance(program, Program) else list(program)


def _checked_stage(call: Call) -> None:
    layout = check_stage(call)
    run = choose(call.coef.device.type, _dtypes(call), layout).stage
    if any(out.numel() for out in call.written):
        run(call)


def _dtypes(call: Call) -> tuple[torch.dtype, ...]:
    return tuple({tensor.dtype for tensor in (call.coef, *call.columns, *call.written)})


def _checked_gram(call: GramCall) -> None:
    layout = check_gram(call)
    backend = choose(call.scalars.device.type, [column.dtype for column in call.columns], layout)
    if call.scalars.numel():
        backend.gram(call)


def _checked_fill_noise(out: Tensor, seeds: Tensor, draws: Tensor) -> None:
    layout = check_fill_noise(out, seeds, draws)
    run = choose(out.device.type, (out.dtype,), layout).fill_noise
    if out.numel():
        run(out, seeds, draws)


# The kernels behind every dispatch key that no compiled backend has registered (yet: choosing one loads it).
def _stage_kernel(columns, coef, present, seeds, draws, program, *written) -> None:  # noqa: ANN001, ANN002
    _checked_stage(_call(columns, coef, present, seeds, draws, program, *written))


def _stage_fake(columns, coef, present, seeds, draws, program, *written) -> None:  # noqa: ANN001, ANN002
    call = _call(columns, coef, present, seeds, draws, program, *written)
    choose(coef.device.type, _dtypes(call), check_stage(call))


def _call(columns, coef, present, seeds, draws, program, *written) -> Call:  # noqa: ANN001, ANN002
    """The flat arguments of the dispatcher's ``stage`` as one value."""
    parsed, (*stores, z) = parse(program), written
    return Call(columns, coef, parsed, seeds, draws, present, stores[: len(parsed.outputs)], z)


def _gram_kernel(columns, numbers, seeds, draws, program, coef, scalars) -> None:  # noqa: ANN001
    _checked_gram(GramCall(columns, numbers, parse_gram(program), scalars, seeds, draws, coef))


def _gram_fake(columns, numbers, seeds, draws, program, coef, scalars) -> None:  # noqa: ANN001
    call = GramCall(columns, numbers, parse_gram(program), scalars, seeds, draws, coef)
    choose(scalars.device.type, [column.dtype for column in columns], check_gram(call))


def _fill_noise_fake(out: Tensor, seeds: Tensor, draws: Tensor) -> None:
    layout = check_fill_noise(out, seeds, draws)
    choose(out.device.type, (out.dtype,), layout)


def _empty(like: Tensor, layout: str, dtype: torch.dtype, copies: int = 1) -> Tensor:
    """A fresh tensor in a column's layout, with the batch repeated ``copies`` times."""
    wanted = channels_last(like.dim()) if layout == CHANNELS_LAST else torch.contiguous_format
    shape = (copies * like.shape[0], *like.shape[1:])
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=wanted)


def _functional_fake(columns, coef, present, seeds, draws, program, outputs, codes, z_dtype, copies) -> list[Tensor]:  # noqa: ANN001
    dtypes = [NETWORK_TYPES[code] for code in codes]
    call = Call(columns, coef, parse(program), seeds, draws, present)
    layout = check_functional(call, outputs, dtypes, z_dtype, copies)
    results = [_empty(columns[0], layout, dtype) for dtype in dtypes]
    return results if z_dtype is None else [*results, _empty(columns[0], layout, z_dtype, copies)]


def _functional_kernel(columns, coef, present, seeds, draws, program, outputs, codes, z_dtype, copies) -> list[Tensor]:  # noqa: ANN001
    results = _functional_fake(columns, coef, present, seeds, draws, program, outputs, codes, z_dtype, copies)
    by_output, parsed = dict(zip(outputs, results, strict=False)), parse(program)
    stores = [by_output.get(i) for i in range(len(parsed.outputs))]
    z = None if z_dtype is None else results[-1]
    _checked_stage(Call(columns, coef, parsed, seeds, draws, present, stores, z))
    return results


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    columns, coef, present, seeds, draws, program, outputs, _, z_dtype, copies = inputs
    ctx.set_materialize_grads(False)
    ctx.program, ctx.outputs, ctx.copies, ctx.has_z = parse(program), list(outputs), copies, z_dtype is not None
    ctx.dtypes = [column.dtype if column.requires_grad else None for column in columns]
    ctx.layout = check_layouts([(f"column {i}", column) for i, column in enumerate(columns)])
    # torch takes an empty list of integers for an empty list of tensors, and wants a list of no gradients back.
    ctx.no_gradients = [[] if isinstance(value, list) and not value else None for value in inputs[1:]]
    # Where a clamp cut is found by running the row again up to it.
    clamped = any(output.clamp for output in ctx.program.outputs)
    ctx.save_for_backward(coef, present, seeds, draws, *(columns if clamped else ()))


def _backward(ctx, gradients):  # noqa: ANN001, ANN202
    coef, present, seeds, draws, *columns = ctx.saved_tensors
    call = Call(columns, coef, ctx.program, seeds, draws, present)
    z_gradient = gradients[-1] if ctx.has_z else None
    incoming = arriving(call, ctx.outputs, gradients[: len(ctx.outputs)], z_gradient, ctx.copies, ctx.layout)
    found = column_gradients(call, ctx.dtypes, incoming)
    return found, *ctx.no_gradients


for _name, _kernel, _fake in (
    ("stage", _stage_kernel, _stage_fake),
    ("gram", _gram_kernel, _gram_fake),
    ("fill_noise", _checked_fill_noise, _fill_noise_fake),
    ("stage_functional", _functional_kernel, _functional_fake),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastdiff::{_name}", _fake, lib=_library)
torch.library.register_autograd("fastdiff::stage_functional", _backward, setup_context=_setup_context, lib=_library)
