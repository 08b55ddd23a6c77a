"""What a step remembers for the next one: vectors, points, numbers and text in tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any

from fastdiff.errors import PlanError
from fastdiff.maths.point import Point
from fastdiff.maths.scalar import Scalar


def exchanged(memory: Any, kind: type, exchange: Callable[[Any], Any]) -> Any:
    """The same structure with all things of a kind exchanged.

    Raises:
        PlanError: there is something in which a vector would not be found.
    """
    if isinstance(memory, kind):
        return exchange(memory)
    if isinstance(memory, dict):
        return {key: exchanged(value, kind, exchange) for key, value in memory.items()}
    if isinstance(memory, tuple | list):
        values = [exchanged(value, kind, exchange) for value in memory]
        # A named tuple takes its fields one by one.
        return type(memory)(*values) if hasattr(memory, "_fields") else type(memory)(values)
    if not isinstance(memory, Point | Scalar | Number | str | None):
        raise PlanError(
            f"the memory holds a {type(memory).__name__}; keep vectors, points, numbers and text in tuples, lists and "
            "dicts"
        )
    return memory


def found(memory: Any, kind: type) -> list[Any]:
    """All things of a kind in it, in order; raises as ``exchanged`` does."""
    things: list[Any] = []
    exchanged(memory, kind, things.append)
    return things
