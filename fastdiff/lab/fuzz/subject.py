"""Subjects: what one case of a fuzzing campaign is, whatever is being compared."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.lab.fuzz.variants import REFERENCE, Variant, reference
from fastdiff.testing.rows import INTEGERS, same_bits

Features = Iterator[tuple[str, str]]


class Fault(NamedTuple):
    """What is wrong.

    Args:
        kind: ``"bits"``, ``"bound"``, or the name of an exception; shrinking keeps it.
        text: one line for people.
        output: which output differs.
        at: the index of its first element that differs.
    """

    kind: str
    text: str
    output: str = ""
    at: tuple[int, ...] = ()


class Subject:
    """One case: it runs on any variant, can be written as a line, and knows smaller cases like it."""

    kind = "subject"

    def run(self, variant: Variant) -> dict[str, Tensor]:
        """What a variant makes of it."""
        raise NotImplementedError

    def line(self) -> str:
        """The whole case as one line of JSON."""
        raise NotImplementedError

    def smaller(self, fault: Fault) -> Iterator[Subject]:
        """Cases that are simpler in one respect, the boldest first; some may not be valid."""
        raise NotImplementedError

    def features(self) -> Features:
        """Where in the case space it lies: pairs of a property and its value."""
        raise NotImplementedError

    @cached_property
    def bound_fraction(self) -> float | None:
        """The reference's error against exact mathematics, as a fraction of its a-priori bound, where there is one."""
        return None

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """What the reference makes of it."""
        return self.run(reference())

    def fault(self, variant: Variant) -> Fault | None:
        """What is wrong with a variant, or None. The reference is looked at through the oracle."""
        try:
            if variant.label == REFERENCE:
                self.expected  # noqa: B018
                fraction = self.bound_fraction
                if fraction is None or fraction <= 1:
                    return None
                return Fault("bound", f"the error is {fraction:.3g} times its a-priori bound")
            return first_difference(self.run(variant), self.expected)
        except Exception as error:
            # Whatever an implementation raises is its fault, and no reason to end a campaign.
            return Fault(type(error).__name__, str(error).split("; fastdiff.testing.rows", 1)[0])


def first_difference(ours: dict[str, Tensor], right: dict[str, Tensor]) -> Fault | None:
    """The first element in which two sets of outputs differ; any NaN equals any NaN."""
    for name, expected in right.items():
        found = ours[name]
        if same_bits(found, expected):
            continue
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return Fault("bits", f"{name} is {found.dtype} {list(found.shape)}", name)
        integers = INTEGERS[found.element_size()]
        a, b = found.contiguous(), expected.contiguous()
        wrong = (a.view(integers) != b.view(integers)) & ~(a.isnan() & b.isnan())
        at = tuple(int(i) for i in wrong.nonzero()[0])
        text = (
            f"{name}{list(at)} is {_shown(a[at])}, the reference's {_shown(b[at])}; {int(wrong.sum())} elements differ"
        )
        return Fault("bits", text, name, at)
    return None


def dump(kind: str, body: dict[str, Any]) -> str:
    """One line of JSON, which has no apostrophe, so that a shell takes it between two."""
    return json.dumps({kind: body}, separators=(",", ":"))


def _shown(value: Tensor) -> str:
    code = {torch.float64: ">d", torch.float32: ">f"}.get(value.dtype)
    bits = struct.pack(code, value.item()) if code else int(value.view(torch.int16)).to_bytes(2, "big", signed=True)
    return f"{value.item():.9g} (0x{bits.hex()})"
