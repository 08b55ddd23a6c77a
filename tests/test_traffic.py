"""What samplers cost, and that it does not grow: bytes, launches and buffers of every step, at any number of steps.

The figures are state elements in float32 (4 bytes) and network elements in 16 bits, read or written once each: x in and
out (8), F in and z out (4), and 4 for every remembered vector that is read or written. They must hold however a
solver's text is put: what a vector is made of is written out when the trace is complete, not where it is added.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from test_eager import DPMPP_2M_SDE, PLAN, branches, distance, run

from fastdiff.maths.brownian import snapped
from fastdiff.maths.churn import Churn
from fastdiff.maths.draw import BROWNIAN
from fastdiff.maths.guidance import Guidance
from fastdiff.maths.point import Point
from fastdiff.maths.prediction import edm
from fastdiff.maths.real import mp
from fastdiff.maths.schedule import linear_path, named_schedule
from fastdiff.maths.vector import Combination, Vector
from fastdiff.plans.compose import plan
from fastdiff.rows.program import MAX_COEFFICIENTS, MAX_DRAWS
from fastdiff.solvers.solver import SOLVERS, Solver
from fastdiff.solvers.trace import Trace
from fastdiff.testing.eager import eager_sample

BYTES = {
    "euler": 12,
    "euler_ancestral": 12,
    "ddpm": 12,
    "ddim": 12,
    "dpmpp_2m": 20,
    "lms": 28,
    "reverse_sde": 12,
    "unipc": 32,
}
BUFFERS = {"dpmpp_2m": 2, "lms": 4, "unipc": 4}


# The same solvers as a stranger would write them: x is bound again line by line.


def euler_ancestral(trace, x, now, then, memory):
    up = min(then.sigma, then.sigma * mp.sqrt(now.sigma**2 - then.sigma**2) / now.sigma)
    down = mp.sqrt(then.sigma**2 - up**2)
    D = trace.denoise(x, now)
    x = x * (then.s / now.s * down / now.sigma)
    x = x + D * (then.s * (1 - down / now.sigma))
    x = x + trace.noise() * (then.s * up)
    return x, None


def ddpm(trace, x, now, then, memory):
    alpha = (1 + then.sigma**2) / (1 + now.sigma**2)
    beta, abar = 1 - alpha, 1 / (1 + now.sigma**2)
    x = x - trace.epsilon(x, now) * (beta / mp.sqrt(1 - abar))
    x = x / mp.sqrt(alpha)
    variance = beta * (1 - 1 / (1 + then.sigma**2)) / (1 - abar)
    x = x + trace.noise() * mp.sqrt(variance)
    return x, None


def ddim(trace, x, now, then, memory):
    D = trace.denoise(x, now)
    x = x / now.s
    eps = (x - D) / now.sigma
    x = D
    x = x + eps * then.sigma
    return x * then.s, None


def dpmpp_2m(trace, x, now, then, memory):
    D = trace.denoise(x, now)
    x = x * (then.s * then.sigma / (now.s * now.sigma))
    weight = then.s * (1 - then.sigma / now.sigma)
    if memory is not None and then.sigma:
        r = (now.lam - memory["at"].lam) / (then.lam - now.lam)
        x = x + (D * (1 + 1 / (2 * r)) - memory["D"] / (2 * r)) * weight
    else:
        x = x + D * weight
    return x, {"at": now, "D": D}


def lms(trace, x, now, then, memory):
    slopes = [trace.slope(x, now), *(memory["slopes"] if memory else [])][:4]
    times = [now.t, *(memory["times"] if memory else [])][:4]
    nodes = [t - now.t for t in times]
    for i, d in enumerate(slopes):
        basis = [mp.one]
        for j, other in enumerate(nodes):
            if j != i:
                rising, falling = [mp.zero, *basis], [*(other * c for c in basis), mp.zero]
                basis = [(a - b) / (nodes[i] - other) for a, b in zip(rising, falling, strict=True)]
        x += d * sum(c * (then.t - now.t) ** (k + 1) / (k + 1) for k, c in enumerate(basis))
    return x, {"slopes": slopes[:3], "times": times[:3]}


def reverse_sde(trace, x, now, then, memory):
    h, score = now.t - then.t, trace.score(x, now)
    x = x - x * (now.f * h)
    x = x + score * (now.g2 * h)
    if then.sigma:
        x = x + trace.noise() * mp.sqrt(now.g2 * h)
    return x, None


def euler(trace, x, now, then, memory):
    D = trace.denoise(x, now)
    d = x * (now.sigma_deriv / now.sigma + now.s_deriv / now.s)
    d = d - D * (now.sigma_deriv * now.s / now.sigma)
    x = x + d * (then.t - now.t)
    return x, None


NATURAL = {
    step.__name__: Solver(step.__name__, SOLVERS[step.__name__].order, "these tests", step)
    for step in (euler, euler_ancestral, ddpm, ddim, dpmpp_2m, lms, reverse_sde)
}
EDM, VP = ("edm", "edm"), ("vp", "epsilon")
TEXTS = {f"{name}, {space[0]}": (name, SOLVERS[name], space) for name in BYTES for space in (EDM, VP)}
# DDPM's alpha and beta are those of a VP path.
REWRITTEN = {f"{name}, naturally": (name, NATURAL[name], VP if name == "ddpm" else EDM) for name in NATURAL}


@pytest.mark.parametrize("text", [*TEXTS, *REWRITTEN])
def test_a_step_costs_the_same_however_many_there_are_and_however_it_is_written(text: str) -> None:
    """One launch for every network evaluation, one evaluation for every step."""
    name, solver, (schedule, prediction) = (TEXTS | REWRITTEN)[text]
    for steps in (1, 2, 3, 6, 11, 40, 200):
        compiled = plan(schedule=schedule, prediction=prediction, solver=solver, steps=steps)
        assert compiled.evaluations == steps
        assert len(compiled.rows) == steps + 1
        assert all(row.gram is None and row.call is None for row in compiled.rows)
        traffic = compiled.traffic(network_bytes=2)
        assert max(traffic) <= BYTES[name]
        assert len(compiled.buffers) <= BUFFERS.get(name, 1)
        if steps >= 11:
            # The first and the last few steps know less, or need less.
            assert set(traffic[5:-4]) == {BYTES[name]}
            assert len(compiled.buffers) == BUFFERS.get(name, 1)


@pytest.mark.parametrize("text", REWRITTEN)
def test_a_text_written_another_way_is_the_same_sampler(text: str) -> None:
    """The coefficients are the same reals, computed in another order: 1e-48 apart, and then rounded to 24 bits."""
    name, solver, (schedule, prediction) = REWRITTEN[text]
    mine, library = (plan(schedule=schedule, prediction=prediction, solver=s, steps=7) for s in (solver, SOLVERS[name]))
    assert mine.rows == library.rows


@pytest.mark.parametrize(("clip", "guidance", "more"), [(1.0, 1.0, 0), (None, 2.0, 4), (1.0, 2.0, 4)])
@pytest.mark.parametrize("name", BYTES)
def test_clipping_costs_nothing_and_guidance_one_more_branch(
    name: str, clip: float | None, guidance: float, more: int
) -> None:
    """A second F is read and a second z written: 4 bytes. The clamped D is in no memory, unless it is remembered.

    LMS's slope is x and D, so what it remembers is as before.
    """
    compiled = plan(solver=name, steps=40, clip=clip, guidance=guidance)
    assert max(compiled.traffic(network_bytes=2)) == BYTES[name] + more


@pytest.mark.parametrize("name", BYTES)
def test_keeping_every_vector_costs_no_traffic(name: str) -> None:
    compiled = plan(solver=name, steps=40, visible=True)
    assert max(compiled.traffic(network_bytes=2)) == BYTES[name]
    assert len(set(compiled.buffers)) >= 40


# A Brownian path.


@pytest.mark.parametrize("space", [("edm", "edm"), ("vp", "epsilon")], ids=["edm", "vp"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 6, 11, 40, 200])
def test_a_brownian_path_is_drawn_once_a_step(steps: int, clip: float | None, space: tuple[str, str]) -> None:
    """At most 20 levels of Levy's construction and the whole path; where it is now is carried in one more buffer."""
    compiled = plan(schedule=space[0], prediction=space[1], solver=DPMPP_2M_SDE, steps=steps, clip=clip)
    assert compiled.evaluations == steps
    assert len(compiled.rows) == steps + 1
    for row in compiled.rows:
        assert len(row.draws) <= 22 <= MAX_DRAWS
        assert len(row.coefficients) <= MAX_COEFFICIENTS
        drawn = [output for output in row.outputs if len(output.noise) > 1]
        assert len(drawn) <= 2
    assert len(compiled.buffers) <= 3
    # x, the D before and W would be 28; sums of what is known of the next states need less.
    assert max(compiled.traffic(network_bytes=2)) <= 24
    assert max(plan(solver=DPMPP_2M_SDE, steps=steps, visible=True).traffic(network_bytes=2)) <= 28


