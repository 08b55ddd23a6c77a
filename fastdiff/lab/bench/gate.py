"""The gate: no figure is reported for code that computes something else.

Before anything is timed:
1. random rows on random tensors, backend against reference, bit for bit (``fastdiff.testing.rows``);
2. whole trajectories through ``fastdiff.Run``, backend against reference, bit for bit;
3. trajectories in float64 against the textbook sampler with the same noise, to 1e-12.

On a GPU rows and trajectories are compared with those of the reference on the CPU, and before all else the clock that
will time it with a wall clock.

After every timed size, some of its samples are drawn again by the reference and must have the same bits, so that work
skipped at large sizes only is found; and every rival must have arrived where the textbook does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from fastdiff.backends import reference
from fastdiff.backends.registry import use_backend
from fastdiff.errors import BackendError
from fastdiff.lab.bench.contestant import Contestant
from fastdiff.lab.bench.device import CPU, Device
from fastdiff.lab.bench.rivals.eager import textbook_states
from fastdiff.lab.bench.workload import FREE, Model, Workload
from fastdiff.maths.draw import INIT, STEP
from fastdiff.runs.run import Run
from fastdiff.testing import textbook
from fastdiff.testing.rows import random_case, run_on, same_bits

RANDOM_CASES, LARGEST_CASE = 200, 4097
TRAJECTORY = 1e-12
"""Relative error that rounding may cause in float64 (VERIFY row A5 of the project's list of proofs)."""
SEED = 11
CLOCK_BYTES, CLOCK_COPIES, CLOCK_TRIES = 2**26, 16, 9
"""What is timed to try a clock: some milliseconds of copies, so that launching and waiting is little beside them."""
ROUNDINGS = 16
"""Operations in one step of the longest rival that round a value of the state's magnitude, at most."""


class GateError(BackendError):
    """The gate is red: what was to be timed does not compute what it should."""


@dataclass(frozen=True)
class Passed:
    """What the gate looked at, for the report."""

    cases: int
    trajectories: int
    worst: float

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.cases} random rows and {self.trajectories} trajectories bit-identical to the reference; float64 "
            f"trajectories within {self.worst:.1e} of the textbook (allowed {TRAJECTORY:.0e})"
        )


def check(backend: str, workloads: Sequence[Workload], cases: int | None = None) -> Passed:
    """Check a backend before it is timed.

    Args:
        backend: its name.
        workloads: what will be timed; their solvers, types and guidance are checked on small samples.
        cases: random rows to compare; ``RANDOM_CASES`` by default.

    Raises:
        GateError: says what differs, and how to see it again.
    """
    cases = RANDOM_CASES if cases is None else cases
    device = workloads[0].device
    if device.gpu:
        check_clock(device)
    runs_on = run_on(device.place, backend) if device.gpu else backend
    for seed in range(cases):
        case = random_case(seed, max_elements=LARGEST_CASE)
        found, expected = case.run(runs_on), case.run("reference")
        for name, value in expected.items():
            if not same_bits(found[name], value):
                raise GateError(
                    f"gate red: backend {backend!r} differs from the reference in {name}; {case.describe()}"
                )
    settings = {_small(workload) for workload in workloads}
    worst = 0.0
    for workload in sorted(settings, key=lambda w: w.name):
        model = _smooth_model(workload)
        if not same_bits(_run(workload, backend, model, place=device.place), _run(workload, "reference", model)):
            raise GateError(f"gate red: backend {backend!r} differs from the reference on {workload.name}")
        wide = replace(workload, dtype="float64", network_dtype="float64")
        worst = max(worst, _against_textbook(wide, backend))
    return Passed(cases, len(settings), worst)


def check_clock(device: Device) -> None:
    """Refuse a clock that tells something else than a wall clock around the same work, with waiting at both ends.

    The device's work lies within the wall clock's span, and is most of it. One try of several must show that:
    a machine that others use may come late to either clock.

    Raises:
        GateError: what both said.
    """
    source = torch.ones(CLOCK_BYTES, dtype=torch.uint8, device=device.place)
    target = torch.empty_like(source)
    for _ in range(CLOCK_TRIES):
        device.wait()
        wall = time.perf_counter()
        start = device.mark()
        for _ in range(CLOCK_COPIES):
            target.copy_(source)
        end = device.mark()
        device.wait()
        wall = time.perf_counter() - wall
        told = device.between(start, end)
        if 0.5 * wall <= told <= 1.01 * wall:
            return
    raise GateError(
        f"gate red: the clock of {device.name} ({device.clock}) told {told:.2e} s for work that took {wall:.2e} s "
        "from the first launch until all was done; its figures would mean nothing"
    )


def _small(workload: Workload) -> Workload:
    return replace(workload, batch=3, sample=(4, 5, 5), steps=5, network=FREE)


def _smooth_model(workload: Workload) -> Model:
    """A network of a few operations whose output depends on everything that it is told."""
    generator = torch.Generator().manual_seed(3)
    bias = torch.randn((2 * workload.batch, *workload.sample), generator=generator, dtype=torch.float64)

    def net(z: Tensor, c_noise: Tensor, bias: Tensor) -> Tensor:
        told = c_noise.view(-1, *(1 for _ in z.shape[1:])).to(torch.float64)
        return torch.tanh(1.3 * z.to(torch.float64) + 0.1 * told + bias).to(z.dtype)

    cond, uncond = bias.chunk(2)
    return Model.of(net, {"bias": cond}, {"bias": uncond})


