"""What odd networks and callers do, and that nothing is silently different for it (``docs/contract.md``)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.errors import InputError, NetworkError
from fastdiff.solvers.solver import SOLVERS
from fastdiff.testing.rows import same_bits

SHAPE = (3, 4, 5, 5)
PLAIN = fastdiff.plan(steps=4)
STACKED = fastdiff.plan(steps=4, guidance=2.0)
APART = fastdiff.plan(steps=4, guidance=2.0, batched=False)
COND = {"cond": {"shift": torch.ones(3)}, "uncond": {"shift": -torch.ones(3)}}


def net(z: Tensor, c_noise: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    told = c_noise.view(-1, *(1 for _ in z.shape[1:]))
    shift = shift.view(-1, *(1 for _ in z.shape[1:])) if isinstance(shift, Tensor) else shift
    return torch.sin(2 * z + 0.1 * told + shift) - 0.3 * z


class OneBuffer:
    """A network that was recorded: it returns the same memory from every call of a size."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}
        self.calls = 0

    def __call__(self, z: Tensor, c_noise: Tensor, **conditioning: Any) -> Tensor:
        self.calls += 1
        made = net(z, c_noise, **conditioning)
        buffer = self.buffers.setdefault(len(z), torch.empty_like(made))
        # Not through torch, which would count it.
        buffer.detach().numpy()[...] = made.detach().numpy()
        return buffer


# 1. Outputs in memory that the network writes to again.


