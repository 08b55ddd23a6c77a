"""Types of elements and memory formats: which there are, and what they are called."""

from __future__ import annotations

import torch

NETWORK_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What tensors may be stored as; a type's place is its code in kernels and ops."""
STATE_TYPES = (torch.float32, torch.float64)
"""What rows compute in."""
STATE = {"float32": torch.float32, "float64": torch.float64}
"""State types by the names that plans use."""
MEMORY_FORMATS = {torch.channels_last: 4, torch.channels_last_3d: 5}
"""Memory formats beside the contiguous one, and the dimensions that each needs."""
