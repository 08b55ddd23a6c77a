"""``fastdiff bench`` on a GPU: its own code, on a GPU that is pretended.

Tensors are on the CPU, kernels are those of the emulated CUDA backend, samplings are recorded by the recorder of
``tests/gpu``, and the rest of ``torch.cuda`` is stood in for. So every line of ``Cuda`` runs here, on other ground.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from click.testing import CliRunner, Result
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent / "gpu"))

from audit import pretended_gpu
from emulated import EmulatedCuda
from pretend_graph import recorded

from fastdiff.backends import registry
from fastdiff.cli import Commands
from fastdiff.errors import InputError
from fastdiff.lab.bench import (
    command,
    contestant,
    gate,
    measure,
    networks,
    noise,
    record,
    roofline,
    table,
    tasks,
    timing,
    workload,
)
from fastdiff.lab.bench.audit import audit
from fastdiff.lab.bench.contestant import Contestant, backend, replayed
from fastdiff.lab.bench.device import CPU, DEVICES, Cuda
from fastdiff.lab.bench.rivals import RIVALS, compiled
from fastdiff.lab.bench.workload import Model, Workload, first_noise, free_network
from fastdiff.testing.observe import Counter, Observer, Operation

GRAPH = "fastdiff cuda, graph"
TINY = ("--device", "cuda", "--sizes", "256", "--batch", "4", "--budget", "0", "--churn", "off")

main = Commands(name="fastdiff")
main.add_command(command.bench)
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="g++ compiles the emulated backend")


class OnCpu(Cuda):
    """The GPU's own class, for tensors on the CPU."""

    place = torch.device("cpu")

    def refusal(self) -> str | None:
        return None


class Event:
    """``torch.cuda.Event`` on a stream whose work is done at once; as torch, it wants to be waited for."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._timing, self._waited_for = enable_timing, False

    def record(self) -> None:
        self._at = time.perf_counter()

    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        self._waited_for = True

    def elapsed_time(self, end: Event) -> float:
        if not (self._timing and end._timing):
            raise RuntimeError("both events must be created with enable_timing")
        if not end._waited_for:
            raise RuntimeError("CUDA error: device not ready")
        return (end._at - self._at) * 1e3


STATISTICS = {"allocation.all.allocated": 7}
NAMES = {
    "Event": Event,
    "synchronize": lambda: None,
    "current_device": lambda: 0,
    "get_rng_state": lambda device: torch.get_rng_state(),
    "set_rng_state": lambda state, device: None,
    "mem_get_info": lambda: (2**34, 2**35),
    "memory_allocated": lambda: 0,
    "max_memory_allocated": lambda: 2**14,
    "memory_stats": lambda: STATISTICS,
    "reset_peak_memory_stats": lambda: None,
    "get_device_name": lambda: "Pretended 100",
    "get_device_capability": lambda: (9, 0),
    "get_device_properties": lambda index: SimpleNamespace(total_memory=2**35),
}


class Gpu(NamedTuple):
    """The library behind the backend, and what replaces parts of the pretence."""

    library: EmulatedCuda
    replacing: pytest.MonkeyPatch


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    """A GPU for the command: the device, its backend ``cuda``, and what torch knows of it."""
    library = EmulatedCuda()
    # What is replaced twice must be put back in order, so tests replace these by ``gpu.replacing``.
    with recorded(library), pytest.MonkeyPatch.context() as replacing:
        own, *others = registry.BACKENDS
        kept = [entry for entry in others if entry.name != "cuda"]
        replacing.setattr(registry, "BACKENDS", (replace(own, name="cuda"), *kept))
        for name, value in NAMES.items():
            replacing.setattr(torch.cuda, name, value)
        replacing.setitem(DEVICES, "cuda", OnCpu())
        yield Gpu(library, replacing)


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """Few cases and steps, little to try the clock with: these tests look at the harness, not at figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "extra_tasks", lambda *_, **__: [])
    monkeypatch.setattr(gate, "RANDOM_CASES", 20)
    monkeypatch.setattr(gate, "CLOCK_BYTES", 2**22)
    monkeypatch.setattr(noise, "FILLED", 2**8)
    monkeypatch.setattr(workload, "MOST_STEPS", 3)
    workload._kept_plan.cache_clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments], catch_exceptions=False)


