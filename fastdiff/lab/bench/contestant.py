"""Contestants: samplers that can be timed side by side, each a job that is set up, advanced and finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from fastdiff.backends.registry import use_backend
from fastdiff.lab.bench.workload import Model, Network, Workload
from fastdiff.runs.run import Run
from fastdiff.runs.sample import sample


class Job(Protocol):
    """One run of a sampler, its first noise already made."""

    def advance(self) -> None:
        """Make the timed steps, once."""
        ...

    def finish(self) -> Tensor:
        """Make the steps that are left and return the sample, ``[B, ...]``."""
        ...


class Steps:
    """A job that is a generator of states.

    Args:
        states: yields the state after every step.
        timed: how many steps to time.
    """

    def __init__(self, states: Iterator[Tensor], timed: int) -> None:
        self.states, self.timed = states, timed

    def advance(self) -> None:
        """Make the timed steps; no state is held on to, which a loop variable would do."""
        deque(islice(self.states, self.timed), maxlen=0)

    def finish(self) -> Tensor:
        """Make the steps that are left; at least one is."""
        *_, last = self.states
        return last


class Rows:
    """A job of fastdiff: a run of the workload's plan.

    Args:
        workload: what to sample.
        model: the network.
        seeds: as ``fastdiff.Run`` takes them.
    """

    def __init__(self, workload: Workload, model: Model, seeds: int = 0) -> None:
        place = workload.device.place
        self.run = Run(workload.plan, workload.shape, seeds, device=place, network_dtype=workload.io)
        self.net: Network = model.both if workload.guided else model.cond
        self.timed = workload.evaluations

    def advance(self) -> None:
        """Make the timed steps as ``fastdiff.sample`` would."""
        run, net = self.run, self.net
        for evaluation in islice(run, self.timed):
            run.step(net(evaluation.z, evaluation.c_noise))

    def finish(self) -> Tensor:
        """Make the evaluations that are left."""
        for evaluation in self.run:
            self.run.step(self.net(evaluation.z, evaluation.c_noise))
        return self.run.finish()


class Replays:
    """A job of ``fastdiff.sample(..., cuda_graph=True)``: a whole sampling, recorded before it is timed.

    Args:
        workload: what to sample.
        model: the network.
    """

    def __init__(self, workload: Workload, model: Model) -> None:
        self._workload, self._net = workload, model.both if workload.guided else model.cond
        # The forced backend is a variable of the context. Forcing it again would be a part of the time.
        self._context = copy_context()
        self.advance()

    def advance(self) -> None:
        """Make one sampling."""
        self._drawn = self._context.run(self._sample)

    def _sample(self) -> Tensor:
        load = self._workload
        place = load.device.place
        return sample(self._net, load.plan, load.shape, 0, device=place, network_dtype=load.io, cuda_graph=True)

    def finish(self) -> Tensor:
        """The last sample."""
        return self._drawn


SLOW = 2**13
"""The reference emulates every fused multiply-add of its normals: above this many elements it takes minutes."""

Start = Callable[[Workload, Model, Tensor], Job]
"""``start(workload, model, unit_noise)``: everything up to the first network evaluation."""


@dataclass(frozen=True)
class Contestant:
    """A sampler to time.

    Args:
        name: in tables and files.
        what: one sentence: whose operations these are.
        start: sets up a job.
        refuses: why it cannot run a workload, or None where it can.
        eager: whether its operations pass the dispatcher one by one, so that they can be counted there.
        slowest_size: more elements than this are not tried: it would take minutes.
        draws: the type in which its noise is drawn; the workload's state if None.
        whole: whether an advance is a whole sampling, the last step included, and not the timed steps alone.
    """

    name: str
    what: str
    start: Start
    refuses: Callable[[Workload], str | None] = lambda workload: None
    eager: bool = True
    slowest_size: int | None = None
    draws: torch.dtype | None = None
    whole: bool = False

    def refusal(self, workload: Workload) -> str | None:
        """Why it sits a workload out, or None."""
        if self.slowest_size is not None and workload.elements > self.slowest_size:
            return f"above {self.slowest_size} elements it would take too long"
        return self.refuses(workload)


def backend(name: str) -> Contestant:
    """Fastdiff on one of its backends."""

    def start(workload: Workload, model: Model, noise: Tensor) -> Job:
        with use_backend(name):
            return Rows(workload, model)

    slowest = SLOW if name == "reference" else None
    return Contestant(name, f"fastdiff, backend {name}", start, slowest_size=slowest)


def replayed(name: str) -> Contestant:
    """The same as whole samplings that are recorded once and replayed, on a GPU."""

    def start(workload: Workload, model: Model, noise: Tensor) -> Job:
        with use_backend(name):
            return Replays(workload, model)

    return Contestant(f"fastdiff {name}, graph", f"fastdiff, backend {name}, recorded", start, eager=False, whole=True)
