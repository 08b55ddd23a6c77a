"""The script for the first day on a GPU, run here: every section, on a device that is pretended."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pretend_graph
import pytest
from emulated import EmulatedCuda
from pretend_graph import recorded

from fastdiff.backends import reference
from fastdiff.backends.registry import list_backends
from fastdiff.runs.tables import Tables

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
    assert {line.section for line in lines} == {*(section.__name__ for section in day_one.SECTIONS), "end"}
    assert day_one.FAILED not in statuses.values(), day_one.page(gpu, lines)
    for name in (
        "rows, emulated-cuda",
        "noise, emulated-cuda",
        "graph, cpu, emulated-cuda",
        "refusal, cpu, emulated-cuda",
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
    assert [line.status for line in lines] == [day_one.FAILED, day_one.OK]
    assert "1 of 2 lines FAILED" in day_one.page(day_one.PretendGpu(), lines)


def test_a_graph_that_replays_old_numbers_or_records_what_waits_is_a_failed_line(day_one, monkeypatch):
    monkeypatch.setattr(day_one, "SECTIONS", (day_one.graphs,))
    monkeypatch.setattr(Tables, "load", lambda tables, plan: None)
    monkeypatch.setattr(pretend_graph, "REFUSED", ())
    with recorded(EmulatedCuda()):
        lines = day_one.examine(day_one.PretendGpu())
    ok, failed = day_one.OK, day_one.FAILED
    # Two of four replays, two lines of recordings, the refusal, and the end.
    assert [line.status for line in lines] == [ok, ok, failed, failed, ok, ok, failed, ok]
    assert lines[2].text == "seed 12, plan 1, label x1.0: replay and loop DIFFER"
    assert lines[6].text == "a network that waits for the device was recorded"


def test_a_section_that_breaks_off_does_not_stop_the_others(day_one, monkeypatch):
    def bits(gpu):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(day_one, "SECTIONS", (bits, day_one.machine))
    lines = day_one.examine(day_one.PretendGpu())
    assert (lines[0].status, lines[0].text) == (day_one.FAILED, "RuntimeError: out of memory")
    assert len(lines) > len(list_backends())


def test_the_script_installs_and_hands_its_options_on():
    environment = os.environ | {"MAKE": "echo", "PYTHON": "echo"}
    command = ["bash", BENCHMARKS / "gpu_day_one.sh", "--pretend"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["install", "benchmarks/day_one.py --pretend"]


@pytest.mark.parametrize(("built", "reason"), [("13.0", "built for CUDA 13.0"), (None, "built without CUDA: install")])
def test_without_a_gpu_it_says_so(day_one, monkeypatch, capsys, built, reason):
    monkeypatch.setattr(day_one.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(day_one.torch.version, "cuda", built)
    monkeypatch.setattr(sys, "argv", ["day_one.py"])
    assert day_one.main() == 2
    said = capsys.readouterr().err
    assert "torch finds no GPU here" in said
    assert reason in said


def of_the_wrong_seed(right):
    def run(call):
        right(call if call.seeds is None else call._replace(seeds=call.seeds + 1))

    return run


@pytest.mark.parametrize(("op", "place", "case"), [("stage", 0, "rows.random_case("), ("gram", 1, "gram.random_gram(")])
def test_other_bits_are_failed_lines_and_a_failed_command(day_one, monkeypatch, capsys, op, place, case):
    library = EmulatedCuda()
    monkeypatch.setattr(library, op, of_the_wrong_seed(getattr(library, op)))
    monkeypatch.setattr(day_one, "SECTIONS", (day_one.bits,))
    with recorded(library):
        *lines, _ = day_one.examine(day_one.PretendGpu())
        line = lines.pop(place)
        assert (line.status, line.text[:11]) == (day_one.FAILED, "other bits:")
        assert f"fastdiff.testing.{case}" in line.text
        assert [other.status for other in lines] == [day_one.OK]
        assert day_one.run_rows(day_one.PretendGpu(), 20) == 1
    assert "emulated-cuda: 20 rows and grams, WRONG" in capsys.readouterr().out


def test_checkers_that_are_missing_report_or_hang(day_one, monkeypatch):
    """The reason is named, and the next checker has its turn."""
    gpu = day_one.PretendGpu()
    monkeypatch.setattr(day_one, "SANITIZERS", ("memcheck", "racecheck"))
    monkeypatch.setattr(gpu, "sanitizer", lambda: shutil.which("false"))
    assert [status for _, status, _ in day_one.sanitizer(gpu)] == [day_one.FAILED] * 2
    monkeypatch.setattr(gpu, "sanitizer_seconds", 0.01)
    monkeypatch.setattr(gpu, "sanitizer", lambda: shutil.which("env"))
    found = list(day_one.sanitizer(gpu))
    assert [status for _, status, _ in found] == [day_one.SKIPPED] * 2
    assert all("did not end within 0.01 s; run it by itself" in text for _, _, text in found)
    monkeypatch.setattr(gpu, "sanitizer", lambda: None)
    ((_, status, text),) = day_one.sanitizer(gpu)
    assert (status, text[:26]) == (day_one.SKIPPED, "it is neither in PATH nor ")


def test_the_command_writes_its_page_and_fails_with_it(day_one, monkeypatch, tmp_path, capsys):
    page = tmp_path / "new" / "page.md"

    def broken(gpu):
        yield "something", day_one.FAILED, "for a reason"

    for sections, status in (((day_one.machine,), 0), ((day_one.machine, broken), 1)):
        monkeypatch.setattr(day_one, "SECTIONS", sections)
        monkeypatch.setattr(sys, "argv", ["day_one.py", "--pretend", "--out", str(page)])
        assert day_one.main() == status
        assert page.read_text() in capsys.readouterr().out
    assert "| broken | something | FAILED | for a reason |" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["day_one.py", "--pretend", "--rows", "3"])
    assert day_one.main() == 0
    assert capsys.readouterr().out == "emulated-cuda: 3 rows and grams, right\n"


def test_what_only_a_gpu_runs_is_little(day_one):
    """Everything else is run above: how devices are found, described, recorded, timed, and checked."""
    ours = {name for name in vars(day_one.Gpu) if callable(getattr(day_one.Gpu, name))}
    assert ours == {"describe", "devices", "capture", "seconds", "sanitizer"}
    assert ours <= set(vars(day_one.PretendGpu))
    tool = day_one.Gpu().sanitizer()
    assert tool is None or Path(tool).is_file()