def on_gpu(**changes) -> Workload:
    settings = {"batch": 3, "sample": (4, 4, 4), "steps": 3, "device": DEVICES["cuda"]} | changes
    return Workload(**settings)


# The whole command ----------------------------------------------------------------------------------------------


@needs_compiler
def test_the_whole_command_on_a_pretended_gpu(gpu):
    rivals = "textbook,edm-fp64,k-diffusion-ops,reference"
    files = ("--json", "a.json", "--csv", "a.csv")
    result = run(*TINY, "--churn", "both", "--rivals", rivals, *files)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= table.WIDTH
    assert "one GPU, events on the stream, medians" in " ".join(result.output.split())
    assert "GPU: Pretended 100, capability 9.0, 32 GiB" in result.output
    found = json.loads(Path("a.json").read_text())
    assert (found["device"], found["clock"]) == ("Pretended 100, capability 9.0, 32 GiB", "events on the stream")
    assert "copy within the memory of the GPU" in found["roofline"]
    assert found["normals_per_s"].keys() == {"fastdiff cuda", "torch.randn"}
    assert [case["s_churn"] > 0 for case in found["cases"]] == [False, True]
    for case in found["cases"]:
        assert (case["backend"], case["device"]) == ("cuda", "cuda")
        assert (case["launches_per_nfe"], case["bytes_per_element"], case["syncs_per_nfe"]) == (1, 24, 0)
        assert case["ratio"].keys() == {GRAPH, *rivals.split(",")}
        assert (case["rivals"]["edm-fp64"]["syncs_per_nfe"] > 0.5) == (case["s_churn"] > 0)
        assert all(value > 0 for value in (*case["ratio"].values(), case["roofline"], case["us_per_step"]))
        # Pretended: 2**14 bytes at most.
        assert case["peak_bytes_per_element"] == 2**14 / 256
        graph = case["rivals"][GRAPH]
        assert graph["host_us_per_step"] > 0
        assert graph["launches_per_nfe"] is None
    lines = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    assert [line["contestant"] for line in lines[:2]] == ["fastdiff cuda", GRAPH]


@needs_compiler
def test_other_types_and_solvers(gpu):
    result = run(*TINY, "--solver", "euler", "--network-dtype", "bfloat16", "--guidance", "1", "--rivals", "textbook")
    assert result.exit_code == 0, result.output
    assert re.search(r"^fastdiff cuda +\S+ +1 +1 +12 +0 ", result.output, re.MULTILINE)


@needs_compiler
def test_every_format_names_the_gpu(gpu):
    pytest.importorskip("matplotlib", reason="plots need it")
    result = run(*TINY, "--rivals", "none", "--html", "a.html", "--png", "a.png")
    assert result.exit_code == 0, result.output
    page = Path("a.html").read_text()
    assert "GPU Pretended 100, capability 9.0, 32 GiB" in page
    assert "Normals a second, one GPU" in page


@needs_compiler
def test_a_real_network_has_a_share_of_the_time_except_in_a_replay(gpu):
    fixed = ("--device", "cuda", "--network", "unet", "--batch", "1", "--budget", "0", "--churn", "off")
    result = run(*fixed, "--rivals", "textbook", "--json", "n.json")
    assert result.exit_code == 0, result.output
    (case,) = json.loads(Path("n.json").read_text())["cases"]
    assert 0.2 < case["network_share"] < 1
    assert 0.2 < case["rivals"]["textbook"]["network_share"] < 1
    assert case["rivals"][GRAPH]["network_share"] is None


@needs_compiler
def test_a_network_that_cannot_be_recorded_is_timed_without(gpu):
    Path("waiting.py").write_text("def net(z, c):\n    return z * float(c[0].item() > -1e9)\n")
    fixed = ("--device", "cuda", "--network", "waiting:net", "--shape", "4,4,4", "--batch", "2", "--budget", "0")
    result = run(*fixed, "--rivals", "textbook", "--churn", "off", "--json", "w.json")
    assert result.exit_code == 0, result.output
    (case,) = json.loads(Path("w.json").read_text())["cases"]
    assert case["ratio"].keys() == {"textbook"}
    assert "operation not permitted when stream is capturing" in case["absent"][GRAPH]


