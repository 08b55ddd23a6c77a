"""Tasks: the cases that a command line asks for, and with whom each is compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastdiff.backends import registry
from fastdiff.errors import InputError
from fastdiff.lab.bench import networks
from fastdiff.lab.bench.device import DEVICES, Device
from fastdiff.lab.bench.rivals import RIVALS
from fastdiff.lab.bench.workload import FREE, Workload, format_size, sample_shape, timed_steps

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
    steps = timed_steps(workload.elements, workload.device) if workload.network == FREE else NETWORK_STEPS
    return replace(workload, steps=steps)


def choose_device(name: str | None, backends: Sequence[str]) -> tuple[Device, tuple[str, ...]]:
    """The device to measure on, and the backends to measure there.

    Args:
        name: of the device; None is the one on which the backends run, or the CPU.
        backends: none are those that can run there.

    Raises:
        InputError: the device is not there, or a backend does not run on it.
    """
    chosen = [backend for backend in registry.BACKENDS if backend.name in backends]
    if name is None:
        name = "cuda" if any(backend.devices and "cpu" not in backend.devices for backend in chosen) else "cpu"
    device = DEVICES[name]
    reason = device.refusal()
    if reason is not None:
        raise InputError(reason)
    for backend in chosen:
        if backend.devices and device.place.type not in backend.devices:
            raise InputError(
                f"backend {backend.name!r} runs on {' and '.join(backend.devices)}, and {name} is measured; one run "
                "measures one device, so give each a run of its own"
            )
    own = [backend for backend in registry.BACKENDS if backend.name in device.backends]
    usable = [backend.name for backend in own if backend.unavailable() is None]
    # Where none is usable, forcing one says why.
    return device, tuple(dict.fromkeys(backends)) or tuple(usable) or device.backends


def check_memory(asked: Sequence[Task]) -> None:
    """Refuse a size that the device cannot hold.

    Raises:
        InputError: says how much it needs and how much there is.
    """
    device = asked[0].workload.device
    largest = max(task.workload.elements for task in asked)
    needed, available = largest * BYTES_AN_ELEMENT, device.free_memory()
    if available is not None and needed > available:
        raise InputError(
            f"{format_size(largest)} elements need about {needed / 2**30:,.0f} GiB with all who are compared, and "
            f"{available / 2**30:.1f} GiB are free on {device.name}; choose a smaller size or batch"
        )
