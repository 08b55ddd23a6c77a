"""Samplers as subjects: random plans run with a cheap network, on every backend, and against exact mathematics.

The network multiplies and adds, each operation rounded once, so that its bits do not depend on anything; at some
evaluations it returns special values at some elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.backends import reference
from fastdiff.backends.registry import use_backend
from fastdiff.errors import InputError, PlanError
from fastdiff.lab.fuzz.oracle import ALPHA, exact_results
from fastdiff.lab.fuzz.row_line import dtype_named
from fastdiff.lab.fuzz.settings import (
    FORMATS,
    SPECIAL,
    Settings,
    compiled,
    prediction_named,
    random_settings,
    schedule_named,
    smaller_settings,
)
from fastdiff.lab.fuzz.subject import Fault, Features, Subject, dump
from fastdiff.lab.fuzz.variants import REFERENCE, Variant
from fastdiff.maths.guidance import COND, UNCOND
from fastdiff.plans.plan import Plan
from fastdiff.runs.run import Evaluation, Run

GAIN = {COND: 0.375, UNCOND: -0.2}
LARGEST = 1e30
MOST_STEPS = 1000
MOST_VALUES = 2**22


class SamplerSubject(Subject):
    """A whole sampler. Every variant also draws its last sample alone, in row-major order: the bits must be the same.

    The reference is compared with 160-bit arithmetic on the same network outputs, at a few elements; the plan's own
    bound on its rounding error must hold.
    """

    kind = "sampler"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._outputs: list[dict[str, Tensor]] = []

    @cached_property
    def plan(self) -> Plan:
        """The compiled plan."""
        return compiled(self.settings)

    def run(self, variant: Variant) -> dict[str, Tensor]:
        """The samples, and the last one alone."""
        s = self.settings
        keep = variant.label == REFERENCE
        with variant.active(), use_backend(variant.backend):
            together = self._sample(variant.device, s.shape, s.seeds, s.layout, keep=keep)
            if keep:
                return {"samples": together, "last alone": together[-1:]}
            return {
                "samples": together,
                "last alone": self._sample(variant.device, (1, *s.shape[1:]), s.seeds[-1:], "row-major"),
            }

    def _sample(
        self, device: str, shape: tuple[int, ...], seeds: tuple[int, ...], layout: str, keep: bool = False
    ) -> Tensor:
        noise = (lambda row, j: self._noise(row, j, shape, seeds, layout).to(device)) if self.settings.caller else None
        dtype = dtype_named(self.settings.network_dtype)
        run = Run(
            self.plan,
            shape,
            list(seeds),
            device=device,
            network_dtype=dtype,
            noise=noise,
            memory_format=FORMATS[layout],
        )
        for evaluation in run:
            outputs = self._network(evaluation)
            if keep:
                self._outputs.append(dict(zip(evaluation.branches, outputs, strict=True)))
            stacked = self.settings.batched and len(outputs) > 1
            run.step(*([_cat(outputs).to(device)] if stacked else [output.to(device) for output in outputs]))
        return run.finish().cpu()

    def _network(self, evaluation: Evaluation) -> list[Tensor]:
        """One output for each branch, from a function of each element alone."""
        z, c_noise, branches = evaluation.z.cpu(), evaluation.c_noise.cpu(), evaluation.branches
        told = (c_noise[:1].double() / 1024).to(z.dtype)
        inputs = z.chunk(len(branches)) if self.settings.batched and len(branches) > 1 else [z] * len(branches)
        outputs = [x * GAIN[branch] + told for x, branch in zip(inputs, branches, strict=True)]
        for at, element, kind in self.settings.special:
            if at == evaluation.index:
                index = np.unravel_index(element, tuple(z.shape[1:]))
                for output in outputs:
                    output[(slice(None), *index)] = _special(kind, z.dtype)
        return outputs

    def _noise(self, row: int, j: int, shape: tuple[int, ...], seeds: tuple[int, ...], layout: str) -> Tensor:
        """The counter's own normals, as a caller would pass them."""
        draw = self._counter_plan.rows[row].draws[j][1]
        words = torch.tensor([[draw.purpose, draw.tensor, draw.draw, draw.sub_draw]])
        flat = reference.normals(math.prod(shape[1:]), torch.tensor(seeds), words)
        return flat.view(shape).to(dtype_named(self.settings.dtype)).contiguous(memory_format=FORMATS[layout])

    @cached_property
    def _counter_plan(self) -> Plan:
        return compiled(replace(self.settings, caller=False))

    @cached_property
    def bound_fraction(self) -> float | None:
        """The larger error of the first and the last element, as a fraction of ``plan.bound()``."""
        result, outputs = self.expected["samples"], self._outputs
        if self.settings.solver not in ALPHA or not result.numel() or not bool(result.isfinite().all()):
            return None
        largest = max((float(f.double().abs().max()) for o in outputs for f in o.values()), default=0.0)
        if not largest < LARGEST:
            return None
        bound = self.plan.bound(largest).error
        flat = result.contiguous().view(len(result), -1)
        chosen = sorted({0, flat.numel() - 1})
        places = [divmod(at, flat.shape[1]) for at in chosen]
        exact = exact_results(self.settings, schedule_named, prediction_named, outputs, places)
        return max(float(abs(x - flat[place].item())) for x, place in zip(exact, places, strict=True)) / bound

    def line(self) -> str:
        """One line of JSON; what is as usual is left out."""
        usual = asdict(Settings())
        body = asdict(self.settings)
        return dump("sampler", {name: value for name, value in body.items() if value != usual[name]})

    def smaller(self, fault: Fault) -> Iterator[Subject]:
        """Fewer steps, samples and elements, and settings one after the other as usual."""
        return (SamplerSubject(settings) for settings in smaller_settings(self.settings, fault))

    def features(self) -> Features:
        """Settings, shape and dtypes."""
        s = self.settings
        for name in ("schedule", "prediction", "solver", "steps"):
            yield name, str(getattr(s, name))
        yield "sampler state", f"{s.dtype} / {s.network_dtype}"
        yield "sampler layout", s.layout
        flags = {
            "guidance": s.guidance not in (0, 1),
            "interval": s.interval is not None,
            "two calls": not s.batched,
            "churn": s.s_churn > 0,
            "clip": s.clip is not None,
            "caller noise": s.caller,
            "special values": bool(s.special),
        }
        for name, on in flags.items():
            if on:
                yield "sampler features", name