@needs_compiler
def test_a_record_of_the_cpu_is_no_record_of_the_gpu(gpu):
    assert run(*TINY, "--rivals", "textbook", "--json", "gpu.json").exit_code == 0
    same = (*TINY, "--rivals", "textbook", "--tolerance", "1")
    assert run(*same, "--compare", "gpu.json").exit_code == 0
    found = json.loads(Path("gpu.json").read_text())
    for case in found["cases"]:
        case["device"] = "cpu"
    Path("cpu.json").write_text(json.dumps(found))
    result = run(*same, "--compare", "cpu.json")
    assert result.exit_code == 2
    assert "no case in common" in result.output


# What must be refused -------------------------------------------------------------------------------------------


def red(*arguments: str) -> str:
    """A run that must be refused without a figure; its message."""
    result = run(*TINY, "--rivals", "none", "--json", "refused.json", *arguments)
    assert result.exit_code == 1, result.output
    assert "gate red" in result.output
    assert "µs" not in result.output
    assert not Path("refused.json").exists()
    return result.output


@needs_compiler
def test_other_bits_on_the_device_are_refused(gpu):
    stage = gpu.library.stage

    def late(call):
        stage(call if call.seeds is None else call._replace(seeds=call.seeds + 1))

    plant(gpu, stage=late)
    assert "backend 'cuda' differs from the reference in" in red()


def plant(gpu: Gpu, **changes) -> None:
    """Change the backend ``cuda``."""
    own, *others = registry.BACKENDS
    gpu.replacing.setattr(registry, "BACKENDS", (replace(own, **changes), *others))


@needs_compiler
def test_work_skipped_by_the_loop_is_refused(gpu):
    """Random rows do not take the loop's way to the backend; whole trajectories do."""
    plant(gpu, prepare=lambda *call: lambda given: None)
    assert "differs from the reference on heun" in red()


@needs_compiler
def test_work_skipped_at_the_timed_size_only_is_refused(gpu):
    own = registry.BACKENDS[0]

    def skipping(call):
        launch = own.prepared(call)
        return (lambda given: None) if call.stores and len(call.stores[0]) == 4 else launch

    plant(gpu, prepare=skipping)
    assert "did not compute sample" in red()


@needs_compiler
def test_a_replay_of_something_else_is_refused(gpu, monkeypatch):
    right = contestant.sample
    monkeypatch.setattr(contestant, "sample", lambda *given, **named: right(*given, **named) * (1 + 2**-20))
    assert f"backend '{GRAPH}' did not compute sample" in red()


@needs_compiler
@pytest.mark.parametrize("factor", [1e3, 1e-3, 1.5])
def test_a_clock_of_another_unit_is_refused(gpu, monkeypatch, factor: float):
    right = Event.elapsed_time
    monkeypatch.setattr(Event, "elapsed_time", lambda start, end: factor * right(start, end))
    assert "the clock of cuda (events on the stream) told" in red()


# The clock ------------------------------------------------------------------------------------------------------


class Timeline:
    """A host and a device with a queue, whose times are made up: a launch costs the host 5 µs."""

    def __init__(self) -> None:
        self.host = self.device = 0.0

    def launch(self, seconds: float) -> None:
        self.host += 5e-6
        self.device = max(self.device, self.host) + seconds

    def synchronize(self) -> None:
        self.host = max(self.host, self.device) + 5e-6

    def event(self, enable_timing: bool) -> TimelineEvent:
        assert enable_timing
        return TimelineEvent(self)


class TimelineEvent(Event):
    def __init__(self, timeline: Timeline) -> None:
        super().__init__(enable_timing=True)
        self._timeline = timeline

    def record(self) -> None:
        self._timeline.launch(0)
        self._at = self._timeline.device

    def synchronize(self) -> None:
        self._timeline.host = max(self._timeline.host, self._at)
        super().synchronize()

    def elapsed_time(self, end: Event) -> float:
        # What is over need not be waited for.
        end._waited_for |= end._at <= self._timeline.host
        return super().elapsed_time(end)


