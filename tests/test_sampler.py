"""The loop: what a network is given, what it may return, and what a run refuses."""

import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.errors import BackendError, InputError, NetworkError
from fastdiff.runs.launcher import Launcher
from fastdiff.testing.rows import same_bits

SHAPE = (3, 2, 4, 4)
HEUN = fastdiff.plan(steps=4)
GUIDED = fastdiff.plan(steps=4, guidance=2.0)


def net(z, c_noise):
    return z * 0.3 + c_noise.view(-1, 1, 1, 1).to(z.dtype) * 0.01


def labelled(z, c_noise, label):
    return net(z, c_noise) * label.view(-1, 1, 1, 1)


LABEL = torch.tensor([0.5, 1.0, 1.5])
NONE = torch.tensor([0.1, 0.2, 0.3])


def test_network_is_called_once_per_evaluation_with_scaled_input_and_noise_level():
    seen = []

    def spy(z, c_noise):
        seen.append((z.clone(), c_noise.clone()))
        return net(z, c_noise)

    fastdiff.sample(spy, HEUN, SHAPE, 0)
    assert len(seen) == HEUN.evaluations == 7
    first, c_noise = seen[0]
    assert first.shape == SHAPE
    # EDM: c_in x has unit variance at sigma_max; 96 normals spread by less than 6 standard errors around 1.
    assert abs(first.std() - 1) < 6 / (2 * first.numel()) ** 0.5
    assert c_noise.shape == (3,)
    assert c_noise[0].item() == pytest.approx(torch.log(torch.tensor(80.0)).item() / 4, rel=2**-22)


def test_manual_loop_equals_sample():
    run = fastdiff.Run(HEUN, SHAPE, 0)
    assert len(run) == 7
    for evaluation in run:
        run.step(net(evaluation.z, evaluation.c_noise))
    assert same_bits(run.finish(), fastdiff.sample(net, HEUN, SHAPE, 0))


def test_batched_guidance_equals_two_calls_and_either_order():
    batched = fastdiff.sample(labelled, GUIDED, SHAPE, 0, cond={"label": LABEL}, uncond={"label": NONE})
    two = fastdiff.plan(steps=4, guidance=2.0, batched=False)
    turned = fastdiff.plan(steps=4, guidance=fastdiff.Guidance(2.0, order=("uncond", "cond")))
    for other in (two, turned):
        again = fastdiff.sample(labelled, other, SHAPE, 0, cond={"label": LABEL}, uncond={"label": NONE})
        assert same_bits(batched, again)
    plain = fastdiff.sample(labelled, HEUN, SHAPE, 0, cond={"label": LABEL})
    assert not torch.equal(batched, plain)


def test_guidance_interval_switches_the_number_of_copies():
    plan = fastdiff.plan(steps=4, guidance=fastdiff.Guidance(2.0, interval=(0.1, 10.0)))
    sizes = []

    def spy(z, c_noise, label):
        sizes.append(len(z))
        assert len(label) == len(c_noise) == len(z)
        return labelled(z, c_noise, label)

    fastdiff.sample(spy, plan, SHAPE, 0, cond={"label": LABEL}, uncond={"label": NONE})
    assert sizes == [3 * row.copies for row in plan.rows[:-1]]
    assert set(sizes) == {3, 6}


def test_unguided_scales_call_one_branch_only():
    for scale, branch in ((1.0, "cond"), (0.0, "uncond")):
        plan = fastdiff.plan(steps=2, guidance=scale)
        assert {row.branches for row in plan.rows[:-1]} == {(branch,)}


def test_callback_sees_denoised_and_the_sample_keeps_its_bits():
    plan = fastdiff.plan(steps=4, denoised=True, churn=fastdiff.Churn(2))
    shown = []

    def watch(progress):
        shown.append(None if progress.denoised is None else progress.denoised.clone())

    sampled = fastdiff.sample(net, plan, SHAPE, 0, callback=watch)
    # Not where the input of an evaluation is gone: behind Heun's corrector is a sum of it.
    given = [any(output.store == "denoised" for output in row.outputs) for row in plan.rows[1:]]
    assert [found is not None for found in shown] == given
    assert given.count(True) >= plan.evaluations // 2
    assert same_bits(sampled, fastdiff.sample(net, fastdiff.plan(steps=4, churn=fastdiff.Churn(2)), SHAPE, 0))
    # The last step of Heun is Euler to sigma = 0, which is D itself but for rounding: a bound of a few units.
    torch.testing.assert_close(shown[-1], sampled, rtol=2**-20, atol=2**-20)


