# Triton gives annotations a meaning of its own, unrolls loops over tuples, and knows neither `(*a, b)` nor a tuple
# chosen by `if else`.
# ruff: noqa: ANN001, ANN202, ANN201, D417, RUF005, SIM108
"""The ops ``stage`` and ``fill_noise`` in Triton: ``docs/row-format.md`` for one tile of one sample.

A program instance owns the elements of its tile: it reads all columns of them before it stores any output, which
makes writing in place safe. A tile is ``[QUADS, 4]``: quads of neighbouring elements, so that a thread moves four
float32 as 128 bits. How it does so is the constant ``ACCESS``:

``"quads"``
    The number of elements is a multiple of four and every sample starts aligned: whole quads, masked as such.
    (A mask per element would make every access scalar.)
``"tail"``
    Aligned, with one to three elements left over: whole quads, then the rest of the last one by itself.
``"elements"``
    Some sample starts unaligned: a mask per element, and accesses as wide as one element.

Structure is constant; coefficients, presence, seeds and draws are read from device memory, so that a captured graph
replays with new ones.
"""

import triton
import triton.language as tl

from .normal import normals_of_blocks, normals_of_elements

# Strides come multiplied by 2**4. Triton would compile again for a stride of 1 and for one that 16 divides.
STRIDE_SHIFT = tl.constexpr(4)