@pytest.mark.parametrize("settings", [{}, {"network_batch": 1}, {"network_batch": 2}])
@pytest.mark.parametrize("plan", [STACKED, APART], ids=["stacked", "apart"])
def test_a_network_may_return_one_buffer_from_every_call(plan: fastdiff.Plan, settings: dict[str, Any]) -> None:
    expected = fastdiff.sample(net, plan, SHAPE, 0, **COND, **settings)
    owner = OneBuffer()
    assert same_bits(fastdiff.sample(owner, plan, SHAPE, 0, **COND, **settings), expected)
    # Found out once; from then on outputs are copied.
    calls = 0

    def counted(z: Tensor, c_noise: Tensor, **conditioning: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return net(z, c_noise, **conditioning)

    fastdiff.sample(counted, plan, SHAPE, 0, **COND, **settings)
    at_once = 1 if not settings else (6 if plan is STACKED else 3) // settings["network_batch"]
    assert owner.calls - calls <= 2 * max(at_once, 2) + 2


def test_an_output_that_is_written_to_by_the_next_call_is_not_used() -> None:
    """As torch counts it: views, and outputs that are kept and changed."""
    last = []

    def changes_its_last(z: Tensor, c_noise: Tensor, **conditioning: Any) -> Tensor:
        if last:
            last.pop().mul_(-3)
        last.append(net(z, c_noise, **conditioning))
        return last[0]

    expected = fastdiff.sample(net, APART, SHAPE, 0, **COND)
    assert same_bits(fastdiff.sample(changes_its_last, APART, SHAPE, 0, **COND), expected)


# 2. What the network is lent.


def test_a_network_that_writes_into_its_input_is_told_so_where_it_matters() -> None:
    def in_place(z: Tensor, c_noise: Tensor, **conditioning: Any) -> Tensor:
        made = net(z, c_noise, **conditioning)
        z.mul_(0.5)
        return made

    # Nobody reads it after the only call.
    assert same_bits(fastdiff.sample(in_place, PLAIN, SHAPE, 0), fastdiff.sample(net, PLAIN, SHAPE, 0))
    with pytest.raises(NetworkError, match=r"wrote into its input, z or c_noise, which the branch 'uncond' is still"):
        fastdiff.sample(in_place, APART, SHAPE, 0, **COND)


def test_a_network_that_writes_into_c_noise_is_told_so() -> None:
    def scales(z: Tensor, c_noise: Tensor) -> Tensor:
        c_noise *= 2
        return net(z, c_noise)

    with pytest.raises(NetworkError, match=r"wrote into c_noise at evaluation 0.*make a new Run"):
        fastdiff.sample(scales, PLAIN, (1, 4, 5, 5), 0)


@pytest.mark.parametrize(
    "change", [lambda z: z.requires_grad_(), lambda z: z.transpose_(2, 3), lambda z: z.unsqueeze_(0)]
)
def test_what_a_network_does_to_its_tensor_ends_with_the_evaluation(change: Any) -> None:
    seen = []

    def changes(z: Tensor, c_noise: Tensor) -> Tensor:
        seen.append((z.requires_grad, z.shape, z.stride(), z.grad))
        made = net(z, c_noise)
        change(z)
        return made

    assert same_bits(fastdiff.sample(changes, PLAIN, SHAPE, 0), fastdiff.sample(net, PLAIN, SHAPE, 0))
    assert len(set(seen)) == 1


def test_gradients_of_one_evaluation_do_not_add_to_the_next() -> None:
    """Classifier guidance by hand, in the network."""
    norms: dict[bool, list[float]] = {}
    for fresh in (True, False):
        found = norms.setdefault(fresh, [])

        def guided(z: Tensor, c_noise: Tensor, fresh: bool = fresh, found: list[float] = found) -> Tensor:
            with torch.enable_grad():
                x = z.detach().clone() if fresh else z
                x.requires_grad_()
                (x**2).sum().backward()
            found.append(float(x.grad.norm()))
            return net(z.detach(), c_noise)

        fastdiff.sample(guided, PLAIN, SHAPE, 0)
    assert norms[True] == norms[False]


# 3. Seeds and noise that the caller uses again.


def test_seeds_are_the_callers_after_the_run_was_made() -> None:
    seeds = torch.tensor([3, 4, 5])
    run = fastdiff.Run(fastdiff.plan(steps=4, churn=fastdiff.Churn(3.0)), SHAPE, seeds)
    seeds.fill_(-7)
    for evaluation in run:
        run.step(net(evaluation.z, evaluation.c_noise))
    expected = fastdiff.sample(net, run.plan, SHAPE, [3, 4, 5])
    assert same_bits(run.finish(), expected)


def test_one_buffer_of_noise_may_be_filled_for_every_draw() -> None:
    def twice(trace: Any, x: Any, now: Any, then: Any, memory: Any) -> Any:
        D = trace.denoise(x, now)
        noise = trace.noise() * 0.6 + trace.noise() * 0.8
        return D + (x - D) * (then.sigma / now.sigma) * 0.5 + noise * (then.sigma * 0.5), None

    plan = fastdiff.plan(solver=fastdiff.Solver("twice", 1, "these tests", twice, True), steps=4, noise="caller")
    buffer = torch.empty(SHAPE)

    def drawn(row: int, draw: int) -> Tensor:
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(10 * row + draw))

    expected = fastdiff.sample(net, plan, SHAPE, 0, noise=drawn)
    assert same_bits(fastdiff.sample(net, plan, SHAPE, 0, noise=lambda row, j: buffer.copy_(drawn(row, j))), expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_draw_of_the_callers_noise_is_asked_for_once(backend: str) -> None:
    """Where a gram sums the noise that its row adds, both are given the same."""
    plan = fastdiff.plan(solver="predictor_corrector", steps=3, noise="caller")
    assert any(row.gram is not None for row in plan.rows)
    asked: dict[tuple[int, int], Tensor] = {}

    def fresh(row: int, draw: int) -> Tensor:
        assert (row, draw) not in asked
        asked[row, draw] = torch.randn(SHAPE, generator=torch.Generator().manual_seed(len(asked)))
        return asked[row, draw]

    with fastdiff.use_backend(backend):
        found = fastdiff.sample(net, plan, SHAPE, 0, noise=fresh)
        assert same_bits(found, fastdiff.sample(net, plan, SHAPE, 0, noise=lambda row, draw: asked[row, draw]))


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (None, r"noise\(0, 0\) returned a NoneType; it must return a tensor"),
        (torch.zeros(2, 2), r"noise\(0, 0\) returned shape \[2, 2\] on cpu; it must return \[3, 4, 5, 5\] on cpu"),
    ],
)
def test_noise_that_does_not_fit_is_named(returned: Any, complaint: str) -> None:
    plan = fastdiff.plan(steps=4, noise="caller")
    with pytest.raises(InputError, match=complaint):
        fastdiff.sample(net, plan, SHAPE, 0, noise=lambda row, j: returned)


