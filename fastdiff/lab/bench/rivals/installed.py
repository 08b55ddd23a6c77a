"""Rivals that run their own code, where they are installed: k-diffusion and diffusers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastdiff.lab.bench.contestant import Contestant, Job, Steps
from fastdiff.lab.bench.rivals.eager import S_MAX, S_MIN, guided_wrapper
from fastdiff.lab.bench.workload import S_NOISE, Model, Workload

ALIAS = "_fastdiff_bench_k_diffusion"


@cache
def k_diffusion_sampling() -> ModuleType | str:
    """k-diffusion's module ``sampling`` alone, or why it cannot be had.

    Its package imports training code with many requirements, so the one module is loaded into a package of its own,
    beside a ``utils`` that holds the one function it calls in a step.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        return "k-diffusion is not installed"
    folder = Path(next(iter(spec.submodule_search_locations)))
    package, utils = ModuleType(ALIAS), ModuleType(f"{ALIAS}.utils")
    package.__path__ = [str(folder)]
    utils.append_dims = _append_dims  # type: ignore[attr-defined]
    sys.modules |= {ALIAS: package, utils.__name__: utils}
    package.utils = utils  # type: ignore[attr-defined]
    try:
        return importlib.import_module(f"{ALIAS}.sampling")
    except ImportError as error:
        return f"k-diffusion cannot be loaded ({error})"


def _append_dims(x: Tensor, dims: int) -> Tensor:
    """View x with ones appended to its shape up to ``dims`` dimensions."""
    return x[(..., *(None for _ in range(dims - x.ndim)))]


def k_diffusion(workload: Workload, model: Model, noise: Tensor) -> Job:
    """``sample_heun`` or ``sample_euler`` on the wrapper of ``guided_wrapper``."""
    sampling: Any = k_diffusion_sampling()
    function = sampling.sample_heun if workload.solver == "heun" else sampling.sample_euler
    sigmas = torch.tensor(workload.sigmas, dtype=torch.float32, device=noise.device)
    denoise = guided_wrapper(model, workload)
    x = noise.float() * sigmas[0]
    return WholeLoop(
        lambda x, sigmas: function(
            denoise,
            x,
            sigmas,
            disable=True,
            s_churn=workload.s_churn * (len(sigmas) - 1) / (workload.steps + 1),
            s_tmin=S_MIN,
            s_tmax=S_MAX,
            s_noise=S_NOISE,
        ),
        x,
        sigmas,
    )


class WholeLoop:
    """A job for a library that has no step of its own, only a loop over noise levels.

    The timed part is the loop up to the last level but one; the rest is a second call, as churn is per step.
    """

    def __init__(self, loop: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> None:
        self.loop, self.x, self.sigmas = loop, x, sigmas

    def advance(self) -> None:
        """All steps but the last."""
        self.x = self.loop(self.x, self.sigmas[:-1])

    def finish(self) -> Tensor:
        """The last step."""
        return self.loop(self.x, self.sigmas[-2:])


def _k_diffusion_refusal(workload: Workload) -> str | None:
    found = k_diffusion_sampling()
    if isinstance(found, str):
        return found
    if workload.solver not in ("euler", "heun"):
        return f"it has no {workload.solver}"
    return None if workload.dtype == "float32" else "its state is float32"


@cache
def diffusers_scheduler(name: str) -> Any:
    """A scheduler class of diffusers, or a sentence that says why it cannot be had."""
    if importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed"
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except (ImportError, AttributeError, RuntimeError) as error:
        return f"diffusers cannot be loaded ({error})"


def diffusers(name: str) -> Callable[[Workload, Model, Tensor], Job]:
    """A pipeline's loop: CFG, ``scale_model_input`` and ``step`` of a diffusers scheduler."""

    def start(workload: Workload, model: Model, noise: Tensor) -> Job:
        scheduler = diffusers_scheduler(name)(use_karras_sigmas=True)
        scheduler.set_timesteps(workload.steps + 1, device=noise.device)
        heun = workload.alpha is not None
        # The noise levels of the workload, on the CPU as schedulers keep them; one of Heun's lists every one twice but
        # the first and the last.
        levels = torch.tensor(workload.sigmas, dtype=torch.float32)
        repeats = [1] + [2 if heun else 1] * (len(levels) - 2) + [1]
        scheduler.sigmas = levels.repeat_interleave(torch.tensor(repeats))
        state = _pipeline_states(scheduler, workload, model, noise.float() * levels[0])
        return Steps(state, workload.steps)

    return start


def _pipeline_states(scheduler: Any, workload: Workload, model: Model, latents: Tensor) -> Iterator[Tensor]:
    io, heun = workload.io, workload.alpha is not None
    latents = latents.to(io)
    for k, t in enumerate(scheduler.timesteps):
        stacked = torch.cat([latents] * 2) if workload.guided else latents
        z = scheduler.scale_model_input(stacked, t)
        if workload.guided:
            cond, uncond = model.both(z, t).chunk(2)
            noise = uncond + workload.guidance * (cond - uncond)
        else:
            noise = model.cond(z, t)
        latents = scheduler.step(noise, t, latents, return_dict=False)[0]
        # A Heun scheduler calls the network twice for one step, all but the last.
        if not heun or k % 2 == 1 or k == len(scheduler.timesteps) - 1:
            yield latents


def _diffusers_refusal(name: str, solver: str) -> Callable[[Workload], str | None]:
    def refusal(workload: Workload) -> str | None:
        found = diffusers_scheduler(name)
        if isinstance(found, str):
            return found
        if workload.solver != solver:
            return f"it is {solver}, not {workload.solver}"
        if workload.s_churn:
            return "it adds churn after the network, or none: another sampler"
        if workload.prediction != "epsilon":
            return "it takes epsilon predictions"
        return None if workload.dtype == "float32" else "its state is float32 or narrower"

    return refusal


def _diffusers_contestant(name: str, scheduler: str, solver: str) -> Contestant:
    what = f"diffusers' own {scheduler} in a pipeline's loop"
    return Contestant(name, what, diffusers(scheduler), _diffusers_refusal(scheduler, solver))


INSTALLED = (
    Contestant("k-diffusion", "k-diffusion's own sampling loop", k_diffusion, _k_diffusion_refusal),
    _diffusers_contestant("diffusers-heun", "HeunDiscreteScheduler", "heun"),
    _diffusers_contestant("diffusers-euler", "EulerDiscreteScheduler", "euler"),
)