def random_sampler_subject(rng: np.random.Generator) -> SamplerSubject:
    """A sampler of a few steps whose plan compiles."""
    while True:
        settings = random_settings(rng)
        try:
            compiled(settings)
        except PlanError:
            # Some schedules have too few levels that a network knows, which is an error that other tests look at.
            continue
        return SamplerSubject(settings)


def decode(body: Mapping[str, Any]) -> SamplerSubject:
    """The subject that wrote these settings.

    Raises:
        InputError: a setting is not one that can be run.
    """
    known = asdict(Settings())
    if unknown := sorted(set(body) - set(known)):
        raise InputError(f"a sampler has no setting {unknown[0]!r}; it has {', '.join(known)}")
    given = {name: _tuples(value) for name, value in body.items()}
    settings = Settings(**given)
    if len(settings.shape) < 2 or len(settings.seeds) != settings.shape[0] or settings.layout not in FORMATS:
        raise InputError(
            f"shape {list(settings.shape)}, seeds {list(settings.seeds)} and {settings.layout!r} do not fit"
        )
    if not 1 <= settings.steps <= MOST_STEPS or math.prod(settings.shape) > MOST_VALUES:
        raise InputError(f"a line describes 1 to {MOST_STEPS} steps and at most {MOST_VALUES:,} values")
    if any(kind not in SPECIAL for _, _, kind in settings.special):
        raise InputError(f"special values are {', '.join(SPECIAL)}")
    dtype_named(settings.network_dtype)
    compiled(settings)
    return SamplerSubject(settings)


def _special(kind: str, dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return {"max": info.max, "subnormal": info.smallest_normal / 4}.get(kind) or float(kind)


def _cat(outputs: list[Tensor]) -> Tensor:
    """The branches stacked along the batch, in the layout of the first."""
    joined = torch.cat(outputs)
    last = outputs[0].dim() == 4 and not outputs[0].is_contiguous()
    return joined.contiguous(memory_format=torch.channels_last) if last else joined


def _tuples(value: Any) -> Any:
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value
