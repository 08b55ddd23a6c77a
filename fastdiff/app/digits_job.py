"""A job: a set of digits to be drawn, batch by batch, and what must be written beside them.

The digit of a sample and its noise depend on its seed alone, so that a set can be cut into batches, killed and
resumed, or drawn in pieces on several machines, and sample i stays what it is.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

import fastdiff
from fastdiff.app.digits import CHECKPOINT, CLASSES, DigitsNet, load_digits
from fastdiff.app.io import encode_samples, read_samples, write
from fastdiff.app.options import format_seeds
from fastdiff.errors import CheckpointError, InputError
from fastdiff.maths.guidance import COND, UNCOND
from fastdiff.plans.file import NOISE_FORMAT
from fastdiff.plans.plan import Plan
from fastdiff.runs.run import Progress

SAMPLE = (1, 8, 8)
WATCHED, MOMENTS = 6, 12
"""Samples and moments in a trajectory strip."""
EXACT_NETWORK_BATCH = 1
"""Samples a network call where bits must not depend on the batch; 1 is exact for every network."""
KEEPING_SHARE = 1 / 20
"""At most this share of the time goes into keeping what is done."""

Callback = Callable[[Progress], None]


class Network(NamedTuple):
    """The digits network with what identifies it."""

    call: DigitsNet
    sigma_data: float
    sha256: str
    dtype: torch.dtype

    @classmethod
    def load(cls, path: Path | None, dtype: torch.dtype) -> Network:
        """Read a checkpoint, the shipped one if None.

        Raises:
            CheckpointError: not a safetensors file, or one that does not hold this network.
        """
        net, facts = load_digits(path, dtype=dtype)
        try:
            sigma_data = float(facts["sigma_data"])
        except ValueError:
            raise CheckpointError(f"{path}: sigma_data is {facts['sigma_data']!r}; it must be a number") from None
        return cls(net, sigma_data, hashlib.sha256((path or CHECKPOINT).read_bytes()).hexdigest(), dtype)


class Trajectory(NamedTuple):
    """Denoised predictions on the way, ``frames[k, b]`` at noise level ``sigmas[k]``; the sample is the last."""

    frames: Tensor
    sigmas: tuple[float, ...]


@dataclass(frozen=True)
class Job:
    """What to draw.

    Args:
        network: the digits network.
        plan: the compiled sampler.
        seeds: one for each sample.
        classes: a sample's digit is ``classes[seed mod len(classes)]``.
        batch: samples drawn together.
        exact: evaluate the network in a fixed batch, so that bits do not depend on ``batch``.
    """

    network: Network
    plan: Plan
    seeds: tuple[int, ...]
    classes: tuple[int, ...]
    batch: int
    exact: bool = False

    def __post_init__(self) -> None:
        unknown = {branch for row in self.plan.rows for branch in row.branches} - {COND, UNCOND}
        if unknown:
            raise InputError(f"the plan asks for branches {sorted(unknown)}; the digits network has cond and uncond")
        if self.plan.caller_noise:
            raise InputError("the plan was compiled with noise='caller'; compile it with noise='counter'")

    @property
    def facts(self) -> dict[str, str]:
        """Everything that determines the samples, for people and to know the same job again."""
        calls = str(EXACT_NETWORK_BATCH) if self.exact else f"batches of {self.batch}"
        return {
            "fastdiff_version": fastdiff.__version__,
            "noise_format": str(NOISE_FORMAT),
            "plan": self.plan.description,
            "plan_sha256": self.plan.sha256,
            "seeds": format_seeds(self.seeds),
            "classes": ",".join(map(str, self.classes)),
            "class_rule": "classes[seed mod number of classes]",
            "network_sha256": self.network.sha256,
            "network_dtype": str(self.network.dtype).removeprefix("torch."),
            "network_calls": calls,
        }

    @property
    def labels(self) -> list[int]:
        """The digit of every sample."""
        return [self.classes[seed % len(self.classes)] for seed in self.seeds]

    def draw(self, first: int, last: int, *, plan: Plan | None = None, callback: Callback | None = None) -> Tensor:
        """Samples ``first`` to ``last - 1`` in one batch, ``[last - first, 1, 8, 8]``."""
        one_hot = functional.one_hot(torch.tensor(self.labels[first:last]), CLASSES).to(self.network.dtype)
        return fastdiff.sample(
            self.network.call,
            plan or self.plan,
            (last - first, *SAMPLE),
            self.seeds[first:last],
            cond={"class_labels": one_hot},
            uncond={"class_labels": torch.zeros_like(one_hot)},
            network_dtype=self.network.dtype,
            network_batch=EXACT_NETWORK_BATCH if self.exact else None,
            callback=callback,
        )

    def draw_all(self, *, kept: Partial | None = None, start: Tensor | None = None, progress: bool = True) -> Tensor:
        """The whole set, ``[N, 1, 8, 8]`` in the plan's state type.

        Args:
            kept: where finished batches are put aside, also when the run is interrupted.
            start: the first samples, where an earlier run has drawn them.
            progress: show a bar on a terminal.
        """
        count, done = len(self.seeds), 0 if start is None else len(start)
        samples = torch.empty(count, *SAMPLE, dtype=getattr(torch, self.plan.dtype))
        if start is not None:
            samples[:done] = start
        batches = -(-(count - done) // self.batch)
        total = batches * self.plan.evaluations
        with tqdm(total=total, desc=f"{count} digits", unit="eval", disable=None if progress else True) as bar:

            def advance(progress: Progress) -> None:
                bar.update()

            try:
                for first in range(done, count, self.batch):
                    last = min(first + self.batch, count)
                    samples[first:last] = self.draw(first, last, callback=advance)
                    done = last
                    if kept is not None and done < count:
                        kept.put(samples[:done])
            except KeyboardInterrupt:
                if kept is not None and done:
                    kept.put(samples[:done], now=True)
                raise
        return samples

    def grid(self, samples: Tensor) -> bytes:
        """A PNG of the samples with their digits, carrying the facts."""
        from fastdiff.app import picture

        return picture.encode_png(picture.grid(samples, [str(label) for label in self.labels]), self.facts)

    def strip(self, plan: Plan, samples: int = WATCHED) -> bytes:
        """A PNG of the first samples on the way, as ``trajectory`` gives them, carrying the facts."""
        from fastdiff.app import picture

        frames, sigmas = self.trajectory(plan, min(samples, len(self.seeds)))
        named = zip(self.labels[: frames.shape[1]], self.seeds, strict=False)
        rows = [f"{label}  seed {seed}" for label, seed in named]
        headings = [f"{sigma:.2g}" for sigma in sigmas]
        return picture.encode_png(picture.strip(frames, headings, rows, "sigma"), self.facts)

    def trajectory(self, plan: Plan, samples: int, moments: int = MOMENTS) -> Trajectory:
        """Draw the first samples again and watch what the network takes the clean image to be.

        Args:
            plan: the same sampler, compiled with ``denoised=True``; the samples are the same.
            samples: how many.
            moments: at most this many frames, evenly spread.

        Raises:
            InputError: the plan does not store the denoised prediction.
        """
        if "denoised" not in plan.buffers:
            raise InputError("the plan stores no denoised prediction; compile it with denoised=True (--denoised)")
        frames: list[Tensor] = []
        sigmas: list[float] = []

        def watch(progress: Progress) -> None:
            if progress.denoised is not None:
                frames.append(progress.denoised.clone())
                sigmas.append(progress.sigma)

        result = self.draw(0, samples, plan=plan, callback=watch)
        spread = min(len(frames), moments - 1)
        chosen = [round(k * (len(frames) - 1) / max(spread - 1, 1)) for k in range(spread)]
        return Trajectory(torch.stack([*(frames[k] for k in chosen), result]), (*(sigmas[k] for k in chosen), 0.0))


class Partial:
    """What a run has finished so far, in ``NAME.partial`` beside its output, so that it can be resumed."""

    def __init__(self, output: Path, facts: dict[str, str]) -> None:
        self.path = output.with_name(f"{output.name}.partial")
        self._facts, self._next = facts, 0.0

    def put(self, samples: Tensor, *, now: bool = False) -> None:
        """Write all samples finished so far, unless that would take too large a share of the time."""
        started = time.monotonic()
        if started < self._next and not now:
            return
        write(self.path, encode_samples(samples, self._facts))
        self._next = started + (time.monotonic() - started) / KEEPING_SHARE

    def take(self) -> Tensor | None:
        """The samples of an earlier run of the same job, or None if there are none.

        Raises:
            InputError: they belong to another job; says what differs.
            CheckpointError: the file is not a set of samples.
        """
        return read_same(self.path, self._facts) if self.path.exists() else None

    def discard(self) -> None:
        """Forget what was put aside."""
        self.path.unlink(missing_ok=True)


def read_same(path: Path, facts: dict[str, str]) -> Tensor:
    """The samples in a file, if they were drawn by the job with these facts.

    Raises:
        InputError: they were not; says what differs.
        CheckpointError: the file is not a set of samples.
    """
    samples, found = read_samples(path)
    for name, wanted in facts.items():
        if found.get(name) != wanted:
            raise InputError(
                f"{path} cannot be resumed: its {name} is {found.get(name)!r} and this run has {wanted!r}; "
                "repeat the first command, or start anew with --force"
            )
    if samples.shape[1:] != SAMPLE:
        raise InputError(f"{path} cannot be resumed: its samples have shape {tuple(samples.shape[1:])}, not {SAMPLE}")
    return samples
