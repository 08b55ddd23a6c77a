"""Observing torch: every operation that passes its dispatcher, as one event that says what it asks of a device.

``with Observer(seen.append):`` gives each of them to a function; a ``Counter`` adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
COPIES = ("copy_", "_to_copy")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
STAGE = "fastdiff::stage"
OVERWRITES = (STAGE, "aten::copy_", "aten::normal_", "aten::fill_")
"""Operations that do not read what they write to."""


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        function: the overload that was called.
        arguments, keywords: what it was given.
        made: what it returned; None where it failed.
    """

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    made: Any

    @cached_property
    def full_name(self) -> str:
        """With its library: ``aten::add``."""
        return self.function._schema.name

    @cached_property
    def name(self) -> str:
        """Without it."""
        return self.full_name.split("::")[1]

    @property
    def is_view(self) -> bool:
        """Whether it only makes another view of its input."""
        aliases = [returned.alias_info for returned in self.function._schema.returns]
        return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)

    @property
    def launches(self) -> bool:
        """Whether a device would run something: it is no view, bare allocation, or value that is handed to Python."""
        return self.name not in WAITS and self.name not in ALLOCATIONS and not self.is_view

    @property
    def is_copy_between_devices(self) -> bool:
        """Whether it copies from one kind of device to another."""
        places = {tensor.device.type for tensor in _tensors((self.arguments, self.made))}
        return self.name in COPIES and len(places) > 1

    @property
    def waits(self) -> bool:
        """Whether the host waits for the device: for a value, a number of elements, or a copy."""
        asynchronous = self.keywords.get("non_blocking") or (len(self.arguments) > 2 and self.arguments[2])
        return self.name in WAITS or (self.is_copy_between_devices and not asynchronous)

    @property
    def allocates(self) -> bool:
        """Whether it returns a tensor in memory of its own."""
        return not any(returned.alias_info for returned in self.function._schema.returns) and bool(_tensors(self.made))

    @property
    def hazard(self) -> str | None:
        """Why a loop on a device should not do it, or None."""
        tags = self.function.tags
        if self.name in WAITS or torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags:
            return "waits for the device"
        if self.name in INDEXING and any(tensor.dtype is torch.bool for tensor in _tensors(self.arguments[1])):
            return "waits for the device, to count what a mask selects"
        if torch.Tag.nondeterministic_seeded in tags and self.keywords.get("generator") is None:
            return "draws from the global generator"
        if self.is_copy_between_devices:
            return "copies between host and device"
        return "allocates" if self.allocates else None

    def traffic(self, elements: int) -> int:
        """Bytes read and written of tensors that have at least so many elements."""
        schema, total = self.function._schema, 0
        given = {a.name: value for a, value in zip(schema.arguments, self.arguments, strict=False)} | self.keywords
        for argument in schema.arguments:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            twice = is_written and self.full_name not in OVERWRITES and not argument.is_out
            total += size_of(given.get(argument.name), elements) * (2 if twice else 1)
        if not any(returned.alias_info is not None for returned in schema.returns):
            total += size_of(self.made, elements)
        return total


class Observer(TorchDispatchMode):
    """Tells of every operation inside a ``with`` block, when it has been run.

    Args:
        see: is given each of them.
    """

    def __init__(self, see: Callable[[Operation], object]) -> None:
        super().__init__()
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and tell of it; also of one that fails."""
        made = None
        try:
            made = func(*args, **(kwargs or {}))
            return made
        finally:
            self._see(Operation(func, args, kwargs or {}, made))


class Counter(Observer):
    """Counts what passes the dispatcher.

    Args:
        elements: of the state; tensors with as many elements or more are of state size.
    """

    def __init__(self, elements: int) -> None:
        super().__init__(self._count)
        self.elements = elements
        self.launches = self.waits = self.bytes = self.stages = 0

    def launched(self, tensors: Iterable[Tensor | None]) -> None:
        """Count a launch that passes no dispatcher, on these tensors; one in place is given twice."""
        self.launches += 1
        self.bytes += size_of(list(tensors), self.elements)

    def _count(self, operation: Operation) -> None:
        self.waits += operation.waits
        if operation.launches:
            self.launches += 1
            self.stages += operation.full_name == STAGE
            self.bytes += operation.traffic(self.elements)


def size_of(value: Any, elements: int) -> int:
    """Bytes of all tensors in a structure that have at least so many elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value) if tensor.numel() >= elements)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
