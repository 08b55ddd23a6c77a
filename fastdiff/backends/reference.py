"""The specification: the ops in plain PyTorch, bit for bit what every other backend must compute.

Only operations that round once, to nearest even, are used, each on its own: ``mul``, ``add``, comparisons,
casts, integer arithmetic. Fused torch operations (``addcmul``, ``lerp``, ``add(alpha=)``) and float32
``torch.sqrt`` round differently and are avoided. See ``docs/numerics.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

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


def stage(
    columns: Sequence[Tensor],
    coef: Tensor,
    present: Tensor | None,
    seeds: Tensor | None,
    draws: Tensor | None,
    program: Sequence[int],
    stores: Sequence[Tensor | None],
    z: Tensor | None,
) -> None:
    """Run one row (``fastdiff.rows.row.Row.program``) and write its outputs; nothing else is touched.

    Args:
        columns: tensors ``[B, ...]`` of one shape, any floating dtype; widened to the state type on load.
        coef: ``[1 or B, K]`` in the state type.
        present: int64 ``[1 or B]``; bit k clear means that coefficient k's operation is skipped.
        seeds: int64 ``[B]``; needed when the program draws noise.
        draws: int64 ``[1 or B, N, 4]``.
        program: see ``fastdiff.rows.row.Row.program``.
        stores: a tensor ``[B, ...]`` or None per output.
        z: network input ``[copies * B, ...]``, or None.
    """
    state, shape = coef.dtype, columns[0].shape if columns else _shape(stores, z)
    batch = shape[0]
    per_sample = (-1, *(1 for _ in shape[1:]))
    ints = iter(program)
    coefficient = iter(range(coef.shape[1]))

    def switch(k: int) -> Tensor | bool:
        return True if present is None else ((present >> k) & 1 == 1).view(per_sample)

    def accumulate(
        total: Tensor | None, started: Tensor | bool, terms: list[Tensor]
    ) -> tuple[Tensor | None, Tensor | bool]:
        for source in terms:
            k = next(coefficient)
            on, term = switch(k), coef[:, k].view(per_sample) * source
            if total is None:
                total = _select(on, term, 0.0)
            else:
                total = _select(on, _select(started, total + term, term), total)
            started = started | on
        return total, started

    wide = [column.to(state) for column in columns]
    _, n_draws, network, d_terms, d_clamp, d_scale = (next(ints) for _ in range(6))
    xi: Sequence[Tensor] = ()
    if n_draws:
        flat = normals(sample_numel(shape), seeds[:, None], draws)  # type: ignore[index, arg-type]
        xi = flat.to(state).view(batch, n_draws, *shape[1:]).unbind(1)
    if d_terms >= 0:
        derived, _ = accumulate(None, False, [wide[next(ints)] for _ in range(d_terms)])
        derived = torch.zeros(shape, dtype=state, device=coef.device) if derived is None else derived
        if d_clamp:
            k = next(coefficient)
            limit = coef[:, k].view(per_sample)
            clamped = torch.where(derived > limit, limit, torch.where(derived < -limit, -limit, derived))
            derived = _select(switch(k), clamped, derived)
        if d_scale:
            k = next(coefficient)
            derived = _select(switch(k), coef[:, k].view(per_sample) * derived, derived)
        wide.append(derived)

    results = []
    for _ in range(next(ints)):
        base = next(ints)
        terms = [wide[next(ints)] for _ in range(next(ints))]
        noise = [wide[-1 - r] if r < 0 else xi[r] for r in (next(ints) for _ in range(next(ints)))]
        total, started = accumulate(None, False, terms)
        if base >= 0:
            total = wide[base].clone() if total is None else _select(started, wide[base] + total, wide[base])
            started = True
        total, _ = accumulate(total, started, noise)
        if total is None:
            total = torch.zeros((1,), dtype=state, device=coef.device)
        results.append(total.expand(shape))
    if z is not None:
        k = next(coefficient)
        w = results[network]
        scaled = _select(switch(k), coef[:, k].view(per_sample) * w, w)
        narrow = _round_to(scaled, z.dtype)
        z_written = narrow.repeat(z.shape[0] // batch, *(1 for _ in shape[1:]))
    rounded = [None if out is None else _round_to(w, out.dtype) for w, out in zip(results, stores, strict=False)]
    for out, w in zip(stores, rounded, strict=False):
        if out is not None and w is not None:
            out.copy_(w)
    if z is not None:
        z.copy_(z_written)


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


def _shape(stores: Sequence[Tensor | None], z: Tensor | None) -> torch.Size:
    for out in (*stores, z):
        if out is not None:
            return out.shape
    raise ValueError("a stage needs at least one tensor")
