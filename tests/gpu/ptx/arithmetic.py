"""PTX types in numpy, and the operations that numpy does not have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .parser import WIDTHS

UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}


def numpy_type(kind: str) -> np.dtype:
    """The numpy type whose bits a PTX type names; packed types and bfloat16 are unsigned integers."""
    if kind == "pred":
        return np.dtype(bool)
    plain = kind[0] in "sf" and kind[1:].isdigit()
    table = {"s": SIGNED, "f": FLOAT}[kind[0]] if plain else UNSIGNED
    return np.dtype(table[WIDTHS[kind]])


def fma_f32(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """Float32 ``a * b + c`` rounded once.

    The product is exact in float64; the sum is rounded to odd there (Boldo and Melquiond, 2008), which makes the
    second rounding, to float32, innocuous.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = np.atleast_1d(product + addend)
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    to_odd = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
    away = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(to_odd, bits + away, bits).view(np.float64).astype(np.float32)


def bf16_from_f32(value: NDArray) -> NDArray:
    """Bits of the bfloat16 nearest to a float32, ties to even; a NaN becomes the canonical one."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded.astype(np.uint16))


def f32_from_bf16(bits: NDArray) -> NDArray:
    """Float32 of bfloat16 bits (uint16): exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def multiply_high(a: NDArray, b: NDArray) -> NDArray:
    """Upper half of the product of two arrays of one integer type of 32 or 64 bits."""
    if a.dtype.itemsize == 4:
        wide = np.int64 if a.dtype == np.int32 else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)
    x, y = a.view(np.uint64), b.view(np.uint64)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    x1, x0, y1, y0 = x >> half, x & low, y >> half, y & low
    middle = x1 * y0 + (x0 * y0 >> half)
    high = x1 * y1 + (middle >> half) + ((x0 * y1 + (middle & low)) >> half)
    if a.dtype == np.int64:
        # A negative factor stands for 2**64 more than it is.
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)
