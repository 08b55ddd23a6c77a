"""Networks: calls whose outputs are needed together, and a look at what came back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.masked import MaskedTensor

from fastdiff.errors import NetworkError
from fastdiff.rows.dtypes import NETWORK_TYPES
from fastdiff.rows.layout import EITHER, layout, span

Network = Callable[..., Tensor]


class Together:
    """Calls of a network whose outputs are needed at the same time.

    A network may return the same buffer from every call, as one that was recorded or compiled does. Where a later call
    has written where an earlier one's output lies, all calls are made again, and from then on outputs are copied.
    """

    def __init__(self) -> None:
        self._copy = False

    def __call__(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Make the calls, one after the other."""
        if len(calls) == 1:
            return [calls[0]()]
        outputs, versions = [], []
        for call in calls:
            outputs.append(_copied(call()) if self._copy else call())
            versions.append(version_of(outputs[-1]) if isinstance(outputs[-1], Tensor) else 0)
        if not self._copy and _overwritten(outputs, versions):
            self._copy = True
            return self(calls)
        return outputs


def _copied(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output


def _overwritten(outputs: Sequence[Any], versions: Sequence[int]) -> bool:
    """Whether a tensor was written to since it was returned, or shares memory with a later one."""
    tensors = [(output, version) for output, version in zip(outputs, versions, strict=True) if type(output) is Tensor]
    if any(version_of(tensor) != version for tensor, version in tensors):
        return True
    spans = [span(tensor) for tensor, _ in tensors]
    return any(
        start < other_end and other_start < end
        for i, (start, end) in enumerate(spans)
        for other_start, other_end in spans[:i]
    )


def version_of(tensor: Tensor) -> int:
    """How often torch has written into a tensor; 0 where it does not count."""
    return 0 if tensor.is_inference() else tensor._version


def check_outputs(outputs: Sequence[Any], z: Tensor, branches: tuple[str, ...], batch: int) -> None:
    """Refuse network outputs that are not what the plan promised.

    Args:
        outputs: all branches stacked in one tensor, or one tensor for each.
        z: the network input of this evaluation.
        branches: those that were evaluated.
        batch: samples in one branch.

    Raises:
        NetworkError: says what came back, what is expected and what to do.
    """
    if len(outputs) not in (1, len(branches)):
        raise NetworkError(
            f"step() was given {len(outputs)} network outputs; give one tensor with the branches {list(branches)} "
            "stacked along the batch, or one tensor for each"
        )
    shape = [batch * len(branches) // max(len(outputs), 1), *z.shape[1:]]
    for output in outputs:
        if not isinstance(output, Tensor):
            raise NetworkError(
                f"the network returned a {type(output).__name__}; it must return a tensor of shape {shape} "
                "(wrap it in a function that picks the tensor)"
            )
        if output.is_nested or output.layout is not torch.strided or isinstance(output, MaskedTensor):
            strided = output.layout is torch.strided
            kind = "nested" if output.is_nested else "masked" if strided else str(output.layout)
            raise NetworkError(f"the network returned a {kind} tensor; it must return a plain one, as to_dense() does")
        if list(output.shape) != shape:
            raise NetworkError(f"the network returned shape {list(output.shape)}; it must return {shape}")
        if output.device != z.device:
            raise NetworkError(f"the network returned a tensor on {output.device}; its input was on {z.device}")
        if output.dtype not in NETWORK_TYPES:
            raise NetworkError(
                f"the network returned {output.dtype}; float64, float32, bfloat16 and float16 are allowed"
            )
        lies, wanted = layout(output), layout(z)
        if lies is None or (wanted not in (None, EITHER) and lies not in (wanted, EITHER)):
            how = "whose samples are not dense" if lies is None else f"that lies {lies}"
            raise NetworkError(
                f"the network returned a tensor {how} (strides {output.stride()}), and z lies {wanted}; return it in "
                "z's memory format, output.contiguous(memory_format=...), or choose another memory_format for the run"
            )