def test_callers_noise_gives_the_same_bits_as_counters():
    churned = fastdiff.plan(steps=4, churn=fastdiff.Churn(2))
    injected = fastdiff.plan(steps=4, churn=fastdiff.Churn(2), noise="caller")
    draws = [[draw for _, draw in row.draws] for row in churned.rows]
    assert sum(map(len, draws)) == 5

    def noise(row, j):
        out = torch.empty(SHAPE)
        ops.fill_noise(out, 0, purpose=draws[row][j].purpose, draw=draws[row][j].draw)
        return out

    assert same_bits(fastdiff.sample(net, churned, SHAPE, 0), fastdiff.sample(net, injected, SHAPE, 0, noise=noise))


def test_gradients_flow_to_the_network():
    plan = fastdiff.plan(steps=3, dtype="float64")
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def run(w):
        return fastdiff.sample(lambda z, c: z * w, plan, (2, 3), 0, differentiable=True).sum()

    assert torch.autograd.gradcheck(run, weight)
    with torch.no_grad():
        sampled = fastdiff.sample(lambda z, c: z * weight, plan, (2, 3), 0)
    assert run(weight).item() == sampled.sum().item()


def test_the_loop_in_cpp_and_the_op_give_the_same_bits():
    plan = fastdiff.plan(steps=4, churn=fastdiff.Churn(2), guidance=2.0)

    class Subclass(torch.Tensor):
        """The loop in C++ takes plain tensors only, so this goes through the dispatcher."""

    def own(z, c):
        return z * torch.linspace(0.1, 0.6, len(z)).view(-1, 1, 1, 1)  # so that branches differ

    direct = fastdiff.sample(own, plan, SHAPE, 0)
    dispatched = fastdiff.sample(lambda z, c: own(z, c).as_subclass(Subclass), plan, SHAPE, 0)
    mixed = fastdiff.sample(lambda z, c: own(z, c).as_subclass(Subclass) if c[0] > 0 else own(z, c), plan, SHAPE, 0)
    assert same_bits(direct, dispatched)
    assert same_bits(direct, mixed)


def test_network_may_return_a_narrower_type():
    exact = fastdiff.sample(lambda z, c: (z * 0.3).bfloat16().float(), HEUN, SHAPE, 0)
    assert same_bits(exact, fastdiff.sample(lambda z, c: (z * 0.3).bfloat16(), HEUN, SHAPE, 0))


def test_network_may_return_its_input():
    assert same_bits(
        fastdiff.sample(lambda z, c: z, HEUN, SHAPE, 0), fastdiff.sample(lambda z, c: z.clone(), HEUN, SHAPE, 0)
    )


def test_zero_samples():
    assert fastdiff.sample(net, HEUN, (0, 2, 4, 4), 0).shape == (0, 2, 4, 4)


def test_no_dimension_but_the_batch():
    assert fastdiff.sample(lambda z, c: z * 0.3, HEUN, (5,), 0).shape == (5,)


