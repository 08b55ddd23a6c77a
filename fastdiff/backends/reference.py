"""The specification: the ops in plain PyTorch, bit for bit what every other backend must compute.

Only operations that round once, to nearest even, are used, each on its own: ``mul``, ``add``, comparisons,
casts, integer arithmetic. Fused torch operations (``addcmul``, ``lerp``, ``add(alpha=)``) and float32
``torch.sqrt`` round differently and are avoided. See ``docs/numerics.md``. All of it is one module, long as that is, so
that the definition can be read from top to bottom.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.rows.call import Call, GramCall
from fastdiff.rows.gram import CHUNK, OPERATIONS

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
NOISE_FORMAT = 1
WORD = 0xFFFFFFFF


def _f32(*values: float) -> tuple[float, ...]:
    """The float32 numbers nearest to decimal constants."""
    return struct.unpack(f"{len(values)}f", struct.pack(f"{len(values)}f", *values))


LOG_EVEN = _f32(-0.130310059, -0.121484190, -0.166846052, -0.249996200)
LOG_ODD = _f32(0.140869141, 0.139814854, 0.200120345)
LOG_TAIL = _f32(0.333331972, -0.5)
COS = _f32(0.231384277, -1.33502197, 4.05869293, -4.93480206, 1.0)
SIN = _f32(-0.595703125, 2.55038404, -5.16772413)
LN_2, PI = _f32(0.693147182, 3.14159274)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC11).

    Args:
        counter: four int64 tensors that hold unsigned 32-bit words.
        key: two int64 tensors that hold unsigned 32-bit words.

    Returns:
        Four int64 tensors that hold unsigned 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The int64 product wraps, but its 64 bits are those of the unsigned product.
        p0, p1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + PHILOX_WEYL[0]) & WORD, (k1 + PHILOX_WEYL[1]) & WORD
    return c0, c1, c2, c3


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Float32 ``a * b + c`` rounded once, through float64 with round-to-odd (Boldo and Melquiond, 2008).

    The product of two float32 is exact in float64; the sum is rounded to odd there, which makes the second
    rounding, to float32, innocuous.
    """
    product = a.double() * (b.double() if isinstance(b, Tensor) else b)
    addend = c.double() if isinstance(c, Tensor) else torch.full_like(product, c)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(torch.int64)
    # Where the sum is infinite the error is NaN, and nothing is done.
    to_odd = (error.abs() > 0) & (bits & 1 == 0)
    away = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(to_odd, bits + away, bits).view(torch.float64).float()


def radius(word: Tensor) -> Tensor:
    """``sqrt(-2 log u)`` in float32, ``u = (word + 1/2) / 2**32``; explicit fma only (``docs/noise.md``)."""
    u = fma(word.float(), 2.0**-32, 2.0**-33)
    bits = u.view(torch.int32)
    exponent = (bits - 0x3F2AAAAB) & -0x800000
    f = (bits - exponent).view(torch.float32) - 1.0
    i = exponent.float() * 2.0**-23
    s = f * f
    r = torch.full_like(f, LOG_EVEN[0])
    t = torch.full_like(f, LOG_ODD[0])
    for even, odd in zip(LOG_EVEN[1:3], LOG_ODD[1:], strict=True):
        r, t = fma(r, s, even), fma(t, s, odd)
    r = fma(r, s, LOG_EVEN[3])
    r = fma(t, f, r)
    r = fma(r, f, LOG_TAIL[0])
    r = fma(r, f, LOG_TAIL[1])
    r = fma(r, s, f)
    log = fma(i, LN_2, r)
    return (log * -2.0).double().sqrt().float()


def cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``2 pi word / 2**32`` in float32; explicit fma only (``docs/noise.md``)."""
    quadrant = ((word + 0x20000000) >> 30) & 3
    offset = word - (quadrant << 30)
    offset = torch.where(offset >= 2**31, offset - 2**32, offset)
    t = offset.float() * 2.0**-31
    s = t * t
    c = torch.full_like(t, COS[0])
    for coefficient in COS[1:]:
        c = fma(c, s, coefficient)
    p = torch.full_like(t, SIN[0])
    for coefficient in SIN[1:]:
        p = fma(p, s, coefficient)
    sine = fma(p * s, t, PI * t)
    swapped = quadrant & 1 == 1
    cosine, sine = torch.where(swapped, sine, c), torch.where(swapped, c, sine)
    cosine = torch.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)
    return cosine, torch.where(quadrant >= 2, -sine, sine)


def pack(block: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The Philox counter of four neighbouring elements; no two different arguments give the same one.

    Args:
        block: int64 ``[n]``, the element's index divided by four, below 2**40.
        draws: int64 ``[..., 4]``: purpose, tensor, draw, sub_draw.

    Returns:
        Four int64 tensors that hold unsigned 32-bit words and broadcast to ``[..., n]``.
    """
    purpose, tensor, draw, sub_draw = (word[..., None] for word in draws.unbind(-1))
    return block & WORD, block >> 32 | purpose << 8 | tensor << 16, draw, sub_draw | NOISE_FORMAT << 24


