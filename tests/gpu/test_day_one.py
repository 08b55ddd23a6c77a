"""The script for the first day on a GPU, run here: every section, on a device that is pretended."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pretend_graph
import pytest
from emulated import EmulatedCuda
from pretend_graph import recorded

import fastdiff
from fastdiff.backends import reference
from fastdiff.tables import Tables

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def day_one(monkeypatch):
    specification = importlib.util.spec_from_file_location("day_one", BENCHMARKS / "day_one.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "day_one", module)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module.PretendGpu, "cases_seconds", 0.5)
    monkeypatch.setattr(module, "SANITIZERS", ("memcheck",))
    return module


def test_every_section_runs_and_the_page_says_that_it_is_pretended(day_one):
    gpu = day_one.PretendGpu()
    with recorded(EmulatedCuda()):
        lines = day_one.examine(gpu)
    statuses = {(line.section, line.name): line.status for line in lines}
    assert {line.section for line in lines} == {section.__name__ for section in day_one.SECTIONS}
    assert day_one.FAILED not in statuses.values(), day_one.page(gpu, lines)
    for name in (
        "rows, emulated-cuda",
        "noise, emulated-cuda",
        "graph, emulated-cuda",
        "refusal, emulated-cuda",
        "memcheck",
    ):
        assert day_one.OK in [status for (_, found), status in statuses.items() if found == name]
    # What cannot run here is named, with the reason.
    skipped = [line for line in lines if line.status == day_one.SKIPPED]
    assert {line.name for line in skipped} <= {"backend cuda", "backend triton"}
    assert all(line.text for line in skipped)
    assert "PRETENDED" in day_one.page(gpu, lines)


def test_other_bits_are_failed_lines(day_one, monkeypatch):
    def wrong(out, seeds, draws):
        reference.fill_noise(out, seeds + 1, draws)

    library = EmulatedCuda()
    monkeypatch.setattr(library, "fill_noise", wrong)
    monkeypatch.setattr(day_one, "SECTIONS", (day_one.noise,))
    with recorded(library):
        lines = day_one.examine(day_one.PretendGpu())
    assert [line.status for line in lines] == [day_one.FAILED]
    assert "1 lines FAILED" in day_one.page(day_one.PretendGpu(), lines)


def test_a_graph_that_replays_old_numbers_or_records_what_waits_is_a_failed_line(day_one, monkeypatch):
    monkeypatch.setattr(day_one, "SECTIONS", (day_one.graphs,))
    monkeypatch.setattr(Tables, "load", lambda tables, plan: None)
    monkeypatch.setattr(pretend_graph, "WAITS", ())
    with recorded(EmulatedCuda()):
        lines = day_one.examine(day_one.PretendGpu())
    assert [line.status for line in lines] == [day_one.OK] * 2 + [day_one.FAILED] * 3
    assert lines[2].text == "seed 12, plan 1, label x1.0: replay and loop DIFFER"
    assert lines[4].text == "a network that waits for the device was recorded"


def test_a_section_that_breaks_off_does_not_stop_the_others(day_one, monkeypatch):
    def bits(gpu):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(day_one, "SECTIONS", (bits, day_one.machine))
    lines = day_one.examine(day_one.PretendGpu())
    assert (lines[0].status, lines[0].text) == (day_one.FAILED, "RuntimeError: out of memory")
    assert len(lines) > len(fastdiff.list_backends())


def test_the_script_installs_and_hands_its_options_on():
    environment = os.environ | {"MAKE": "echo", "PYTHON": "echo"}
    command = ["bash", BENCHMARKS / "gpu_day_one.sh", "--pretend"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["install", "benchmarks/day_one.py --pretend"]


def test_without_a_gpu_it_says_so(day_one, monkeypatch, capsys):
    monkeypatch.setattr(day_one.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["day_one.py"])
    assert day_one.main() == 2
    assert "torch finds no GPU here; --pretend" in capsys.readouterr().err
