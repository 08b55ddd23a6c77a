# ruff: noqa: ANN001, ANN202, ANN201, D417, RUF005 (as in stage.py)
"""The op ``gram`` in Triton: ``docs/gram.md`` for one chunk of one sample, and for the sums of its chunks.

A lane is an element of a tensor ``[LANES]``, a turn's quads are ``[LANES, 4]``. Every sum is made by itself, turn by
turn, so that only two or three vectors are held at a time; what other sums read again comes from the cache.
"""

import triton
import triton.language as tl

from .stage import _load, _masks, _normals, _sample_start

LANES = tl.constexpr(128)
TURNS = tl.constexpr(8)


@triton.jit
def _larger(a, b):
    """The larger one, or NaN where either is."""
    return tl.where(a > b, a, tl.where(a == a, b, a))


@triton.jit
def _quad_sums(products):
    """``(p0 + p1) + (p2 + p3)``: ``[L, 4]`` to ``[L]``."""
    even, odd = tl.split(tl.reshape(products, (products.shape[0], 2, 2)))
    first, second = tl.split(even + odd)
    return first + second


@triton.jit
def _halve(lanes):
    """Every lane of the first half adds its lane of the second: ``[L]`` to ``[L / 2]``."""
    left, right = tl.split(tl.permute(tl.reshape(lanes, (2, lanes.shape[0] // 2)), (1, 0)))
    return left + right


@triton.jit
def _fold(lanes):
    """Halves added until one lane is left: ``[LANES]`` to ``[1]``."""
    for _ in tl.static_range(7):
        lanes = _halve(lanes)
    return lanes


@triton.jit
def _turns(count, chunk):
    """How many turns a chunk of ``count`` values has; a missing one would add +0 to lanes, which are never -0."""
    return tl.minimum((count - chunk * (TURNS * LANES * 4) + (LANES * 4 - 1)) // (LANES * 4), TURNS)


@triton.jit
def _source(columns, column_strides, seed, draws, sample, quad, element, numel, channels, SOURCE: tl.constexpr,
            DRAWS: tl.constexpr, ACCESS: tl.constexpr, CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """What a vector reads, in float64 ``[LANES, 4]``: a column, a draw, or the constant 1."""
    if len(columns) > SOURCE:
        place = element
        if CHANNELS_LAST:
            place = element % (numel // channels) * channels + element // (numel // channels)
        start = _sample_start(columns[SOURCE], sample, column_strides[SOURCE], ACCESS)
        value = _load(start, place, _masks(quad, element, numel, ACCESS))
    elif len(columns) + DRAWS > SOURCE:
        value = _normals(quad, element, numel, channels, seed, draws + 4 * (SOURCE - len(columns)), False)
    else:
        value = tl.full(element.shape, 1.0, tl.float64)
    return value.to(tl.float64)


@triton.jit
def _vector(columns, column_strides, numbers, seed, draws, sample, quad, element, numel, channels,
            GRAM: tl.constexpr, AT: tl.constexpr, WHICH: tl.constexpr, ACCESS: tl.constexpr,
            CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """A linear combination, the left, right or other one of a sum, rounded after every operation; +0 without terms."""
    VECTOR: tl.constexpr = GRAM.sums[AT][WHICH]
    DRAWS: tl.constexpr = GRAM.draws
    total = None
    for i in tl.static_range(len(VECTOR)):
        value = _source(columns, column_strides, seed, draws, sample, quad, element, numel, channels, VECTOR[i][0],
                        DRAWS, ACCESS, CHANNELS_LAST)  # fmt: skip
        term = tl.load(numbers + VECTOR[i][1]) * value
        total = term if total is None else total + term
    if total is None:
        total = tl.full(element.shape, 0.0, tl.float64)
    return total


@triton.jit
def _products(columns, column_strides, numbers, seed, draws, sample, quad, element, numel, channels,
              GRAM: tl.constexpr, AT: tl.constexpr, ACCESS: tl.constexpr,
              CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """What a sum adds of every element; +0 past the end."""
    SUM: tl.constexpr = GRAM.sums[AT]
    left = _vector(columns, column_strides, numbers, seed, draws, sample, quad, element, numel, channels, GRAM, AT, 0,
                   ACCESS, CHANNELS_LAST)  # fmt: skip
    right = left
    if SUM.tolerance >= 0 or not SUM.square:
        right = _vector(columns, column_strides, numbers, seed, draws, sample, quad, element, numel, channels, GRAM,
                        AT, 1, ACCESS, CHANNELS_LAST)  # fmt: skip
    if SUM.tolerance >= 0:
        other = _vector(columns, column_strides, numbers, seed, draws, sample, quad, element, numel, channels, GRAM,
                        AT, 2, ACCESS, CHANNELS_LAST)  # fmt: skip
        atol, rtol = tl.load(numbers + SUM.tolerance), tl.load(numbers + SUM.tolerance + 1)
        left = left / _larger(atol, rtol * _larger(tl.abs(right), tl.abs(other)))
        right = left
    return tl.where(element < numel, left * right, 0.0)


@triton.jit
def _step(scalars, numbers, GRAM: tl.constexpr, AT: tl.constexpr):
    """A scalar made of earlier ones, ``[1]``; operations in the order of ``fastdiff.rows.gram.OPERATIONS``."""
    STEP: tl.constexpr = GRAM.steps[AT]
    if STEP.operation == 0:
        made = tl.load(numbers + STEP.number + tl.arange(0, 1))
    elif STEP.operation == 1:
        made = scalars[STEP.left] + scalars[STEP.right]
    elif STEP.operation == 2:
        made = scalars[STEP.left] - scalars[STEP.right]
    elif STEP.operation == 3:
        made = scalars[STEP.left] * scalars[STEP.right]
    elif STEP.operation == 4:
        made = scalars[STEP.left] / scalars[STEP.right]
    elif STEP.operation == 5:
        made = tl.sqrt(scalars[STEP.left])
    else:
        made = _larger(scalars[STEP.left], scalars[STEP.right])
    return made


@triton.jit
def _finish(scalars, numbers, out, coef, GRAM: tl.constexpr):
    """Store a sample's scalars, and the coefficients that are affine in them; ``scalars`` holds the sums."""
    for i in tl.static_range(len(GRAM.steps)):
        scalars = scalars + (_step(scalars, numbers, GRAM, i),)
    one = tl.arange(0, 1)
    for i in tl.static_range(len(GRAM.sums) + len(GRAM.steps)):
        tl.store(out + i + one, scalars[i])
    if coef is not None:
        for k in tl.static_range(len(GRAM.coefficients)):
            total = tl.load(numbers + GRAM.coefficients[k].number + one)
            for j in tl.static_range(len(GRAM.coefficients[k].scalars)):
                factor = tl.load(numbers + GRAM.coefficients[k].number + 1 + j + one)
                total = total + factor * scalars[GRAM.coefficients[k].scalars[j]]
            tl.store(coef + k + one, total.to(coef.dtype.element_ty))


@triton.jit
def _leave(scalars, sample, chunk, chunks, parts, numbers, out, out_stride, coef, coef_stride, GRAM: tl.constexpr):
    """Leave a chunk's sums among the parts of its sample; or finish that, where it has no others."""
    if parts is None:
        if coef is not None:
            coef += sample * coef_stride
        _finish(scalars, numbers, out + sample * out_stride, coef, GRAM)
    else:
        for s in tl.static_range(len(GRAM.sums)):
            tl.store(parts + (sample * len(GRAM.sums) + s) * chunks + chunk + tl.arange(0, 1), scalars[s])


@triton.jit(do_not_specialize=["numbers", "numbers_stride", "seeds", "draws", "draws_stride", "parts", "out",
                               "out_stride", "coef", "coef_stride", "numel", "channels", "chunks"])  # fmt: skip
def gram_kernel(columns, column_strides, numbers, numbers_stride, seeds, draws, draws_stride, parts, out, out_stride,
                coef, coef_stride, numel, channels, chunks, GRAM: tl.constexpr, ACCESS: tl.constexpr,
                CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """The sums of every chunk; the grid is ``batch * chunks``.

    Args:
        columns: tensors, dense inside a sample.
        column_strides: batch strides in elements, times ``2**STRIDE_SHIFT``.
        numbers, seeds, draws, out, coef: as in ``docs/gram.md``, ``out`` being its scalars; strides are 0 for a shared
            ``[1, ...]``.
        parts: float64 ``[batch, sums, chunks]``, the sums of chunks; None where a sample is one, and is finished.
        numel, channels: elements in a sample; its channels where ``CHANNELS_LAST``.
        GRAM: ``fastdiff.kernels.structure.GramStructure``.
    """
    numel, channels = numel.to(tl.int64), channels.to(tl.int64)
    instance = tl.program_id(0)
    sample, chunk = (instance // chunks).to(tl.int64), (instance % chunks).to(tl.int64)
    numbers += sample * numbers_stride
    seed = None
    if draws is not None:
        draws += sample * draws_stride
        seed = tl.load(seeds + sample)
    turns = _turns(numel, chunk)
    scalars = ()
    for s in tl.static_range(len(GRAM.sums)):
        lanes = tl.full((LANES,), 0.0, tl.float64)
        for turn in range(turns):
            quad = (chunk * TURNS + turn) * LANES + tl.arange(0, LANES)
            element = quad[:, None] * 4 + tl.arange(0, 4)[None, :]
            products = _products(columns, column_strides, numbers, seed, draws, sample, quad, element, numel, channels,
                                 GRAM, s, ACCESS, CHANNELS_LAST)  # fmt: skip
            lanes += _quad_sums(products)
        scalars = scalars + (_fold(lanes),)
    _leave(scalars, sample, chunk, chunks, parts, numbers, out, out_stride, coef, coef_stride, GRAM)


@triton.jit(do_not_specialize=["parts", "count", "numbers", "numbers_stride", "rest", "out", "out_stride", "coef",
                               "coef_stride", "chunks"])  # fmt: skip
def gram_parts_kernel(parts, count, numbers, numbers_stride, rest, out, out_stride, coef, coef_stride, chunks,
                      GRAM: tl.constexpr):  # fmt: skip
    """The sums of the sums of chunks, in chunks of their own; the grid is ``batch * chunks``.

    Args:
        parts: float64 ``[batch, sums, count]``.
        rest: float64 ``[batch, sums, chunks]``, the sums of chunks of these; None where there is one, and it is
            finished.
        numbers, out, coef: as for ``gram_kernel``.
    """
    count = count.to(tl.int64)
    instance = tl.program_id(0)
    sample, chunk = (instance // chunks).to(tl.int64), (instance % chunks).to(tl.int64)
    turns = _turns(count, chunk)
    scalars = ()
    for s in tl.static_range(len(GRAM.sums)):
        lanes = tl.full((LANES,), 0.0, tl.float64)
        for turn in range(turns):
            quad = (chunk * TURNS + turn) * LANES + tl.arange(0, LANES)
            element = quad[:, None] * 4 + tl.arange(0, 4)[None, :]
            first = parts + (sample * len(GRAM.sums) + s) * count
            lanes += _quad_sums(tl.load(first + element, mask=element < count, other=0.0))
        scalars = scalars + (_fold(lanes),)
    numbers += sample * numbers_stride
    _leave(scalars, sample, chunk, chunks, rest, numbers, out, out_stride, coef, coef_stride, GRAM)