def copies(timeline: Timeline, seconds: float) -> Observer:
    """Every copy is a launch of so many seconds."""
    return Observer(lambda operation: operation.name == "copy_" and timeline.launch(seconds))


@pytest.fixture
def timeline(monkeypatch) -> Timeline:
    found = Timeline()
    monkeypatch.setattr(torch.cuda, "Event", found.event)
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(time, name, lambda: found.host)
    return found


class Launching:
    """A job of launches."""

    def __init__(self, timeline: Timeline, launches: int, seconds: float) -> None:
        timeline.launch(7.0)  # its set-up, still at work when the job is timed
        self._advance = lambda: [timeline.launch(seconds) for _ in range(launches)]

    def advance(self) -> None:
        self._advance()

    def finish(self) -> torch.Tensor:
        return torch.empty(0)


def test_events_tell_the_devices_time_and_the_host_its_own(timeline):
    found = timing.took(Launching(timeline, 10, 2e-3), OnCpu())
    # From one record to the other: ten launches, each as long as it is; the host was done long before.
    assert found.seconds == pytest.approx(20e-3, rel=1e-3)
    assert found.host == pytest.approx(12 * 5e-6)
    # What waits for the host lasts as long as the host takes.
    found = timing.took(Launching(timeline, 100, 1e-6), OnCpu())
    assert found.seconds == pytest.approx(100 * 5e-6, rel=0.02)


def test_medians_and_ratios_are_of_the_devices_time(timeline):
    starts = {name: lambda n=n: Launching(timeline, n, 1e-3) for name, n in (("one", 4), ("three", 12))}
    times = timing.interleave(starts, budget=0, fewest=3, most=3, device=OnCpu())
    assert times.ratio("three", "one").median == pytest.approx(3, rel=1e-2)
    assert times.of("one").median == pytest.approx(4e-3, rel=1e-2)
    assert times.host["three"] == [pytest.approx(14 * 5e-6)] * 3


def test_the_clock_of_the_gpu_is_right(timeline):
    with copies(timeline, 1e-3):
        gate.check_clock(OnCpu())


class Microseconds(OnCpu):
    def between(self, start, end) -> float:
        return super().between(start, end) / 1e3


class Milliseconds(OnCpu):
    def between(self, start, end) -> float:
        return super().between(start, end) * 1e3


class NeverWaits(OnCpu):
    def wait(self) -> None:
        pass


class HostTime(OnCpu):
    """Looks at the host's clock and does not wait for the device."""

    def mark(self) -> float:
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        return end - start


@pytest.mark.parametrize("wrong", [Microseconds, Milliseconds, NeverWaits, HostTime])
def test_a_wrong_clock_is_refused(timeline, wrong: type[Cuda]):
    with copies(timeline, 1e-3), pytest.raises(gate.GateError, match=r"told .* s for work that took"):
        gate.check_clock(wrong())


def test_events_that_are_not_waited_for_are_an_error(timeline):
    class Hasty(OnCpu):
        def between(self, start, end) -> float:
            return start.elapsed_time(end) / 1e3

    with pytest.raises(RuntimeError, match="not ready"):
        timing.took(Launching(timeline, 10, 2e-3), Hasty())


def test_a_whole_sampling_is_counted_for_the_timed_steps():
    took = {"fastdiff cuda, graph": [8.0], "cuda": [6.0], "roofline": [3.0]}
    field = {name: replace(backend(name), whole="graph" in name) for name in ("cuda", "fastdiff cuda, graph")}
    found = measure._of_timed_steps(timing.Times(took, took), field, Workload(1, (4,), steps=3))
    assert found.seconds == found.host == took | {"fastdiff cuda, graph": [6.0]}


# Memory ---------------------------------------------------------------------------------------------------------


