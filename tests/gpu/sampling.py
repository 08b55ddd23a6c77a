"""A sampling loop that shows the plan to any ``stage``: what ``fastdiff.sample`` does, with nothing in between."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.backends.registry import Stage
from fastdiff.plans.plan import Plan
from fastdiff.rows.call import Call
from fastdiff.rows.row import NETWORK_PREFIX


def sample(stage: Stage, plan: Plan, shape: tuple[int, ...], seeds: Tensor, network_type: torch.dtype) -> Tensor:
    """Run a plan with a network that is a fixed function of its input; returns the result.

    Args:
        stage: what runs a row.
        shape: ``[B, ...]`` of the state.
        seeds: int64 ``[B]``.
        network_type: dtype of the network's input and output.
    """
    state = getattr(torch, plan.dtype)
    buffers = {name: torch.full(shape, torch.nan, dtype=state) for name in plan.buffers}
    outputs: dict[str, Tensor] = {}
    for row in plan.rows:
        copies, *rest = row.copies * shape[0], *shape[1:]
        z = None if row.network is None else torch.full((copies, *rest), torch.nan, dtype=network_type)
        words = [[draw.purpose, draw.tensor, draw.draw, draw.sub_draw] for _, draw in row.draws]
        call = Call(
            columns=[buffers[name] if name in buffers else outputs[name] for name in row.columns],
            coef=torch.tensor([row.coefficients], dtype=state),
            program=row.program,
            seeds=seeds if words else None,
            draws=torch.tensor([words]) if words else None,
            stores=[None if output.store is None else buffers[output.store] for output in row.outputs],
            z=z,
        )
        stage(call)
        if z is not None:
            answers = network(z).chunk(row.copies)
            outputs = {NETWORK_PREFIX + b: answer for b, answer in zip(row.branches, answers, strict=True)}
    return buffers[plan.result]


def network(z: Tensor) -> Tensor:
    """Something that depends on its input in no simple way, and differs between the branches of a guided call."""
    branch = torch.arange(z.shape[0]).view(-1, *(1 for _ in z.shape[1:])) * 0.03125
    return (z.float().clamp(-3, 3) * 0.75 - branch).to(z.dtype)
