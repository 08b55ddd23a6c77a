"""Sampling in one call: a network, a plan and seeds in, samples out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from fastdiff.errors import InputError
from fastdiff.maths.guidance import COND, UNCOND
from fastdiff.plans.plan import Plan
from fastdiff.runs.accepted import CallerFunction, CallerNoise, checked_shape, found_device
from fastdiff.runs.chunks import in_chunks
from fastdiff.runs.conditioning import Branches, Conditioning
from fastdiff.runs.graph import Settings, sample_by_graph
from fastdiff.runs.network import Network
from fastdiff.runs.run import Progress, Run


def sample(
    net: Network,
    plan: Plan,
    shape: Sequence[int],
    seeds: int | Sequence[int] | Tensor,
    *,
    cond: Conditioning | None = None,
    uncond: Conditioning | None = None,
    branches: Mapping[str, Conditioning] | None = None,
    device: torch.device | str = "cpu",
    network_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    network_batch: int | None = None,
    noise: CallerNoise | None = None,
    given: Mapping[str, Tensor] | None = None,
    calls: Mapping[str, CallerFunction] | None = None,
    callback: Callable[[Progress], None] | None = None,
    progress: bool = False,
    differentiable: bool = False,
    cuda_graph: bool = False,
) -> Tensor:
    """Draw samples.

    Args:
        net: any callable ``F(z, c_noise, **conditioning)`` that returns a tensor in z's shape; z ``[n, ...]`` is
            scaled by c_in already and c_noise is ``[n]``.
        plan: from ``fastdiff.plan``.
        shape: ``[B, ...]``.
        seeds: an int s (sample i draws with s + i), a sequence of B ints, or an int64 tensor ``[B]``.
        cond: keyword arguments of the network: tensors ``[B, ...]``, lists of B strings, and trees of these; what is
            neither goes to the network as it is.
        uncond: the same for the unconditional branch of guidance. Guided evaluations of a plan compiled batched
            are one call on ``[cond; uncond]``.
        branches: the same by name, for guidance whose branches have other names.
        device: where to sample.
        network_dtype: dtype of the network's input; the state type if None.
        memory_format: of all tensors: contiguous, channels_last or channels_last_3d.
        network_batch: evaluate the network on exactly this many samples a call, so that results do not depend on
            how many samples are drawn together (1 is exact for every network).
        noise: with a plan of caller's noise, a function of (row, draw) that returns a tensor of this shape.
        given: tensors that the plan asks for by name (``trace.given``), ``[B, ...]``.
        calls: functions that the plan calls by name (``trace.call``), on tensors ``[B, ...]``.
        callback: called after every evaluation with a ``Progress``: noise level, denoised estimate, state.
        progress: show a progress bar.
        differentiable: record gradients, to the network's parameters and conditioning.
        cuda_graph: record the whole loop, network included, as one CUDA graph at the first call, and replay it at
            later ones with the same network, shapes and row structure: other seeds, coefficients, noise levels,
            guidance weights, conditioning and caller's noise need no new recording (``docs/cuda-graphs.md``).

    Returns:
        ``[B, ...]`` in the plan's state type.

    Raises:
        InputError, NetworkError, BackendError: say what was given, what is allowed and what to do.
    """
    batch = checked_shape(shape)[0]
    with torch.set_grad_enabled(differentiable):
        evaluated = [row.branches for row in plan.rows if row.network is not None]
        conditioning = Branches(_by_name(cond, uncond, branches), batch, plan.batched, evaluated)
        if cuda_graph:
            asked = {"given": given is not None, "calls": calls is not None, "callback": callback is not None}
            _refuse_on_host(**asked, progress=progress, differentiable=differentiable)
            settings = Settings(tuple(shape), found_device(device), network_dtype, memory_format, network_batch)
            return sample_by_graph(net, plan, settings, seeds, conditioning, noise)
        call = net if network_batch is None else in_chunks(net, network_batch)
        run = Run(
            plan,
            shape,
            seeds,
            device=device,
            network_dtype=network_dtype,
            memory_format=memory_format,
            noise=noise,
            given=given,
            calls=calls,
            differentiable=differentiable,
        )
        for evaluation in tqdm(run, desc="sampling", unit="eval", disable=not progress):
            run.step(*conditioning.call(call, evaluation.z, evaluation.c_noise, evaluation.branches))
            if callback is not None:
                callback(run.progress)
        return run.finish()


def _by_name(
    cond: Conditioning | None, uncond: Conditioning | None, branches: Mapping[str, Conditioning] | None
) -> dict[str, Conditioning | None]:
    """The conditioning of every branch."""
    by_name: dict[str, Conditioning | None] = {COND: cond, UNCOND: uncond}
    for name, conditioning in (branches or {}).items():
        if by_name.get(name) is not None:
            raise InputError(f"branches[{name!r}] was given, and {name} too; leave one of them out")
        by_name[name] = conditioning
    return by_name


def _refuse_on_host(**asked: bool) -> None:
    """Refuse what needs the host between two launches of a graph."""
    if names := [name for name, given in asked.items() if given]:
        raise InputError(
            f"{' and '.join(names)} cannot be had with cuda_graph=True: a replayed graph does not come back to the "
            "host until the sample is done; leave one of them out"
        )
