"""The workloads that are benchmarked, each passed through the gate and measured once."""

from __future__ import annotations

from functools import cache

from fastdiff.lab.bench import gate, measure
from fastdiff.lab.bench.measure import Case, Effort
from fastdiff.lab.bench.workload import Workload, parse_size, sample_shape, timed_steps

EFFORT = Effort(budget=10.0, fewest=5, most=41)


def heun(size: str, s_churn: float, **changes) -> Workload:
    """Heun with guidance on a network that costs nothing: the workload of every target."""
    elements = parse_size(size)
    batch, sample = sample_shape(elements, None)
    return Workload(batch, sample, s_churn=s_churn, steps=timed_steps(elements), **changes)


@cache
def checked(backend: str, workload: Workload) -> None:
    """Pass the gate once for each workload."""
    gate.check(backend, [workload])


@cache
def case(workload: Workload, rivals: tuple[str, ...]) -> Case:
    """A workload measured beside rivals, once for all tests that look at it."""
    checked("cpu", workload)
    return measure.measure(workload, "cpu", rivals, EFFORT)
