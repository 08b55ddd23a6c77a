"""Measuring one case: a workload on one backend of fastdiff, in turns with its rivals and the roofline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from fastdiff.errors import NetworkError
from fastdiff.lab.bench import gate, networks, roofline, timing
from fastdiff.lab.bench.audit import Costs, audit, small
from fastdiff.lab.bench.contestant import Contestant, Job, backend, replayed
from fastdiff.lab.bench.rivals import RIVALS, forget
from fastdiff.lab.bench.timing import Spread
from fastdiff.lab.bench.workload import FREE, Model, Workload, first_noise, free_network, timed_steps
from fastdiff.runs.graph import clear_graphs

TINY = (4, 2, 2)
"""A sample so small that a step on it costs what Python and validation cost."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        budget: seconds of turns for one case.
        fewest: turns at least.
        most: turns at most.
    """

    budget: float = 15.0
    fewest: int = 5
    most: int = 41


@dataclass(frozen=True)
class Figures:
    """What one contestant cost in a case.

    Args:
        us_per_step: microseconds of the device for one step of the solver, with quartiles.
        costs: what was counted for one network evaluation.
        first_call_ms: wall milliseconds of its first job, compilation included.
        host_us_per_step: of the host's thread, the same step on 16 elements; None where it was not tried.
        network_share: part of the time spent inside a real network; None for the free one, and in a replay.
    """

    us_per_step: Spread
    costs: Costs
    first_call_ms: float
    host_us_per_step: float | None = None
    network_share: float | None = None


@dataclass(frozen=True)
class Case:
    """What was measured for one workload on one backend.

    Args:
        workload: what was sampled.
        backend: fastdiff's backend.
        figures: fastdiff's own.
        rivals: theirs, by name.
        ratios: how many times as long they took, turn by turn.
        roofline: the part of the roofline that fastdiff reached, turn by turn.
        gigabytes: of the roofline, a second.
        turns: how many there were.
        absent: rivals that sat out, and why.
    """

    workload: Workload
    backend: str
    figures: Figures
    rivals: dict[str, Figures]
    ratios: dict[str, Spread]
    roofline: Spread
    gigabytes: float
    turns: int
    absent: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The case as JSON has it."""
        own = _flat(self.figures)
        types = {"dtype": self.workload.dtype, "network_dtype": self.workload.network_dtype}
        settings = {name: getattr(self.workload, name) for name in ("solver", "prediction", "guidance", "s_churn")}
        return {
            "name": self.workload.name,
            "elements": self.workload.elements,
            "batch": self.workload.batch,
            **types,
            **settings,
            "network": self.workload.network,
            "backend": self.backend,
            "device": self.workload.device.name,
            "steps": self.workload.steps,
            "turns": self.turns,
            "ratio": {name: ratio.median for name, ratio in self.ratios.items()},
            "ratio_quartiles": {name: [ratio.low, ratio.high] for name, ratio in self.ratios.items()},
            "roofline": self.roofline.median,
            "roofline_quartiles": [self.roofline.low, self.roofline.high],
            "roofline_gb_per_s": self.gigabytes,
            **own,
            "rivals": {name: _flat(figures) for name, figures in self.rivals.items()},
            "absent": self.absent,
        }


def _flat(figures: Figures) -> dict[str, Any]:
    costs = asdict(figures.costs)
    return {
        "us_per_step": figures.us_per_step.median,
        "us_per_step_quartiles": [figures.us_per_step.low, figures.us_per_step.high],
        "steps_per_s": 1e6 / figures.us_per_step.median,
        "launches_per_nfe": costs["launches"],
        "bytes_per_element": costs["bytes"],
        "syncs_per_nfe": costs["waits"],
        "allocations_per_nfe": costs["allocations"],
        "peak_bytes_per_element": costs["peak"],
        "host_us_per_step": figures.host_us_per_step,
        "first_call_ms": figures.first_call_ms,
        "network_share": figures.network_share,
    }


