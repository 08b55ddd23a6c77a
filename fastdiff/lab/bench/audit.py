"""Audits: what one network evaluation costs in launches, bytes, waits and memory, counted and not estimated.

- Eager operations are counted as they pass torch's dispatcher. One that is neither a view nor a bare allocation is a
  launch (about one kernel on a GPU); the bytes of its state-size inputs and outputs are traffic; one that hands a
  value to Python is a wait for the device.
- fastdiff's C++ loop does not pass the dispatcher. Its launches are counted by the loop itself; its bytes are those of
  the tensors that the same rows read and write when they are sent through the op ``fastdiff::stage`` instead.
- Nor do launches on a GPU. Each call of the backend's ``stage`` is counted, with the tensors that it is handed.
- Memory is what torch's allocator reports: the most that was held at once, network output excluded.

Counts do not depend on the size, so a small batch is audited, always with the network that costs nothing. As many steps
are audited as people take (18, of which the last one differs), because some libraries look things up in the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fastdiff.backends import registry
from fastdiff.backends.registry import Backend, Prepared
from fastdiff.lab.bench.contestant import Contestant, Job, Rows
from fastdiff.lab.bench.workload import FREE, Model, Workload, first_noise, free_network, sample_shape
from fastdiff.rows.call import Call
from fastdiff.testing.observe import Counter

_audited: dict[tuple[str, Workload], Costs] = {}
SEEN = ("cpu", "reference")
"""Backends whose work passes the dispatcher, as an op of fastdiff or as operations of torch."""
AUDITED_ELEMENTS, AUDITED_STEPS = 16384, 17


@dataclass(frozen=True)
class Costs:
    """Counts for one network evaluation; None where they cannot be counted.

    Args:
        launches: operations that a device would run.
        bytes: state-size traffic per state element.
        waits: values handed to Python, for which a device would be waited for.
        allocations: tensors allocated.
        peak: bytes per state element held at once, from the first noise to the last timed step.
    """

    launches: float | None
    bytes: float | None
    waits: float | None
    allocations: float
    peak: float


def audit(contestant: Contestant, workload: Workload) -> Costs:
    """Count what a contestant does in the timed steps of a small copy of a workload."""
    key = (contestant.name, small(workload))
    if key not in _audited:
        _audited[key] = _audit(contestant, key[1])
    return _audited[key]


def _audit(contestant: Contestant, small: Workload) -> Costs:
    noise = first_noise(small)

    def start(model: Model) -> Job:
        return contestant.start(small, model, noise)

    allocations, peak = _memory(start, small)
    evaluations = small.plan.evaluations if contestant.whole else small.evaluations
    allocations, peak = allocations / evaluations, peak / small.elements
    if not contestant.eager:
        return Costs(None, None, None, allocations, peak)
    launches, traffic, waits = _dispatched(start, small)
    if launches == 0:
        raise RuntimeError(f"{contestant.name} was audited and launched nothing")
    return Costs(launches, traffic, waits, allocations, peak)


def small(workload: Workload) -> Workload:
    """The same sampler on few elements and steps, with the network that costs nothing."""
    batch, sample = workload.batch, workload.sample
    if workload.elements > AUDITED_ELEMENTS:
        batch, sample = sample_shape(AUDITED_ELEMENTS, None)
    return replace(workload, batch=batch, sample=sample, steps=AUDITED_STEPS, network=FREE)


def _dispatched(start: Callable[[Model], Job], workload: Workload) -> tuple[float, float, float]:
    """Launches, bytes per element and waits of one evaluation."""
    with _watched(Counter(workload.elements)) as counter:
        job = start(free_network(workload))
        loop = job.run.launcher._loop if isinstance(job, Rows) else None
        before = 0 if loop is None else loop.index
        counter.launches = counter.bytes = 0
        with counter:
            job.advance()
    launches, traffic = counter.launches, counter.bytes
    if loop is not None:
        launches += loop.index - before - counter.stages
        traffic = _traffic_through_op(job, workload)
    n = workload.evaluations
    return launches / n, traffic / n / workload.elements, counter.waits / n


@contextmanager
def _watched(counter: Counter) -> Iterator[Counter]:
    """Inside, every launch of a backend that passes no dispatcher is counted."""
    with ExitStack() as entered:
        for backend in registry.BACKENDS:
            if backend.name not in SEEN:
                entered.enter_context(registry.registered(_counted(backend, counter)))
        yield counter


def _counted(backend: Backend, counter: Counter) -> Backend:
    """The same backend; each launch is counted with all that it reads and writes."""

    def stage(call: Call) -> None:
        counter.launched((*call.columns, *call.written))
        backend.stage(call)

    def prepare(call: Call) -> Prepared:
        launch = backend.prepared(call)

        def counted(given: Sequence[Tensor]) -> None:
            counter.launched((*call.columns, *given, *call.written))
            launch(given)

        return counted

    return replace(backend, stage=stage, prepare=prepare)


def _traffic_through_op(job: Any, workload: Workload) -> int:
    """Bytes that the op is handed for the same rows."""
    again = Rows(workload, free_network(workload))
    again.run.launcher._loop = None
    with Counter(workload.elements) as counter:
        again.advance()
    return counter.bytes


def _memory(start: Callable[[Model], Job], workload: Workload) -> tuple[int, int]:
    """Allocations of one advance, and the most bytes held at once."""
    # A first job compiles. The one that is looked at has a network of its own, so that a recording of it is made anew.
    start(free_network(workload)).advance()
    model = free_network(workload)
    return workload.device.memory(lambda: start(model), lambda job: job.advance())
