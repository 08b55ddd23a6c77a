"""Prints what a call costs on the host, kernels left out: the figures of ``docs/adr/0006-cuda.md``.

Run it as ``python tests/gpu/launch_cost.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from emulated import EmulatedCuda, registered

import fastdiff
from fastdiff import ops
from fastdiff.rows.call import Call
from fastdiff.rows.program import MAX_OUTPUTS
from fastdiff.rows.row import NETWORK_PREFIX

BATCH, SAMPLE = 2, (4, 4, 4)
CALLS, REPEATS = 1000, 7


def cost(call: Callable[[], None]) -> float:
    """Microseconds of this thread's time for a call, the least of several runs."""
    found = []
    for _ in range(REPEATS):
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        found.append((time.thread_time() - start) / CALLS)
    return min(found) * 1e6


def main() -> None:
    torch.set_num_threads(1)
    library = EmulatedCuda()
    library.order("none")
    row = fastdiff.plan(steps=4, churn=fastdiff.Churn(10.0), guidance=2.0).rows[2]
    columns = {
        name: torch.zeros(BATCH, *SAMPLE, dtype=torch.bfloat16 if name.startswith(NETWORK_PREFIX) else torch.float32)
        for name in row.columns
    }
    reads, stores = list(columns.values()), [columns[str(output.store)] for output in row.outputs]
    z = torch.zeros(BATCH * row.copies, *SAMPLE, dtype=torch.bfloat16)
    coef, seeds = torch.tensor([row.coefficients]), torch.arange(BATCH)
    draws = torch.tensor([[[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in row.draws]])
    call = Call(reads, coef, row.program, seeds, draws, stores=stores, z=z)
    flat = reads, coef, None, seeds, draws, row.program.integers
    padded = [*stores, *(None for _ in range(MAX_OUTPUTS - len(stores)))]

    print(f"guided Heun corrector with churn, {BATCH} samples of {SAMPLE}; microseconds of one thread")
    direct = cost(lambda: library.stage(call))
    print(f"CUDA backend, launch left out       {direct:6.1f}")
    with fastdiff.use_backend("cpu"):
        op = cost(lambda: torch.ops.fastdiff.stage(*flat, *padded, z))
    print(f"CPU op in C++, kernel included      {op:6.1f}")
    with registered(library), fastdiff.use_backend("emulated-cuda"):
        checked = cost(lambda: ops.stage(reads, coef, row.program, seeds=seeds, draws=draws, stores=stores, z=z))
        run = fastdiff.Run(fastdiff.plan(steps=500, guidance=2.0), (BATCH, *SAMPLE), 0, network_dtype=torch.bfloat16)
        output = torch.zeros_like(z)
        stepped = cost(lambda: run.step(output) if run.index < len(run) else run.restart())
    print(f"fastdiff.ops.stage, checks included {checked:6.1f}")
    print(f"Run.step on the CUDA backend        {stepped:6.1f}")


if __name__ == "__main__":
    main()
