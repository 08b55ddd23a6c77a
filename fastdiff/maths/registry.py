"""Registries: what is known by name, one each for schedules, predictions and solvers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from fastdiff.errors import PlanError

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing], Generic[Thing]):
    """Things by name, in the order in which they were added; what is listed appears in the CLI, docs and tests."""

    def __init__(self, what: str) -> None:
        self._what, self._things = what, dict[str, Thing]()

    def add(self, name: str, thing: Thing) -> Thing:
        """Put a thing under a name.

        Raises:
            PlanError: the name is taken.
        """
        if name in self._things:
            raise PlanError(f"there is a {self._what} {name!r} already; choose another name")
        self._things[name] = thing
        return thing

    def named(self, name: str) -> Thing:
        """The thing of this name.

        Raises:
            PlanError: there is none; says which there are.
        """
        if name not in self._things:
            known = ", ".join(self._things)
            raise PlanError(f"{self._what} is {name!r}; known names are {known}, or pass a {self._what.capitalize()}")
        return self._things[name]

    def __getitem__(self, name: str) -> Thing:
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