def dpmpp_2m_sde_that_asks_again(trace, x, now, then, memory):
    """The same, without remembering where the path is: the same point is the same vector."""
    W, D = trace.brownian(now), trace.denoise(x, now)
    E = D
    if memory and then.sigma:
        before, D_before = memory
        E = D + (D - D_before) * ((then.lam - now.lam) / (2 * (now.lam - before.lam)))
    keep = (then.sigma / now.sigma) ** 2
    xi = (W - trace.brownian(then)) / mp.sqrt(trace.elapsed(now, then))
    return (x / now.s * keep + E * (1 - keep) + xi * (then.sigma * mp.sqrt(1 - keep))) * then.s, (now, D)


@pytest.mark.parametrize("steps", [2, 3, 11])
def test_a_brownian_path_that_is_asked_for_again_is_not_drawn_again(steps: int) -> None:
    again = Solver("dpmpp_2m_sde", 2, "these tests", dpmpp_2m_sde_that_asks_again)
    assert plan(solver=again, steps=steps).rows == plan(solver=DPMPP_2M_SDE, steps=steps).rows


def point(sigma: float) -> Point:
    path = linear_path()
    return Point(path, path.sigma_inv(mp.mpf(sigma)))


def trace_of(steps: int = 4) -> Trace:
    chosen = named_schedule("edm")
    return Trace(chosen.points(steps), edm(), Guidance(), Churn(), steps)