def _run(
    workload: Workload,
    backend: str,
    model: Model,
    seeds: int = SEED,
    *,
    place: torch.device = CPU.place,
    home: torch.device = CPU.place,
) -> Tensor:
    """A whole trajectory through the public loop, brought to the CPU.

    Args:
        workload: what is sampled.
        backend: by which backend.
        model: the network.
        seeds: as ``fastdiff.Run`` takes them.
        place: where the backend runs.
        home: where the network does: its bits must not depend on who calls it.
    """
    net = model.both if workload.guided else model.cond
    with use_backend(backend):
        run = Run(workload.plan, workload.shape, seeds, device=place, network_dtype=workload.io)
    for evaluation in run:
        run.step(net(evaluation.z.to(home), evaluation.c_noise.to(home)).to(place))
    return run.finish().cpu()


def _against_textbook(workload: Workload, backend: str) -> float:
    """Relative error in float64 against the textbook on the same noise."""
    model = _smooth_model(workload)
    step = iter(range(workload.steps + 1))

    def noise() -> Tensor:
        return _counter_noise(workload, STEP, next(step))

    denoise = textbook.denoiser(
        model.both if workload.guided else model.cond, workload.scalars, workload.guidance, workload.io
    )
    sigmas = workload.sigmas
    first = _counter_noise(workload, INIT, 0) * sigmas[0]
    *_, expected = textbook.sampling_steps(
        denoise, first, sigmas, alpha=workload.alpha, churn=workload.churn, noise=noise
    )
    found = _run(workload, backend, model, place=workload.device.place)
    error = float((found - expected).abs().max() / expected.abs().max())
    # Not `error > TRAJECTORY`: a NaN must not pass.
    if not error <= TRAJECTORY:
        raise GateError(
            f"gate red: {workload.name} on backend {backend!r} is {error:.2e} away from the textbook sampler; "
            f"{TRAJECTORY:.0e} is allowed in float64"
        )
    return error


def _counter_noise(workload: Workload, purpose: int, draw: int) -> Tensor:
    seeds = torch.arange(SEED, SEED + workload.batch)
    numel = workload.elements // workload.batch
    flat = reference.normals(numel, seeds, torch.tensor([[purpose, 0, draw, 0]]))
    return flat.reshape(workload.shape).to(workload.state)


def check_size(workload: Workload, model: Model, drawn: Tensor, backend: str) -> None:
    """Draw samples of a timed size again by the reference on the CPU: three alone, or all with a real network.

    Args:
        workload: what was timed.
        model: the network; the free one returns the same tensor at every call, a row for each sample and branch.
        drawn: the sample that the timed code arrived at, ``[B, ...]``.
        backend: for the message.

    Raises:
        GateError: a sample differs.
    """
    drawn = drawn.cpu()
    if workload.network != FREE:
        if not same_bits(_run(workload, "reference", model, seeds=0, home=workload.device.place), drawn):
            raise GateError(f"gate red: backend {backend!r} differs from the reference on {workload.name}")
        return
    batch = workload.batch
    outputs = model.both(drawn, drawn)
    for b in sorted({0, batch // 2, batch - 1}):
        cond, uncond = outputs[b : b + 1], outputs[batch + b : batch + b + 1]
        both = torch.cat([cond, uncond])
        alone = Model(lambda z, c, both=both: both, lambda z, c, cond=cond: cond, lambda z, c, un=uncond: un)
        expected = _run(replace(workload, batch=1), "reference", alone, seeds=b)
        if not same_bits(expected, drawn[b : b + 1]):
            raise GateError(f"gate red: backend {backend!r} did not compute sample {b} of {workload.name}")


def check_rival(rival: Contestant, workload: Workload, model: Model, noise: Tensor) -> None:
    """A rival must compute the same sampler, or its time means nothing.

    Both start torch's generator from one seed, so that they draw the same noise. A step makes at most ``ROUNDINGS``
    roundings of values no larger than the largest state; one of a state that is divided by the next noise level and
    multiplied by the length of the step grows by their quotient.

    Raises:
        GateError: it ends elsewhere than the textbook in its own type.
    """
    with torch.random.fork_rng(devices=workload.device.generators()):
        torch.manual_seed(5)
        job = rival.start(workload, model, noise)
        job.advance()
        found = job.finish()
        torch.manual_seed(5)
        states = list(textbook_states(workload, model, noise.to(rival.draws or noise.dtype)))
    sigmas = workload.sigmas
    largest = max(float(state.abs().max()) for state in (noise * sigmas[0], *states))
    growth = sum(1 + (sigma - after) / after if after else 1 for sigma, after in pairwise(sigmas))
    bound = ROUNDINGS * 2.0**-24 * growth * largest
    error = float((found.double() - states[-1].double()).abs().max())
    if not error <= bound:
        raise GateError(
            f"gate red: rival {rival.name} ends {error:.2e} away from the textbook on {workload.name}; rounding "
            f"explains at most {bound:.1e}"
        )
