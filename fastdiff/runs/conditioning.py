"""Conditioning: what a network is told beside z and c_noise, by branch, stacked and cut with the batch.

A value is a tensor ``[B, ...]``, a list of B strings, or a dict, list or tuple of such, as deep as it may be; what is
neither (a number, a flag, an object) goes to the network as it is, and must be the same for branches that are stacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map, tree_unflatten

from fastdiff.errors import InputError, NetworkError
from fastdiff.maths.guidance import COND, UNCOND
from fastdiff.runs.network import Network, Together, version_of

Conditioning = Mapping[str, Any]


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
        for name, part in needed.items():
            if part is not None:
                _check_conditioning(name, part, batch)
        full = next((name for name, part in needed.items() if part), None)
        for name, part in needed.items():
            if part is None and full is not None:
                how = name if name in (COND, UNCOND) else f"branches={{{name!r}: ...}}"
                raise InputError(
                    f"the plan evaluates the branch {name!r}, for which nothing was given; pass {how}, a dict with the "
                    f"same keys as {full} ({', '.join(needed[full] or ())}), or compile the plan with other guidance"
                )
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
                tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, part, is_leaf=is_text)
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
        """All leaves of the arguments of all calls, with the branches and the name of each."""
        for row, parts in self._calls.items():
            for part in parts:
                yield from ((row, name, leaf) for name, leaf in _leaves(part))

    def call(self, net: Network, z: Tensor, c_noise: Tensor, branches: tuple[str, ...]) -> list[Tensor]:
        """The network outputs of one evaluation: one stacked tensor, or one for each branch.

        Raises:
            NetworkError: the network wrote into its input, and another branch was still to be given that.
        """
        parts = self._calls[branches]
        if len(parts) == 1:
            return [net(z, c_noise, **parts[0])]
        before = version_of(z), version_of(c_noise)

        def call(name: str, conditioning: Mapping[str, Any]) -> Tensor:
            if (version_of(z), version_of(c_noise)) != before:
                raise NetworkError(
                    f"the network wrote into its input, z or c_noise, which the branch {name!r} is still to be given; "
                    "let it work on a copy (z.clone()), or compile the plan with batched=True"
                )
            return net(z, c_noise, **conditioning)

        return self._together([partial(call, name, part) for name, part in zip(branches, parts, strict=True)])


def is_text(value: Any) -> bool:
    """Whether it is a list of strings: prompts, of which each sample has one."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(text, str) for text in value)


def _leaves(value: Any) -> list[tuple[str, Any]]:
    """All leaves of a structure with the way to each, such as ``['added']['text']``."""
    found, _ = tree_flatten_with_path(value, is_leaf=is_text)
    return [(keystr(path), leaf) for path, leaf in found]


def _looks(value: Any) -> Any:
    """A tensor's dtype, shape, strides and device; anything else itself, with its type (True equals 1)."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.stride(), value.device
    return type(value), tuple(value) if is_text(value) else value


def _check_conditioning(branch: str, conditioning: Any, batch: int) -> None:
    if not isinstance(conditioning, Mapping) or not all(isinstance(name, str) for name in conditioning):
        raise InputError(f"{branch} is a {type(conditioning).__name__}; it must be a dict of arguments by name")
    for where, leaf in _leaves(dict(conditioning)):
        if isinstance(leaf, np.ndarray):
            raise InputError(f"{branch}{where} is a numpy array; pass a tensor, torch.from_numpy(...)")
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] != batch:
            raise InputError(
                f"{branch}{where} has leading dimension {leaf.shape[0]}; it must be the batch size {batch}"
            )
        if is_text(leaf) and len(leaf) != batch:
            raise InputError(f"{branch}{where} has {len(leaf)} strings; it must have {batch}, one for each sample")


def _stack(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Conditioning of several branches stacked along the batch; what is not batched must be the same."""
    flat = {branch: tree_flatten_with_path(dict(part), is_leaf=is_text) for branch, part in parts.items()}
    (first, (leaves, shape)), *others = flat.items()
    places = [keystr(path) for path, _ in leaves]
    for other, (found, _) in others:
        if [keystr(path) for path, _ in found] != places:
            raise InputError(
                f"{first} has {', '.join(places) or 'nothing'} and {other} has "
                f"{', '.join(keystr(path) for path, _ in found) or 'nothing'}; to be stacked they must be the same (or "
                "compile the plan with batched=False)"
            )
    stacked = [
        _stacked(place, {branch: found[i][1] for branch, (found, _) in flat.items()}) for i, place in enumerate(places)
    ]
    return tree_unflatten(stacked, shape)


def _stacked(place: str, by_branch: Mapping[str, Any]) -> Any:
    """One leaf of several branches."""
    values = list(by_branch.values())
    named = " and ".join(f"{branch}{place}" for branch in by_branch)
    if all(isinstance(v, Tensor) and v.dim() for v in values):
        if len({(v.shape, v.dtype, v.device) for v in values}) > 1:
            looks = ", ".join(f"{list(v.shape)} {v.dtype} {v.device}" for v in values)
            raise InputError(
                f"{named} differ in shape, dtype or device ({looks}); they are stacked for one network call, so make "
                "them alike or compile the plan with batched=False"
            )
        return torch.cat(values)
    if all(map(is_text, values)):
        return [text for value in values for text in value]
    same = all(v is values[0] for v in values)
    if not same and any(isinstance(v, Tensor) for v in values):
        raise InputError(f"{named} must all be tensors with a batch dimension")
    if not same and not all(_equal(v, values[0]) for v in values[1:]):
        raise InputError(f"{named} have no batch dimension and differ; compile the plan with batched=False")
    return values[0]


def _equal(a: Any, b: Any) -> bool:
    """Whether two values are the same, as far as they say."""
    try:
        return bool(a == b)
    except Exception:  # whatever their comparison does
        return False