def normals(numel: int, seeds: Tensor, draws: Tensor) -> Tensor:
    """Standard normals for whole samples: float32 ``[..., numel]`` in logical row-major order.

    Args:
        numel: elements in one sample.
        seeds: int64 ``[...]``, the noise keys.
        draws: int64 ``[..., 4]``: purpose, tensor, draw, sub_draw. It broadcasts with ``seeds``.
    """
    block = torch.arange((numel + 3) // 4, dtype=torch.int64, device=seeds.device)
    key = seeds[..., None]
    c0, c1, c2, c3, k0, k1 = torch.broadcast_tensors(*pack(block, draws), key & WORD, key >> 32 & WORD)
    words = torch.stack(philox((c0, c1, c2, c3), (k0, k1)), -1)
    r, (cosine, sine) = radius(words[..., 0::2]), cos_sin(words[..., 1::2])
    return torch.stack((r * cosine, r * sine), -1).flatten(-3)[..., :numel]


def stage(call: Call) -> None:
    """Run one row and write its outputs; nothing else is touched."""
    program, coef, state = call.program, call.coef, call.coef.dtype
    shape = (call.columns or call.written)[0].shape
    per_sample = (-1, *(1 for _ in shape[1:]))
    sources = [column.to(state) for column in call.columns]
    xi = _draw(call, shape)

    def is_on(k: int) -> Tensor | bool:
        return True if call.present is None else ((call.present >> k) & 1 == 1).view(per_sample)

    def c(k: int) -> Tensor:
        return coef[:, k].view(per_sample)

    for i, output in enumerate(program.outputs):
        w = Sum()
        for k, source in enumerate(output.terms, program.terms_at(i)):
            w.add(is_on(k), c(k) * sources[source])
        if output.base is not None:
            # An output that is its base alone must not be the very column, which a store may overwrite.
            w.add(True, sources[output.base].clone() if w.total is None else sources[output.base])
        for k, r in enumerate(output.noise, program.noise_at(i)):
            w.add(is_on(k), c(k) * (xi[r] if r >= 0 else sources[-1 - r]))
        total = torch.zeros((), dtype=state, device=coef.device) if w.total is None else w.total
        if output.clamp:
            k = program.bound_at(i)
            clamped = torch.where(total > c(k), c(k), torch.where(total < -c(k), -c(k), total))
            total = _select(is_on(k), clamped, total)
        if output.scale:
            k = program.scale_at(i)
            total = _select(is_on(k), c(k) * total, total)
        sources.append(total.expand(shape))

    results = sources[program.columns :]
    made = [
        (store, _round_to(w, store.dtype)) for w, store in zip(results, call.stores, strict=False) if store is not None
    ]
    if call.z is not None:
        assert program.network is not None
        w, k = results[program.network], program.c_in_at
        narrow = _round_to(_select(is_on(k), c(k) * w, w), call.z.dtype)
        made.append((call.z, narrow.repeat(call.z.shape[0] // shape[0], *(1 for _ in shape[1:]))))
    # Only now, because an output may be a column in place.
    for tensor, value in made:
        tensor.copy_(value)


class Sum:
    """A running sum whose first addend is taken as it is: nothing is ever added to a zero."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.started: Tensor | bool = False

    def add(self, on: Tensor | bool, value: Tensor) -> None:
        """Add a value where ``on``."""
        if self.total is None:
            self.total = _select(on, value, 0.0)
        else:
            self.total = _select(on, _select(self.started, self.total + value, value), self.total)
        self.started = self.started | on


def _draw(call: Call, shape: torch.Size) -> Sequence[Tensor]:
    """All normals of a row, in the state type."""
    if not call.program.draws:
        return ()
    assert call.seeds is not None
    assert call.draws is not None
    flat = normals(sample_numel(shape), call.seeds[:, None], call.draws)
    return flat.to(call.coef.dtype).view(shape[0], call.program.draws, *shape[1:]).unbind(1)


def gram(call: GramCall) -> None:
    """Make a row's scalars, and the coefficients that follow from them; everything in float64."""
    program, batch = call.program, call.scalars.shape[0]
    numel = sample_numel(call.columns[0].shape) if call.columns else 1
    take = iter(call.numbers.unbind(1))
    sources = [column.double().reshape(batch, numel) for column in call.columns]
    if program.draws:
        assert call.seeds is not None
        assert call.draws is not None
        sources += normals(numel, call.seeds[:, None], call.draws).double().unbind(1)
    sources.append(torch.ones((), dtype=torch.float64, device=call.scalars.device))

    vectors = []
    for places in program.vectors:
        v = Sum()
        for place in places:
            v.add(True, next(take)[:, None] * sources[place])
        zero = torch.zeros((), dtype=torch.float64, device=call.scalars.device)
        vectors.append((zero if v.total is None else v.total).expand(batch, numel))
    scalars = []
    for kind, a, b, c in program.sums:
        if kind == 0:
            scalars.append(tree_sum(vectors[a] * vectors[b]))
        else:
            atol, rtol = next(take)[:, None], next(take)[:, None]
            q = vectors[a] / larger(atol, rtol * larger(vectors[b].abs(), vectors[c].abs()))
            scalars.append(tree_sum(q * q))
    for operation, left, right in program.steps:
        match OPERATIONS[operation]:
            case "number":
                made = next(take)
            case "add":
                made = scalars[left] + scalars[right]
            case "sub":
                made = scalars[left] - scalars[right]
            case "mul":
                made = scalars[left] * scalars[right]
            case "div":
                made = scalars[left] / scalars[right]
            case "sqrt":
                made = square_root(scalars[left])
            case _:
                made = larger(scalars[left], scalars[right])
        scalars.append(made)
    call.scalars.copy_(torch.stack([s.expand(batch) for s in scalars], 1))
    coefficients = []
    for places in program.coefficients:
        total = next(take)
        for place in places:
            total = total + next(take) * scalars[place]
        coefficients.append(total.expand(batch))
    if call.coef is not None and coefficients:
        call.coef.copy_(torch.stack(coefficients, 1).to(call.coef.dtype))


LANES = 128


def tree_sum(values: Tensor) -> Tensor:
    """The sum over the last dimension in the one order there is.

    A *quad* of neighbours is ``(p0 + p1) + (p2 + p3)``. A chunk of 4,096 values is 1,024 quads: lane l adds its quads
    l, l + 128, ... one after the other to +0, then lane l adds lane l + 64, l + 32, ... down to one number. The chunks'
    numbers are summed in the same way, until one is left. What is missing in the last chunk is +0.
    """
    while True:
        chunks = max(1, (values.shape[-1] + CHUNK - 1) // CHUNK)
        whole = torch.nn.functional.pad(values, (0, chunks * CHUNK - values.shape[-1]))
        quads = whole.view(*values.shape[:-1], chunks, CHUNK // (4 * LANES), LANES, 4)
        quads = (quads[..., 0] + quads[..., 1]) + (quads[..., 2] + quads[..., 3])
        lanes = torch.zeros_like(quads[..., 0, :])
        for row in quads.unbind(-2):
            lanes = lanes + row
        while lanes.shape[-1] > 1:
            half = lanes.shape[-1] // 2
            lanes = lanes[..., :half] + lanes[..., half:]
        values = lanes[..., 0]
        if chunks == 1:
            return values[..., 0]


SPLITTER = 2.0**27 + 1


def square_root(x: Tensor) -> Tensor:
    """The float64 square root, rounded once; that of torch on a CPU is one unit off now and then.

    torch's root r is improved by ``(m - r^2) / (2 r)``, with the square exact in two parts (Dekker, 1971); the sum is
    then rounded rightly: no root of a float64 number lies that near to the middle of two (Markstein, 1990).
    """
    mantissa, exponent = torch.frexp(x)
    odd = exponent & 1
    m = torch.ldexp(mantissa, odd)
    r = m.sqrt()
    high = r * SPLITTER - (r * SPLITTER - r)
    low = r - high
    square = r * r
    rest = ((high * high - square) + 2 * high * low) + low * low
    better = torch.ldexp(r + ((m - square) - rest) / (2 * r), (exponent - odd) // 2)
    return torch.where((x > 0) & x.isfinite(), better, x.sqrt())


def larger(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two; NaN where either is."""
    return torch.where((a > b) | a.isnan(), a, b)


def fill_noise(out: Tensor, seeds: Tensor, draws: Tensor) -> None:
    """Fill ``out`` ``[B, ...]`` with one draw's normals, rounded to its dtype; ``draws`` is ``[1 or B, 4]``."""
    out.copy_(_round_to(normals(sample_numel(out.shape), seeds, draws).view(out.shape), out.dtype))


def sample_numel(shape: torch.Size) -> int:
    """Elements in one sample of a batch of this shape."""
    return shape[1:].numel()


def _select(on: Tensor | bool, value: Tensor, otherwise: Tensor | float) -> Tensor:
    """``value`` where ``on``, else ``otherwise``: a choice, never a multiplication by zero."""
    return value if on is True else torch.where(torch.as_tensor(on), value, otherwise)


def _round_to(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to a storage type by way of float32 where it is a 16-bit type."""
    return value.float().to(dtype) if dtype in (torch.bfloat16, torch.float16) else value.to(dtype)