def covariance(u: Combination, v: Combination) -> float:
    """Of two combinations of independent unit normals."""
    return sum((c * v.terms[symbol] for symbol, c in u.terms.items() if symbol in v.terms), mp.zero)


def test_a_brownian_path_has_the_covariance_of_brownian_motion() -> None:
    """``E W(u) W(v) = min(u, v)`` exactly (40 of 48 digits): so increments are independent, with variance ``elapsed``.

    v is ``sigma / (1 + sigma)`` at the nearest multiple of 2**-20.
    """
    trace, chance = trace_of(), random.Random(1)
    places = [point(10 ** chance.uniform(-5, 5)) for _ in range(30)]
    places += [point(sigma) for sigma in (1.0, 1 / 3, 3.0, 2.0**-20, 1e-9, 1e9)] + [places[0]]
    paths = [trace.brownian(at).written_out() for at in places]
    tiny = mp.mpf(10) ** -40
    for at, path in zip(places, paths, strict=True):
        assert abs(snapped(at) - at.sigma / (1 + at.sigma)) <= mp.mpf(2) ** -21
        assert len(path.terms) <= 21
        assert all(trace.draws[symbol].purpose == BROWNIAN for symbol in path)
    for a, u in zip(places, paths, strict=True):
        for b, v in zip(places, paths, strict=True):
            assert abs(covariance(u, v) - min(snapped(a), snapped(b))) <= tiny
            increment = u - v
            elapsed = trace.elapsed(a, b) if a.sigma > b.sigma else trace.elapsed(b, a)
            assert abs(covariance(increment, increment) - elapsed) <= tiny


def test_a_brownian_path_is_the_same_whatever_the_steps() -> None:
    """What a plan of 3 steps and one of 12 draw at a noise level that both visit has the same counters and weights."""
    few, many = trace_of(3), trace_of(12)
    for sigma in (80.0, 2.5, 0.1, 0.002):
        # In the trace of many steps it is asked for at other places before.
        for other in many.points[1:5]:
            many.brownian(other)
        a, b = few.brownian(point(sigma)).written_out(), many.brownian(point(sigma)).written_out()
        assert {few.draws[s]: c for s, c in a.terms.items()} == {many.draws[s]: c for s, c in b.terms.items()}


def test_increments_of_a_brownian_path_add_up() -> None:
    """``W(a) - W(c) = (W(a) - W(b)) + (W(b) - W(c))``, in samples too: halving a step changes no increment's sum."""
    trace = trace_of()
    a, b, c = (trace.brownian(point(sigma)) for sigma in (80.0, 2.5, 0.1))

    def summed(*vectors: Vector) -> Combination:
        total = vectors[0]
        for vector in vectors[1:]:
            total = total + vector
        return total.combination()

    assert summed(a - b, b - c).terms == summed(a - c).terms

    def drift_free(trace, x, now, then, memory):
        """The sum of all increments, and nothing of x."""
        W = memory or trace.brownian(now)
        D, W_then = trace.denoise(x, now), trace.brownian(then)
        return x + D * 0 + (W - W_then), W_then

    motion = Solver("motion", 1, "these tests", drift_free)
    levels = [80.0, 20.0, 2.5, 1.0, 0.3]
    paths = [
        run(plan(schedule=sigmas, solver=motion, dtype="float64"), branches("edm")) for sigmas in (levels, levels[::2])
    ]
    # The first levels agree, and so does where both end, at sigma = 0.
    assert distance(paths[0], paths[1]) <= PLAN


def test_a_brownian_sampler_comes_close_to_what_its_path_says() -> None:
    """Strong convergence: 10, 20 and 40 steps on one path come closer to each other; with each step's own noise not.

    Data N(0, 1/4), for which F is 0.
    """
    nets = {"cond": lambda z, c_noise: torch.zeros_like(z)}

    def differences(solver: Solver) -> list[float]:
        samples = [eager_sample(nets, (64, 2), 3, solver=solver, steps=steps) for steps in (10, 20, 40)]
        return [float((a - b).square().mean().sqrt()) for a, b in pairwise(samples)]

    on_one_path, apart = differences(DPMPP_2M_SDE), differences(SOLVERS["euler_ancestral"])
    assert on_one_path[1] < on_one_path[0] / 1.5
    assert apart[1] > 2 * on_one_path[1]
