"""Prints what the launches of stochastic Heun move and execute, counted on nvcc's PTX: the figures of docs/proof.md.

Run it as ``python tests/gpu/cuda_traffic.py``.
"""

from __future__ import annotations

import torch
from executed import ExecutedCuda
from sampling import sample

import fastdiff

SHAPE = (2, 4, 32, 32)
ELEMENTS = 2 * 4 * 32 * 32
MOVES = ("mov", "cvta")
"""The assembler gives most of these no instruction of their own."""


def main() -> None:
    library = ExecutedCuda("sm_90")
    print("| guidance | row | bytes per element | by the plan | instructions for four elements, moves left out |")
    print("|---|---|---|---|---|")
    for guidance in (1.0, 2.0):
        plan = fastdiff.plan(steps=3, churn=fastdiff.Churn(40.0), guidance=guidance)
        counted: list[tuple[float, float]] = []

        def stage(*call, counted=counted) -> None:
            library.stage(*call)
            regions = library.memory.named("columns", "stores", "z")
            moved = sum(region.bytes_read + region.bytes_written for region in regions) / ELEMENTS
            executed = sum(n for op, n in library.statistics.instructions.items() if op.split(".")[0] not in MOVES)
            counted.append((moved, 4 * executed / ELEMENTS))

        sample(stage, plan, SHAPE, torch.tensor([0, 1]), torch.bfloat16)
        for row, name in ((1, "predictor"), (2, "corrector")):
            moved, executed = counted[row]
            print(f"| {guidance:g} | {name} | {moved:g} | {plan.traffic(2)[row]} | {executed:.0f} |")


if __name__ == "__main__":
    main()
