"""Settings: what a random sampler is, as plain values; how one is drawn, and which ones are simpler."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch

from fastdiff.lab.fuzz.oracle import ALPHA
from fastdiff.lab.fuzz.subject import Fault
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import COND, UNCOND, Guidance
from fastdiff.maths.prediction import PREDICTIONS, Prediction, named_prediction
from fastdiff.maths.schedule import SCHEDULES, Schedule, named_schedule
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan
from fastdiff.solvers.solver import SOLVERS

SPECIAL = ("nan", "inf", "-inf", "max", "subnormal", "-0.0")
FORMATS = {"row-major": torch.contiguous_format, "channels-last": torch.channels_last}
SHAPES = ((1,), (3,), (33,), (3, 5), (1, 4, 4), (3, 4, 5), (2, 8, 8), (129,), (4, 9, 7), (1025,))
LIKELY = np.array([8, 8, 6, 6, 6, 6, 4, 2, 2, 1]) / 49
SIMPLIFIED = (
    *("special", "guidance", "interval", "order", "s_churn", "s_noise", "clip", "batched", "caller", "layout"),
    *("solver", "schedule", "prediction", "dtype", "network_dtype"),
)


@dataclass(frozen=True)
class Settings:
    """A sampler, what it is run on, and what its network does.

    Args:
        special: triples of evaluation, element of every sample, and one of ``SPECIAL``.
        caller: noise is drawn by the caller and passed in.
    """

    schedule: str = "edm"
    prediction: str = "edm"
    solver: str = "euler"
    steps: int = 1
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    order: tuple[str, str] = (COND, UNCOND)
    s_churn: float = 0.0
    s_noise: float = 1.0
    clip: float | None = None
    dtype: str = "float32"
    network_dtype: str = "float32"
    batched: bool = True
    caller: bool = False
    layout: str = "row-major"
    shape: tuple[int, ...] = (1, 1)
    seeds: tuple[int, ...] = (0,)
    special: tuple[tuple[int, int, str], ...] = ()


@cache
def schedule_named(name: str) -> Schedule:
    """Made once: some take a tenth of a second."""
    return named_schedule(name)


@cache
def prediction_named(name: str) -> Prediction:
    """Made once."""
    return named_prediction(name)


@lru_cache(maxsize=8)
def compiled(settings: Settings) -> Plan:
    """The plan of these settings."""
    return plan(
        schedule=schedule_named(settings.schedule),
        prediction=prediction_named(settings.prediction),
        solver=settings.solver,
        steps=settings.steps,
        guidance=Guidance(settings.guidance, settings.interval, settings.order),
        churn=Churn(settings.s_churn, s_noise=settings.s_noise),
        clip=settings.clip,
        dtype=settings.dtype,
        batched=settings.batched,
        noise="caller" if settings.caller else "counter",
    )


def random_settings(rng: np.random.Generator) -> Settings:
    """A sampler of a few steps on a small shape; its plan may not compile."""

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    def sometimes(probability: float, value: Any, otherwise: Any) -> Any:
        return value if rng.random() < probability else otherwise

    dtype = pick("float32", "float64")
    narrow = ("float32", "bfloat16", "float16")
    shape = SHAPES[rng.choice(len(SHAPES), p=LIKELY)]
    batch, steps = pick(1, 1, 2, 3), pick(1, 2, 2, 3, 4)
    guidance = pick(0.0, 1.0, 1.0, float(rng.uniform(-1, 8)))
    numel = math.prod(shape)
    special = [(int(rng.integers(steps)), int(rng.integers(numel)), pick(*SPECIAL)) for _ in range(rng.integers(3))]
    first = int(rng.integers(2**63 - batch))
    return Settings(
        schedule=pick(*SCHEDULES),
        prediction=pick(*PREDICTIONS),
        solver=sometimes(0.6, pick(*ALPHA), pick(*SOLVERS)),
        steps=steps,
        guidance=guidance,
        interval=sometimes(0.3, (0.1, float(rng.uniform(0.2, 60))), None) if guidance not in (0, 1) else None,
        order=sometimes(0.3, (UNCOND, COND), (COND, UNCOND)),
        s_churn=sometimes(0.5, float(rng.uniform(0, 3)), 0.0),
        s_noise=sometimes(0.3, float(rng.uniform(0.5, 1.1)), 1.0),
        clip=sometimes(0.3, float(rng.uniform(0.1, 3)), None),
        dtype=dtype,
        network_dtype=pick(*narrow, *(("float64",) if dtype == "float64" else ())),
        batched=rng.random() < 0.7,
        caller=rng.random() < 0.15,
        layout=sometimes(0.5, "channels-last", "row-major") if len(shape) == 3 else "row-major",
        shape=(batch, *shape),
        seeds=tuple(range(first, first + batch)),
        special=tuple(sometimes(0.25, special, [])),
    )


def smaller_settings(s: Settings, fault: Fault) -> Iterator[Settings]:
    """Fewer samples, steps and elements; then one setting after the other as usual."""
    usual = Settings()
    batch, numel = s.shape[0], math.prod(s.shape[1:])
    for b in dict.fromkeys([fault.at[0] % batch if fault.at else 0, *range(batch)]) if batch > 1 else ():
        yield replace(s, shape=(1, *s.shape[1:]), seeds=(s.seeds[b],))
    for steps in dict.fromkeys([1, 2, s.steps // 2, s.steps - 1]):
        if 0 < steps < s.steps:
            yield replace(s, steps=steps)
    if len(s.shape) > 2:
        yield replace(s, shape=(batch, numel), layout="row-major")
    for size in dict.fromkeys([1, 2, 4, numel // 2, numel - 4, numel - 1]) if len(s.shape) == 2 else ():
        if 0 < size < numel:
            yield replace(s, shape=(batch, size), special=tuple(p for p in s.special if p[1] < size))
    for name in SIMPLIFIED:
        if getattr(s, name) != getattr(usual, name):
            yield replace(s, **{name: getattr(usual, name)})
    for i in range(len(s.special)):
        yield replace(s, special=s.special[:i] + s.special[i + 1 :])
    if any(s.seeds):
        yield replace(s, seeds=tuple(range(batch)))
