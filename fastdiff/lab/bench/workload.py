"""Workloads: what is sampled, of which size, and how many of its steps are timed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.lab.bench.device import CPU, Device
from fastdiff.maths.churn import Churn
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan
from fastdiff.rows.dtypes import STATE
from fastdiff.testing import textbook

SAMPLE_ELEMENTS = 4096
"""Elements of one sample unless a batch size is given: a latent of 4 x 32 x 32."""
TIMED_ELEMENTS = 2**22
MOST_STEPS, FEWEST_STEPS = 63, 2
S_NOISE = 1.003
FREE = "none"
"""The network that costs nothing."""
ALPHA = {"euler": None, "heun": 1.0, "midpoint": 0.5, "ralston": 2 / 3}
PREDICTIONS = {"edm": textbook.edm_scalars, "epsilon": textbook.epsilon_scalars}
UNITS = {"": 1, "ki": 2**10, "mi": 2**20, "gi": 2**30, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True)
class Workload:
    """A sampler at one size.

    Args:
        batch: samples drawn together.
        sample: the shape of one.
        dtype: the state type, ``"float32"`` or ``"float64"``.
        network_dtype: type of what the network reads and returns.
        solver: a name in ``ALPHA``.
        prediction: ``"edm"`` or ``"epsilon"``.
        guidance: gamma; 1 is unguided.
        s_churn: churn in units of EDM's S_churn, at all noise levels; 0 is deterministic.
        steps: how many steps are timed; the sampler has one more, its last, which is not.
        network: what it is called in reports.
        device: where it is sampled; no part of the name.
    """

    batch: int
    sample: tuple[int, ...]
    dtype: str = "float32"
    network_dtype: str = "float32"
    solver: str = "heun"
    prediction: str = "edm"
    guidance: float = 2.0
    s_churn: float = 0.0
    steps: int = 17
    network: str = FREE
    device: Device = CPU

    @property
    def shape(self) -> tuple[int, ...]:
        """``[B, ...]``."""
        return (self.batch, *self.sample)

    @property
    def elements(self) -> int:
        """Elements of the state."""
        return math.prod(self.shape)

    @property
    def guided(self) -> bool:
        """Whether an evaluation has two branches."""
        return self.guidance != 1

    @property
    def state(self) -> torch.dtype:
        """The state type."""
        return STATE[self.dtype]

    @property
    def io(self) -> torch.dtype:
        """The network's type."""
        return STATE.get(self.network_dtype) or getattr(torch, self.network_dtype)

    @property
    def alpha(self) -> float | None:
        """The solver in the second-order family; None is Euler's method."""
        return ALPHA[self.solver]

    @property
    def evaluations(self) -> int:
        """Network evaluations in the timed steps (a guided pair counts once)."""
        return self.steps if self.alpha is None else 2 * self.steps

    @property
    def sigmas(self) -> list[float]:
        """The noise levels of the whole sampler, 0 at the end."""
        return textbook.edm_sigmas(self.steps + 1)

    @property
    def name(self) -> str:
        """Everything but backend and device, in one line; two reports are compared by it."""
        noise = "+churn" if self.s_churn else ""
        guidance = f" guidance {self.guidance:g}" if self.guided else ""
        types = self.dtype if self.dtype == self.network_dtype else f"{self.dtype}/{self.network_dtype}"
        network = "" if self.network == FREE else f" {self.network}"
        shape = "x".join(map(str, self.shape))
        return f"{self.solver}{noise} {self.prediction}{guidance} {types} {shape}{network}"

    @property
    def churn(self) -> Churn | None:
        """The stochasticity, at all noise levels."""
        return Churn(self.s_churn, s_noise=S_NOISE) if self.s_churn else None

    @property
    def plan(self) -> Plan:
        """The sampler compiled by fastdiff; the same object for every size."""
        return _kept_plan(replace(self, batch=1, sample=(1,), network=FREE, device=CPU))

    def compile(self) -> Plan:
        """The same, compiled anew."""
        return plan(
            schedule="edm",
            prediction=self.prediction,
            solver=self.solver,
            steps=self.steps + 1,
            guidance=self.guidance,
            churn=self.churn,
            dtype=self.dtype,
        )

    @property
    def timed_rows(self) -> slice:
        """The rows of the plan that the timed steps run; row 0 makes the first noise."""
        return slice(1, 1 + self.evaluations)

    def scalars(self, sigma: float) -> textbook.Scalars:
        """The preconditioning."""
        return PREDICTIONS[self.prediction](sigma)


@lru_cache(maxsize=64)
def _kept_plan(workload: Workload) -> Plan:
    return workload.compile()


Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Model:
    """One network in the three ways samplers call it: both branches stacked ``[cond; uncond]``, or one of them."""

    both: Network
    cond: Network
    uncond: Network

    @classmethod
    def of(cls, net: Callable[..., Tensor], cond: dict[str, Tensor], uncond: dict[str, Tensor]) -> Model:
        """A real network with its conditioning, tensors ``[B, ...]``."""
        stacked = {name: torch.cat([value, uncond[name]]) for name, value in cond.items()}
        return cls(partial(net, **stacked), partial(net, **cond), partial(net, **uncond))


def free_network(workload: Workload) -> Model:
    """A network that costs nothing: it returns the same random tensor at every call."""
    generator = torch.Generator().manual_seed(1)
    shape = (2 * workload.batch, *workload.sample)
    made = torch.randn(shape, generator=generator, dtype=torch.float32)
    made = made.to(workload.device.place, workload.io)
    cond, uncond = made.chunk(2)
    return Model(lambda z, c: made, lambda z, c: cond, lambda z, c: uncond)


def first_noise(workload: Workload) -> Tensor:
    """The unit noise from which every rival starts, ``[B, ...]`` in the state type."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randn(workload.shape, generator=generator, dtype=torch.float32)
    return drawn.to(workload.device.place, workload.state)


def timed_steps(elements: int, device: Device = CPU) -> int:
    """How many steps to time at a size: many of small ones, so that a clock can see them."""
    return max(FEWEST_STEPS, min(MOST_STEPS, device.scale * TIMED_ELEMENTS // max(elements, 1)))


def sample_shape(elements: int, batch: int | None) -> tuple[int, tuple[int, ...]]:
    """The batch and the shape of one sample that make up a size.

    Raises:
        InputError: the batch does not divide the size.
    """
    if batch is None:
        batch = max(1, elements // SAMPLE_ELEMENTS)
    if elements % batch:
        raise InputError(f"{elements} elements cannot be divided into a batch of {batch}; choose a divisor")
    numel = elements // batch
    side = math.isqrt(numel // 4)
    return batch, (4, side, side) if numel == 4 * side * side and side else (numel,)


def parse_size(text: str) -> int:
    """A number of elements as ``4Ki``, ``1Mi``, ``65536``.

    Raises:
        InputError: it is not a positive number with a known unit.
    """
    found = re.fullmatch(r"(\d+)\s*([kmg]?i?)", text.strip().lower())
    if found is None or found[2] not in UNITS or int(found[1]) == 0:
        raise InputError(f"size {text!r} is not a number of elements; write 4096, 64Ki, 1Mi, 1Gi or 2M")
    return int(found[1]) * UNITS[found[2]]


def format_size(elements: int) -> str:
    """The same, shortest: 65536 is ``64Ki``."""
    for unit, factor in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if elements % factor == 0:
            return f"{elements // factor}{unit}"
    return str(elements)
