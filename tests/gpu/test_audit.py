"""The loop on a pretended GPU: one launch for each network evaluation, and nothing that waits, copies or allocates."""

from contextlib import nullcontext, suppress

import pytest
import torch
from audit import Audit, pretended_gpu
from emulated import EmulatedCuda, registered

import fastdiff
from fastdiff.errors import BackendError, InputError
from fastdiff.runs import graph, recording
from fastdiff.runs.launcher import Launcher
from fastdiff.runs.run import Run

SHAPE = (2, 3, 8, 8)
GUIDED = {"steps": 20, "guidance": 2.0, "churn": fastdiff.Churn(40.0)}
SETTINGS = {
    "guided Heun with churn": GUIDED,
    "an interval": GUIDED | {"guidance": fastdiff.Guidance(2.0, interval=(0.1, 10.0))},
    "two calls a guided evaluation": GUIDED | {"batched": False},
    "clipped": GUIDED | {"clip": 1.0, "denoised": True},
    "float64": GUIDED | {"dtype": "float64"},
    "Euler": {"solver": "euler", "steps": 20},
}


def net(z, c_noise):
    return torch.tanh(z) * c_noise.view(-1, 1, 1, 1).to(z.dtype)


def calls(plan):
    """How often the network is called before each launch."""
    return [1 if plan.batched else len(row.branches) for row in plan.rows[:-1]]


def expected_launches(plan):
    """One before the first call, one after the last call of every evaluation, and none between two of one."""
    return [1] + [launch for count in calls(plan) for launch in [*[0] * (count - 1), 1]]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_loop_on_a_gpu_launches_once_for_each_evaluation_and_nothing_else(settings, memory_format):
    plan = fastdiff.plan(**settings)
    with pretended_gpu():
        run = Run(plan, SHAPE, 0, device="cuda", network_dtype=torch.float16, memory_format=memory_format)
        with Audit() as audit:
            watched = audit.network(net)
            audit.launches[0] += 1  # the run made it before the audit began
            for evaluation in run:
                count = 1 if plan.batched else len(evaluation.branches)
                run.step(*(watched(evaluation.z, evaluation.c_noise) for _ in range(count)))
            sample = run.finish()
    assert sample.device.type == "cuda"
    assert audit.launches == expected_launches(plan)
    assert audit.hazards == []


def test_the_whole_call_makes_its_launches_and_copies_its_tables_at_the_beginning():
    plan = fastdiff.plan(**GUIDED)
    with pretended_gpu(), Audit() as audit:
        fastdiff.sample(audit.network(net), plan, SHAPE, 0, device="cuda", network_dtype=torch.float16)
    assert audit.launches == expected_launches(plan)
    copies = [hazard for hazard in audit.hazards if hazard.startswith("copies")]
    # Seeds, coefficients, draws, c_noise.
    assert len(copies) == 4
    assert {hazard.partition(":")[0] for hazard in audit.hazards} == {"copies between host and device", "allocates"}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_launches_without_checks_do_nothing_else_either(settings):
    """On memory that exists: the CUDA backend's own launches, counted by the emulated runtime."""
    plan, library = fastdiff.plan(**settings), EmulatedCuda()
    with registered(library):
        run = Run(plan, SHAPE, 0, network_dtype=torch.float16)
        before = library.launched().launches
        with Audit() as audit, pytest.MonkeyPatch.context() as patch:
            patch.setattr(Launcher, "_launch_checked", None)
            watched = audit.network(net)
            for evaluation in run:
                count = 1 if plan.batched else len(evaluation.branches)
                run.step(*(watched(evaluation.z, evaluation.c_noise) for _ in range(count)))
            run.finish()
        assert library.launched().launches - before == plan.evaluations
    assert audit.hazards == []


def _item(run):
    run.denoised.sum().item()


def _mask(run):
    run.denoised[run.denoised > 0]


