"""Choices: what ``fastdiff bench`` accepts on its command line, turned into values."""

from __future__ import annotations

from typing import Any

import click

from fastdiff.errors import InputError
from fastdiff.lab.bench.workload import parse_size


class Sizes(click.ParamType):
    """Numbers of elements: ``4Ki,64Ki,16Mi``."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """In elements."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(dict.fromkeys(parse_size(part) for part in str(value).split(",")))
        except InputError as error:
            self.fail(str(error), param, ctx)


class Names(click.ParamType):
    """Some of a few known names, or ``none``."""

    name = "names"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """In the order given."""
        if isinstance(value, tuple):
            return value
        names = [] if value == "none" else [part.strip() for part in str(value).split(",")]
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is not known; the names are {', '.join(self.known)}, or none", param, ctx)
        return tuple(dict.fromkeys(names))


class Shape(click.ParamType):
    """The shape of one sample: ``4,64,64``."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """As integers."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is no shape of a sample; write positive sizes such as 4,64,64", param, ctx)
        return sizes