BAD_OUTPUTS = {
    "tuple": (lambda z: (z,), "returned a tuple; it must return a tensor"),
    "shape": (lambda z: z[:, :1], r"returned shape \[3, 1, 4, 4\]; it must return \[3, 2, 4, 4\]"),
    "integer": (lambda z: z.to(torch.int64), "returned torch.int64; float64, float32"),
    "complex": (lambda z: z.to(torch.complex64), "returned torch.complex64"),
    "fp8": (lambda z: z.to(torch.float8_e5m2), "returned torch.float8_e5m2"),
    "device": (lambda z: z.to("meta"), "returned a tensor on meta; its input was on cpu"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_bad_network_outputs_are_refused_and_the_step_can_be_repeated(case):
    spoil, message = BAD_OUTPUTS[case]
    run = fastdiff.Run(HEUN, SHAPE, 0)
    clean = fastdiff.sample(net, HEUN, SHAPE, 0)
    for evaluation in run:
        z = evaluation.z.clone()
        with pytest.raises(NetworkError, match=message):
            run.step(spoil(evaluation.z))
        assert same_bits(z, evaluation.z)
        run.step(net(evaluation.z, evaluation.c_noise))
    assert same_bits(run.finish(), clean)


def test_wrong_layout_and_wider_type_are_refused():
    run = fastdiff.Run(HEUN, SHAPE, 0)
    with pytest.raises(NetworkError, match=r"lies channels-last .*, and z lies row-major"):
        run.step(torch.zeros(SHAPE).to(memory_format=torch.channels_last))
    with pytest.raises(InputError, match="float64 needs a float64 coef"):
        run.step(torch.zeros(SHAPE, dtype=torch.float64))


def test_an_output_that_overlaps_a_buffer_is_refused():
    run = fastdiff.Run(HEUN, SHAPE, 0)
    shifted = torch.empty(0).set_(run.memory.z.untyped_storage())[1:]
    with pytest.raises((InputError, NetworkError)):
        run.step(shifted)
    rolled = run.memory.z.view(-1)[:48].view(3, 1, 4, 4).expand(SHAPE)
    with pytest.raises(NetworkError, match="not dense"):
        run.step(rolled)


def test_steps_and_finish_out_of_turn():
    run = fastdiff.Run(HEUN, SHAPE, 0)
    with pytest.raises(NetworkError, match="7 network evaluations are still to be made"):
        run.finish()
    with pytest.raises(NetworkError, match="not followed by step"):
        for _ in run:
            pass
    for evaluation in run:
        run.step(net(evaluation.z, evaluation.c_noise))
    with pytest.raises(NetworkError, match="all 7 evaluations were made"):
        run.step(torch.zeros(SHAPE))
    run.finish()
    with pytest.raises(NetworkError, match="taken already"):
        run.finish()


def test_branches_stacked_or_apart():
    f = torch.randn(6, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    found = []
    for batched in (True, False):
        for outputs in ((f,), (f[:3], f[3:])):
            run = fastdiff.Run(fastdiff.plan(steps=2, guidance=2.0, batched=batched), SHAPE, 0)
            for _ in run:
                run.step(*outputs)
            found.append(run.finish())
    assert all(same_bits(found[0], other) for other in found[1:])


def test_wrong_number_of_outputs():
    run = fastdiff.Run(GUIDED, SHAPE, 0)
    for outputs in ((), (torch.zeros(SHAPE),) * 3):
        with pytest.raises(NetworkError, match=rf"was given {len(outputs)} network outputs.*\['cond', 'uncond'\]"):
            run.step(*outputs)
    with pytest.raises(NetworkError, match=r"returned shape \[3, 2, 4, 4\]; it must return \[6, 2, 4, 4\]"):
        run.step(torch.zeros(SHAPE))


BAD_ARGUMENTS = {
    "no batch": ({"shape": ()}, r"shape is \(\); it must be \[batch"),
    "negative": ({"shape": (-1, 2)}, "without negative sizes"),
    "integer network": ({"network_dtype": torch.int32}, "network_dtype is torch.int32; use float64"),
    "wide network": ({"network_dtype": torch.float64}, "compile it with dtype='float64'"),
    "format": ({"memory_format": torch.channels_last, "shape": (2, 3)}, "needs 4 dimensions"),
    "noise": ({"noise": lambda row, j: None}, "noise was given, and the plan was compiled with noise='counter'"),
    "seed": ({"seeds": -1}, "a seed is -1; seeds lie in 0"),
    "large seed": ({"seeds": 2**63}, "seeds lie in 0"),
    "seed count": ({"seeds": [1, 2]}, "2 seeds for 3 samples"),
    "float seed": ({"seeds": 1.5}, "must be an integer"),
    "chunk": ({"network_batch": 0}, "network_batch is 0; it must be an integer of at least 1"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case):
    change, message = BAD_ARGUMENTS[case]
    arguments = {"shape": SHAPE, "seeds": 0} | change
    with pytest.raises(InputError, match=message):
        fastdiff.sample(net, HEUN, **arguments)


class Named:
    """Guidance by hand under names of its own: cond weighs 2, uncond -1."""

    def __init__(self, cond="strong", uncond="weak"):
        self.names = cond, uncond

    def branches(self, sigma):
        return self.names

    def combine(self, sigma, denoised):
        cond, uncond = (denoised[name] for name in self.names)
        return cond * 2.0 + uncond * -1.0


@pytest.mark.parametrize("batched", [True, False])
def test_branches_have_free_names(batched):
    usual = fastdiff.sample(labelled, GUIDED, SHAPE, 0, cond={"label": LABEL}, uncond={"label": NONE})
    given = {"strong": {"label": LABEL}, "weak": {"label": NONE}}
    named = fastdiff.plan(steps=4, guidance=Named(), batched=batched)
    assert same_bits(usual, fastdiff.sample(labelled, named, SHAPE, 0, branches=given))
    mixed = fastdiff.plan(steps=4, guidance=Named("cond", "weak"), batched=batched)
    assert same_bits(usual, fastdiff.sample(labelled, mixed, SHAPE, 0, cond=given["strong"], branches=given))
    with pytest.raises(InputError, match=r"branch 'weak', for which nothing was given; pass branches=\{'weak': ...\}"):
        fastdiff.sample(labelled, named, SHAPE, 0, branches={"strong": given["strong"]})
    with pytest.raises(InputError, match=r"branches\['cond'\] was given, and cond too"):
        fastdiff.sample(labelled, GUIDED, SHAPE, 0, cond=given["strong"], branches={"cond": given["weak"]})


def test_gradients_flow_where_the_number_of_branches_changes():
    plan = fastdiff.plan(steps=4, guidance=fastdiff.Guidance(2.0, interval=(0.1, 10.0)))
    given = {"cond": {"label": LABEL}, "uncond": {"label": NONE}}
    weight = torch.ones((), requires_grad=True)
    found = fastdiff.sample(
        lambda z, c, label: labelled(z, c, label) * weight, plan, SHAPE, 0, differentiable=True, **given
    )
    assert same_bits(found.detach(), fastdiff.sample(labelled, plan, SHAPE, 0, **given))
    assert torch.autograd.grad(found.sum(), weight)[0].abs() > 0


def test_conditioning_that_does_not_fit():
    with pytest.raises(InputError, match=r"nothing was given; pass uncond, .* keys as cond \(label\)"):
        fastdiff.sample(labelled, GUIDED, SHAPE, 0, cond={"label": LABEL})
    with pytest.raises(InputError, match=r"cond\['label'\] has leading dimension 2; it must be the batch size 3"):
        fastdiff.sample(labelled, HEUN, SHAPE, 0, cond={"label": LABEL[:2]})
    with pytest.raises(InputError, match="must be the same"):
        fastdiff.sample(labelled, GUIDED, SHAPE, 0, cond={"label": LABEL}, uncond={"other": NONE})
    with pytest.raises(InputError, match="differ in shape, dtype or device"):
        fastdiff.sample(labelled, GUIDED, SHAPE, 0, cond={"label": LABEL}, uncond={"label": NONE.double()})


def test_a_device_without_backend_names_the_reasons():
    with pytest.raises(
        BackendError, match=r"triton: it runs on cuda.*; reference: on meta it is taken only when asked"
    ):
        fastdiff.Run(HEUN, SHAPE, 0, device="meta")
    with fastdiff.use_backend("cpu"), pytest.raises(BackendError, match="cpu: it runs on cpu"):
        fastdiff.Run(HEUN, SHAPE, 0, device="meta")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_restart_gives_the_same_bits_in_the_same_buffers(backend):
    plan = fastdiff.plan(steps=3, churn=fastdiff.Churn(2))
    with fastdiff.use_backend(backend):
        run = fastdiff.Run(plan, SHAPE, 0)
        found = []
        for _ in range(2):
            for evaluation in run:
                run.step(net(evaluation.z, evaluation.c_noise))
            found.append(run.finish(copy=True))
            run.restart()
    assert same_bits(*found)
    assert same_bits(found[0], fastdiff.sample(net, plan, SHAPE, 0))
    for evaluation in run:
        run.step(net(evaluation.z, evaluation.c_noise))
    kept = run.finish()
    assert same_bits(kept, found[0])
    with pytest.raises(NetworkError, match=r"gave away; use finish\(copy=True\)"):
        run.restart()


WAYS = {
    "itself": lambda f: f,
    "a view of more": lambda f: torch.stack([f, f], dim=1)[:, 0],
    "narrower": lambda f: f.bfloat16(),
    "two": lambda f: f.chunk(2),
}
"""To return the same numbers; a launch is prepared for the first and the last only."""


@pytest.mark.parametrize("way", WAYS)
def test_what_a_launch_is_not_prepared_for_is_checked_and_has_the_same_bits(way, monkeypatch):
    """The reference goes by prepared launches, or by the op with all its checks; the C++ loop has ways of its own."""
    prepared, is_expected = [], Launcher._is_expected

    def watched(launcher, outputs):
        expected = is_expected(launcher, outputs)
        prepared.extend([launcher.row] if expected else [])
        return expected

    monkeypatch.setattr(Launcher, "_is_expected", watched)

    def sampled(change, backend):
        with fastdiff.use_backend(backend):
            run = fastdiff.Run(GUIDED, SHAPE, 0)
            for evaluation in run:
                label = torch.linspace(0.5, 1.5, len(evaluation.z))  # so that branches differ
                f = change(labelled(evaluation.z, evaluation.c_noise, label).bfloat16().float())
                run.step(*f) if isinstance(f, tuple) else run.step(f)
            return run.finish()

    expected = sampled(lambda f: f, "cpu")
    assert prepared == []
    assert same_bits(sampled(WAYS[way], "reference"), expected)
    assert len(prepared) == (len(GUIDED.rows) if way in ("itself", "two") else 1)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_network_may_return_its_input(backend):
    with fastdiff.use_backend(backend):
        found = fastdiff.sample(lambda z, c: z.mul_(0.3), GUIDED, SHAPE, 0)
        assert same_bits(found, fastdiff.sample(lambda z, c: z * 0.3, GUIDED, SHAPE, 0))
        # Some of its samples, the other way round.
        turned = fastdiff.sample(lambda z, c: torch.cat([z[3:], z[:3]]), GUIDED, SHAPE, 0)
        run = fastdiff.Run(GUIDED, SHAPE, 0)
        for evaluation in run:
            run.step(evaluation.z[3:], evaluation.z[:3])
        assert same_bits(run.finish(), turned)