HAZARDS = {
    "a value is read": (_item, "waits for the device"),
    "non-zeros are counted": (lambda run: run.denoised.nonzero(), "waits for the device"),
    "a mask selects": (_mask, "waits for the device"),
    "a tensor goes to the host": (lambda run: run.denoised.cpu(), "copies between host and device"),
    "a number comes from the host": (lambda run: run.denoised.add_(torch.ones(1).to("cuda")), "copies between"),
    "noise is torch's": (lambda run: run.denoised.normal_(), "draws from the global generator"),
    "a buffer is cloned": (lambda run: run.denoised.clone(), "allocates"),
}


@pytest.mark.parametrize(("hazard", "reason"), HAZARDS.values(), ids=HAZARDS)
def test_planted_hazards_are_found(monkeypatch, hazard, reason):
    step = Run.step

    def hazardous(run, *outputs):
        step(run, *outputs)
        if run.index == 7:
            hazard(run)

    monkeypatch.setattr(Run, "step", hazardous)
    plan = fastdiff.plan(**GUIDED | {"denoised": True, "steps": 5})
    with pretended_gpu():
        run = Run(plan, SHAPE, 0, device="cuda")
        with Audit() as audit, suppress(Exception):  # a tensor without memory has no value to be read
            for evaluation in run:
                run.step(audit.network(net)(evaluation.z, evaluation.c_noise))
    assert any(found.startswith(reason) for found in audit.hazards)


def test_a_second_launch_is_found(monkeypatch):
    launch = Launcher.launch

    def twice(launcher, *given):
        launch(launcher, *given)
        launcher.row -= 1
        launch(launcher, *given)

    monkeypatch.setattr(Launcher, "launch", twice)
    plan = fastdiff.plan(**GUIDED)
    with pretended_gpu(), Audit() as audit:
        fastdiff.sample(audit.network(net), plan, SHAPE, 0, device="cuda")
    assert audit.launches != expected_launches(plan)


class Recording:
    """Stands for a graph: its launches are not made again, because nothing here has values."""

    def __init__(self, work, device):
        work()

    def turn(self, held):
        return nullcontext()

    def replay(self):
        pass


def test_a_replay_copies_seeds_and_conditioning_and_what_changed(monkeypatch):
    plan, other = fastdiff.plan(**GUIDED), fastdiff.plan(**GUIDED | {"guidance": 3.0})
    monkeypatch.setitem(recording.RECORDERS, "cuda", Recording)

    def conditioned(z, c_noise, label):
        return net(z, c_noise)

    def copies(plan, seeds):
        label = torch.ones(2, device="cuda")
        given = {"cond": {"label": label}, "uncond": {"label": label}}
        with Audit() as audit:
            fastdiff.sample(conditioned, plan, SHAPE, seeds, device="cuda", cuda_graph=True, **given)
        assert not any(hazard.startswith(("waits", "draws")) for hazard in audit.hazards)
        return sum(hazard.startswith("copies") for hazard in audit.hazards)

    with pretended_gpu():
        copies(plan, 0)
        assert copies(plan, 1) == 1
        assert copies(plan, torch.tensor([5, 6], device="cuda")) == 0
        assert copies(other, 2) == 1 + 3
    graph.clear_graphs()


def test_a_run_cannot_be_set_up_while_its_stream_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    with (
        pretended_gpu(),
        pytest.raises(InputError, match=r"make the Run before the capture, or call sample\(\) outside it"),
    ):
        Run(fastdiff.plan(steps=2), SHAPE, 0, device="cuda")


def test_a_device_that_no_backend_serves():
    expected = "cuda: it runs on cuda, and the tensors are on meta"
    with pretended_gpu(), pytest.raises(BackendError, match=expected):
        Run(fastdiff.plan(steps=2), SHAPE, 0, device="meta")


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA here")
def test_a_device_that_torch_was_not_built_for():
    with pytest.raises(
        BackendError, match=r"cannot use the device 'cuda' here \(Torch not compiled with CUDA enabled\)"
    ):
        fastdiff.sample(net, fastdiff.plan(steps=2), SHAPE, 0, device="cuda")
