"""Layouts: how the elements of a sample lie in memory, and which bytes two tensors share.

The batch is outermost with a free stride. Inside a sample the elements are dense, row-major or channels last.
Strides of dimensions of size 1 mean nothing and are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

ROW_MAJOR = "row-major"
CHANNELS_LAST = "channels-last"
EITHER = "either"


def layout(tensor: Tensor) -> str | None:
    """The layout of a tensor ``[B, ...]``: ``"row-major"``, ``"channels-last"``, ``"either"`` or None.

    Channels last exists for ``[B, C, H, W]`` and ``[B, C, T, H, W]``; ``"either"`` is such a tensor whose samples
    lie the same way in both layouts (one channel or one pixel), and any tensor without elements. None means that
    the samples are not dense (a step, a crop, a transpose, an expanded dimension) or that there is no batch.
    """
    if tensor.dim() == 0:
        return None
    if tensor.numel() == 0:
        return EITHER
    sizes, strides = tensor.shape[1:], tensor.stride()[1:]
    row_major = _is_dense(sizes, strides)
    channels_last = len(sizes) in (3, 4) and _is_dense((*sizes[1:], sizes[0]), (*strides[1:], strides[0]))
    if row_major and channels_last:
        return EITHER
    return ROW_MAJOR if row_major else CHANNELS_LAST if channels_last else None


def common_layout(layouts: Iterable[str]) -> str | None:
    """The layout that all of these agree on, or None; ``"either"`` agrees with everything."""
    found = set(layouts) - {EITHER}
    return None if len(found) > 1 else found.pop() if found else EITHER


def samples_overlap(tensor: Tensor) -> bool:
    """Whether two samples of a tensor share memory, as an expanded batch does."""
    return tensor.numel() > 0 and tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1:].numel()


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape are element for element the same memory."""
    strides_agree = all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.shape == b.shape and strides_agree


def span(tensor: Tensor) -> tuple[int, int]:
    """The address of a tensor's first byte and the one after its last, whatever its strides; none of an empty one."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether any byte belongs to both; exact for tensors with dense samples, interleaved batches included."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    a_size, b_size = _sample_bytes(a), _sample_bytes(b)
    left, right = _starts(a), _starts(b)
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] + a_size <= right[j]:
            i += 1
        elif right[j] + b_size <= left[i]:
            j += 1
        else:
            return True
    return False


def _is_dense(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _sample_bytes(tensor: Tensor) -> int:
    return tensor.shape[1:].numel() * tensor.element_size()


def _starts(tensor: Tensor) -> Sequence[int]:
    if tensor.shape[0] == 1:
        return [tensor.data_ptr()]
    step = tensor.stride(0) * tensor.element_size()
    return range(tensor.data_ptr(), tensor.data_ptr() + step * tensor.shape[0], step)
