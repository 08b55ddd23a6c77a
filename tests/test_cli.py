"""The command line: what it draws, what it refuses, and that nothing is half-written."""

import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from PIL import Image

import fastdiff
from fastdiff import ops
from fastdiff.app import comparison, demo, doctor, io, options, picture
from fastdiff.app import digits_job as job
from fastdiff.backends import reference, registry
from fastdiff.backends.registry import list_backends
from fastdiff.cli import main
from fastdiff.errors import InputError
from fastdiff.maths.prediction import edm
from fastdiff.rows.row import Row, Terms
from fastdiff.testing import textbook
from fastdiff.testing.observe import Counter
from fastdiff.testing.rows import same_bits

QUICK = ("--steps", "3")
ISOLATED = {"catch_exceptions": False}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks run faster on one thread, much faster on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    """A command in this process; anything but an exit is an error of the test."""
    return CliRunner().invoke(main, arguments, **ISOLATED)


def done(*arguments: str) -> str:
    """A command that must succeed; its output."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from fastdiff.cli import main; main(prog_name='fastdiff')", *arguments]


# What is drawn ---------------------------------------------------------------------------------------------------


def test_samples_are_written_with_everything_that_determines_them(folder: Path):
    done("sample", *QUICK, "--seeds", "0-3,17", "--class", "1,4", "--out", "set.safetensors")
    samples, facts = io.read_samples(folder / "set.safetensors")
    assert samples.shape == (5, 1, 8, 8)
    assert samples.dtype == torch.float32
    assert torch.isfinite(samples).all()
    assert (facts["seeds"], facts["classes"], facts["noise_format"]) == ("0-3,17", "1,4", "1")
    assert facts["fastdiff_version"] == fastdiff.__version__
    assert (
        facts["plan_sha256"]
        == fastdiff.plan(schedule="edm", prediction=edm(sigma_data()), steps=3, guidance=2.0).sha256
    )
    assert os.listdir(folder) == ["set.safetensors"]


def sigma_data() -> float:
    return job.Network.load(None, torch.float32).sigma_data


def test_a_sample_depends_on_its_seed_alone(folder: Path):
    done("sample", *QUICK, "--seeds", "0-6", "--batch", "4", "--exact", "--out", "all.safetensors")
    done("sample", *QUICK, "--seeds", "5,2", "--exact", "--out", "some.safetensors")
    everything, some = (io.read_samples(folder / name).samples for name in ("all.safetensors", "some.safetensors"))
    assert same_bits(some, everything[[5, 2]])


def test_exact_files_do_not_depend_on_batch_or_backend(folder: Path):
    common = ("sample", *QUICK, "--seeds", "0-4", "--s-churn", "2", "--exact")
    done(*common, "--out", "a.safetensors")
    done(*common, "--out", "b.safetensors", "--batch", "2")
    done(*common, "--out", "c.safetensors", "--backend", "reference")
    a, b, c = (Path(f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a == c


def test_without_exact_the_backend_changes_no_bit(folder: Path):
    for backend in ("auto", "reference"):
        done("sample", *QUICK, "--seeds", "0-4", "--backend", backend, "--out", f"{backend}.safetensors")
    assert Path("auto.safetensors").read_bytes() == Path("reference.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        ("--class", "3"),
        ("--guidance", "1"),
        ("--guidance", "0"),
        ("--interval", "0.01,1"),
        ("--solver", "euler"),
        ("--schedule", "vp"),
        ("--s-churn", "1"),
        ("--clip", "0.5"),
        ("--network-dtype", "bfloat16"),
        ("--dtype", "float64"),
        ("--dtype", "float64", "--network-dtype", "float64"),
    ],
)
def test_every_setting_reaches_the_samples(folder: Path, changed: tuple[str, ...]):
    common = ("sample", "--steps", "4", "--seeds", "1,2")
    done(*common, "--out", "plain.safetensors")
    done(*common, *changed, "--out", "changed.safetensors")
    plain, other = (io.read_samples(folder / f"{name}.safetensors") for name in ("plain", "changed"))
    assert torch.isfinite(other.samples).all()
    assert not torch.equal(plain.samples.double(), other.samples.double())
    assert plain.facts != other.facts


def test_churn_options_reach_the_plan(folder: Path):
    done(
        "plan", *QUICK, "--s-churn", "5", "--s-tmin", "0.1", "--s-tmax", "9", "--s-noise", "1.003", "--export", "p.json"
    )
    churn = fastdiff.Churn(5, 0.1, 9, 1.003)
    expected = fastdiff.plan(schedule="edm", prediction=edm(sigma_data()), steps=3, guidance=2.0, churn=churn)
    assert io.read_plan(folder / "p.json") == expected


def test_a_saved_plan_draws_the_same(folder: Path):
    done("plan", *QUICK, "--guidance", "3", "--export", "p.json")
    done("sample", *QUICK, "--guidance", "3", "--seeds", "0-2", "--out", "a.safetensors")
    done("sample", "--plan", "p.json", "--seeds", "0-2", "--out", "b.safetensors")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


# Pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_shows_every_digit_and_carries_the_facts(folder: Path):
    output = done("sample", *QUICK, "--seeds", "0-11", "--out", "digits.png")
    with Image.open("digits.png") as image:
        image.load()
        assert image.size == (10 * 70 - 6 + 28, 2 * 90 - 6 + 28)
        facts = image.text
        dark = [image.crop((14 + k * 70, 14, 78 + k * 70, 78)).getextrema()[0] for k in range(10)]
    assert max(dark) < 128
    assert facts["seeds"] == "0-11"
    assert facts["plan_sha256"][:12] in output
    assert facts["plan"].startswith("heun · edm")


@pytest.mark.parametrize(("count", "columns", "tile"), [(1, 1, 64), (3, 3, 64), (199, 10, 64), (200, 20, 32)])
def test_a_grid_has_room_for_all(count: int, columns: int, tile: int):
    images = torch.ones(count, 1, 8, 8)
    sheet = picture.grid(images, ["7"] * count)
    assert sheet.width == columns * (tile + 6) - 6 + 28
    last = (count - 1) % columns * (tile + 6), (count - 1) // columns * (tile + 6 + (20 if tile == 64 else 0))
    assert sheet.getpixel((14 + last[0] + tile // 2, 14 + last[1] + tile // 2)) == 0


def test_images_that_are_not_finite_can_be_shown():
    sheet = picture.grid(torch.tensor([math.nan, math.inf, -math.inf, 0.0]).expand(1, 1, 4, 4), ["?"])
    assert sheet.size[0] == 64 + 28


def test_a_trajectory_changes_no_bit(folder: Path):
    common = ("sample", *QUICK, "--seeds", "0-6", "--batch", "3")
    done(*common, "--out", "plain.safetensors")
    done(*common, "--out", "watched.safetensors", "--trajectory", "strip.png")
    assert Path("plain.safetensors").read_bytes() == Path("watched.safetensors").read_bytes()
    with Image.open("strip.png") as strip:
        assert strip.height == 6 * 70 - 6 + 20 + 28


@pytest.mark.parametrize(
    ("solver", "s_churn", "clip"), [*itertools.product(("euler", "heun", "midpoint"), (0, 10), (None, 0.8))]
)
def test_storing_the_denoised_image_changes_no_bit(solver: str, s_churn: float, clip: float | None):
    settings = {"steps": 5, "guidance": 1.5, "churn": fastdiff.Churn(s_churn), "clip": clip}
    results = [
        fastdiff.sample(
            _smooth,
            fastdiff.plan(schedule="edm", prediction="edm", solver=solver, denoised=watched, **settings),
            (3, 1, 4, 4),
            0,
        )
        for watched in (False, True)
    ]
    assert same_bits(*results)


def _smooth(z: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
    return torch.tanh(z) * (1 + c_noise.view(-1, 1, 1, 1))


def test_a_trajectory_is_of_the_samples_themselves():
    network = job.Network.load(None, torch.float32)
    plain, watching = (
        fastdiff.plan(schedule="edm", prediction=edm(network.sigma_data), steps=5, guidance=2.0, denoised=denoised)
        for denoised in (False, True)
    )
    drawn = job.Job(network, plain, (3, 4), (0, 1), batch=2)
    frames, sigmas = drawn.trajectory(watching, 2)
    assert same_bits(frames[-1], drawn.draw_all(progress=False))
    assert sigmas == (*sorted(sigmas, reverse=True)[:-1], 0.0)
    # The last denoised image is the sample but for one Euler step from sigma 0.002.
    assert (frames[-2] - frames[-1]).abs().max() < 0.02
    with pytest.raises(InputError, match="stores no denoised prediction"):
        drawn.trajectory(plain, 2)


# Interrupted runs ------------------------------------------------------------------------------------------------

LONG = ("sample", "--steps", "2", "--seeds", "0-199", "--batch", "4", "--threads", "1")


def test_a_killed_and_an_interrupted_run_resume_to_the_same_bytes(folder: Path):
    done(*LONG, "--out", "whole.safetensors")
    for signal_sent, extra in ((signal.SIGKILL, ()), (signal.SIGINT, ("--resume",))):
        process = subprocess.Popen(
            command(*LONG, *extra, "--out", "set.safetensors"), stderr=subprocess.PIPE, text=True
        )
        before = _kept()
        while process.poll() is None and _kept() <= before:
            time.sleep(0.01)
        process.send_signal(signal_sent)
        _, errors = process.communicate()
        assert process.returncode == (-signal.SIGKILL if signal_sent == signal.SIGKILL else 1)
        assert not Path("set.safetensors").exists()
        assert "Traceback" not in errors
    assert "repeat with --resume" in errors
    refused = run(*LONG, "--out", "set.safetensors")
    assert (refused.exit_code, "--resume continues it" in refused.output) == (2, True)
    kept = _kept()
    assert f"{kept} of 200 samples are there already" in done(*LONG, "--out", "set.safetensors", "--resume")
    assert 0 < kept < 200
    assert Path("set.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert sorted(os.listdir(folder)) == ["set.safetensors", "whole.safetensors"]


def _kept() -> int:
    partial = Path("set.safetensors.partial")
    return len(io.read_samples(partial).samples) if partial.exists() else 0


def test_keeping_what_is_done_takes_a_small_share_of_the_time(folder: Path, monkeypatch):
    partial = job.Partial(folder / "set.safetensors", {})
    written = []
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(job.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(job, "write", lambda path, content: written.append(path))
    for _ in range(100):
        partial.put(torch.zeros(1, 1, 8, 8))
    # A write takes 0.5 s of this clock, so the next one is 10 s after it began.
    assert 4 <= len(written) <= 6


def test_resuming_what_is_complete_does_nothing(folder: Path):
    common = ("sample", *QUICK, "--seeds", "0-2", "--out", "set.safetensors")
    done(*common)
    before = Path("set.safetensors").stat()
    assert "is complete" in done(*common, "--resume")
    assert Path("set.safetensors").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("name", ["set.safetensors", "set.safetensors.partial"])
def test_another_job_is_not_resumed(folder: Path, name: str):
    done("sample", *QUICK, "--seeds", "0-2", "--out", "set.safetensors")
    os.rename("set.safetensors", name)
    before = Path(name).read_bytes()
    result = run("sample", *QUICK, "--seeds", "0-3", "--out", "set.safetensors", "--resume")
    assert result.exit_code == 2
    assert "its seeds is '0-2' and this run has '0-3'" in result.output
    assert Path(name).read_bytes() == before


def test_force_starts_anew(folder: Path):
    common = ("sample", *QUICK, "--seeds", "0-2", "--out", "set.safetensors")
    done(*common)
    expected = Path("set.safetensors").read_bytes()
    Path("set.safetensors").write_bytes(b"old")
    Path("set.safetensors.partial").write_bytes(b"old")
    done(*common, "--force")
    assert Path("set.safetensors").read_bytes() == expected
    assert os.listdir(folder) == ["set.safetensors"]


# What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "-1"), "'-1' is no seed"),
        (("--seeds", "9-3"), "runs backwards; write 3-9"),
        (("--seeds", "x"), "'x' is no seed"),
        (("--seeds", ""), "is no seed"),
        (("--seeds", "1.5"), "is no seed"),
        (("--seeds", "٣"), "is no seed"),
        (("--seeds", "0-2,1"), "seed 1 is given twice"),
        (("--seeds", str(2**63)), "seeds lie in 0 .. 2**63 - 1"),
        (("--seeds", "9" * 5000), "seeds lie in 0 .. 2**63 - 1"),
        (("--seeds", f"0-{2**63 - 1}"), "at most 1,000,000 fit"),
        (("--class", "12"), "classes are the digits 0 to 9"),
        (("--class", "-1"), "classes are the digits 0 to 9"),
        (("--class", "1,,2"), "classes are the digits 0 to 9"),
        (("--guidance", "nan"), "must be finite"),
        (("--guidance", "lots"), "is not a number"),
        (("--interval", "5"), "is not LOW,HIGH"),
        (("--interval", "5,1"), "0 <= LOW <= HIGH"),
        (("--interval", "nan,1"), "0 <= LOW <= HIGH"),
        (("--steps", "0"), "not in the range x>=1"),
        (("--solver", "rk9"), "'euler', 'heun', 'midpoint', 'ralston'"),
        (("--schedule", "x"), "'edm', 'vp', 've', 'iddpm'"),
        (("--s-churn", "-1"), "s_churn is -1.0; it must be zero or more"),
        (("--s-tmin", "3", "--s-tmax", "2"), "s_tmin must not exceed s_tmax"),
        (("--s-tmax", "nan"), "s_tmax is nan"),
        (("--s-noise", "0"), "s_noise is 0.0; it must be positive"),
        (("--clip", "0"), "clip is 0.0; it must be positive"),
        (("--batch", "0"), "not in the range x>=1"),
        (("--threads", "0"), "not in the range"),
        (("--network-dtype", "float64"), "needs --dtype float64"),
        (("--backend", "abacus"), "is not one of 'auto', 'cpu'"),
        (("--checkpoint", "missing"), "does not exist"),
        (("--plan", "missing"), "does not exist"),
        (("--out", "q.jpg"), "must end in .png or .safetensors"),
        (("--out", "q"), "must end in .png or .safetensors"),
        (("--out", "missing/q.png"), "there is no folder missing"),
        (("--trajectory", "q.safetensors"), "must end in .png"),
        (("--out", "q.png", "--trajectory", "./q.png"), "give two names"),
        (("--out", "q.png", "--resume"), "--resume works for .safetensors"),
        (("--out", "q.safetensors", "--resume", "--force"), "give one of them"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(folder: Path, arguments: tuple[str, ...], message: str):
    result = run("sample", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert os.listdir(folder) == []


def test_existing_files_are_kept(folder: Path):
    for name in ("digits.png", "strip.png", "p.json"):
        Path(name).write_text("mine")
    for arguments in (
        ("sample",),
        ("sample", "--out", "new.png", "--trajectory", "strip.png"),
        ("plan", "--export", "p.json"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "exists; give --force" in result.stderr
    assert [Path(name).read_text() for name in sorted(os.listdir(folder))] == ["mine"] * 3


class Evil:
    """Unpickling this leaves a mark."""

    def __reduce__(self) -> tuple:
        return Path("unpickled").touch, ()


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize(
    "save", [lambda path: torch.save(Evil(), path), lambda path: path.write_bytes(pickle.dumps(Evil()))]
)
def test_a_pickle_is_refused_as_a_checkpoint(folder: Path, name: str, save):
    save(folder / name)
    result = run("sample", *QUICK, "--checkpoint", name)
    assert result.exit_code == 2
    assert "never a pickle" in result.stderr
    assert os.listdir(folder) == [name]


def test_a_checkpoint_of_another_network_is_refused(folder: Path):
    safetensors.torch.save_file({"w": torch.zeros(1)}, "net.safetensors")
    result = run("sample", *QUICK, "--checkpoint", "net.safetensors")
    assert (result.exit_code, "does not hold a DigitsNet" in result.stderr) == (2, True)


def test_a_saved_plan_takes_no_other_settings(folder: Path):
    done("plan", *QUICK, "--export", "p.json")
    for arguments in (("sample", "--plan", "p.json", "--steps", "18"), ("plan", "--plan", "p.json", "--guidance", "2")):
        result = run(*arguments)
        assert result.exit_code == 2
        assert f"{arguments[3]} would change it" in result.stderr


def test_plans_that_the_digits_network_cannot_serve_are_refused(folder: Path):
    Path("caller.json").write_text(fastdiff.plan(steps=2, noise="caller").to_json())
    compiled = fastdiff.plan(steps=2)
    Path("left.json").write_text(replace(compiled, rows=tuple(map(_with_branch_left, compiled.rows))).to_json())
    for name, message in (("caller.json", "noise='caller'"), ("left.json", "branches ['left']")):
        result = run("sample", "--plan", name)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def _with_branch_left(row: Row) -> Row:
    """A row whose network output is called ``left``."""

    def named(terms: Terms) -> Terms:
        return tuple((name.replace("cond", "left"), c) for name, c in terms)

    outputs = tuple(replace(output, terms=named(output.terms)) for output in row.outputs)
    columns = tuple(name.replace("cond", "left") for name in row.columns)
    return replace(row, columns=columns, outputs=outputs, branches=("left",) * len(row.branches))


def test_a_backend_that_cannot_run_here_says_why(folder: Path, monkeypatch):
    broken = tuple(replace(b, unavailable=lambda: "it was left at home") for b in registry.BACKENDS if b.name == "cpu")
    monkeypatch.setattr(registry, "BACKENDS", (*broken, *(b for b in registry.BACKENDS if b.name != "cpu")))
    result = run("sample", *QUICK, "--backend", "cpu")
    assert result.exit_code == 1
    assert "backend 'cpu' cannot be used: it was left at home" in result.stderr
    assert os.listdir(folder) == []


def test_a_full_disk_is_reported(folder: Path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise fastdiff.errors.OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("fastdiff.cli.write", full)
    result = run("sample", *QUICK, "--seeds", "0")
    assert (result.exit_code, "No space left" in result.stderr) == (1, True)


def test_errors_are_one_message_without_a_traceback(folder: Path):
    finished = subprocess.run(command("sample", "--s-churn", "-1"), capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == "Error: s_churn is -1.0; it must be zero or more\n"


def test_seeds_come_back():
    for text in ("0", "0-63", "0-9,42", "5-6,3,2-1".replace("2-1", "9"), f"{2**63 - 1}"):
        seeds = options.Seeds().convert(text, None, None)
        assert options.format_seeds(seeds) == text
    assert options.Seeds().convert("7,0-2", None, None) == (7, 0, 1, 2)
    with pytest.raises(click.BadParameter):
        options.Seeds().convert("1-", None, None)


# Plans -----------------------------------------------------------------------------------------------------------


def test_plan_explains(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = done("plan", *QUICK)
    assert "5 network evaluations · 6 launches" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "more rows" in done("plan", *QUICK, "--rows", "2")


def test_plans_are_compared(folder: Path):
    for name, arguments in (("a", ()), ("b", ()), ("c", ("--guidance", "2.5")), ("d", ("--steps", "4"))):
        done("plan", *QUICK, *arguments, "--export", f"{name}.json")
    assert "6 of 6 rows are the same" in done("plan", "compare", "a.json", "b.json")
    other = run("plan", "compare", "a.json", "c.json")
    assert other.exit_code == 1
    a, c = (io.read_plan(folder / f"{name}.json") for name in "ac")
    weights = [dict(plan.rows[1].labelled_coefficients())["w0[F_cond]"].hex() for plan in (a, c)]
    assert "1 of 6 rows are the same" in other.output
    assert "first difference: row 1, w0[F_cond]" in other.output
    assert all(weight in other.output for weight in weights)
    longer = run("plan", "compare", "a.json", "d.json")
    assert longer.exit_code == 1
    misplaced = run("plan", "--steps", "3", "compare", "a.json", "b.json")
    assert misplaced.exit_code == 2


def test_differences_are_found_wherever_they_are():
    plan = fastdiff.plan(steps=2)
    row = plan.rows[1]
    for changed, what in (
        (replace(row, c_in=math.nextafter(row.c_in, 2)), "c_in"),
        (replace(row, c_noise=row.c_noise + 1), "c_noise"),
        (replace(row, copies=2), "copies"),
        (replace(row, outputs=tuple(replace(o, store="y") for o in row.outputs)), "stores"),
    ):
        other = replace(plan, rows=(plan.rows[0], changed, *plan.rows[2:]))
        found = comparison.first_difference(plan, other)
        assert found is not None
        assert (found.row, found.what) == (1, what)
        assert comparison.differing_rows(plan, other) == [1]
    shorter = fastdiff.plan(schedule=[80.0], steps=1)
    assert comparison.differing_rows(plan, shorter) == [1, 2, 3]
    assert comparison.first_difference(shorter, shorter) is None
    assert comparison.first_difference(plan, plan) is None


# Doctor and demo -------------------------------------------------------------------------------------------------


def test_doctor_finds_this_machine_well(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = done("doctor")
    assert max(map(len, text.splitlines())) <= 80
    assert "everything that was built works" in text
    found = json.loads(done("doctor", "--json"))
    assert found["healthy"] is True
    assert {"versions", "backends", "compiled", "process", "data", "self test"} < set(found)


def test_doctor_finds_a_wrong_generator(monkeypatch):
    right = reference.philox
    monkeypatch.setattr(reference, "philox", lambda counter, key: right(counter, key)[::-1])
    result = run("doctor")
    assert result.exit_code == 1
    assert "known answers are wrong" in result.output


def test_doctor_finds_a_wrong_backend():
    def stage(call) -> None:
        reference.stage(call)
        for store in call.stores:
            if store is not None:
                store += 1

    with registry.registered(replace(registry.BACKENDS[-1], name="wrong", stage=stage)):
        result = run("doctor", "--json")
    assert result.exit_code == 1
    status = {line["name"]: line["status"] for line in json.loads(result.output)["self test"]}
    assert status.pop("wrong") == "FAILED"
    assert set(status.values()) == {"ok"}


def test_doctor_finds_a_missing_checkpoint(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("fastdiff.app.digits.CHECKPOINT", tmp_path / "digits.safetensors")
    assert run("doctor").exit_code == 1


def test_doctor_sees_flushed_subnormals():
    assert not doctor.flushes_subnormals()
    assert torch.set_flush_denormal(True)
    try:
        assert doctor.flushes_subnormals()
    finally:
        torch.set_flush_denormal(False)


@pytest.fixture
def quick_demo(monkeypatch):
    for name, value in (("DRAWN", 2), ("ALONE", 4), ("WITH_NETWORK", 1), ("STEPS", 3)):
        monkeypatch.setattr(demo, name, value)


def test_demo_writes_pictures_and_compares(folder: Path, quick_demo):
    text = done("demo", "--out", "pictures", "--repeats", "1")
    assert sorted(os.listdir("pictures")) == ["digits.png", "trajectory.png"]
    assert "bit-identical to reference: yes" in text
    assert str(Path("pictures") / "digits.png") in text
    fused = next(line for line in text.splitlines() if "fused" in line).split()
    if any(report.usable for report in list_backends() if report.name == "cpu"):
        assert fused[2] == "1.00"


def test_demo_notices_other_bits(folder: Path, quick_demo, monkeypatch):
    right = demo._on_reference
    monkeypatch.setattr(demo, "_on_reference", lambda sampler: right(sampler).nextafter(torch.tensor(9.0)))
    assert "bit-identical to reference: NO" in done("demo", "--out", "pictures", "--repeats", "1")


def test_demo_counts_what_torch_does():
    x = torch.zeros(10)
    with Counter(10) as seen:
        y = torch.add(x, x[None, :].view(10), alpha=2)
        y.mul_(2)
        y[:5].add_(1)
    # Views are free; 3 + 2 tensors of 10 floats, and one below the threshold.
    assert (seen.launches, seen.bytes) == (3, 5 * 40)


def test_demo_needs_a_folder_that_can_be_made(folder: Path):
    Path("file").touch()
    result = run("demo", "--out", "file/pictures")
    assert (result.exit_code, "cannot make the folder" in result.stderr) == (1, True)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("churn", [None, fastdiff.Churn(10, 0.05, 50, 1.003)])
def test_the_textbook_sampler_is_the_one_we_compile(guidance: float, churn: fastdiff.Churn | None):
    shape, labels = (4, 1, 4, 4), torch.eye(4, dtype=torch.float64)
    plan = fastdiff.plan(schedule="edm", prediction=edm(0.75), guidance=guidance, churn=churn, dtype="float64")
    draws = iter([draw for row in plan.rows for _, draw in row.draws])

    def noise() -> torch.Tensor:
        draw, out = next(draws), torch.empty(shape, dtype=torch.float64)
        ops.fill_noise(out, 0, purpose=draw.purpose, draw=draw.draw)
        return out

    def net(z: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _smooth(z, c_noise) * (1 + labels[:, :1, None, None])

    conditions = {"cond": {"labels": labels}, "uncond": {"labels": torch.zeros_like(labels)}}
    ours = fastdiff.sample(net, plan, shape, 0, **conditions)
    settings = {"sigma_data": 0.75, "guidance": guidance, "churn": churn, "dtype": torch.float64, "noise": noise}
    book = textbook.edm_sampler(net, shape, **conditions, **settings)
    assert next(draws, None) is None
    # VERIFY row A5: relative error in float64 against the textbook algorithm.
    assert (ours - book).abs().max() <= 1e-12 * book.abs().max()


# Help and imports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("sample",), ("plan",), ("plan", "compare"), ("doctor",), ("demo",)])
def test_help_fits_the_screen(arguments: tuple[str, ...]):
    text = done(*arguments, "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert not arguments or "Examples:" in text


def test_import_leaves_the_heavy_things_for_later():
    heavy = "'PIL', 'rich', 'matplotlib', 'sklearn', 'scipy'"
    code = f"import sys, fastdiff.cli; print([name for name in ({heavy}) if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_package_is_a_command_too():
    command = [sys.executable, "-m", "fastdiff", "plan", "--steps", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, run("plan", "--steps", "3").stdout)
