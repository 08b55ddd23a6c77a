# ruff: noqa: ANN001, ANN201 (Triton gives annotations of kernels a meaning of its own)
"""Standard normals from counters, by Box-Muller: the bits of ``fastdiff.backends.reference.normals``.

Every multiply-add of the polynomials is an explicit fma; they are derived in ``docs/noise.md``.
"""

import triton
import triton.language as tl

from .philox import philox


@triton.jit
def radius(word):
    """``sqrt(-2 log u)``, ``u = (word + 1/2) / 2**32``: uint32 to float32."""
    u = tl.fma(word.to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10)
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F2AAAAB) & -0x800000
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    i = exponent.to(tl.float32) * 1.1920928955078125e-07
    s = f * f
    r = tl.fma(s, -0.130310059, -0.121484190)
    t = tl.fma(s, 0.140869141, 0.139814854)
    r = tl.fma(r, s, -0.166846052)
    t = tl.fma(t, s, 0.200120345)
    r = tl.fma(r, s, -0.249996200)
    r = tl.fma(t, f, r)
    r = tl.fma(r, f, 0.333331972)
    r = tl.fma(r, f, -0.5)
    r = tl.fma(r, s, f)
    return tl.sqrt_rn(tl.fma(i, 0.693147182, r) * -2.0)


@triton.jit
def cos_sin(word):
    """Cosine and sine of ``2 pi word / 2**32``: uint32 to two float32."""
    quadrant = (word + 0x20000000) >> 30
    t = (word - (quadrant << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10
    s = t * t
    c = tl.fma(s, 0.231384277, -1.33502197)
    c = tl.fma(c, s, 4.05869293)
    c = tl.fma(c, s, -4.93480206)
    c = tl.fma(c, s, 1.0)
    p = tl.fma(s, -0.595703125, 2.55038404)
    p = tl.fma(p, s, -5.16772413)
    sine = tl.fma(p * s, t, t * 3.14159274)
    swapped = (quadrant & 1) == 1
    cosine, sine = tl.where(swapped, sine, c), tl.where(swapped, c, sine)
    # A minus sign loses that of a zero before Triton 3.7.
    cosine = tl.where((quadrant == 1) | (quadrant == 2), cosine * -1.0, cosine)
    return cosine, tl.where(quadrant >= 2, sine * -1.0, sine)


@triton.jit
def words(block, seed, draw):
    """Philox words of element blocks (element // 4).

    Args:
        block: int64, any shape.
        seed: int64 scalar, the sample's key.
        draw: pointer to int64 ``[4]``: purpose, tensor, draw, sub_draw.
    """
    purpose, tensor = tl.load(draw), tl.load(draw + 1)
    c1 = (block >> 32) | (purpose << 8) | (tensor << 16)
    c2 = tl.load(draw + 2).to(tl.uint32)
    c3 = (tl.load(draw + 3) | 0x1000000).to(tl.uint32)
    zero = (block * 0).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    return philox(block.to(tl.uint32), c1.to(tl.uint32), c2 + zero, c3 + zero, k0, k1)


@triton.jit
def normals_of_blocks(block, seed, draw):
    """Normals of whole blocks: ``[Q]`` blocks (int64) to float32 ``[Q, 4]``, lane by lane."""
    w0, w1, w2, w3 = words(block, seed, draw)
    cosine, sine = cos_sin(w1)
    r = radius(w0)
    lane_0, lane_1 = r * cosine, r * sine
    cosine, sine = cos_sin(w3)
    r = radius(w2)
    lane_2, lane_3 = r * cosine, r * sine
    # join() adds the last axis, so lane 2 * i + j sits at [q, i, j].
    lanes = tl.join(tl.join(lane_0, lane_2), tl.join(lane_1, lane_3))
    return tl.reshape(lanes, (block.shape[0], 4))


@triton.jit
def normals_of_elements(element, seed, draw):
    """Normals of single elements (int64, any shape), for layouts whose memory order is not the element order.

    Every element computes its whole block, so this costs up to four times ``normals_of_blocks``.
    """
    w0, w1, w2, w3 = words(element >> 2, seed, draw)
    second = (element & 2) == 2
    cosine, sine = cos_sin(tl.where(second, w3, w1))
    return radius(tl.where(second, w2, w0)) * tl.where((element & 1) == 1, sine, cosine)
