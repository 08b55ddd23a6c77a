"""A campaign: cases drawn one after the other, run on every variant, compared, and what failed made small.

Equality of bits (any NaN equal to any NaN) is transitive, so comparing every variant with the reference compares
every pair.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fastdiff.errors import InputError
from fastdiff.lab.fuzz.rows import RowSubject, random_row_subject
from fastdiff.lab.fuzz.samplers import random_sampler_subject
from fastdiff.lab.fuzz.shrink import shrink
from fastdiff.lab.fuzz.subject import Fault, Subject
from fastdiff.lab.fuzz.variants import Variant, reference

SAMPLER_EVERY = 25
SHOWN_FAILURES = 3
"""Of one variant; later ones are counted only."""
SHRINK_SECONDS = 10.0


@dataclass(frozen=True)
class Failure:
    """A case that failed, made small.

    Args:
        variant: which implementation.
        fault: what is wrong with the small case.
        line: the small case; ``fastdiff fuzz --replay`` takes it.
        original: the case as it was drawn.
        tried: how many smaller cases were tried.
    """

    variant: str
    fault: Fault
    line: str
    original: str
    tried: int


@dataclass
class Tally:
    """What was done on one variant."""

    cases: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failed: int = 0


@dataclass
class Summary:
    """Everything that a campaign has found so far.

    Args:
        seed: of the campaign; case k depends on it and on k alone.
        partial: whether it was interrupted.
        cases: how many were drawn, by kind.
        variants: what was done on each; the reference's time is that of the oracle too.
        worst: the largest error of the reference, as a fraction of its a-priori bound.
        bounded: how many samplers were compared with the oracle.
        coverage: how often each value of each property was seen.
        failures: at most ``SHOWN_FAILURES`` of each variant.
    """

    seed: int
    partial: bool = False
    seconds: float = 0.0
    cases: Counter[str] = field(default_factory=Counter)
    variants: dict[str, Tally] = field(default_factory=dict)
    worst: float = 0.0
    bounded: int = 0
    coverage: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    @property
    def differences(self) -> int:
        """How many comparisons failed."""
        return sum(tally.failed for tally in self.variants.values())


class Campaign:
    """Draws cases until time or their number is up.

    Args:
        variants: what is compared with the reference.
        seed: which cases are drawn.
        seconds: for how long; None for no limit.
        cases: how many; None for no limit.
        until_fail: stop at the first failure.
        first: cases to be tried before any is drawn.
        failed: called with every failure that is shown.
        progress: called after every case.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        seed: int,
        *,
        seconds: float | None = None,
        cases: int | None = None,
        until_fail: bool = False,
        first: Sequence[Subject] = (),
        failed: Callable[[Failure], None] = lambda failure: None,
        progress: Callable[[Summary], None] = lambda summary: None,
    ) -> None:
        self._variants, self._first = list(variants), first
        self._seconds, self._cases, self._until_fail = seconds, cases, until_fail
        self._failed, self._progress = failed, progress
        self._reference = reference()
        names = [self._reference.label, *(variant.label for variant in variants)]
        self.summary = Summary(seed, variants={name: Tally() for name in names})

    def run(self) -> Summary:
        """Run it; an interrupt ends it early with what was found until then, marked as partial."""
        summary, start = self.summary, time.monotonic()
        try:
            self._run(start)
        except KeyboardInterrupt:
            summary.partial = True
        summary.seconds = time.monotonic() - start
        return summary

    def _run(self, start: float) -> None:
        summary = self.summary
        # Nothing here has gradients, and torch is a fifth faster when it knows.
        with torch.inference_mode():
            for subject in self._subjects():
                self._try(subject, [v for v in self._variants if v.cases is None and self._due(v)])
                for variant in self._variants:
                    if variant.cases is not None and self._due(variant):
                        self._try(RowSubject(variant.cases(summary.variants[variant.label].cases)), [variant])
                summary.seconds = time.monotonic() - start
                self._progress(summary)
                if self._seconds is not None and summary.seconds >= self._seconds:
                    break
                if self._until_fail and summary.differences:
                    break

    def _subjects(self) -> Iterator[Subject]:
        yield from self._first
        number = 0
        while self._cases is None or number < self._cases:
            rng = np.random.default_rng([self.summary.seed, number])
            yield (random_sampler_subject if number % SAMPLER_EVERY == SAMPLER_EVERY - 1 else random_row_subject)(rng)
            number += 1

    def _due(self, variant: Variant) -> bool:
        """Whether a variant has used less than its share of the time."""
        return (
            variant.share >= 1 or self.summary.variants[variant.label].seconds <= variant.share * self.summary.seconds
        )

    def _try(self, subject: Subject, variants: Sequence[Variant]) -> None:
        """One case on the reference, and then on each of these."""
        summary = self.summary
        summary.cases[subject.kind] += 1
        if not self._passes(subject, self._reference):
            return
        fraction = subject.bound_fraction
        if fraction is not None:
            summary.bounded += 1
            summary.worst = max(summary.worst, fraction)
        for variant in variants:
            self._passes(subject, variant)
        for name, value in subject.features():
            summary.coverage.setdefault(name, Counter())[value] += 1

    def _passes(self, subject: Subject, variant: Variant) -> bool:
        """One case on one variant."""
        tally, start = self.summary.variants[variant.label], time.monotonic()
        fault = subject.fault(variant)
        tally.seconds += time.monotonic() - start
        tally.cases += 1
        if fault is None:
            tally.bytes += sum(output.numel() * output.element_size() for output in subject.expected.values())
            return True
        tally.failed += 1
        if tally.failed <= SHOWN_FAILURES:
            small = shrink(subject, fault, variant, SHRINK_SECONDS)
            failure = Failure(variant.label, small.fault, small.subject.line(), subject.line(), small.tried)
            self.summary.failures.append(failure)
            self._failed(failure)
        return False


def replay(subject: Subject, variants: Sequence[Variant]) -> list[tuple[str, Fault]]:
    """What is wrong with one case: with the reference, or else with each variant.

    Raises:
        InputError: a row that the reference refuses. (A sampler whose plan compiles must run.)
    """
    fault = subject.fault(reference())
    if fault is not None:
        if isinstance(subject, RowSubject) and fault.kind != AssertionError.__name__:
            raise InputError(f"the reference cannot run this row: {fault.text}")
        return [(reference().label, fault)]
    found = [(variant.label, subject.fault(variant)) for variant in variants]
    return [(label, fault) for label, fault in found if fault is not None]
