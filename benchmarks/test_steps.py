"""What a step of the solver costs, contestant by contestant: the cases of ``fastdiff bench`` for pytest-benchmark.

pytest-benchmark times one contestant after the other. To compare two of them use ``fastdiff bench`` or
``test_targets.py``, which take turns; to follow one of them over time use this, with ``--benchmark-autosave``.
"""

from __future__ import annotations

import time

import pytest
from cases import checked, heun

from fastdiff import ops
from fastdiff.backends import cpu
from fastdiff.lab.bench.contestant import backend
from fastdiff.lab.bench.noise import FILLS, Filling
from fastdiff.lab.bench.rivals import RIVALS
from fastdiff.lab.bench.workload import first_noise, free_network

CONTESTANTS = {"cpu": backend("cpu")} | RIVALS
ROUNDS = {"4Ki": 41, "64Ki": 21, "1Mi": 9, "16Mi": 5}
pytestmark = pytest.mark.skipif(cpu.host() is None, reason="the C++ backend was not built")


@pytest.mark.benchmark(timer=time.thread_time, disable_gc=True)
@pytest.mark.parametrize("s_churn", [0.0, 40.0], ids=["still", "churn"])
@pytest.mark.parametrize("name", CONTESTANTS)
@pytest.mark.parametrize("size", ROUNDS)
def test_a_heun_step(benchmark, size: str, name: str, s_churn: float):
    contestant = CONTESTANTS[name]
    workload = heun(size, s_churn, prediction="epsilon" if name.startswith("diffusers") else "edm")
    reason = contestant.refusal(workload)
    if reason is not None:
        pytest.skip(reason)
    checked("cpu", workload)
    model, noise = free_network(workload), first_noise(workload)
    benchmark.group = f"{workload.steps} steps of {workload.name}"
    benchmark.extra_info |= {"elements": workload.elements, "steps": workload.steps, "what": contestant.what}
    benchmark.pedantic(
        lambda job: job.advance(),
        setup=lambda: ((contestant.start(workload, model, noise),), {}),
        rounds=ROUNDS[size],
        warmup_rounds=1,
    )
    benchmark.extra_info["us_per_step"] = benchmark.stats.stats.median / workload.steps * 1e6


@pytest.mark.benchmark(group=f"{FILLS} times 2**20 normals", timer=time.thread_time, disable_gc=True)
@pytest.mark.parametrize("maker", ["fastdiff", "torch.randn"])
def test_normals(benchmark, maker: str):
    import torch

    out = torch.empty(16, 2**16)
    fill = (lambda: ops.fill_noise(out, 0)) if maker == "fastdiff" else (lambda: torch.randn(out.shape, out=out))
    benchmark.pedantic(Filling(fill).advance, rounds=41)
    benchmark.extra_info["normals_per_s"] = FILLS * out.numel() / benchmark.stats.stats.median
