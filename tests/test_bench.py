"""The benchmark harness: that it counts right, refuses figures for wrong code, and says so when code gets slower."""

from __future__ import annotations

import csv
import html.parser
import importlib.util
import io
import json
import math
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from fastdiff.backends import cpu, reference, registry
from fastdiff.cli import Commands
from fastdiff.errors import BackendError, NetworkError
from fastdiff.lab.bench import chart, command, gate, measure, networks, noise, record, table, tasks, timing, workload
from fastdiff.lab.bench.audit import audit
from fastdiff.lab.bench.contestant import Contestant, Steps, backend
from fastdiff.lab.bench.rivals import RIVALS
from fastdiff.lab.bench.rivals.eager import textbook_start, textbook_states
from fastdiff.lab.bench.workload import Workload, first_noise, format_size, free_network, parse_size, sample_shape
from fastdiff.runs import loop as hostloop
from fastdiff.testing.observe import Counter

ROOT = Path(__file__).parents[1]
SMALL = Workload(batch=3, sample=(4, 4, 4), steps=3)
TINY = ("--sizes", "256", "--batch", "4", "--budget", "0", "--churn", "off")
BACKEND = "reference" if cpu.host() is None else "cpu"
needs_cpu = pytest.mark.skipif(cpu.host() is None, reason="the C++ backend was not built")

main = Commands(name="fastdiff")
main.add_command(command.bench)


@pytest.fixture(autouse=True)
def _without_extras(monkeypatch):
    """Cases of one size only, few random rows: these tests look at the harness, not at figures."""
    monkeypatch.setattr(command, "extra_tasks", lambda *_, **__: [])
    monkeypatch.setattr(gate, "RANDOM_CASES", 20)
    monkeypatch.setattr(noise, "FILLED", 2**12)
    monkeypatch.setattr(workload, "MOST_STEPS", 3)
    workload._kept_plan.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", "--backend", BACKEND, *arguments], catch_exceptions=False)


