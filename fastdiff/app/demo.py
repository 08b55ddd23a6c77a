"""Demo: guided digits, a trajectory, and one table of what the mathematics around the network costs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import fastdiff
from fastdiff.app.digits_job import SAMPLE, Job, Network
from fastdiff.app.io import check_folder, write
from fastdiff.backends import registry
from fastdiff.errors import OutputError
from fastdiff.maths.prediction import edm
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan
from fastdiff.testing.observe import Counter
from fastdiff.testing.rows import same_bits
from fastdiff.testing.textbook import edm_sampler

STEPS, GUIDANCE = 18, 2.0
DRAWN = 50
ALONE, WITH_NETWORK = 64, 8
"""Samples drawn together where the sampler is timed without and with a network."""
FUSED, REFERENCE, TEXTBOOK = "fused", "reference", "textbook eager"


@dataclass(frozen=True)
class Cost:
    """What one network evaluation costs outside the network."""

    launches: float
    bytes: float


class Silence:
    """A network that costs next to nothing: it returns zeros made beforehand."""

    def __init__(self, samples: int) -> None:
        self._zeros = torch.zeros(samples, *SAMPLE)

    def __call__(self, z: Tensor, c_noise: Tensor, **conditioning: Tensor) -> Tensor:
        """Zeros in the shape of z."""
        return self._zeros[: len(z)]


def run(folder: Path, repeats: int) -> None:
    """Write ``digits.png`` and ``trajectory.png`` to a folder and print the table.

    Args:
        folder: made if it does not exist.
        repeats: timed runs of each sampler; medians are shown.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    digits, trajectory = folder / "digits.png", folder / "trajectory.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    for path in (digits, trajectory):
        check_folder(path)
    network = Network.load(None, torch.float32)
    compiled, watching = (_plan(network, denoised) for denoised in (False, True))
    job = Job(network, compiled, tuple(range(DRAWN)), tuple(range(10)), DRAWN)
    write(digits, job.grid(job.draw_all()))
    write(trajectory, job.strip(watching))
    print(f"{compiled.description}: {compiled.evaluations} network evaluations\n")
    with _one_thread():
        _show(_costs(compiled, network.sigma_data), *_measure(job, repeats))
    print(f"\nwrote {digits}: {DRAWN} guided digits\nwrote {trajectory}: what the network sees in the noise")


def _plan(network: Network, denoised: bool = False) -> Plan:
    return plan(
        schedule="edm",
        prediction=edm(network.sigma_data),
        solver="heun",
        steps=STEPS,
        guidance=GUIDANCE,
        denoised=denoised,
    )


def _costs(compiled: Plan, sigma_data: float) -> dict[str, Cost]:
    """Launches and bytes of every sampler, counted on a run without a network."""
    elements, silence = ALONE * torch.Size(SAMPLE).numel(), Silence(2 * ALONE)

    def stepped() -> Cost:
        run = fastdiff.Run(compiled, (ALONE, *SAMPLE), 0)
        with Counter(elements) as seen:
            for evaluation in run:
                run.step(silence(evaluation.z, evaluation.c_noise))
        # The C++ loop runs its rows out of torch's sight, and counts them; the first one was run before.
        unseen = max(run.fused - 1, 0)
        return Cost((seen.launches + unseen) / len(run), seen.bytes / elements / len(run))

    fused = stepped()
    with fastdiff.use_backend("reference"):
        reference = stepped()
    with Counter(elements) as seen:
        edm_sampler(silence, (ALONE, *SAMPLE), sigma_data=sigma_data, steps=STEPS, guidance=GUIDANCE, uncond={})
    count = compiled.evaluations
    return {
        FUSED: Cost(fused.launches, sum(compiled.traffic()[1:]) / count),
        REFERENCE: reference,
        TEXTBOOK: Cost(seen.launches / count, seen.bytes / elements / count),
    }


def _measure(job: Job, repeats: int) -> tuple[dict[str, float], dict[str, float], bool]:
    """Steps per second of every sampler without and with the network, and whether fused and reference agree.

    Thread CPU time of whole calls, the samplers taking turns, medians.
    """
    silence, sigma_data = Silence(2 * ALONE), job.network.sigma_data
    labels = torch.nn.functional.one_hot(torch.tensor(job.labels[:WITH_NETWORK]), 10).float()
    conditions = {"cond": {"class_labels": labels}, "uncond": {"class_labels": torch.zeros_like(labels)}}
    settings = {"sigma_data": sigma_data, "steps": STEPS, "guidance": GUIDANCE}

    def fused_alone() -> Tensor:
        return fastdiff.sample(silence, job.plan, (ALONE, *SAMPLE), 0)

    def fused_with_network() -> Tensor:
        return job.draw(0, WITH_NETWORK)

    alone = {
        FUSED: fused_alone,
        REFERENCE: lambda: _on_reference(fused_alone),
        TEXTBOOK: lambda: edm_sampler(silence, (ALONE, *SAMPLE), uncond={}, **settings),
    }
    with_network = {
        FUSED: fused_with_network,
        REFERENCE: lambda: _on_reference(fused_with_network),
        TEXTBOOK: lambda: edm_sampler(job.network.call, (WITH_NETWORK, *SAMPLE), **conditions, **settings),
    }
    speeds, equal = [], True
    for samplers, times in ((alone, 4 * repeats), (with_network, repeats)):
        results = {name: sampler() for name, sampler in samplers.items()}
        equal = equal and same_bits(results[FUSED], results[REFERENCE])
        speeds.append(_speeds(samplers, times))
    return speeds[0], speeds[1], equal


def _on_reference(sampler: Callable[[], Tensor]) -> Tensor:
    with fastdiff.use_backend("reference"):
        return sampler()


def _speeds(samplers: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Steps per second: thread CPU time, samplers in turn, medians."""
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    with torch.no_grad():
        for _ in range(repeats):
            for name, sampler in samplers.items():
                start = time.thread_time()
                sampler()
                seconds[name].append(time.thread_time() - start)
    return {name: STEPS / median(taken) for name, taken in seconds.items()}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _show(costs: dict[str, Cost], alone: dict[str, float], with_network: dict[str, float], equal: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    backend = registry.choose("cpu", [torch.float32], "row-major").name
    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("", no_wrap=True)
    for heading in (
        "launches\n/evaluation",
        "bytes/element\n/evaluation",
        "steps/s\nno network",
        "steps/s\ndigits net",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cost in costs.items():
        shown = f"{FUSED} ({backend})" if name == FUSED else name
        speed, speed_with_network = f"{alone[name]:,.0f}", f"{with_network[name]:,.1f}"
        table.add_row(shown, f"{cost.launches:.2f}", f"{cost.bytes:.1f}", speed, speed_with_network)
    console.print(table)
    if backend == REFERENCE:
        console.print("\nThe C++ kernels cannot be used here, so 'fused' is the reference: see 'fastdiff doctor'.")
    console.print(f"\nbit-identical to reference: {'yes' if equal else 'NO'}")
    console.print(NOTES, style="dim")


NOTES = f"""
launches: torch operations other than views, counted by a dispatch hook while
  the loop runs, plus rows that the C++ loop counts itself; without the network.
bytes: of tensors as large as the state, read and written; for the fused path
  from the plan (each column read once, each output written once), else counted
  by the same hook.
steps/s: Heun steps in whole calls, set-up included, on one thread; thread CPU
  time, samplers in turn, medians. No network: {ALONE} samples of 64 elements and a
  network that returns zeros. Digits network: {WITH_NETWORK} samples, most of the time is
  the network's.
bit-identical: the samples of these runs, with and without the network, compared
  bit for bit."""
