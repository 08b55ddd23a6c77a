"""What a launch moves, counted from the compiled code, beside what it must move, on Triton's PTX and on nvcc's.

``docs/proof.md`` shows the tables; ``python tests/gpu/proof_page.py`` writes them there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from compiled import CROWD
from executed import ExecutedCuda
from pretend_gpu import PretendGpu
from ptx import Memory, Statistics
from sampling import sample

import fastdiff
from fastdiff.backends import triton as backend
from fastdiff.plans.plan import Plan
from fastdiff.rows.call import Call

SHAPE = (2, 4, 32, 32)
"""Large enough for the tests' builds of the CUDA kernels that a thread takes several quads, as in large launches."""
ELEMENTS = 2 * 4 * 32 * 32
CHURN = fastdiff.Churn(40.0)


@dataclass(frozen=True)
class Sampling:
    """A sampler to count.

    Args:
        name: what it is called in the table.
        solver: of ``fastdiff.plan``.
        churn: its stochasticity, if it has any.
        state: the state type.
        network: the network's dtype.
        guidance: 1 is a single network evaluation, else two are batched.
        peer: what others take for the same step in launches and bytes, counted on their own code.
    """

    name: str
    solver: str
    churn: fastdiff.Churn | None
    state: str
    network: torch.dtype
    guidance: float
    peer: str = ""

    @property
    def plan(self) -> Plan:
        return fastdiff.plan(
            schedule="edm",
            prediction="edm",
            solver=self.solver,
            steps=4,
            guidance=self.guidance,
            churn=self.churn,
            dtype=self.state,
        )


EDM = "37.9 launches, 205 B (edm, fp64 state)"
SAMPLINGS = (
    Sampling("EDM Heun, churn", "heun", CHURN, "float32", torch.bfloat16, 1.0, EDM),
    Sampling("EDM Heun, churn", "heun", CHURN, "float64", torch.float16, 1.0, EDM),
    Sampling("EDM Heun, churn, guided", "heun", CHURN, "float32", torch.bfloat16, 2.0, "51.6 launches, 162 B (edm2)"),
    Sampling(
        "EDM Heun, churn, guided", "heun", CHURN, "float32", torch.float32, 2.0, "40.6 launches, 160 B (k-diffusion)"
    ),
    Sampling("Euler, guided", "euler", None, "float32", torch.float16, 2.0, "13 launches, 98 B (diffusers)"),
)

Counted = list[tuple[Memory, Statistics]]
"""Every launch: what it moved, and what it executed."""


def by_triton(plan: Plan, network: torch.dtype) -> Counted:
    """The launches of a sampling on what Triton makes of the kernels."""
    with PretendGpu() as gpu:
        sample(backend.stage, plan, SHAPE, torch.tensor([0, 1]), network)
    return [(launch.memory, launch.statistics) for launch in gpu.launches if launch.memory and launch.statistics]


def by_nvcc(plan: Plan, network: torch.dtype) -> Counted:
    """The launches of a sampling on what nvcc makes of the kernels."""
    library, found = ExecutedCuda("sm_90"), []
    assert ELEMENTS // 4 >= CROWD

    def stage(call: Call) -> None:
        before = library.launched().launches
        library.stage(call)
        found.extend([(library.memory, library.statistics)] * (library.launched().launches - before))

    sample(stage, plan, SHAPE, torch.tensor([0, 1]), network)
    return found


def bytes_of(memory: Memory) -> float:
    """Bytes that a launch read and wrote, per element of the state; tables of coefficients and seeds left out."""
    return sum(r.bytes_read + r.bytes_written for r in memory.named("columns", "stores", "z")) / ELEMENTS


def moved(launches: Counted) -> set[float]:
    """Of each network evaluation: the first row makes the first noise, and the last one has no network input."""
    return {bytes_of(memory) for memory, _ in launches[1:-1]}


def traffic() -> str:
    """Bytes and launches of samplers, counted, by the plan, and of others."""
    lines = ["| sampler | state, network | launches | bytes, Triton | bytes, CUDA | bytes, plan | others |"]
    lines.append("|---|---|---|---|---|---|---|")
    for sampling in SAMPLINGS:
        plan, network = sampling.plan, sampling.network
        counted = by_triton(plan, network), by_nvcc(plan, network)
        launches = {(len(found) - 1) / plan.evaluations for found in counted}
        planned = set(plan.traffic(network.itemsize)[1:-1])
        cells = [launches, *map(moved, counted), planned]
        types = f"{sampling.state}, {str(network).removeprefix('torch.')}"
        shown = " | ".join(", ".join(f"{value:g}" for value in sorted(values)) for values in cells)
        lines.append(f"| {sampling.name} | {types} | {shown} | {sampling.peer} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Device:
    """What a device's sheet says.

    Args:
        name: as NVIDIA sells it.
        multiprocessors: how many there are, each of which issues four warp instructions a clock.
        clock: in GHz.
        bandwidth: of its memory, in TB/s.
    """

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float

    def speed(self, bytes_per_element: float, instructions_per_quad: float) -> float:
        """TB/s that its multiprocessors would ask for, were memory free."""
        quads = self.multiprocessors * 4 * 32 * self.clock / instructions_per_quad
        return quads * 4 * bytes_per_element / 1000


DEVICES = (Device("H100", 132, 1.755, 3.35), Device("B200", 148, 1.85, 8.0))
MOVES = ("mov", "cvta")
"""The assembler gives most of these no instruction of their own."""


def instructions_per_quad(statistics: Statistics) -> float:
    """Instructions for four elements, moves left out."""
    return 4 * sum(n for op, n in statistics.instructions.items() if op.split(".")[0] not in MOVES) / ELEMENTS


def instructions() -> str:
    """Instructions of the launches of stochastic Heun, and how fast devices would issue them."""
    head = [f"{device.name}, TB/s (memory {device.bandwidth:g})" for device in DEVICES]
    lines = [f"| guidance | row | bytes | instructions, CUDA | instructions, Triton | {' | '.join(head)} |"]
    lines.append("|---|---|---|---|---|" + "---|" * len(DEVICES))
    for sampling in (SAMPLINGS[0], SAMPLINGS[2]):
        by: dict[Callable, Counted] = {count: count(sampling.plan, sampling.network) for count in (by_nvcc, by_triton)}
        for at, name in ((1, "predictor"), (2, "corrector")):
            memory = by[by_nvcc][at][0]
            mine, other = (instructions_per_quad(found[at][1]) for found in by.values())
            speeds = " | ".join(f"{device.speed(bytes_of(memory), mine):.1f}" for device in DEVICES)
            lines.append(
                f"| {sampling.guidance:g} | {name} | {bytes_of(memory):g} | {mine:.0f} | {other:.0f} | {speeds} |"
            )
    return "\n".join(lines)