def measure(
    workload: Workload,
    backend_name: str,
    rivals: Iterable[str],
    effort: Effort,
    tick: Callable[[str], None] = lambda doing: None,
) -> Case:
    """Measure one case; the caller has passed the gate and set one thread.

    Args:
        workload: what to sample.
        backend_name: of fastdiff.
        rivals: names of those to compare with; whoever cannot run the workload sits out.
        effort: how long.
        tick: called with what is being done, for a progress bar.

    Raises:
        GateError: the backend or a rival computed something else at this size.
        NetworkError: the network failed.
    """
    own = backend(backend_name)
    refusals = {name: RIVALS[name].refusal(workload) for name in rivals if name != backend_name}
    absent = {name: reason for name, reason in refusals.items() if reason is not None}
    field_ = {own.name: own} | {name: RIVALS[name] for name in refusals if name not in absent}
    if own.name in workload.device.backends and workload.device.gpu:
        graph = replayed(own.name)
        field_ = {own.name: own, graph.name: graph} | field_
    model, noise = networks.load(workload), first_noise(workload)
    clocks = {name: networks.Clock(model, workload.device) for name in field_}
    # Replays do not come back to the host to be clocked.
    models = {
        name: model if workload.network == FREE or contestant.whole else clocks[name].model
        for name, contestant in field_.items()
    }
    first_calls = {}
    for name, contestant in tuple(field_.items()):
        tick(f"{name}: first call")
        try:
            first_calls[name] = _first_call(contestant, workload, models[name], noise, own=contestant is own)
        except NetworkError as error:
            if not contestant.whole:
                raise
            absent[name] = str(error).partition("\n")[0]
            del field_[name]
            continue
        _check(contestant, workload, model, noise, own=contestant is own)
        clocks[name].restart()
    starts: dict[str, Callable[[], Job]] = {
        name: (lambda c=contestant, m=models[name]: c.start(workload, m, noise)) for name, contestant in field_.items()
    }
    starts |= roofline.contestants(workload)
    times = timing.interleave(
        starts,
        budget=effort.budget,
        fewest=effort.fewest,
        most=effort.most,
        tick=lambda: tick("turns"),
        device=workload.device,
    )
    times = _of_timed_steps(times, field_, workload)
    figures = {
        name: _figures(contestant, workload, times, first_calls[name], clocks[name], own=contestant is own)
        for name, contestant in field_.items()
    }
    forget()
    clear_graphs()
    return _case(workload, own.name, figures, times, absent)


def _of_timed_steps(times: timing.Times, field_: Mapping[str, Contestant], workload: Workload) -> timing.Times:
    """The same times; of whoever made the last step too, the part that the timed ones are by their number."""
    part = workload.steps / (workload.steps + 1)
    whole = {name for name, contestant in field_.items() if contestant.whole}
    found = ({n: [part * v for v in vs] if n in whole else vs for n, vs in kind.items()} for kind in times)
    return timing.Times(*found)


def _case(
    workload: Workload, own: str, figures: dict[str, Figures], times: timing.Times, absent: dict[str, str]
) -> Case:
    lines = [values for name, values in times.seconds.items() if name not in figures]
    best = [min(turn) for turn in zip(*lines, strict=True)]
    # A real network is no part of the launches that are compared with the roofline.
    outside = 1 - (figures[own].network_share or 0)
    reached = Spread.of([line / (took * outside) for line, took in zip(best, times.seconds[own], strict=True)])
    moved = sum(workload.plan.traffic(workload.io.itemsize)[workload.timed_rows]) * workload.elements
    return Case(
        workload=workload,
        backend=own,
        figures=figures[own],
        rivals={name: found for name, found in figures.items() if name != own},
        ratios={name: times.ratio(name, own) for name in figures if name != own},
        roofline=reached,
        gigabytes=moved / Spread.of(best).median / 1e9,
        turns=len(best),
        absent=absent,
    )


def _first_call(contestant: Contestant, workload: Workload, model: Model, noise: Tensor, *, own: bool) -> float:
    """Wall milliseconds of a first job; fastdiff's includes compiling its plan."""
    begin = time.perf_counter()
    if own:
        workload.compile()
    contestant.start(workload, model, noise).advance()
    workload.device.wait()
    return (time.perf_counter() - begin) * 1e3


def _check(contestant: Contestant, workload: Workload, model: Model, noise: Tensor, *, own: bool) -> None:
    """What is timed must compute the right thing at this very size."""
    if own or contestant.whole:
        job = contestant.start(workload, model, noise)
        job.advance()
        gate.check_size(workload, model, job.finish(), contestant.name)
    elif contestant.eager and contestant.name != "reference":
        few = small(workload)
        gate.check_rival(contestant, few, free_network(few), first_noise(few))
    elif contestant.name != "reference":
        # What was compiled was compiled for this size.
        gate.check_rival(contestant, workload, model, noise)


def _figures(
    contestant: Contestant,
    workload: Workload,
    times: timing.Times,
    first_call: float,
    clock: networks.Clock,
    *,
    own: bool,
) -> Figures:
    seconds = times.seconds[contestant.name]
    timed_on_host = own or contestant.eager or contestant.whole
    host = _host_us(contestant, workload) if timed_on_host else None
    share = None if workload.network == FREE or contestant.whole else clock.seconds / sum(seconds)
    return Figures(
        us_per_step=Spread.of([value / workload.steps * 1e6 for value in seconds]),
        costs=audit(contestant, workload),
        first_call_ms=first_call,
        host_us_per_step=host,
        network_share=share,
    )


def _host_us(contestant: Contestant, workload: Workload) -> float:
    """Microseconds of the host's thread for a step on 16 elements."""
    tiny = replace(workload, batch=1, sample=TINY, steps=timed_steps(16), network=FREE)
    model, noise = networks.load(tiny), first_noise(tiny)
    starts = {contestant.name: lambda: contestant.start(tiny, model, noise)}
    times = timing.interleave(starts, budget=0.2, fewest=3, most=15, device=workload.device)
    (host,) = _of_timed_steps(times, {contestant.name: contestant}, tiny).host.values()
    return Spread.of(host).median / tiny.steps * 1e6
