"""Rivals under ``torch.compile``: the textbook's operations, and fastdiff's own rows in plain PyTorch.

Both are given every advantage. The network call splits a step, so what lies between two calls is compiled as one
function, with the next network input and the next churn in it; coefficients are tensors, so that nothing is compiled
again; noise is ``torch.randn`` (``fallback_random``), which is ten times faster than Inductor's own on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastdiff.lab.bench.contestant import Contestant, Job, Steps
from fastdiff.lab.bench.workload import S_NOISE, Model, Workload
from fastdiff.maths.draw import INIT
from fastdiff.rows.row import NETWORK_PREFIX, Row
from fastdiff.testing import textbook

_compiled: dict[Any, Callable[..., Any]] = {}


def forget() -> None:
    """Drop what was compiled, so that the next workload does not run into a limit of recompilations."""
    if _compiled:
        _compiled.clear()
        torch._dynamo.reset()


def _compile(key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    if key not in _compiled:
        _compiled[key] = torch.compile(function, fullgraph=True, dynamic=False, options={"fallback_random": True})
    return _compiled[key]


def textbook_compiled(workload: Workload, model: Model, noise: Tensor) -> Job:
    """The textbook's Heun step as two compiled functions, each from one network output to the next input."""
    first, second = _compile((workload, 1), _predictor(workload)), _compile((workload, 2), _corrector(workload))
    sigmas, steps, place = workload.sigmas, len(workload.sigmas) - 1, noise.device
    gamma = min(workload.s_churn / steps, math.sqrt(2) - 1)
    hats = [sigma + gamma * sigma for sigma in sigmas]
    lifts = [math.sqrt(hat**2 - sigma**2) * S_NOISE for hat, sigma in zip(hats, sigmas, strict=True)]
    x_hat = sigmas[0] * noise
    x_hat = x_hat + lifts[0] * torch.randn_like(x_hat) if workload.s_churn else x_hat
    net = model.both if workload.guided else model.cond
    batch = workload.batch * (2 if workload.guided else 1)
    tables = []
    for i in range(steps - 1):
        at, then = workload.scalars(hats[i]), workload.scalars(sigmas[i + 1])
        c_in = workload.scalars(hats[i + 1]).c_in
        h = sigmas[i + 1] - hats[i]
        told = [torch.full((batch,), s.c_noise, dtype=workload.io, device=place) for s in (at, then)]
        predict = torch.tensor([at.c_skip, at.c_out, hats[i], h, then.c_in], dtype=workload.state, device=place)
        correct = [then.c_skip, then.c_out, sigmas[i + 1], h, lifts[i + 1], c_in]
        tables.append((told, predict, torch.tensor(correct, dtype=workload.state, device=place)))
    z = (workload.scalars(hats[0]).c_in * (torch.cat([x_hat] * 2) if workload.guided else x_hat)).to(workload.io)

    def states(x_hat: Tensor, z: Tensor) -> Iterator[Tensor]:
        for told, predict, correct in tables:
            d, x_prime, z = first(x_hat, net(z, told[0]), predict)
            x_hat, z = second(x_hat, d, x_prime, net(z, told[1]), correct)
            yield x_hat
        last = textbook.denoiser(net, workload.scalars, workload.guidance, workload.io)
        yield x_hat - (x_hat - last(x_hat, hats[-2]))

    return Steps(states(x_hat, z), workload.steps)


def _denoised(workload: Workload, x: Tensor, output: Tensor, c_skip: Tensor, c_out: Tensor) -> Tensor:
    """The textbook's guided D."""
    if not workload.guided:
        return c_skip * x + c_out * output.to(x.dtype)
    cond, uncond = (c_skip * torch.cat([x] * 2) + c_out * output.to(x.dtype)).chunk(2)
    return uncond + workload.guidance * (cond - uncond)


def _input(workload: Workload, x: Tensor, c_in: Tensor) -> Tensor:
    return (c_in * (torch.cat([x] * 2) if workload.guided else x)).to(workload.io)