# 4. Batches of a fixed size.


class Attention(nn.Module):
    """Elements of a sample attend to each other; nothing crosses samples."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.mix = nn.Linear(width, 3 * width)

    def forward(self, z: Tensor, c_noise: Tensor) -> Tensor:
        q, k, v = self.mix(z).chunk(3, -1)
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


@pytest.mark.parametrize("sample", [(6,), (1, 6), (5, 6), (7, 33)], ids=str)
@pytest.mark.parametrize("network_batch", [1, 4])
def test_samples_drawn_in_batches_of_one_size_do_not_know_how_many_there_are(
    sample: tuple[int, ...], network_batch: int
) -> None:
    """Whatever the sample's size is: every one lies at a whole cache line, in a batch of one size."""
    layer: nn.Module = nn.Linear(6, 6) if len(sample) == 1 else Attention(sample[-1])

    def asked(z: Tensor, c_noise: Tensor) -> Tensor:
        assert z.data_ptr() % 64 == 0
        assert len(z) == network_batch
        return layer(z) if isinstance(layer, nn.Linear) else layer(z, c_noise)

    together = fastdiff.sample(asked, PLAIN, (7, *sample), 0, network_batch=network_batch)
    for i in range(7):
        alone = fastdiff.sample(asked, PLAIN, (1, *sample), i, network_batch=network_batch)
        if network_batch == 1:
            assert same_bits(alone[0], together[i])
        else:
            assert (alone[0] - together[i]).abs().max() <= 1e-4 * together.abs().max()


def test_batches_that_are_filled_up_lie_as_the_run_does() -> None:
    def asked(z: Tensor, c_noise: Tensor) -> Tensor:
        assert len(z) == 4
        assert z.is_contiguous(memory_format=torch.channels_last)
        return net(z, c_noise)

    found = fastdiff.sample(asked, PLAIN, SHAPE, 0, memory_format=torch.channels_last, network_batch=4)
    assert same_bits(found.contiguous(), fastdiff.sample(net, PLAIN, SHAPE, 0))


# 5. An ordinary network in the loop.


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_loop_takes_an_ordinary_module(backend: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1)
    with fastdiff.use_backend(backend):
        run = fastdiff.Run(PLAIN, SHAPE, 0)
        for evaluation in run:
            run.step(layer(evaluation.z))
        found = run.finish()
        assert not found.requires_grad
        assert same_bits(found, fastdiff.sample(lambda z, c: layer(z), PLAIN, SHAPE, 0))


# 6. Conditioning of any structure.


def listens(z: Tensor, c_noise: Tensor, added: Any, prompt: list[str], scale: float, size: tuple[int, int]) -> Tensor:
    """A network that is told a tree of tensors, a prompt for each sample, and what is no batch."""
    assert len(prompt) == len(z) == len(added["ids"][0])
    assert (scale, size) == (0.5, (3, 3))
    words = torch.tensor([float(len(text)) for text in prompt])
    return net(z, c_noise, scale * (added["text"]["pooled"][:, 0] + added["ids"][0] - 0.1 * words))


def spoken(i: slice = slice(None)) -> dict[str, dict[str, Any]]:
    """Conditioning of three samples, or of some of them."""
    shared = {"scale": 0.5, "size": (3, 3)}
    pooled, ids = torch.linspace(-1, 1, 12).view(3, 4), torch.arange(3.0)
    return {
        "cond": {
            "added": {"text": {"pooled": pooled[i]}, "ids": [ids[i]]},
            "prompt": ["a", "cat", "on a mat"][i],
            **shared,
        },
        "uncond": {
            "added": {"text": {"pooled": -pooled[i]}, "ids": [ids[i]]},
            "prompt": ["", "dog", ""][i],
            **shared,
        },
    }