def measured(*arguments: str) -> dict:
    """A run that must succeed, and what it wrote."""
    result = run(*TINY, "--json", "found.json", "--force", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(Path("found.json").read_text())


# Contestants ----------------------------------------------------------------------------------------------------

EAGER = [rival for rival in RIVALS.values() if rival.eager and rival.name != "reference"]
WORKLOADS = [
    SMALL,
    replace(SMALL, s_churn=20.0),
    replace(SMALL, guidance=1.0, network_dtype="bfloat16"),
    replace(SMALL, solver="euler", s_churn=20.0),
    replace(SMALL, prediction="epsilon"),
    replace(SMALL, prediction="epsilon", solver="euler"),
    replace(SMALL, dtype="float64", network_dtype="float64", solver="midpoint"),
]


PAIRS = [(rival, load) for rival in EAGER for load in WORKLOADS if rival.refusal(load) is None]


@pytest.mark.parametrize(("rival", "load"), PAIRS, ids=lambda value: value.name)
def test_a_rival_computes_what_the_textbook_does(rival: Contestant, load: Workload):
    gate.check_rival(rival, load, free_network(load), first_noise(load))


def test_every_rival_runs_something_or_is_not_installed():
    run_something = {rival.name for rival, _ in PAIRS}
    for rival in EAGER:
        reasons = " ".join(filter(None, (rival.refusal(load) for load in WORKLOADS)))
        assert rival.name in run_something or "is not installed" in reasons


@pytest.mark.night
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", ["rows-compiled", "textbook-compiled"])
@pytest.mark.parametrize("load", WORKLOADS, ids=lambda load: load.name)
def test_a_compiled_rival_computes_what_the_textbook_does(name: str, load: Workload):
    reason = RIVALS[name].refusal(load)
    if reason is not None:
        pytest.skip(reason)
    gate.check_rival(RIVALS[name], load, free_network(load), first_noise(load))
    measure.forget()


def test_a_rival_that_leaves_work_out_is_refused():
    lazy = Contestant("lazy", "skips every other step", lambda *given: Steps(every_other(*given), 1))

    def every_other(load, model, noise):
        x, sigmas = noise * load.sigmas[0], load.sigmas
        for sigma, after in list(pairwise(sigmas))[::2]:
            x = x + (after - sigma) * model.cond(x, x)
            yield x

    with pytest.raises(gate.GateError, match=r"rival lazy ends .* away from the textbook"):
        gate.check_rival(lazy, SMALL, free_network(SMALL), first_noise(SMALL))


def test_the_timed_steps_and_the_rest_make_a_whole_run():
    model, unit_noise = free_network(SMALL), first_noise(SMALL)
    job = RIVALS["textbook"].start(SMALL, model, unit_noise)
    job.advance()
    *_, last = textbook_states(SMALL, model, unit_noise)
    assert torch.equal(job.finish(), last)
    job = backend(BACKEND).start(SMALL, model, unit_noise)
    job.advance()
    assert job.run.index == SMALL.evaluations
    job.finish()
    assert len(job.run) == SMALL.evaluations + 1


# Audit ----------------------------------------------------------------------------------------------------------


def test_the_counter_counts_known_operations():
    x, y = torch.ones(8, 4), torch.ones(8, 4)
    scalar = torch.ones(())
    with Counter(elements=32) as counter:
        z = x + y  # a launch: reads two, writes one
        z.view(4, 8).t()  # views
        torch.empty_like(x)  # an allocation
        z.add_(x)  # a launch: reads two, writes one
        z.copy_(y)  # a launch: reads one, writes one
        scalar * 2  # a launch, nothing of state size
        scalar.item()  # a wait
    assert (counter.launches, counter.waits, counter.stages) == (4, 1, 0)
    assert counter.bytes == 32 * 4 * (3 + 3 + 2)


@needs_cpu
@pytest.mark.parametrize(
    ("changes", "bytes_"),
    [
        ({}, 24),
        ({"s_churn": 20.0}, 24),
        ({"network_dtype": "bfloat16"}, 16),
        ({"network_dtype": "bfloat16", "guidance": 1.0}, 12),
    ],
)
def test_fastdiff_launches_once_and_moves_the_least(changes: dict, bytes_: int):
    found = audit(backend("cpu"), replace(SMALL, **changes))
    assert (found.launches, found.bytes, found.waits, found.allocations) == (1, bytes_, 0, 0)


def test_eager_rivals_launch_and_allocate_much_more():
    found = audit(RIVALS["k-diffusion-ops"], replace(SMALL, s_churn=20.0))
    assert found.launches > 25
    assert found.bytes > 150
    assert found.waits > 1
    assert found.allocations > 25


def test_memory_is_what_the_allocator_says():
    def start(load, model, noise):
        held = []

        def states():
            held.append(torch.empty(load.elements, dtype=torch.float32))
            yield held[-1]
            held.clear()
            held.append(torch.empty(3 * load.elements, dtype=torch.float32))
            yield held[-1]
            yield held[-1]

        return Steps(states(), 2)

    load = replace(SMALL, solver="euler", steps=2, sample=(4, 8, 8))
    found = audit(Contestant("hoarder", "holds on to 12 bytes an element", start, eager=False), load)
    assert found.peak == 12


# The gate and what it must catch --------------------------------------------------------------------------------


def test_the_gate_is_green_on_what_is_right():
    passed = gate.check(BACKEND, WORKLOADS, cases=20)
    assert passed.trajectories == len(WORKLOADS)
    assert 0 < passed.worst <= gate.TRAJECTORY


def red(*arguments: str) -> str:
    """A run that must be refused without a figure; its message."""
    result = run(*TINY, "--rivals", "none", "--json", "refused.json", *arguments)
    assert result.exit_code == 1, result.output
    assert "gate red" in result.output
    assert "µs" not in result.output
    assert not Path("refused.json").exists()
    return result.output


def test_a_planted_wrong_coefficient_is_refused(folder, monkeypatch):
    right = workload.plan

    def wrong(*arguments, **settings):
        plan = right(*arguments, **settings)
        row = plan.rows[2]
        output = row.outputs[0]
        (name, c), *rest = output.terms
        bent = replace(output, terms=((name, c * (1 + 1e-10)), *rest))
        return replace(plan, rows=(*plan.rows[:2], replace(row, outputs=(bent, *row.outputs[1:])), *plan.rows[3:]))

    monkeypatch.setattr(workload, "plan", wrong)
    assert "away from the textbook" in red()


def plant(monkeypatch, stage) -> None:
    """Put another ``stage`` behind the backend, and keep the C++ loop out of the way."""
    entries = [replace(b, stage=stage) if b.name == BACKEND else b for b in registry.BACKENDS]
    if BACKEND == "reference":
        pytest.skip("the gate compares a backend with the reference; there is no other backend here")
    monkeypatch.setattr(registry, "BACKENDS", tuple(entries))
    monkeypatch.setattr(hostloop, "bind", lambda *_, **__: None)


def test_one_ulp_is_refused(folder, monkeypatch):
    def off_by_one(call):
        reference.stage(call)
        for out in call.written:
            if out.numel() and out.dtype in (torch.float32, torch.float64):
                flat = out.as_strided((1,), (1,))
                flat.copy_(torch.nextafter(flat, torch.full_like(flat, math.inf)))

    plant(monkeypatch, off_by_one)
    assert "differs from the reference in" in red()


def test_a_swapped_counter_is_refused(folder, monkeypatch):
    def swapped(call):
        other = None if call.draws is None else call.draws[..., [0, 1, 3, 2]]
        reference.stage(call._replace(draws=other))

    plant(monkeypatch, swapped)
    assert "differs from the reference in" in red()


def test_skipped_work_is_refused(folder, monkeypatch):
    plant(monkeypatch, lambda *_: None)
    assert "differs from the reference in" in red()


class Slowed:
    """A C++ loop with something planted before every step."""

    def __init__(self, loop, before) -> None:
        self._loop, self._before = loop, before

    def step(self, *outputs):
        return self._before(self._loop) or self._loop.step(*outputs)

    def start(self):
        self._loop.start()

    @property
    def index(self):
        return self._loop.index

    @index.setter
    def index(self, value):
        self._loop.index = value


@needs_cpu
def test_work_skipped_at_the_timed_size_only_is_refused(folder, monkeypatch):
    bind = hostloop.bind

    def skipping(plan, tables, buffers, z, seeds, batch):
        loop = bind(plan, tables, buffers, z, seeds, batch)
        return Slowed(loop, lambda loop: True) if batch == 4 else loop

    monkeypatch.setattr(hostloop, "bind", skipping)
    assert "did not compute sample" in red()


@needs_cpu
def test_a_fake_slow_down_is_reported(folder, monkeypatch):
    measured("--rivals", "textbook")
    Path("found.json").rename("before.json")
    assert run(*TINY, "--rivals", "textbook", "--compare", "before.json", "--tolerance", "0.9").exit_code == 0
    bind = hostloop.bind

    def busy(loop) -> bool:
        end = time.thread_time() + 5e-3
        while time.thread_time() < end:
            pass
        return False

    monkeypatch.setattr(hostloop, "bind", lambda *given, **named: Slowed(bind(*given, **named), busy))
    result = run(*TINY, "--rivals", "textbook", "--compare", "before.json", "--tolerance", "0.9")
    assert result.exit_code == 1
    assert "REGRESSION" in result.output


def case_like(**changes) -> dict:
    counts = dict.fromkeys(record.COUNTED, 1.0)
    return {"name": "a", "backend": "cpu", "ratio": {"x": 10.0, "y": 20.0}, "roofline": 0.5} | counts | changes


def test_speed_is_judged_by_what_ran_beside_it():
    old = {"cases": [case_like()]}
    (same,) = record.compare(old, {"cases": [case_like()]}, 0.1)
    assert (same.speed, same.regressed) == (1.0, False)
    (half,) = record.compare(old, {"cases": [case_like(ratio={"x": 5.0, "y": 10.0}, roofline=0.25)]}, 0.1)
    assert half.speed == pytest.approx(0.5)
    assert half.regressed
    (faster,) = record.compare(old, {"cases": [case_like(ratio={"x": 40.0}, roofline=0.5)]}, 0.1)
    assert faster.speed == pytest.approx(2)
    (leaky,) = record.compare(old, {"cases": [case_like(allocations_per_nfe=2.0)]}, 0.1)
    assert leaky.regressed
    assert leaky.counts == {"allocations_per_nfe": (1.0, 2.0)}
    assert record.compare(old, {"cases": [case_like(name="b")]}, 0.1) == []


def test_records_without_a_case_in_common_are_refused_before_measuring(folder, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("something was measured"))
    Path("old.json").write_text(json.dumps({"fastdiff_bench": record.FORMAT, "cases": [case_like()]}))
    result = run(*TINY, "--compare", "old.json", "--json", "new.json")
    assert result.exit_code == 2
    assert f"no case in common: a (cpu) before, heun edm guidance 2 float32 4x4x4x4 ({BACKEND}) now" in result.output
    assert not Path("new.json").exists()


# Timing ---------------------------------------------------------------------------------------------------------


class Spin:
    """A job of so many seconds of thread time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def advance(self) -> None:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass

    def finish(self) -> torch.Tensor:
        return torch.empty(0)


def test_ratios_are_those_of_the_work():
    starts = {"one": lambda: Spin(2e-3), "three": lambda: Spin(6e-3)}
    times = timing.interleave(starts, budget=0, fewest=5, most=5)
    ratio = times.ratio("three", "one")
    # A spin overshoots by one reading of the clock, about a microsecond of two thousand.
    assert ratio.low <= ratio.median <= ratio.high
    assert 2.5 < ratio.median < 3.5
    assert len(times.seconds["one"]) == 5


def test_sleep_is_not_counted():
    class Sleep(Spin):
        def advance(self) -> None:
            time.sleep(0.02)

    assert timing.took(Sleep(0)).seconds < 0.01


def test_slopes_of_known_growth():
    def case(n: int) -> dict:
        settings = {"solver": "heun", "s_churn": 0, "prediction": "edm", "guidance": 2.0, "network": "none"}
        rival = {"us_per_step": 5.0 * n**0.5}
        types = {"dtype": "float32", "network_dtype": "float32", "backend": "cpu"}
        return {"elements": n, "us_per_step": 2.0 * n, "rivals": {"x": rival}, **settings, **types}

    (found,) = record.slopes([case(n) for n in (64, 1024, 4096)]).values()
    assert found == {"fastdiff cpu": pytest.approx(1), "x": pytest.approx(0.5)}


# Reports --------------------------------------------------------------------------------------------------------


def test_a_record_says_everything(folder):
    found = measured("--rivals", "textbook,reference", "--churn", "both")
    assert [case["elements"] for case in found["cases"]] == [256, 256]
    assert found["partial"] is False
    assert "bit-identical to the reference" in found["gate"]
    case = found["cases"][1]
    wanted = {"name", "elements", "dtype", "backend", "ratio", "roofline", "launches_per_nfe", "bytes_per_element"}
    assert wanted | {"syncs_per_nfe", "host_us_per_step", "peak_bytes_per_element", "first_call_ms"} <= case.keys()
    assert case["ratio"].keys() == {"textbook", "reference"} - {BACKEND}
    assert case["s_churn"] > 0
    assert all(value > 0 for value in (*case["ratio"].values(), case["roofline"], case["us_per_step"]))
    assert {"torch.randn", "numpy ziggurat"} < found["normals_per_s"].keys()
    assert found["machine"]["allocator"]


def test_every_format_can_be_read(folder):
    pytest.importorskip("matplotlib", reason="plots need it")
    files = ("--csv", "t.csv", "--png", "t.png", "--html", "t.html")
    result = run(*TINY, "--rivals", "textbook", *files)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= table.WIDTH
    lines = list(csv.DictReader(io.StringIO(Path("t.csv").read_text())))
    assert [line["contestant"] for line in lines] == [f"fastdiff {BACKEND}", "textbook"]
    assert float(lines[1]["ratio"]) > 0
    assert Image.open("t.png").size[0] > 1000
    page = Page()
    page.feed(Path("t.html").read_text())
    page.close()
    assert page.open == []
    assert page.loaded == ["data:image/png;base64"]
    assert not re.search(r"url\(|@import|https?:|<script", Path("t.html").read_text())
    assert {"textbook", "launches", "Growth"} <= set(page.words)


class Page(html.parser.HTMLParser):
    """Which elements are left open, what is loaded, and the words of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.loaded += [value.split(",")[0] for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data.split()


def test_figures_that_are_not_known_are_dashes():
    row = {"launches_per_nfe": None, "bytes_per_element": 24.0, "syncs_per_nfe": 0.0, "peak_bytes_per_element": 12.02}
    assert table.counts(row) == ["–", "24", "0", "12"]


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.05882, "0.05882"), (12.345, "12.35"), (36870.4, "36,870")])
def test_figures_of_the_page_have_no_exponent(value: float | None, text: str):
    assert chart._figure(value) == text