@triton.jit
def _masks(quad, place, numel, ACCESS: tl.constexpr):
    """Which elements of a tile ``[Q, 4]`` are moved at once, and for a tail which are moved after these."""
    if ACCESS == "elements":
        masks = (place < numel,)
    else:
        masks = ((quad < numel // 4)[:, None],)
    if ACCESS == "tail":
        masks = masks + ((quad[:, None] == numel // 4) & (place < numel),)
    return masks


@triton.jit
def _sample_start(tensor, sample, stride, ACCESS: tl.constexpr):
    """Where a sample starts in a tensor; tells the compiler that quads of it are aligned where they are."""
    offset = sample * (stride.to(tl.int64) >> STRIDE_SHIFT)
    if ACCESS == "elements":
        start = tensor + offset
    else:
        # Compilers for NVIDIA look at the pointer; those for AMD take it apart and look at the offset.
        QUAD_BYTES: tl.constexpr = tensor.dtype.element_ty.primitive_bitwidth // 2
        start = tl.multiple_of(tensor + tl.multiple_of(offset, 4), 16 if QUAD_BYTES >= 16 else QUAD_BYTES)
    return start


@triton.jit
def _load(start, place, masks):
    value = tl.load(start + place, mask=masks[0], other=0.0)
    if len(masks) == 2:
        value = tl.where(masks[1], tl.load(start + place, mask=masks[1], other=0.0), value)
    return value


@triton.jit
def _store(start, place, value, masks):
    """Round to the storage type, from float64 to 16 bits by way of float32, and store."""
    if start.dtype.element_ty.primitive_bitwidth == 16:
        value = value.to(tl.float32)
    value = value.to(start.dtype.element_ty)
    for i in tl.static_range(len(masks)):
        tl.store(start + place, value, mask=masks[i])


@triton.jit
def _normals(quad, place, numel, channels, seed, draw, CHANNELS_LAST: tl.constexpr):
    """One draw's normals for a tile, float32 ``[Q, 4]``; the element of the counter is the logical one."""
    if CHANNELS_LAST:
        element = (place % channels) * (numel // channels) + place // channels
        xi = normals_of_elements(element, seed, draw)
    else:
        xi = normals_of_blocks(quad, seed, draw)
    return xi


@triton.jit
def _is_on(present, k):
    return ((present >> k) & 1) == 1


@triton.jit
def _add(total, started, value, coef, present, K: tl.constexpr):
    """``total + coef[K] * value``; the first present product is taken as it is, an absent one leaves the total.

    Without presence masks a total that has not started is None.
    """
    term = tl.load(coef + K) * value
    if present is None:
        total = term if total is None else total + term
    else:
        on = _is_on(present, K)
        total = tl.where(on, tl.where(started, total + term, term), total)
        started = started | on
    return total, started


@triton.jit
def _cut(w, coef, present, ROW: tl.constexpr, AT: tl.constexpr):
    """An output clamped (a NaN stays), then scaled, each if it has and is present."""
    OUTPUT: tl.constexpr = ROW.outputs[AT]
    if OUTPUT.bound >= 0:
        bound = tl.load(coef + OUTPUT.bound)
        # A minus sign loses that of a zero before Triton 3.7.
        lower = bound * -1.0
        clamped = tl.where(w > bound, bound, tl.where(w < lower, lower, w))
        w = clamped if present is None else tl.where(_is_on(present, OUTPUT.bound), clamped, w)
    if OUTPUT.scale >= 0:
        scaled = tl.load(coef + OUTPUT.scale) * w
        w = scaled if present is None else tl.where(_is_on(present, OUTPUT.scale), scaled, w)
    return w


@triton.jit
def _noise(wide, zero, quad, place, numel, channels, seed, draws, REFERENCE: tl.constexpr,
           CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """What a noise reference of the program means, in the state type: a draw, or a column that holds the caller's."""
    if REFERENCE < 0:
        xi = wide[-1 - REFERENCE]
    else:
        draw = draws + 4 * REFERENCE
        xi = _normals(quad, place, numel, channels, seed, draw, CHANNELS_LAST).to(zero.dtype)
    return xi


@triton.jit
def _combination(wide, zero, coef, present, quad, place, numel, channels, seed, draws, ROW: tl.constexpr,
                 AT: tl.constexpr, CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """One output ``[base +] terms + noise``, rounded after every operation."""
    # A tuple is a constant only as a whole before Triton 3.7, so it cannot be handed over in parts.
    OUTPUT: tl.constexpr = ROW.outputs[AT]
    total = zero if present is not None else None
    started = False
    for i in tl.static_range(len(OUTPUT.terms)):
        total, started = _add(total, started, wide[OUTPUT.terms[i][0]], coef, present, OUTPUT.terms[i][1])
    if OUTPUT.base >= 0:
        base = wide[OUTPUT.base]
        if total is None:
            total = base
        else:
            total = base + total if present is None else tl.where(started, base + total, base)
        started = True
    for i in tl.static_range(len(OUTPUT.noise)):
        # Drawn where it is used: a row may draw 32 of them, too many to hold at once.
        xi = _noise(wide, zero, quad, place, numel, channels, seed, draws, OUTPUT.noise[i][0], CHANNELS_LAST)
        total, started = _add(total, started, xi, coef, present, OUTPUT.noise[i][1])
    if total is None:
        total = zero
    return total


@triton.jit(do_not_specialize=["coef", "coef_stride", "present", "present_stride", "seeds", "draws", "draws_stride",
                               "z", "z_stride", "batch", "numel", "channels", "tiles"])  # fmt: skip
def stage_kernel(columns, column_strides, coef, coef_stride, present, present_stride, seeds, draws, draws_stride,
                 stores, store_strides, z, z_stride, batch, numel, channels, tiles, ROW: tl.constexpr,
                 ACCESS: tl.constexpr, CHANNELS_LAST: tl.constexpr, QUADS: tl.constexpr):  # fmt: skip
    """One row for a batch; the grid is ``batch * tiles``, ``tiles`` of ``QUADS`` quads for each sample.

    Args:
        columns, stores, z: tensors, dense inside a sample; ``z`` may be None.
        column_strides, store_strides, z_stride: batch strides in elements, times ``2**STRIDE_SHIFT``.
        coef, present, seeds, draws: as in ``docs/row-format.md``; their strides are 0 for a shared ``[1, ...]``.
        numel, channels: elements in a sample; its channels where ``CHANNELS_LAST``.
        ROW: ``fastdiff.kernels.structure.Structure``.
    """
    # Sizes are widened first: products of 32-bit ones would wrap, and shifting them by 32 is undefined.
    batch, numel, channels = batch.to(tl.int64), numel.to(tl.int64), channels.to(tl.int64)
    instance = tl.program_id(0)
    sample, tile = (instance // tiles).to(tl.int64), (instance % tiles).to(tl.int64)
    quad = tile * QUADS + tl.arange(0, QUADS)
    place = quad[:, None] * 4 + tl.arange(0, 4)[None, :]
    masks = _masks(quad, place, numel, ACCESS)

    coef += sample * coef_stride
    state: tl.constexpr = coef.dtype.element_ty
    zero = tl.full(place.shape, 0.0, state)
    seed = None
    if present is not None:
        present = tl.load(present + sample * present_stride)
    if draws is not None:
        draws += sample * draws_stride
        seed = tl.load(seeds + sample)

    wide = ()
    for i in tl.static_range(len(columns)):
        start = _sample_start(columns[i], sample, column_strides[i], ACCESS)
        wide = wide + (_load(start, place, masks).to(state),)
    # An output is a source of those after it.
    for i in tl.static_range(len(ROW.outputs)):
        w = _combination(wide, zero, coef, present, quad, place, numel, channels, seed, draws, ROW, i,
                         CHANNELS_LAST)  # fmt: skip
        wide = wide + (_cut(w, coef, present, ROW, i),)

    for i in tl.static_range(len(ROW.outputs)):
        if ROW.outputs[i].store >= 0:
            store, stride = stores[ROW.outputs[i].store], store_strides[ROW.outputs[i].store]
            _store(_sample_start(store, sample, stride, ACCESS), place, wide[ROW.columns + i], masks)
    if ROW.copies > 0:
        w = wide[ROW.columns + ROW.network]
        scaled = tl.load(coef + ROW.c_in) * w
        if present is not None:
            scaled = tl.where(_is_on(present, ROW.c_in), scaled, w)
        COPIES: tl.constexpr = ROW.copies
        for copy in tl.static_range(COPIES):
            start = _sample_start(z, sample + copy * batch, z_stride, ACCESS)
            _store(start, place, scaled, masks)


@triton.jit(do_not_specialize=["out", "out_stride", "seeds", "draws", "draws_stride", "numel", "channels", "tiles"])
def fill_noise_kernel(out, out_stride, seeds, draws, draws_stride, numel, channels, tiles, ACCESS: tl.constexpr,
                      CHANNELS_LAST: tl.constexpr, QUADS: tl.constexpr):  # fmt: skip
    """One draw's normals for a batch; arguments as for ``stage_kernel``."""
    numel, channels = numel.to(tl.int64), channels.to(tl.int64)
    instance = tl.program_id(0)
    sample, tile = (instance // tiles).to(tl.int64), (instance % tiles).to(tl.int64)
    quad = tile * QUADS + tl.arange(0, QUADS)
    place = quad[:, None] * 4 + tl.arange(0, 4)[None, :]
    masks = _masks(quad, place, numel, ACCESS)
    seed = tl.load(seeds + sample)
    xi = _normals(quad, place, numel, channels, seed, draws + sample * draws_stride, CHANNELS_LAST)
    _store(_sample_start(out, sample, out_stride, ACCESS), place, xi, masks)