def test_memory_is_the_most_that_was_held_and_not_what_others_hold(monkeypatch):
    held = SimpleNamespace(now=1000, most=5000, made=11)

    def allocate(bytes_: int) -> None:
        held.now += bytes_
        held.most = max(held.most, held.now)
        held.made += bytes_ > 0

    def work(made: str) -> None:
        assert made == "set up"
        for bytes_ in (30, 40, -40, 20):
            allocate(bytes_)

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held.now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held.most)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"allocation.all.allocated": held.made})
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: setattr(held, "most", held.now))
    assert OnCpu().memory(lambda: allocate(100) or "set up", work) == (3, 100 + 70)


@needs_compiler
def test_a_size_that_the_gpu_cannot_hold_is_refused(gpu):
    gpu.replacing.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**40))
    result = run(*TINY, "--sizes", "64Mi")
    assert result.exit_code == 2
    assert "need about 10 GiB with all who are compared, and 1.0 GiB are free on cuda" in " ".join(
        result.output.split()
    )


# The audit ------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(
    ("changes", "bytes_"),
    [({}, 24), ({"s_churn": 20.0}, 24), ({"network_dtype": "bfloat16", "guidance": 1.0}, 12)],
)
def test_launches_that_pass_no_dispatcher_are_counted(gpu, changes: dict, bytes_: int):
    load = on_gpu(**changes)
    found = audit(backend("cuda"), load)
    assert (found.launches, found.bytes, found.waits) == (1, bytes_, 0)
    # The library's own counter agrees.
    job = backend("cuda").start(load, free_network(load), first_noise(load))
    before = gpu.library.launched().launches
    job.advance()
    assert gpu.library.launched().launches - before == load.evaluations


@needs_compiler
def test_a_second_launch_an_allocation_and_the_slow_way_are_counted(gpu, monkeypatch):
    load, (own, *others) = on_gpu(), registry.BACKENDS

    def clumsy(*call):
        launch = own.prepared(*call)
        return lambda given: (torch.ones(9).add_(1), launch(given))

    gpu.replacing.setattr(registry, "BACKENDS", (replace(own, prepare=clumsy), *others))
    # Its own, one that fills and one that adds.
    assert audit(replace(backend("cuda"), name="clumsy"), load).launches == 3
    gpu.replacing.setattr(registry, "BACKENDS", (own, *others))
    monkeypatch.setattr("fastdiff.runs.launcher.Launcher._is_expected", lambda *_: False)
    slow = audit(replace(backend("cuda"), name="slow"), load)
    assert (slow.launches, slow.bytes) == (1, 24)


@needs_compiler
def test_a_replay_is_not_guessed(gpu):
    found = audit(replayed("cuda"), on_gpu())
    assert (found.launches, found.bytes, found.waits) == (None, None, None)
    # Pretended: 2**14 bytes at most, of a sample of 192 elements.
    assert found.peak == 2**14 / 192


def test_copies_between_host_and_device_are_waits():
    x = torch.ones(8)
    with Counter(elements=8) as counter:
        x.to("meta")
        torch.empty(8, device="meta").copy_(x)
        torch.empty(8, device="meta").copy_(x, non_blocking=True)
        x.to(torch.float64)
    assert (counter.launches, counter.waits) == (4, 2)


# Rivals ---------------------------------------------------------------------------------------------------------


def is_there(operation: Operation) -> None:
    """Every tensor of every operation is on the GPU."""
    for tensor in tree_leaves((operation.arguments, operation.keywords, operation.made)):
        if isinstance(tensor, torch.Tensor):
            assert tensor.device.type == "cuda", f"{operation.function} on {tensor.device}"


