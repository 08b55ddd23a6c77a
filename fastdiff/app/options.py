"""Options: what the command line accepts, turned into values, with one message for each mistake."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from fastdiff.app.io import check_folder
from fastdiff.errors import OutputError
from fastdiff.rows.seeds import MAX_SEED

MAX_SAMPLES = 1_000_000
LONGEST = 100
"""Digits of a number; Python refuses to read thousands of them."""
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Seeds(click.ParamType):
    """Seeds as ``0-63`` or ``0-9,42``: every one in 0 .. 2**63 - 1, none twice."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The seeds, in the order in which they were given."""
        if isinstance(value, tuple):
            return value
        ranges = [self._range(part.strip(), value, param, ctx) for part in str(value).split(",")]
        count = sum(chosen.stop - chosen.start for chosen in ranges)
        if count > MAX_SAMPLES:
            self.fail(f"{value!r} are {count:,} seeds; at most {MAX_SAMPLES:,} fit in one file", param, ctx)
        seeds = tuple(seed for chosen in ranges for seed in chosen)
        repeated = [seed for seed, times in Counter(seeds).items() if times > 1]
        if repeated:
            self.fail(f"seed {repeated[0]} is given twice and would draw the same sample twice", param, ctx)
        return seeds

    def _range(self, part: str, whole: str, param: click.Parameter | None, ctx: click.Context | None) -> range:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part, re.ASCII)
        if found is None:
            self.fail(f"{whole!r}: {part!r} is no seed; write 7, 0-63, or 0-9,42 (no negative numbers)", param, ctx)
        if max(map(len, part.split("-"))) > LONGEST or max(map(int, part.split("-"))) > MAX_SEED:
            self.fail(f"{part} is too large; seeds lie in 0 .. 2**63 - 1", param, ctx)
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            self.fail(f"the range {part} runs backwards; write {last}-{first}", param, ctx)
        return range(first, last + 1)


def format_seeds(seeds: Sequence[int]) -> str:
    """Seeds as ``Seeds`` reads them, runs of consecutive ones as ranges."""
    runs = (list(run) for _, run in groupby(enumerate(seeds), key=lambda pair: pair[1] - pair[0]))
    return ",".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)


class Classes(click.ParamType):
    """Digits as ``all``, ``3`` or ``1,4,7``; a sample's class is the one at position seed mod their number."""

    name = "classes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The digits in the order in which they were given."""
        if isinstance(value, tuple):
            return value
        if value == "all":
            return tuple(range(10))
        parts = [part.strip() for part in str(value).split(",")]
        if not all(re.fullmatch("[0-9]", part) for part in parts):
            self.fail(f"{value!r}: classes are the digits 0 to 9; write 3, or 1,4,7, or all", param, ctx)
        return tuple(map(int, parts))


class Interval(click.ParamType):
    """Two noise levels ``LOW,HIGH`` in data units; HIGH may be ``inf``."""

    name = "low,high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """``(low, high)`` with ``0 <= low <= high``."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = map(float, str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH; write two noise levels such as 0.3,5", param, ctx)
        if not 0 <= low <= high:
            self.fail(f"{value!r}: 0 <= LOW <= HIGH must hold", param, ctx)
        return low, high


class Finite(click.ParamType):
    """A number that is neither NaN nor infinite."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} must be finite", param, ctx)
        return number


class OutputFile(click.ParamType):
    """A file to be written, with one of the given suffixes, in a folder where that is possible."""

    name = "file"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Its path; whether something is there already is the command's business."""
        path = Path(value)
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{str(value)!r} must end in {' or '.join(self.suffixes)}", param, ctx)
        try:
            check_folder(path)
        except OutputError as error:
            self.fail(str(error), param, ctx)
        return path


def refuse_existing(paths: Iterable[Path], hint: str) -> None:
    """Stop before anything is overwritten.

    Raises:
        click.UsageError: one of the files exists.
    """
    for path in paths:
        if path.exists():
            raise click.UsageError(f"{path} exists; {hint}")
