"""Prints what a launch moves, counted from the compiled code, beside what it must move: the table of docs/proof.md.

Run it as ``python tests/gpu/traffic.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pretend_gpu import PretendGpu
from sampling import sample

import fastdiff
from fastdiff.backends import triton as backend

SHAPE = (2, 4, 8, 16)
ELEMENTS = 2 * 4 * 8 * 16


@dataclass(frozen=True)
class Sampling:
    """A sampler to count.

    Args:
        name: what it is called in the table.
        solver: of ``fastdiff.plan``.
        state: the state type.
        network: the network's dtype.
        guidance: 1 is a single network evaluation, else two are batched.
        peer: what others take for the same step in launches and bytes, counted on their own code.
    """

    name: str
    solver: str
    state: str
    network: torch.dtype
    guidance: float
    peer: str = ""


SAMPLINGS = (
    Sampling("EDM Heun, churn", "heun", "float32", torch.bfloat16, 1.0, "37.9 launches, 205 B (edm, fp64 state)"),
    Sampling("EDM Heun, churn", "heun", "float64", torch.float16, 1.0, "37.9 launches, 205 B (edm, fp64 state)"),
    Sampling("EDM Heun, churn, guided", "heun", "float32", torch.bfloat16, 2.0, "51.6 launches, 162 B (edm2)"),
    Sampling("EDM Heun, churn, guided", "heun", "float32", torch.float32, 2.0, "40.6 launches, 160 B (k-diffusion)"),
    Sampling("Euler, guided", "euler", "float32", torch.float16, 2.0, "13 launches, 98 B (diffusers)"),
)


def count(sampling: Sampling) -> tuple[float, set[float], set[float]]:
    """Launches per network evaluation, and bytes per element of its rows: counted, and by the plan."""
    churn = fastdiff.Churn(40.0) if "churn" in sampling.name else None
    plan = fastdiff.plan(
        "edm", "edm", sampling.solver, steps=4, guidance=sampling.guidance, churn=churn, dtype=sampling.state
    )
    with PretendGpu() as gpu:
        sample(backend.stage, plan, SHAPE, torch.tensor([0, 1]), sampling.network)
    moved = [
        sum(r.bytes_read + r.bytes_written for r in launch.memory.named("columns", "stores", "z")) / ELEMENTS
        for launch in gpu.launches
    ]
    # The first row makes the first noise and the last has no network input; those between are an evaluation each.
    launches = (len(gpu.launches) - 1) / plan.evaluations
    return launches, set(moved[1:-1]), set(plan.traffic(sampling.network.itemsize)[1:-1])


def main() -> None:
    print("| sampler | state, network | launches | bytes counted | bytes by the plan | others |")
    print("|---|---|---|---|---|---|")
    for sampling in SAMPLINGS:
        launches, counted, planned = count(sampling)
        types = f"{sampling.state}, {str(sampling.network).removeprefix('torch.')}"
        cells = [", ".join(f"{value:g}" for value in sorted(values)) for values in (counted, planned)]
        print(f"| {sampling.name} | {types} | {launches:g} | {cells[0]} | {cells[1]} | {sampling.peer} |")


if __name__ == "__main__":
    main()