def told(z: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
    """A network that reads all that it is given."""
    return z * c_noise.reshape(-1, 1, 1, 1).to(z.dtype)


# The reference takes minutes to trace, and diffusers' schedulers want numpy to see their tables.
PLAIN = [rival for name, rival in RIVALS.items() if name != "reference" and not name.startswith("diffusers")]


@needs_compiler
@pytest.mark.parametrize("s_churn", [0.0, 40.0])
@pytest.mark.parametrize("rival", [backend("cuda"), *PLAIN], ids=lambda rival: rival.name)
def test_a_contestant_keeps_everything_on_the_gpu(monkeypatch, rival: Contestant, s_churn: float):
    """On tensors that say they are on ``cuda`` and have no memory; what is compiled runs uncompiled."""
    load = Workload(3, (4, 4, 4), s_churn=s_churn, steps=3, device=Cuda())
    reason = rival.refusal(load)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(compiled, "_compile", lambda key, function: function)
    # There are no values: whatever is asked is so.
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: True)
    with pretended_gpu():
        job = rival.start(load, Model.of(told, {}, {}), first_noise(load))
        with Observer(is_there):
            job.advance()
        assert free_network(load).cond(None, None).device.type == "cuda"


class Nowhere(OnCpu):
    place = torch.device("meta")


@pytest.mark.parametrize("name", ["digits", "unet"])
def test_a_network_is_where_the_sampling_is(name: str):
    load = Workload(2, networks.SAMPLES[name], network=name, device=Nowhere())
    net = networks.load(load).both
    tensors = [*net.func.parameters(), *net.func.buffers(), *net.keywords.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_the_roofline_of_a_gpu_is_one_copy_on_it():
    (start,) = roofline.contestants(Workload(3, (4, 4, 4), device=Nowhere())).values()
    with Counter(elements=1) as counter:
        start().advance()
    plan = Workload(3, (4, 4, 4)).plan
    assert counter.launches == len(plan.traffic(4)[1:-1])
    # A copy reads as much as it writes.
    assert counter.bytes == sum(plan.traffic(4)[1:-1]) * 3 * 64
    assert start()._to.device.type == "meta"


def test_a_replay_is_no_yardstick():
    counts = dict.fromkeys(record.COUNTED, 1.0)
    old = {"name": "a", "backend": "cuda", "device": "cuda", "ratio": {GRAPH: 0.5, "x": 8.0}, "roofline": 0.5} | counts
    new = old | {"ratio": {GRAPH: 0.5, "x": 4.0}, "roofline": 0.25}
    (change,) = record.compare({"cases": [old]}, {"cases": [new]}, 0.1)
    assert change.speed == pytest.approx(0.5)


# Which device ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("arguments", [("--device", "cuda"), ("--backend", "triton"), ("--backend", "cuda")])
def test_without_a_gpu_it_says_why_and_what_to_do(arguments: tuple[str, ...]):
    result = run(*arguments, "--json", "a.json")
    assert result.exit_code == 2
    assert "a GPU is needed, and torch" in result.output
    assert "leave --device out" in " ".join(result.output.split())
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("cuda", "why"),
    [(None, "was built without CUDA; install"), ("13.0", "was built for 13.0 and finds none; see what")],
)
def test_the_reason_is_the_build_or_the_machine(monkeypatch, cuda: str | None, why: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    assert why in str(Cuda().refusal())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Cuda().refusal() is None


def test_the_device_is_that_of_the_backends(monkeypatch):
    assert tasks.choose_device(None, ("cpu",)) == (CPU, ("cpu",))
    assert tasks.choose_device(None, ()) == (CPU, ("cpu",))
    assert tasks.choose_device(None, ("reference",)) == (CPU, ("reference",))
    monkeypatch.setattr(Cuda, "refusal", lambda self: None)
    gpu = DEVICES["cuda"]
    assert tasks.choose_device(None, ("triton", "cuda", "triton")) == (gpu, ("triton", "cuda"))
    assert tasks.choose_device("cuda", ("reference",)) == (gpu, ("reference",))
    usable = {"cuda": "it is not built", "triton": None}
    entries = [replace(b, unavailable=lambda b=b: usable.get(b.name)) for b in registry.BACKENDS]
    monkeypatch.setattr(registry, "BACKENDS", tuple(entries))
    assert tasks.choose_device("cuda", ()) == (gpu, ("triton",))
    for name, backends in ((None, ("cpu", "cuda")), ("cuda", ("cpu",)), ("cpu", ("cuda",))):
        with pytest.raises(InputError, match=r"runs on .*, and .* is measured; one run measures one device"):
            tasks.choose_device(name, backends)