@pytest.mark.parametrize("settings", [{}, {"network_batch": 1}, {"network_batch": 2}])
@pytest.mark.parametrize("plan", [STACKED, APART], ids=["stacked", "apart"])
def test_conditioning_is_a_tree(plan: fastdiff.Plan, settings: dict[str, Any]) -> None:
    found = fastdiff.sample(listens, plan, SHAPE, 0, **spoken(), **settings)
    for i in range(3):
        alone = fastdiff.sample(listens, plan, (1, *SHAPE[1:]), i, **spoken(slice(i, i + 1)))
        assert (alone[0] - found[i]).abs().max() <= 2.0**-20 * found.abs().max()


def test_one_conditioning_may_serve_both_branches() -> None:
    both = spoken()["cond"]
    found = fastdiff.sample(listens, STACKED, SHAPE, 0, cond=both, uncond=both)
    plain = fastdiff.sample(listens, PLAIN, SHAPE, 0, cond=both)
    assert (found - plain).abs().max() <= 2.0**-18 * plain.abs().max()


class Odd:
    """A value that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")

    __hash__ = None  # type: ignore[assignment]


Y, Z = {"y": torch.ones(3)}, {"z": torch.ones(3)}


@pytest.mark.parametrize(
    ("cond", "uncond", "complaint"),
    [
        ({"x": ["a"]}, {"x": ["b"]}, r"cond\['x'\] has 1 strings; it must have 3, one for each sample"),
        ({"x": np.ones(3)}, {"x": np.ones(3)}, r"cond\['x'\] is a numpy array; pass a tensor, torch.from_numpy"),
        ({"x": {"y": torch.ones(2)}}, {}, r"cond\['x'\]\['y'\] has leading dimension 2; it must be the batch size 3"),
        ({"x": Y}, {"x": Z}, r"cond has \['x'\]\['y'\] and uncond has \['x'\]\['z'\]; to be stacked they must be"),
        ({"x": Odd()}, {"x": Odd()}, r"cond\['x'\] and uncond\['x'\] have no batch dimension and differ"),
        ({"x": [1, Y]}, {"x": [2, Y]}, r"cond\['x'\]\[0\] and uncond\['x'\]\[0\] have no batch dimension and differ"),
        (torch.ones(3), None, "cond is a Tensor; it must be a dict of arguments by name"),
        ({7: torch.ones(3)}, None, "cond is a dict; it must be a dict of arguments by name"),
    ],
)
def test_conditioning_that_does_not_fit_is_named(cond: Any, uncond: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        fastdiff.sample(net, STACKED, SHAPE, 0, cond=cond, uncond=uncond)


# 7. Another default device; 10. numbers of other libraries.


def test_the_default_device_of_torch_is_not_asked() -> None:
    expected = fastdiff.sample(net, PLAIN, SHAPE, 0)
    torch.set_default_device("meta")
    try:
        assert same_bits(fastdiff.sample(net, PLAIN, SHAPE, 0), expected)
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, tuple])
def test_noise_levels_may_be_numbers_of_any_kind(kind: Any) -> None:
    levels = [8.0, 2.0, 0.5, 0.0]
    assert fastdiff.plan(schedule=kind(levels)) == fastdiff.plan(schedule=levels)


@pytest.mark.parametrize(
    "seed", [torch.tensor(5), np.array(5), np.int64(5), np.array([5, 6, 7]), torch.tensor([5, 6, 7])]
)
def test_seeds_may_be_numbers_of_any_kind(seed: Any) -> None:
    assert same_bits(fastdiff.sample(net, PLAIN, SHAPE, seed), fastdiff.sample(net, PLAIN, SHAPE, 5))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"shape": 5}, r"shape is 5; it must be a sequence of integers, \[batch, \.\.\.\]"),
        ({"shape": (2.0, 3)}, r"shape is \(2\.0, 3\); it must be a sequence of integers"),
        ({"memory_format": torch.preserve_format}, "memory_format is torch.preserve_format; use"),
    ],
)
def test_settings_of_another_kind_are_named(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        fastdiff.sample(net, PLAIN, **{"shape": SHAPE, "seeds": 0} | settings)


def test_gradients_in_inference_mode_are_refused() -> None:
    with torch.inference_mode(), pytest.raises(InputError, match="differentiable=True was asked for in inference mode"):
        fastdiff.sample(net, PLAIN, SHAPE, 0, differentiable=True)


@pytest.mark.parametrize("solver", [*SOLVERS.values(), SOLVERS["ddim"](eta=0.5)], ids=lambda solver: solver.name)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_solvers_and_plans_are_copied_by_value(solver: fastdiff.Solver, again: Any) -> None:
    assert again(solver) == solver
    plan = fastdiff.plan(solver=solver, steps=3)
    assert again(plan) == plan
    assert again(plan).sha256 == plan.sha256


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_run_is_not_copied(again: Any) -> None:
    with pytest.raises(InputError, match="a Run cannot be copied or pickled"):
        again(fastdiff.Run(PLAIN, SHAPE, 0))


# 11. Outputs of other kinds.

OUTPUTS = {
    "permuted": (
        lambda z: torch.empty(*z.shape[::-1]).permute(3, 2, 1, 0).copy_(z),
        r"a tensor whose samples are not dense \(strides .*\), and z lies row-major; return it in",
    ),
    "channels last": (
        lambda z: z.contiguous(memory_format=torch.channels_last),
        "a tensor that lies channels-last .*, and z lies row-major",
    ),
    "expanded": (lambda z: torch.zeros(1, 1, 1, 1).expand(z.shape), "a tensor whose samples are not dense"),
    "masked": (
        lambda z: torch.masked.masked_tensor(z * 1.0, z > 0),
        "returned a masked tensor; it must return a plain one",
    ),
    "nested": (lambda z: torch.nested.nested_tensor(list(z)), "returned a nested tensor"),
    "sparse": (lambda z: z.to_sparse(), "returned a torch.sparse_coo tensor"),
}


@pytest.mark.filterwarnings("ignore:.*prototype.*")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_another_kind_are_named(kind: str, backend: str) -> None:
    """Nothing was written: the step can be repeated."""
    make, complaint = OUTPUTS[kind]
    with fastdiff.use_backend(backend):
        run = fastdiff.Run(PLAIN, SHAPE, 0)
        for i, evaluation in enumerate(run):
            if i == 1:
                with pytest.raises(NetworkError, match=complaint):
                    run.step(make(evaluation.z))
            run.step(net(evaluation.z, evaluation.c_noise))
        assert same_bits(run.finish(), fastdiff.sample(net, PLAIN, SHAPE, 0))


# 16. What a callback is shown.


@pytest.mark.parametrize("solver", ["heun", "euler_ancestral", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("visible", [False, True])
def test_a_callback_is_shown_the_denoised_estimate_and_the_state(solver: str, visible: bool) -> None:
    """Of the evaluation that was made, by name; the network's next input is not among it."""
    plan = fastdiff.plan(solver=solver, steps=4, denoised=True, visible=visible, dtype="float64")
    asked: list[tuple[float, Tensor]] = []
    shown: list[Any] = []

    def listens(z: Tensor, c_noise: Tensor) -> Tensor:
        asked.append((float(c_noise[0]), z.clone()))
        return net(z, c_noise)

    def watch(progress: Any) -> None:
        denoised = None if progress.denoised is None else progress.denoised.clone()
        shown.append(
            progress._replace(denoised=denoised, state=None if progress.state is None else progress.state.clone())
        )

    sample = fastdiff.sample(listens, plan, SHAPE, 0, callback=watch)
    assert [progress.index for progress in shown] == list(range(plan.evaluations))
    assert {progress.evaluations for progress in shown} == {plan.evaluations}
    assert same_bits(shown[-1].state, sample)
    known = 0
    for progress, (told, z) in zip(shown, asked, strict=True):
        assert told == pytest.approx(np.log(progress.sigma) / 4)
        sigma2 = progress.sigma**2
        c_skip, c_out = 0.25 / (sigma2 + 0.25), progress.sigma * 0.5 / (sigma2 + 0.25) ** 0.5
        if progress.denoised is not None:
            known += 1
            expected = c_skip * z * (sigma2 + 0.25) ** 0.5 + c_out * net(z, torch.full((3,), told, dtype=z.dtype))
            assert (progress.denoised - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert known >= plan.evaluations // 2
    if visible:
        for progress, (_, z), row in zip(shown, asked[1:], plan.rows[1:], strict=False):
            assert same_bits(progress.state * row.c_in, z)
