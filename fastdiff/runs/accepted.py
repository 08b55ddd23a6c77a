"""What a run accepts from its caller, checked before anything is drawn."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import BackendError, FastdiffError, InputError
from fastdiff.plans.plan import Plan
from fastdiff.rows.dtypes import NETWORK_TYPES, memory_format_of
from fastdiff.rows.row import GIVEN_PREFIX

CallerNoise = Callable[[int, int], Tensor]
"""Noise of the caller's: of a row and a draw, ``[B, ...]``."""
CallerFunction = Callable[..., Tensor]
"""What a plan calls: of tensors ``[B, ...]``, one such tensor."""


def checked_shape(shape: Sequence[int]) -> torch.Size:
    """The shape of a batch; raises ``InputError`` unless it is one."""
    try:
        sizes = [operator.index(size) for size in shape]
    except TypeError:
        raise InputError(f"shape is {shape!r}; it must be a sequence of integers, [batch, ...]") from None
    if not sizes or min(sizes) < 0:
        raise InputError(f"shape is {tuple(sizes)}; it must be [batch, ...] without negative sizes")
    return torch.Size(sizes)


def check_noise(plan: Plan, noise: CallerNoise | None) -> None:
    """Raises ``InputError`` unless a caller's noise is given for a plan of it, and for no other."""
    if plan.caller_noise != (noise is not None):
        given = "was given" if noise is not None else "is missing"
        made = "'caller'" if plan.caller_noise else "'counter'"
        raise InputError(f"noise {given}, and the plan was compiled with noise={made}; the two go together")


def check_returned(
    what: str, returned: Any, shape: Sequence[int], device: torch.device, error: type[FastdiffError]
) -> None:
    """Refuse what a function of the caller's returned unless it is a tensor as the state is.

    Args:
        what: the function and its arguments, for the message.
        returned: by it.
        shape: ``[B, ...]``.
        device: of the state.
        error: to raise.
    """
    if not isinstance(returned, Tensor):
        raise error(f"{what} returned a {type(returned).__name__}; it must return a tensor")
    if returned.shape != torch.Size(shape) or returned.device != device:
        raise error(
            f"{what} returned shape {list(returned.shape)} on {returned.device}; it must return {list(shape)} on "
            f"{device}"
        )
    if returned.dtype not in NETWORK_TYPES:
        raise error(f"{what} returned {returned.dtype}; float64, float32, bfloat16 and float16 are allowed")


def drawn_by(noise: CallerNoise, row: int, draw: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """A draw of a caller's noise; raises ``InputError`` unless it is a tensor as the state is."""
    drawn = noise(row, draw)
    check_returned(f"noise({row}, {draw})", drawn, shape, device, InputError)
    return drawn


def refuse_capture(device: torch.device) -> None:
    """Raises ``InputError`` while the device's current stream is being captured."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            raise InputError(
                "the current stream is being captured, and to set up a sampling numbers are copied to the device, "
                "which a capture forbids; make the Run before the capture, or call sample() outside it"
            )


def found_device(device: torch.device | str) -> torch.device:
    """A device with its index; raises ``BackendError`` where torch cannot use it."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, ImportError) as error:
        reason = str(error).partition(". ")[0]
        raise BackendError(
            f"torch cannot use the device {str(device)!r} here ({reason}); install a build of torch for it, or use "
            "device='cpu'"
        ) from None


def checked_calls(calls: Mapping[str, CallerFunction] | None, plan: Plan) -> dict[str, CallerFunction]:
    """The caller's functions; raises ``InputError`` where one is missing, surplus or no function."""
    calls = dict(calls or {})
    for what, names in (("missing", set(plan.calls) - set(calls)), ("not asked for", set(calls) - set(plan.calls))):
        if names:
            raise InputError(
                f"calls {sorted(names)} are {what}; the plan asks for {sorted(plan.calls) or 'none'}: pass "
                "calls={name: function} for each of these"
            )
    for name, function in calls.items():
        if not callable(function):
            raise InputError(f"calls[{name!r}] is a {type(function).__name__}; it must be a function of tensors")
    return calls


def checked_given(given: Mapping[str, Tensor] | None, plan: Plan, like: Tensor) -> dict[str, Tensor]:
    """The caller's tensors as columns ``in_<name>``, in the shape, layout and on the device of another.

    Raises:
        InputError: one is missing, surplus, or does not fit; names it.
    """
    given = dict(given or {})
    for what, names in (("missing", set(plan.given) - set(given)), ("not asked for", set(given) - set(plan.given))):
        if names:
            raise InputError(
                f"given tensors {sorted(names)} are {what}; the plan asks for {sorted(plan.given) or 'none'}: pass "
                "given={name: tensor} for each of these"
            )
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"given[{name!r}] is a {type(tensor).__name__}; it must be a tensor")
        for what, found, wanted in (("shape", tensor.shape, like.shape), ("device", tensor.device, like.device)):
            if found != wanted:
                raise InputError(f"given[{name!r}] has {what} {found}; it must be {wanted}, that of the state")
        wide = like.dtype is torch.float64
        if not tensor.dtype.is_floating_point or (tensor.dtype is torch.float64 and not wide):
            raise InputError(f"given[{name!r}] is {tensor.dtype}; it must be float32, bfloat16 or float16, or float64 "
                             "beside a float64 state")  # fmt: skip
        if not tensor.is_contiguous(memory_format=memory_format_of(like)):
            raise InputError(
                f"given[{name!r}] has strides {tensor.stride()}; it must lie as the state, whose strides are "
                f"{like.stride()}: bring it to that memory format"
            )
    return {GIVEN_PREFIX + name: tensor for name, tensor in given.items()}
