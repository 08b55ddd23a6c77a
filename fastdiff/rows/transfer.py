"""Small tables on their way from the host to a device, which is not waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def staged(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor on the host, from where a copy to the device need not be waited for.

    Args:
        values: numbers, or nested lists of them.
        dtype: theirs.
        device: where they will go; for a GPU the host's memory is pinned.
    """
    pinned = device.type == "cuda" and torch.cuda.is_available()
    # On the CPU whatever torch's default device is.
    return torch.tensor(values, dtype=dtype, device="cpu", pin_memory=pinned)


def on_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor on the device."""
    if not values:
        return torch.empty(0, dtype=dtype, device=device)
    return staged(values, dtype, device).to(device, non_blocking=True)
