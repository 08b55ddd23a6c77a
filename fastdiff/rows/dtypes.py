"""Types of elements and memory formats: which there are, and what they are called."""

from __future__ import annotations

import torch
from torch import Tensor

NETWORK_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What tensors may be stored as; a type's place is its code in kernels and ops."""
STATE_TYPES = (torch.float32, torch.float64)
"""What rows compute in."""
STATE = {"float32": torch.float32, "float64": torch.float64}
"""State types by the names that plans use."""
MEMORY_FORMATS = {torch.channels_last: 4, torch.channels_last_3d: 5}
"""Memory formats beside the contiguous one, and the dimensions that each needs."""


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """The memory format of a dense tensor: channels last where it is that and nothing else."""
    for memory_format, dims in MEMORY_FORMATS.items():
        channels_last = tensor.dim() == dims and tensor.is_contiguous(memory_format=memory_format)
        if channels_last and not tensor.is_contiguous():
            return memory_format
    return torch.contiguous_format


def channels_last(dims: int) -> torch.memory_format:
    """The channels-last format of tensors with so many dimensions."""
    return next(memory_format for memory_format, needed in MEMORY_FORMATS.items() if needed == dims)