@pytest.mark.parametrize(("value", "text"), [(1, "1"), (0.0123, "0.0123"), (12.34, "12.3"), (1234.5, "1234")])
def test_short_numbers(value: float, text: str):
    assert table.short(value) == text


# Networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "unet"])
def test_a_real_network_has_a_share_of_the_time(folder, name: str):
    chosen = ("--network", name, "--batch", "1", "--rivals", "textbook", "--budget", "0", "--churn", "off")
    result = run(*chosen, "--json", "n.json")
    assert result.exit_code == 0, result.output
    (case,) = json.loads(Path("n.json").read_text())["cases"]
    assert 0.2 < case["network_share"] < 1
    assert case["rivals"]["textbook"]["network_share"] < 1
    assert "end to end" in result.output


def test_an_own_network_is_called(folder):
    Path("mine.py").write_text("calls = []\ndef net(z, c_noise):\n    calls.append(z.shape)\n    return 0.5 * z\n")
    result = run("--network", "mine:net", "--shape", "2,4,4", "--batch", "2", "--rivals", "none", "--budget", "0")
    assert result.exit_code == 0, result.output
    import mine

    assert torch.Size([4, 2, 4, 4]) in mine.calls


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("raise RuntimeError('no weights')", NetworkError, "failed on z .*RuntimeError: no weights"),
        ("return z[:1]", NetworkError, r"returned torch.float32 \[1, 2, 4, 4\] for torch.float32 z \[2, 2, 4, 4\]"),
        ("return z.double()", NetworkError, r"returned torch.float64 .* must return the shape and the dtype of z"),
        ("return None", NetworkError, "returned NoneType"),
        ("return z", NetworkError, "writes into its input or returns it"),
        ("return z.mul_(2) + 1", NetworkError, "writes into its input or returns it"),
        ("import torch; return torch.randn_like(z)", NetworkError, "two results for one input"),
    ],
)
def test_an_own_network_that_fails_is_named(folder, body: str, error: type, message: str):
    name = f"broken{abs(hash(body)) % 10**8}"
    Path(f"{name}.py").write_text(f"def net(z, c_noise):\n    {body}\n")
    with pytest.raises(error, match=message):
        networks.load(replace(SMALL, sample=(2, 4, 4), network=f"{name}:net"))
    result = run("--network", f"{name}:net", "--shape", "2,4,4")
    assert result.exit_code == 1
    assert "Traceback" not in result.output


