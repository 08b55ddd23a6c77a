"""Tasks: the cases that a command line asks for, and with whom each is compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastdiff.backends.registry import BACKENDS
from fastdiff.bench import networks
from fastdiff.bench.rivals import RIVALS
from fastdiff.bench.workload import FREE, Workload, available_memory, format_size, sample_shape, timed_steps
from fastdiff.errors import InputError

QUICKLY = 2**16
"""A quick run takes rivals along up to this size only; above it, fastdiff and the roofline."""
NETWORK_BATCH, NETWORK_STEPS = 4, 5
OWN_SAMPLE = (4, 32, 32)
BESIDE_NETWORKS = ("textbook", "k-diffusion-ops")
BYTES_AN_ELEMENT = 160
"""Enough for the hungriest contestant with the network's output; what the memory is checked against."""

Shape = tuple[int, tuple[int, ...]]
"""A batch, and the shape of one sample."""


@dataclass(frozen=True)
class Task:
    """One case to measure, and with whom."""

    workload: Workload
    rivals: tuple[str, ...]


def shapes(
    sizes: Sequence[int], batch: int | None, sample: tuple[int, ...] | None, network: str, sizes_given: bool
) -> list[Shape]:
    """The sizes to measure.

    Args:
        sizes: in elements.
        batch: samples drawn together; None leaves the choice.
        sample: the shape of one; None leaves the choice.
        network: its name; some take samples of one shape only.
        sizes_given: whether somebody asked for these sizes.

    Raises:
        InputError: they do not go together.
    """
    fixed = networks.SAMPLES.get(network)
    if fixed is not None and sample not in (None, fixed):
        raise InputError(f"the {network} network takes samples of shape {fixed}; leave --shape out")
    if network == FREE and sample is None:
        return [sample_shape(elements, batch) for elements in sizes]
    if sizes_given:
        raise InputError("--sizes goes with --network none and without --shape; give --batch instead")
    return [(batch or NETWORK_BATCH, fixed or sample or OWN_SAMPLE)]


def tasks(
    template: Workload, chosen: Sequence[Shape], churns: Sequence[float], rivals: tuple[str, ...], *, quick: bool
) -> Iterator[Task]:
    """Every size with and without churn; then, of free networks, what needs cases of its own.

    Args:
        template: everything but size, churn and steps.
        chosen: sizes.
        churns: values of S_churn.
        rivals: whom to compare with.
        quick: leave rivals out at large sizes.
    """
    for batch, sample in chosen:
        for s_churn in churns:
            workload = _sized(replace(template, batch=batch, sample=sample, s_churn=s_churn))
            yield Task(workload, () if quick and workload.elements > QUICKLY else rivals)


def extra_tasks(template: Workload, chosen: Sequence[Shape], rivals: tuple[str, ...], *, quick: bool) -> Iterator[Task]:
    """Diffusers' schedulers, which take epsilon predictions, where they are installed; and two real networks."""
    diffusers = tuple(name for name in rivals if name.startswith("diffusers"))
    for batch, sample in chosen if template.prediction != "epsilon" else ():
        workload = _sized(replace(template, batch=batch, sample=sample, prediction="epsilon"))
        runs = any(RIVALS[name].refusal(workload) is None for name in diffusers)
        if runs and not (quick and workload.elements > QUICKLY):
            yield Task(workload, diffusers)
    beside = tuple(name for name in rivals if name in BESIDE_NETWORKS)
    for network, sample in networks.SAMPLES.items():
        yield Task(_sized(replace(template, batch=NETWORK_BATCH, sample=sample, network=network)), beside)


def _sized(workload: Workload) -> Workload:
    steps = timed_steps(workload.elements) if workload.network == FREE else NETWORK_STEPS
    return replace(workload, steps=steps)


def check_devices(backends: Sequence[str]) -> None:
    """Refuse backends whose time this clock cannot tell.

    Raises:
        InputError: one runs on a GPU only, where launches return before they are done.
    """
    for backend in BACKENDS:
        if backend.name in backends and backend.devices and "cpu" not in backend.devices:
            raise InputError(
                f"backend {backend.name!r} runs on {' and '.join(backend.devices)}, and fastdiff bench times one "
                "thread of the CPU; benchmarks/gpu_day_one.sh, in the source, times an NVIDIA GPU by its events"
            )


def check_memory(asked: Sequence[Task]) -> None:
    """Refuse a size that cannot be held.

    Raises:
        InputError: says how much it needs and how much there is.
    """
    largest = max(task.workload.elements for task in asked)
    needed, available = largest * BYTES_AN_ELEMENT, available_memory()
    if available is not None and needed > available:
        raise InputError(
            f"{format_size(largest)} elements need about {needed / 2**30:,.0f} GiB with all who are compared, and "
            f"{available / 2**30:.1f} GiB are free; choose a smaller size or batch"
        )
