"""The figures that fastdiff promises itself, each beside what was measured, in turns with its rivals.

They hold for row-major tensors on a machine with hardware fma; a shared or slow machine may miss some. A failure says
by how much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from cases import EFFORT, case, heun

from fastdiff.backends import cpu
from fastdiff.lab.bench.contestant import backend
from fastdiff.lab.bench.measure import Case
from fastdiff.lab.bench.noise import normal_rates
from fastdiff.lab.bench.workload import first_noise, free_network

pytestmark = pytest.mark.skipif(cpu.host() is None, reason="the C++ backend was not built")
STILL, CHURN = 0.0, 40.0
RIVALS = ("edm-fp64", "edm-fp32", "k-diffusion-ops", "rows-compiled")
NORMALS = {"avx2": 0.85e9, "avx512": 1.4e9}
TIMES_RANDN = 5.0


@dataclass(frozen=True)
class Target:
    """A figure of one case and the least, or the most, that it should be."""

    size: str
    s_churn: float
    what: str
    figure: Callable[[Case], float]
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        bound = f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"
        return f"{self.size} {'churn' if self.s_churn else 'still'}: {self.what} {bound}"


def times(size: str, s_churn: float, rival: str, least: float) -> Target:
    """A ratio to a rival."""
    return Target(size, s_churn, f"times as fast as {rival}", lambda found: found.ratios[rival].median, least)


TARGETS = [
    Target("4Ki", STILL, "us a step", lambda found: found.figures.us_per_step.median, most=6.0),
    Target("4Ki", CHURN, "us a step", lambda found: found.figures.us_per_step.median, most=6.0),
    times("4Ki", CHURN, "k-diffusion-ops", 45),
    times("4Ki", CHURN, "rows-compiled", 13),
    times("4Ki", STILL, "rows-compiled", 13),
    *(times(size, CHURN, "edm-fp64", 25) for size in ("64Ki", "1Mi", "16Mi")),
    *(times(size, CHURN, "edm-fp32", 9) for size in ("64Ki", "1Mi", "16Mi")),
    *(times(size, CHURN, "rows-compiled", 3.5) for size in ("64Ki", "1Mi", "16Mi")),
    *(times(size, STILL, "rows-compiled", 1.5) for size in ("64Ki", "1Mi", "16Mi")),
    Target("16Mi", STILL, "of the roofline", lambda found: found.roofline.median, 0.9),
    Target("16Mi", CHURN, "of the roofline", lambda found: found.roofline.median, 0.7),
]


@pytest.mark.benchmark(group="targets", timer=time.thread_time, disable_gc=True)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_target(benchmark, target: Target):
    workload = heun(target.size, target.s_churn)
    found = case(workload, RIVALS)
    model, noise = free_network(workload), first_noise(workload)
    # The table of pytest-benchmark shows fastdiff's own time; the figure itself was taken in turns.
    benchmark.pedantic(
        lambda job: job.advance(),
        setup=lambda: ((backend("cpu").start(workload, model, noise),), {}),
        rounds=3,
    )
    figure = target.figure(found)
    benchmark.extra_info |= {"target": str(target), "figure": figure}
    assert target.least is None or figure >= target.least, f"{target}, and it is {figure:.3g}"
    assert target.most is None or figure <= target.most, f"{target}, and it is {figure:.3g}"


@pytest.mark.benchmark(group="targets", timer=time.thread_time)
def test_normals(benchmark):
    host = cpu.host()
    rates = {rate.name: rate.normals_per_s for rate in normal_rates("cpu", EFFORT.budget)}
    benchmark.extra_info |= rates
    benchmark.pedantic(lambda: None, rounds=1)
    own = rates[f"fastdiff cpu {host.isa()}"]
    missed = []
    if own < NORMALS.get(host.isa(), 0):
        missed.append(f"{own / 1e9:.2f} G normals/s on {host.isa()}; {NORMALS[host.isa()] / 1e9:g} are wanted")
    if own < TIMES_RANDN * rates["torch.randn"]:
        missed.append(f"{own / rates['torch.randn']:.1f} times torch.randn; {TIMES_RANDN:g} are wanted")
    assert not missed, "; ".join(missed)