def test_an_own_network_that_fails_late_is_named(folder):
    Path("late.py").write_text("calls = []\ndef net(z, c):\n    calls.append(1)\n    return 2 * z[: 9 - len(calls)]\n")
    result = run("--network", "late:net", "--shape", "2,4,4", "--batch", "2", "--json", "late.json")
    assert result.exit_code == 1
    assert "'late:net' returned torch.float32 [3, 2, 4, 4]" in result.output
    assert not Path("late.json").exists()


@pytest.mark.parametrize("name", ["nothing", "no_such_module_here:net", "math:no_such", "math:pi", ":net"])
def test_a_network_that_is_not_there(folder, name: str):
    result = run("--network", name)
    assert result.exit_code == 2
    assert "network" in result.output


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "abacus"), "abacus"),
        (("--solver", "rk45"), "rk45"),
        (("--sizes", "4Q"), "4Q"),
        (("--sizes", "0"), "'0'"),
        (("--sizes", "1000", "--batch", "3"), "divided into a batch of 3"),
        (("--sizes", "64Ki", "--shape", "4,4"), "--sizes goes with"),
        (("--shape", "4,x"), "4,x"),
        (("--network", "digits", "--shape", "3,8,8"), "(1, 8, 8)"),
        (("--sizes", "900000Gi"), "GiB are free"),
        (("--rivals", "textbook,nobody"), "'nobody' is not known"),
        (("--network-dtype", "float64"), "--dtype float64"),
        (("--json", "no/such/folder/a.json"), "there is no folder"),
        (("--json", "a.txt"), "must end in .json"),
        (("--compare", "missing.json"), "does not exist"),
        (("--guidance", "nan"), "finite"),
    ],
)
def test_bad_input_is_one_message(folder, arguments: tuple[str, ...], message: str):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert list(folder.iterdir()) == []


