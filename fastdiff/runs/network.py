"""Calling a network: conditioning for its branches, fixed batch sizes, and a look at what came back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import InputError, NetworkError
from fastdiff.maths.guidance import COND, UNCOND
from fastdiff.rows.dtypes import NETWORK_TYPES, memory_format_of

Network = Callable[..., Tensor]
Conditioning = Mapping[str, Any]


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
            versions.append(_version(outputs[-1]) if isinstance(outputs[-1], Tensor) else 0)
        if not self._copy and _overwritten(outputs, versions):
            self._copy = True
            return self(calls)
        return outputs


def _copied(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output


def _overwritten(outputs: Sequence[Any], versions: Sequence[int]) -> bool:
    """Whether a tensor was written to since it was returned, or shares memory with a later one."""
    tensors = [(output, version) for output, version in zip(outputs, versions, strict=True) if type(output) is Tensor]
    if any(_version(tensor) != version for tensor, version in tensors):
        return True
    spans = [_extent(tensor) for tensor, _ in tensors]
    return any(
        start < other_end and other_start < end
        for i, (start, end) in enumerate(spans)
        for other_start, other_end in spans[:i]
    )


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First and last address of a tensor's elements, whatever its strides."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


class Branches:
    """The conditioning of every set of branches that a plan evaluates, prepared once.

    Args:
        conditioning: keyword arguments of the network for each branch, None where none were given; tensors have
            leading dimension B.
        batch: B.
        batched: one call on inputs stacked in branch order, else one call a branch.
        rows: the branches of every evaluation.

    Raises:
        InputError: a branch that the plan evaluates has no conditioning, or those of one call cannot be stacked.
    """

    def __init__(
        self,
        conditioning: Mapping[str, Conditioning | None],
        batch: int,
        batched: bool,
        rows: Sequence[tuple[str, ...]],
    ) -> None:
        needed = {name: conditioning.get(name) for row in rows for name in row}
        full = next((name for name, part in needed.items() if part), None)
        for name, part in needed.items():
            if part is None and full is not None:
                how = name if name in (COND, UNCOND) else f"branches={{{name!r}: ...}}"
                raise InputError(
                    f"the plan evaluates the branch {name!r}, for which nothing was given; pass {how}, a dict with the "
                    f"same keys as {full} ({', '.join(needed[full] or ())}), or compile the plan with other guidance"
                )
            _check_conditioning(name, part or {}, batch)
        self._together = Together()
        self._calls: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in dict.fromkeys(rows):
            parts = {name: dict(needed[name] or {}) for name in row}
            self._calls[row] = [_stack(parts)] if batched and len(row) > 1 else list(parts.values())

    @property
    def structure(self) -> tuple[Any, ...]:
        """All that is fixed when calls are recorded: names, what tensors look like, and what is no tensor."""
        return tuple((row, name, _looks(value)) for row, name, value in self._items())

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [value for _, _, value in self._items() if isinstance(value, Tensor)]

    def owned(self) -> Branches:
        """The same with tensors of its own, into which ``load`` can copy others."""
        twin = copy(self)
        twin._calls = {
            row: [
                {name: value.clone() if isinstance(value, Tensor) else value for name, value in part.items()}
                for part in parts
            ]
            for row, parts in self._calls.items()
        }
        return twin

    def load(self, other: Branches) -> None:
        """Copy the tensors of others of the same structure into these."""
        for (_, _, own), (_, _, new) in zip(self._items(), other._items(), strict=True):
            if isinstance(own, Tensor):
                own.copy_(new, non_blocking=True)

    def _items(self) -> Iterator[tuple[tuple[str, ...], str, Any]]:
        """All arguments of all calls, with the branches and the name of each."""
        for row, parts in self._calls.items():
            for part in parts:
                yield from ((row, name, value) for name, value in part.items())

    def call(self, net: Network, z: Tensor, c_noise: Tensor, branches: tuple[str, ...]) -> list[Tensor]:
        """The network outputs of one evaluation: one stacked tensor, or one for each branch.

        Raises:
            NetworkError: the network wrote into its input, and another branch was still to be given that.
        """
        parts = self._calls[branches]
        if len(parts) == 1:
            return [net(z, c_noise, **parts[0])]
        before = _version(z), _version(c_noise)

        def call(name: str, conditioning: Mapping[str, Any]) -> Tensor:
            if (_version(z), _version(c_noise)) != before:
                raise NetworkError(
                    f"the network wrote into its input, z or c_noise, which the branch {name!r} is still to be given; "
                    "let it work on a copy (z.clone()), or compile the plan with batched=True"
                )
            return net(z, c_noise, **conditioning)

        return self._together([partial(call, name, part) for name, part in zip(branches, parts, strict=True)])


def in_chunks(net: Network, size: int) -> Network:
    """A network that is always evaluated on exactly ``size`` samples, the last chunk padded with zeros.

    Libraries choose other algorithms, and so other roundings, for other batch sizes. With a fixed size a sample's
    output no longer depends on how many samples are drawn together; ``size=1`` is exact for every network that
    is a function of its sample.

    Args:
        net: any network; tensors among its conditioning whose leading dimension is the batch are chunked too.
        size: samples a call, at least 1.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"network_batch is {size!r}; it must be an integer of at least 1")

    together = Together()

    def chunked(z: Tensor, c_noise: Tensor, **conditioning: Any) -> Tensor:
        total = z.shape[0]

        def part(value: Any, start: int) -> Any:
            if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != total:
                return value
            return _chunk(value, start, size)

        def call(start: int) -> Any:
            chosen = {name: part(value, start) for name, value in conditioning.items()}
            output = net(part(z, start), part(c_noise, start), **chosen)
            return output[: total - start] if isinstance(output, Tensor) else output

        outputs = together([partial(call, start) for start in range(0, total, size)]) if total else []
        if not outputs or not all(isinstance(output, Tensor) for output in outputs):
            return outputs[0] if outputs else z.clone()
        return torch.cat(outputs).contiguous(memory_format=memory_format_of(z))

    return chunked


