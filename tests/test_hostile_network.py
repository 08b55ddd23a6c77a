"""A network and a caller who do whatever they like: the sample is the plain one, or a typed error came."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

import fastdiff
from fastdiff.errors import FastdiffError, InputError, NetworkError
from fastdiff.testing.rows import same_bits

SHAPE = (2, 3, 4, 4)
PLANS = [
    fastdiff.plan(steps=3, churn=fastdiff.Churn(3.0)),
    fastdiff.plan(solver="dpmpp_2m", steps=4, guidance=2.0),
    fastdiff.plan(solver="lms", steps=4, guidance=2.0, batched=False, dtype="float64"),
    fastdiff.plan(solver="predictor_corrector", steps=2),
]


def net(z: Tensor, c_noise: Tensor) -> Tensor:
    return torch.sin(2 * z + 0.1 * c_noise.view(-1, 1, 1, 1)) - 0.3 * z


def answers(evaluation: Any, plan: fastdiff.Plan) -> list[Tensor]:
    """The outputs that the plain network gives: stacked, or one for each branch."""
    z, told = evaluation.z.detach(), evaluation.c_noise
    if plan.batched or len(evaluation.branches) == 1:
        return [net(z, told)]
    return [net(z, told) * (1 - 0.25 * i) for i, _ in enumerate(evaluation.branches)]


WRONG: dict[str, Any] = {
    "nothing": lambda out, z: (),
    "none": lambda out, z: (None,),
    "too many": lambda out, z: (*out, *out, *out),
    "a tuple": lambda out, z: (tuple(out),),
    "another shape": lambda out, z: tuple(o[:, :1] for o in out),
    "half a batch": lambda out, z: tuple(o[: len(o) // 2] for o in out),
    "integers": lambda out, z: tuple(o.int() for o in out),
    "another device": lambda out, z: tuple(o.to("meta") for o in out),
    "empty": lambda out, z: tuple(o[:0] for o in out),
    "permuted": lambda out, z: tuple(o.permute(0, 2, 3, 1) for o in out),
    "channels last": lambda out, z: tuple(o.to(memory_format=torch.channels_last) for o in out),
    "expanded": lambda out, z: tuple(o[:1, :1, :1, :1].expand(o.shape) for o in out),
    "sparse": lambda out, z: tuple(o.to_sparse() for o in out),
    "text": lambda out, z: ("sample",),
}
"""What cannot be taken."""

RIGHT: dict[str, Any] = {
    "as they are": lambda out, z: tuple(out),
    "in a buffer of its own": lambda out, z: tuple(o.clone() for o in out),
    "requiring gradients": lambda out, z: tuple(o.clone().requires_grad_() for o in out),
    "in one buffer, a part each": lambda out, z: torch.cat(out).split([len(o) for o in out]),
    "at an odd address": lambda out, z: tuple(torch.cat([o.new_zeros(1), o.flatten()])[1:].view(o.shape) for o in out),
    "with gaps between samples": lambda out, z: tuple(torch.cat([o, o], 1)[:, : o.shape[1]] for o in out),
    "in the network's input": lambda out, z: tuple(z[: len(o)].copy_(o) for o in out) if len(out) == 1 else tuple(out),
    "as a parameter": lambda out, z: tuple(torch.nn.Parameter(o) for o in out),
}
"""Other ways to give the same numbers."""

DONE_TO_Z: dict[str, Any] = {
    "nothing": lambda z: None,
    "written to": lambda z: z.mul_(3.0),
    "asked for gradients": lambda z: z.requires_grad_(),
    "transposed": lambda z: z.transpose_(2, 3),
    "filled with NaN": lambda z: z.fill_(torch.nan),
}


class Hostile(RuleBasedStateMachine):
    """One run; ``at`` counts the steps that were taken."""

    @initialize(plan=st.sampled_from(PLANS), backend=st.sampled_from(["cpu", "reference"]))
    def begin(self, plan: fastdiff.Plan, backend: str) -> None:
        self.plan, self.backend, self.at = plan, backend, 0
        with fastdiff.use_backend(backend):
            self.run = fastdiff.Run(plan, SHAPE, [5, 2**40])
        self.expected = _plain(plan)

    def _evaluation(self) -> Any:
        return self.run.evaluations[self.run.index]

    @precondition(lambda self: self.at < len(self.run))
    @rule(how=st.sampled_from(list(RIGHT)), done=st.sampled_from(list(DONE_TO_Z)), grad=st.booleans())
    def step(self, how: str, done: str, grad: bool) -> None:
        evaluation = self._evaluation()
        out, memory = answers(evaluation, self.plan), evaluation.z.detach()
        with torch.no_grad():
            DONE_TO_Z[done](evaluation.z)
        with torch.set_grad_enabled(grad):
            given = RIGHT[how](out, memory)
        with torch.set_grad_enabled(grad):
            self.run.step(*given)
        self.at += 1

    @precondition(lambda self: self.at < len(self.run))
    @rule(what=st.sampled_from(list(WRONG)))
    def refused(self, what: str) -> None:
        evaluation = self._evaluation()
        with pytest.raises(FastdiffError):
            self.run.step(*WRONG[what](answers(evaluation, self.plan), evaluation.z))

    @precondition(lambda self: self.at < len(self.run))
    @rule()
    def raises(self) -> None:
        def interrupted() -> None:
            for _ in self.run:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()

    @precondition(lambda self: self.at < len(self.run))
    @rule()
    def forgets_to_step(self) -> None:
        with pytest.raises(NetworkError, match="was not followed by step"):
            list(self.run)

    @precondition(lambda self: self.at < len(self.run))
    @rule()
    def finishes_too_early(self) -> None:
        with pytest.raises(NetworkError, match="network evaluations are still to be made"):
            self.run.finish()

    @rule()
    def copies(self) -> None:
        with pytest.raises(InputError, match="cannot be copied"):
            copy.deepcopy(self.run)

    @rule()
    def begins_again(self) -> None:
        self.run.restart()
        self.at = 0

    @precondition(lambda self: self.at == len(self.run))
    @rule()
    def looks_at_the_sample(self) -> None:
        assert same_bits(self.run.finish(copy=True), self.expected)

    @precondition(lambda self: self.at == len(self.run))
    @rule()
    def steps_too_often(self) -> None:
        with pytest.raises(NetworkError, match="call finish"):
            self.run.step(torch.zeros(SHAPE))

    @invariant()
    def knows_where_it_is(self) -> None:
        assert self.run.index == self.at

    def teardown(self) -> None:
        if not hasattr(self, "run"):
            return
        while self.at < len(self.run):
            self.step("as they are", "nothing", False)
        assert same_bits(self.run.finish(), self.expected)


def _plain(plan: fastdiff.Plan) -> Tensor:
    run = fastdiff.Run(plan, SHAPE, [5, 2**40])
    for evaluation in run:
        run.step(*answers(evaluation, plan))
    return run.finish()


@pytest.mark.parametrize("examples", [50, pytest.param(1000, marks=pytest.mark.night)])
def test_whatever_network_and_caller_do_the_sample_is_the_plain_one(examples: int) -> None:
    """Of some ten rules each."""
    chosen = settings(
        max_examples=examples, stateful_step_count=12, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), derandomize=True,
    )  # fmt: skip
    run_state_machine_as_test(Hostile, settings=chosen)