NO_RECORDS = [
    b"",
    b"{}",
    b"[1]",
    b"not json",
    b"\xbd\x00",
    b'{"fastdiff_bench": 99, "cases": []}',
    b'{"fastdiff_bench": 1, "cases": [{"name": "a"}]}',
    *(
        json.dumps({"fastdiff_bench": 1, "cases": [case_like(**changes)]}).encode()
        for changes in ({"name": 3}, {"ratio": 2.0}, {"ratio": {"x": 0}}, {"roofline": "x"}, {"syncs_per_nfe": "0"})
    ),
]


@pytest.mark.parametrize("text", NO_RECORDS)
def test_a_record_that_is_none_is_refused(folder, text: bytes):
    Path("old.json").write_bytes(text)
    result = run(*TINY, "--compare", "old.json")
    assert result.exit_code == 2
    assert "old.json is" in result.output


def test_an_existing_file_is_kept(folder):
    Path("a.json").write_text("mine")
    result = run(*TINY, "--json", "a.json")
    assert result.exit_code == 2
    assert "--force" in result.output
    assert Path("a.json").read_text() == "mine"


def test_plots_without_matplotlib(folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name))
    result = run(*TINY, "--png", "a.png")
    assert result.exit_code == 2
    assert "matplotlib" in result.output


