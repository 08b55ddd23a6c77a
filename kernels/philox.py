# ruff: noqa: ANN001, ANN201 (Triton gives annotations of kernels a meaning of its own)
"""Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC11)."""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """The four uint32 words of each counter ``(c0, c1, c2, c3)`` under the key ``(k0, k1)``, all uint32."""
    for _ in tl.static_range(10):
        high_0, low_0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high_2, low_2 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high_0 ^ c3 ^ k1, low_0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3