def _predictor(workload: Workload) -> Callable[..., Any]:
    def predictor(x_hat: Tensor, output: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d = (x_hat - _denoised(workload, x_hat, output, c[0], c[1])) / c[2]
        x_prime = x_hat + c[3] * d
        return d, x_prime, _input(workload, x_prime, c[4])

    return predictor


def _corrector(workload: Workload) -> Callable[..., Any]:
    def corrector(x_hat: Tensor, d: Tensor, x_prime: Tensor, output: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        d_prime = (x_prime - _denoised(workload, x_prime, output, c[0], c[1])) / c[2]
        x = x_hat + c[3] * (0.5 * d + 0.5 * d_prime)
        x = x + c[4] * torch.randn_like(x) if workload.s_churn else x
        return x, _input(workload, x, c[5])

    return corrector


def rows_compiled(workload: Workload, model: Model, noise: Tensor) -> Job:
    """The rows of fastdiff's plan as compiled functions, in place: same algebra, same bytes, no temporaries."""
    plan, net = workload.plan, model.both if workload.guided else model.cond
    state, io = ({"dtype": dtype, "device": noise.device} for dtype in (workload.state, workload.io))
    buffers = {name: torch.empty(workload.shape, **state) for name in plan.buffers}
    copies = max(row.copies for row in plan.rows)
    z = torch.empty((copies * workload.batch, *workload.sample), **io)
    told = [torch.full((len(z),), row.c_noise, **io) for row in plan.rows]
    coefficients = [torch.tensor(row.coefficients, **state) for row in plan.rows]
    functions = [_compiled_row(workload, k) for k in range(len(plan.rows) - 1)]
    _row(plan.rows[0], plan.buffers, (), noise)(*buffers.values(), z, coefficients[0])
    per_step = 1 if workload.alpha is None else 2

    def states() -> Iterator[Tensor]:
        for k in range(1, len(plan.rows)):
            branches = plan.rows[k - 1].branches
            last = k == len(plan.rows) - 1
            function = _row(plan.rows[k], plan.buffers, branches) if last else functions[k]
            function(*buffers.values(), net(z, told[k - 1]), z, coefficients[k])
            if last or k % per_step == 0:
                yield buffers[plan.result]

    return Steps(states(), workload.steps)


def _compiled_row(workload: Workload, k: int) -> Callable[..., None]:
    plan, branches = workload.plan, workload.plan.rows[k - 1].branches
    key = (workload, plan.rows[k].program, branches)
    return _compile(key, _row(plan.rows[k], plan.buffers, branches))


def _row(
    row: Row, names: tuple[str, ...], branches: tuple[str, ...], first_noise: Tensor | None = None
) -> Callable[..., None]:
    """A row whose coefficients are known beforehand, written so that a compiler makes the least of it.

    The function takes the run's buffers, the stacked network output, the network input and the coefficients, and
    works in place: of the ways to write that, the one measured to be fastest.
    """

    def function(*tensors: Tensor) -> None:
        c, k = tensors[-1], 0
        values = dict(zip(names, tensors, strict=False))
        if branches:
            outputs = tensors[len(names)].to(c.dtype).chunk(len(branches))
            values |= {f"{NETWORK_PREFIX}{branch}": part for branch, part in zip(branches, outputs, strict=True)}
        for name, draw in row.draws:
            given = first_noise if draw.purpose == INIT else None
            values[name] = torch.randn_like(tensors[0]) if given is None else given
        results = []
        for i, output in enumerate(row.outputs):
            # A copy, because the buffer may be stored to before this output is; the compiler leaves it out.
            w: Any = None if output.base is None else values[output.base].clone()
            for name, _ in (*output.terms, *output.noise):
                w = c[k] * values[name] if w is None else w + c[k] * values[name]
                k += 1
            if output.bound is not None:
                w, k = w.clamp(-c[k], c[k]), k + 1
            if output.scale is not None:
                w, k = w * c[k], k + 1
            values[f"w{i}"] = w
            results.append(w)
        if row.network is not None:
            scaled = (c[k] * results[row.network]).to(tensors[-2].dtype)
            tensors[-2].copy_(torch.cat([scaled] * row.copies))
        for output, w in zip(row.outputs, results, strict=True):
            if output.store is not None:
                values[output.store].copy_(w)

    return function


def _heun_only(workload: Workload) -> str | None:
    return None if workload.solver == "heun" else f"its step is Heun's, not {workload.solver}'s"


COMPILED = (
    Contestant(
        "textbook-compiled",
        "the textbook's operations under torch.compile, split at the network",
        textbook_compiled,
        _heun_only,
        eager=False,
    ),
    Contestant(
        "rows-compiled",
        "fastdiff's own rows in plain PyTorch under torch.compile, in place",
        rows_compiled,
        eager=False,
    ),
)