def test_an_interruption_keeps_what_is_done(folder, monkeypatch):
    original = measure.measure
    calls = []

    def interrupted(*given, **named):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(command, "measure", interrupted)
    arguments = ("--sizes", "256,512", "--budget", "0", "--churn", "off", "--rivals", "none", "--json", "part.json")
    result = run(*arguments)
    assert result.exit_code == 130
    assert "interrupted; these are partial results: 1 of 2 cases" in result.output
    found = json.loads(Path("part.json").read_text())
    assert found["partial"] is True
    assert [case["elements"] for case in found["cases"]] == [256]
    calls[:] = [None]
    result = run(*arguments, "--force")
    assert result.exit_code == 130
    assert "nothing was measured" in result.output


@pytest.mark.parametrize("after", [0, 1])
def test_ctrl_c_at_a_terminal(folder, after: int):
    """A real signal, in the gate and in the second case; what is done is kept and marked, and nothing else is left."""
    script = (
        "import os, signal\n"
        "from fastdiff.lab.bench import chart, command, gate, workload\n"
        "gate.RANDOM_CASES = 5\n"
        "workload.MOST_STEPS = 3\n"
        "calls = []\n"
        "def signalled(original):\n"
        "    def call(*given, **named):\n"
        "        calls.append(1)\n"
        f"        if len(calls) > {2 * after}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        return original(*given, **named)\n"
        "    return call\n"
        "gate.check = signalled(gate.check)\n"
        "command.measure = signalled(command.measure)\n"
        "from fastdiff.cli import main\n"
        f"main(['bench', '--backend', '{BACKEND}', '--shape', '4,4,4', '--budget', '0', '--rivals', 'none',\n"
        "      '--json', 'a.json', '--csv', 'a.csv'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130, done.stderr
    if after == 0:
        assert done.stderr == "interrupted; nothing was measured\n"
        assert list(folder.iterdir()) == []
        return
    assert done.stderr == "interrupted; these are partial results: 1 of 2 cases\n"
    assert {path.name for path in folder.iterdir()} == {"a.json", "a.csv"}
    assert json.loads((folder / "a.json").read_text())["partial"] is True
    assert (folder / "a.csv").read_text().splitlines()[1].endswith(",True")


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    absent = [replace(b, unavailable=lambda: "it is not built") if b.name == BACKEND else b for b in registry.BACKENDS]
    monkeypatch.setattr(registry, "BACKENDS", tuple(absent))
    result = run(*TINY)
    assert result.exit_code == 1
    assert "it is not built" in result.output
    assert issubclass(gate.GateError, BackendError)


# Sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "elements"), [("4096", 4096), ("4Ki", 4096), ("1mi", 2**20), ("2M", 2_000_000)])
def test_sizes(text: str, elements: int):
    assert parse_size(text) == elements
    assert parse_size(format_size(elements)) == elements


def test_sizes_are_dealt_into_samples():
    assert sample_shape(4096, None) == (1, (4, 32, 32))
    assert sample_shape(2**20, None) == (256, (4, 32, 32))
    assert sample_shape(6, 2) == (2, (3,))
    assert sample_shape(100, None) == (1, (4, 5, 5))


def test_quick_leaves_rivals_out_at_large_sizes():
    chosen = [sample_shape(n, None) for n in command.QUICK_SIZES]
    found = list(tasks.tasks(SMALL, chosen, (0.0,), ("textbook",), quick=True))
    assert [bool(task.rivals) for task in found] == [True, True, False]


def test_diffusers_and_networks_get_cases_of_their_own():
    found = list(tasks.extra_tasks(SMALL, [(1, (4, 8, 8))], tuple(RIVALS), quick=False))
    assert {task.workload.network for task in found} >= {"digits", "unet"}
    scheduled = [task for task in found if task.workload.prediction == "epsilon"]
    assert len(scheduled) == (importlib.util.find_spec("diffusers") is not None)


# The README -----------------------------------------------------------------------------------------------------


def update_readme():
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "benchmarks" / "update_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_what_the_record_says():
    script = update_readme()
    text = script.README.read_text(encoding="utf-8")
    assert script.replaced(text, script.block(record.read(script.FIGURES))) == text, f"run {script.UPDATE}"
    block = text[text.index(script.BEGIN) : text.index(script.END)]
    assert "Made by `fastdiff bench" in block
    assert f"`{script.UPDATE}`" in block


def test_the_script_changes_its_block_only(folder, monkeypatch):
    found = measured("--rivals", "textbook", "--churn", "both")
    script = update_readme()
    Path("R.md").write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["update_readme.py", "--record", "found.json", "--readme", "R.md"])
    assert script.main() == 0
    text = Path("R.md").read_text()
    assert text.startswith(f"before\n{script.BEGIN}\nMade by `")
    assert text.endswith(f"\n{script.END}\nafter\n")
    assert "old" not in text
    assert table.short(found["cases"][0]["ratio"]["textbook"]) in text
    Path("R.md").write_text("no marks")
    assert script.main() == 1
    assert Path("R.md").read_text() == "no marks"
    with pytest.raises(ValueError, match="interrupted"):
        script.block(found | {"partial": True})


def test_rounding_cannot_explain_a_wrong_rival():
    """The allowance of check_rival must be far below the effect of a wrong step."""
    bent = Contestant(
        "bent", "churn left out", lambda load, model, noise: textbook_start(replace(load, s_churn=0.0), model, noise)
    )
    load = replace(SMALL, s_churn=20.0)
    with pytest.raises(gate.GateError, match="rival bent"):
        gate.check_rival(bent, load, free_network(load), first_noise(load))


def test_help_fits_a_terminal():
    result = CliRunner().invoke(main, ["bench", "--help"], terminal_width=80, catch_exceptions=False)
    assert max(map(len, result.output.splitlines())) <= 80
    assert isinstance(command.bench, click.Command)
