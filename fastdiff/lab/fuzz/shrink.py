"""Shrinking: the smallest case that a greedy search finds, which still shows the same kind of fault."""

from __future__ import annotations

import time
from typing import NamedTuple

from fastdiff.lab.fuzz.subject import Fault, Subject
from fastdiff.lab.fuzz.variants import REFERENCE, Variant


class Shrunk(NamedTuple):
    """The smallest case found, its fault, and how many were tried."""

    subject: Subject
    fault: Fault
    tried: int


def shrink(subject: Subject, fault: Fault, variant: Variant, seconds: float = 10.0) -> Shrunk:
    """Take one simplification after another while the fault stays of its kind.

    Args:
        subject: what failed.
        fault: how.
        variant: where.
        seconds: when to stop at the latest.
    """
    tried, end = 0, time.monotonic() + seconds
    improved = True
    while improved and time.monotonic() < end:
        improved = False
        for smaller in subject.smaller(fault):
            tried += 1
            found = _fault(smaller, variant)
            if found is not None and found.kind == fault.kind:
                subject, fault, improved = smaller, found, True
                break
            if time.monotonic() >= end:
                break
    return Shrunk(subject, fault, tried)


def _fault(subject: Subject, variant: Variant) -> Fault | None:
    """The fault of a variant, unless the case itself is not valid, which the reference tells."""
    if variant.label != REFERENCE:
        try:
            subject.expected  # noqa: B018
        except Exception:
            return None
    return subject.fault(variant)