ALIGNED = 64
"""Bytes. Libraries choose their code by the alignment of what they are given too, up to a vector's width."""


def _chunk(value: Tensor, start: int, size: int) -> Tensor:
    """So many samples from one on, which begin at a whole cache line; those past the end are zero."""
    piece, memory_format = value[start : start + size], memory_format_of(value)
    if piece.shape[0] == size and piece.data_ptr() % ALIGNED == 0 and value.is_contiguous(memory_format=memory_format):
        return piece
    whole = torch.empty((size, *value.shape[1:]), dtype=value.dtype, device=value.device, memory_format=memory_format)
    whole[: piece.shape[0]].copy_(piece)
    whole[piece.shape[0] :].zero_()
    return whole


def _version(tensor: Tensor) -> int:
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
        if list(output.shape) != shape:
            raise NetworkError(f"the network returned shape {list(output.shape)}; it must return {shape}")
        if output.device != z.device:
            raise NetworkError(f"the network returned a tensor on {output.device}; its input was on {z.device}")
        if output.dtype not in NETWORK_TYPES:
            raise NetworkError(
                f"the network returned {output.dtype}; float64, float32, bfloat16 and float16 are allowed"
            )


def check_called(name: str, returned: Any, like: Tensor) -> None:
    """Refuse what a caller's function returned unless it is a tensor as the state is.

    Raises:
        NetworkError: says what came back from which call, and what is expected.
    """
    if not isinstance(returned, Tensor):
        raise NetworkError(f"the call {name!r} returned a {type(returned).__name__}; it must return a tensor")
    if returned.shape != like.shape or returned.device != like.device:
        raise NetworkError(
            f"the call {name!r} returned shape {list(returned.shape)} on {returned.device}; it must return "
            f"{list(like.shape)} on {like.device}"
        )
    if returned.dtype not in NETWORK_TYPES:
        raise NetworkError(
            f"the call {name!r} returned {returned.dtype}; float64, float32, bfloat16 and float16 are allowed"
        )


def _looks(value: Any) -> Any:
    """A tensor's dtype, shape, strides and device; anything else itself, with its type (True equals 1)."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.stride(), value.device
    return type(value), value


def _check_conditioning(branch: str, conditioning: Mapping[str, Any], batch: int) -> None:
    for name, value in conditioning.items():
        if isinstance(value, Tensor) and value.dim() and value.shape[0] != batch:
            raise InputError(
                f"{branch}[{name!r}] has leading dimension {value.shape[0]}; it must be the batch size {batch}"
            )


def _stack(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Conditioning of several branches stacked along the batch; what is no batched tensor must be the same."""
    (first, keys), *others = parts.items()
    for other, given in others:
        if set(given) != set(keys):
            raise InputError(
                f"{first} has keys {sorted(keys)} and {other} has {sorted(given)}; to be stacked they must be the same "
                "(or compile the plan with batched=False)"
            )
    return {name: _stacked(name, {branch: part[name] for branch, part in parts.items()}) for name in keys}


def _stacked(name: str, by_branch: Mapping[str, Any]) -> Any:
    """One argument of several branches."""
    values = list(by_branch.values())
    named = " and ".join(f"{branch}[{name!r}]" for branch in by_branch)
    if all(isinstance(v, Tensor) and v.dim() for v in values):
        if len({(v.shape, v.dtype, v.device) for v in values}) > 1:
            looks = ", ".join(f"{list(v.shape)} {v.dtype} {v.device}" for v in values)
            raise InputError(
                f"{named} differ in shape, dtype or device ({looks}); they are stacked for one network call, so make "
                "them alike or compile the plan with batched=False"
            )
        return torch.cat(values)
    same = all(v is values[0] for v in values)
    if not same and any(isinstance(v, Tensor) for v in values):
        raise InputError(f"{named} must all be tensors with a batch dimension")
    if not same and any(v != values[0] for v in values[1:]):
        raise InputError(f"{named} are not tensors and differ; use batched=False")
    return values[0]
