"""`fastdiff fuzz`: that it finds nothing where nothing is wrong, and every planted fault where one is."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace as replaced

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff.backends import reference
from fastdiff.cli import main
from fastdiff.errors import InputError
from fastdiff.lab.fuzz import corpus, report, row_line, settings, variants
from fastdiff.lab.fuzz.campaign import Campaign, replay
from fastdiff.lab.fuzz.row_shrink import weight
from fastdiff.lab.fuzz.rows import random_row_subject
from fastdiff.lab.fuzz.samplers import SamplerSubject, random_sampler_subject
from fastdiff.lab.fuzz.settings import Settings
from fastdiff.lab.fuzz.subject import first_difference
from fastdiff.lab.fuzz.variants import Plugin
from fastdiff.rows.row import Row
from fastdiff.testing.rows import INTEGERS


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Without the test tools of the checkout, which have tests of their own."""
    monkeypatch.setattr(variants, "checkout_plugins", dict)


# Faults. Each is a stage that does something wrong around the reference's.


def wrong_coefficient(call):
    coef = call.coef.clone()
    coef[:, -1:] *= 1.01
    reference.stage(call._replace(coef=coef))


def one_ulp(call):
    """The last element of the first store is rounded up where it is between 1 and 2."""
    reference.stage(call)
    for out in call.stores:
        if out is not None and out.numel():
            last = (-1,) * out.dim()
            if 1 < out[last] < 2:
                out.view(INTEGERS[out.element_size()])[last] += 1


def swapped_counter(call):
    swapped = None if call.draws is None else call.draws[..., [0, 1, 3, 2]]
    reference.stage(call._replace(draws=swapped))


def dropped_tail(call):
    """What is left over after quads is not written."""
    before = [None if out is None else out.clone() for out in call.stores]
    reference.stage(call)
    for out, old in zip(call.stores, before, strict=True):
        if out is not None and out.shape[1:].numel() % 4:
            new = out.reshape(len(out), -1).clone()
            new[:, -1] = old.reshape(len(out), -1)[:, -1]
            out.copy_(new.view(out.shape))


def narrow_offset(call):
    """Offsets lose their upper bits, as int32 ones do beyond 2**31; here beyond 1024."""
    reference.stage(call)
    for out in call.stores:
        if out is not None and out.shape[1:].numel() > 1024:
            new = out.reshape(len(out), -1).clone()
            new[:, 1024:] = new[:, : new.shape[1] - 1024]
            out.copy_(new.view(out.shape))


def beyond_the_end(call):
    reference.stage(call)
    for out in call.stores:
        if out is not None and out.numel():
            end = out.storage_offset() + (len(out) - 1) * out.stride(0) + out.shape[1:].numel()
            out.as_strided((1,), (1,), end).zero_()


FAULTS = {
    wrong_coefficient: "bits",
    one_ulp: "bits",
    swapped_counter: "bits",
    dropped_tail: "bits",
    narrow_offset: "bits",
    beyond_the_end: "AssertionError",
}


def planted(stage):
    (variant,) = variants.choose(variants.usable({"planted": Plugin(stage, share=1.0)}), "planted")
    return variant


@pytest.mark.parametrize("stage", FAULTS, ids=lambda stage: stage.__name__)
def test_a_planted_fault_is_found_made_small_and_replayed_from_its_line(stage):
    variant = planted(stage)
    summary = Campaign([variant], 5, cases=400, until_fail=True).run()
    assert summary.differences == 1
    (failure,) = summary.failures
    assert (failure.variant, failure.fault.kind) == ("planted", FAULTS[stage])
    # From the line alone: the fault is there again, and the right implementation has none.
    small, original = corpus.read_line(failure.line), corpus.read_line(failure.original)
    assert replay(small, [variant]) == [("planted", failure.fault)]
    assert replay(small, [planted(reference.stage)]) == []
    assert weight(small.case) < weight(original.case) / 2


def test_a_row_shrinks_to_what_its_fault_needs():
    variant = planted(narrow_offset)
    (failure,) = Campaign([variant], 5, cases=400, until_fail=True).run().failures
    case = corpus.read_line(failure.line).case
    assert case.shape[0] == 1
    assert len(case.row.outputs) == 1
    # Columns that are one number cannot show an offset: the noise, or values, must differ.
    assert 1024 < case.shape[1:].numel() <= 1025
    assert len(case.columns) + len(case.row.draws) == 1
    (failure,) = Campaign([planted(dropped_tail)], 5, cases=400, until_fail=True).run().failures
    assert len(failure.line) < 250


def test_a_wrong_plan_is_outside_its_bound(monkeypatch):
    """The compiler is checked against the paper: one coefficient of one row wrong by 1e-4."""
    right = settings.plan

    def wrong(*arguments, **asked):
        made = right(*arguments, **asked)
        last = made.rows[-1]
        (output, *rest) = last.outputs
        (name, c), *others = output.terms
        changed = replaced(last, outputs=(replaced(output, terms=((name, c * 1.0001), *others)), *rest))
        return replaced(made, rows=(*made.rows[:-1], changed))

    monkeypatch.setattr(settings, "plan", wrong)
    settings.compiled.cache_clear()
    summary = Campaign([], 5, cases=400, until_fail=True).run()
    (failure,) = summary.failures
    assert (failure.variant, failure.fault.kind) == ("reference", "bound")
    small = corpus.read_line(failure.line)
    assert small.settings.steps == 1
    assert [label for label, _ in replay(small, [])] == ["reference"]
    monkeypatch.undo()
    settings.compiled.cache_clear()
    assert replay(corpus.read_line(failure.line), []) == []


def test_a_sampler_that_depends_on_its_batch_is_found():
    def own_position(call):
        """Adds the position in the batch to the seed."""
        moved = None if call.seeds is None else call.seeds + torch.arange(len(call.seeds))
        reference.stage(call._replace(seeds=moved))

    pair = Settings(shape=(2, 3), seeds=(7, 8), steps=2)
    fault = SamplerSubject(pair).fault(planted(own_position))
    assert fault is not None
    assert fault.output == "samples"
    alone = replaced(pair, shape=(1, 3), seeds=(7,))
    assert SamplerSubject(alone).fault(planted(own_position)) is None


# Where nothing is wrong.


def test_backends_agree():
    usable = variants.usable()
    summary = Campaign(usable, 1, cases=200).run()
    assert summary.differences == 0, summary.failures
    assert summary.cases == {"row": 192, "sampler": 8}
    assert 0 < summary.worst <= 1
    assert summary.bounded >= 3
    assert all(summary.variants[v.label].bytes > 0 for v in usable)
    assert set(summary.coverage["state"]) == {"float32", "float64"}
    assert len(summary.coverage["features"]) >= 12
    assert len(summary.coverage["dims"]) == 6


def test_a_seed_and_a_number_fix_a_case():
    lines = [random_row_subject(np.random.default_rng([3, k])).line() for k in (0, 0, 1)]
    assert lines[0] == lines[1] != lines[2]


@pytest.mark.parametrize("draw", [random_row_subject, random_sampler_subject])
def test_a_line_holds_the_whole_case(draw):
    for k in range(20):
        subject = draw(np.random.default_rng([4, k]))
        line = subject.line()
        again = corpus.read_line(line)
        assert "'" not in line
        assert "\n" not in line
        assert first_difference(again.expected, subject.expected) is None


def test_tagged_coefficients_count_up():
    case = random_row_subject(np.random.default_rng([5, 1])).case
    row = row_line.tagged_row(case.row.program.integers, case.row.copies)
    assert row.coefficients == list(range(len(row.coefficients)))
    assert row.program == case.row.program
    assert isinstance(row, Row)


def test_a_slow_variant_gets_its_share():
    slow = Plugin(lambda call: reference.stage(call) or torch.zeros(300_000).sin().sum(), share=0.1)
    (variant,) = variants.choose(variants.usable({"slow": slow}), "slow")
    summary = Campaign([variant], 2, cases=150).run()
    tally = summary.variants["slow"]
    # One case over the share is what starting it costs.
    assert 0 < tally.seconds <= 0.1 * summary.seconds + 3 * tally.seconds / tally.cases
    assert tally.cases < 150


def test_an_interrupt_keeps_what_was_done(capsys):
    def interrupt(summary):
        if summary.cases.total() == 7:
            raise KeyboardInterrupt

    summary = Campaign(variants.usable(), 1, progress=interrupt).run()
    assert summary.partial
    assert summary.cases.total() == 7
    report.show(summary, report.Console(width=80))
    assert "partial: interrupted; no differences" in capsys.readouterr().out
    assert json.loads(report.as_json(summary))["partial"] is True


# The command.


def in_a_process(script, *arguments, folder):
    """The command in a process of its own, after some lines of Python."""
    code = f"{script}\nfrom fastdiff.cli import main\nmain()"
    call = [sys.executable, "-c", code, "fuzz", "--corpus", str(folder / "corpus.txt"), *arguments]
    return subprocess.run(call, capture_output=True, text=True, timeout=300)


def test_nothing_is_said_on_stderr(tmp_path):
    """All variants of a checkout in one process, Triton's interpreter among them, whose modules it must not lose."""
    done = in_a_process("", "--cases", "30", "--seed", "1", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""


def test_ctrl_c_shows_what_was_done(tmp_path):
    script = (
        "import os, signal\n"
        "from fastdiff.lab.fuzz import campaign\n"
        "draw = campaign.random_row_subject\n"
        "def drawn(rng, seen=[]):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 9:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return draw(rng)\n"
        "campaign.random_row_subject = drawn\n"
    )
    done = in_a_process(script, "--time", "200", "--backends", "cpu", folder=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "8 rows, 0 samplers" in done.stdout
    assert "partial: interrupted; no differences" in done.stdout
    assert list(tmp_path.iterdir()) == []


def command(*arguments):
    return CliRunner().invoke(main, ["fuzz", *arguments], catch_exceptions=False)


@pytest.fixture
def faulty(tmp_path):
    """A file with a plug-in that is wrong by one unit in the last place."""
    path = tmp_path / "faulty.py"
    path.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(variants.CHECKOUT / 'tests')!r})\n"
        "from fastdiff.lab.fuzz.variants import Plugin\n"
        "from test_fuzz import one_ulp\n"
        "PLUGINS = {'faulty': Plugin(one_ulp, share=1.0)}\n"
    )
    return str(path)


def test_what_the_command_prints_replays(tmp_path, faulty):
    kept = tmp_path / "corpus.txt"
    usual = ("--plugin", faulty, "--backends", "faulty", "--corpus", str(kept))
    result = command("--cases", "200", "--seed", "1", "--until-fail", *usual)
    assert result.exit_code == 1
    (printed,) = [line for line in result.stdout.splitlines() if line.startswith("fastdiff fuzz --replay")]
    words = shlex.split(printed)
    assert words[:3] == ["fastdiff", "fuzz", "--replay"]
    assert words[4:] == ["--plugin", faulty]
    # In a process that knows nothing but the line.
    again = in_a_process("", *words[2:], folder=tmp_path)
    assert again.returncode == 1, again.stderr
    assert again.stdout.startswith("faulty: ")
    assert command(*words[2:4]).exit_code == 0
    # It went into the corpus, which the next run tries first and does not fill with it again.
    assert corpus.read(kept) == [words[3]]
    assert command("--cases", "1", "--seed", "2", *usual).exit_code == 1
    assert corpus.read(kept) == [words[3]]
    assert command("--cases", "1", "--seed", "2", "--backends", "cpu", "--corpus", str(kept)).exit_code == 0


def test_json_is_all_that_is_on_stdout(tmp_path):
    result = command("--cases", "30", "--seed", "1", "--json", "--corpus", str(tmp_path / "corpus.txt"))
    assert result.exit_code == 0
    body = json.loads(result.stdout)
    assert body["differences"] == 0
    assert body["cases"] == {"row": 29, "sampler": 1}
    assert body["seed"] == 1


def test_a_broken_backend_is_shown_a_few_times_only(tmp_path, faulty, monkeypatch):
    monkeypatch.setattr("fastdiff.lab.fuzz.campaign.SHRINK_SECONDS", 0.01)
    kept = str(tmp_path / "corpus.txt")
    result = command("--cases", "150", "--seed", "1", "--plugin", faulty, "--backends", "faulty", "--corpus", kept)
    assert result.stdout.count("--replay") == 3
    assert int(result.stdout.split(" differences\n")[0].split()[-1]) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time", "-1"], "--time is -1; it must be more than 0 seconds"),
        (["--time", "0"], "it must be more than 0 seconds"),
        (["--time", "nan"], "must be finite"),
        (["--cases", "0"], "not in the range"),
        (["--seed", "-1"], "not in the range"),
        (["--backends", "quantum"], "'quantum' is not here; here are reference, cpu"),
        (["--backends", "reference"], "no backend but the reference"),
        (["--backends", "cuda"], "'cuda' is not here; cuda cannot run ("),
        (["--corpus", "/no/such/folder/corpus.txt"], "there is no folder"),
        (["--plugin", "/no/such/file.py"], "does not exist"),
        (["--replay", ""], "not a line that 'fastdiff fuzz' printed"),
        (["--replay", "not json"], "not a line that 'fastdiff fuzz' printed"),
        (["--replay", "[1]"], "one object with the key 'row' or 'sampler'"),
        (["--replay", '{"row":{}}'], "KeyError"),
        (["--replay", '{"sampler":{"colour":"red"}}'], "a sampler has no setting 'colour'"),
        (["--replay", '{"sampler":{"steps":-3}}'], "1 to 1000 steps"),
        (["--replay", '{"sampler":{"solver":"magic"}}'], "solver is 'magic'"),
        (["--replay", '{"sampler":{"dtype":7}}'], "dtype is 7"),
        (["--replay", "[" * 100_000], "not a line"),
    ],
)
def test_bad_input_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if arguments == ["--backends", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = command(*arguments)
    assert result.exit_code == (1 if "/no/such/folder" in arguments[-1] else 2)
    assert message in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**9, 10**9]},
        {"shape": [-1, 2]},
        {"shape": "many"},
        {"program": [99]},
        {"state": "int8"},
        {"coef": [[1.0, 2.0, 3.0, 4.0, 5.0]]},
        {"stores": [7]},
        {"columns": []},
        {"copies": 0},
        {"draws": [[1]]},
    ],
)
def test_a_changed_line_is_refused(change):
    body = {
        "program": [1, 0, -1, 1, -1, 1, 0, 0, 0, 0],
        "shape": [1, 3],
        "state": "float32",
        "coef": [[2.0]],
        "copies": 1,
        "columns": [["float32", "row-major", 0, 0, [1.0]]],
        "stores": [["float32", "row-major", 0, 0]],
        "z": None,
        "present": None,
        "seeds": None,
        "draws": None,
    }
    assert command("--replay", json.dumps({"row": body})).exit_code == 0
    result = command("--replay", json.dumps({"row": body | change}))
    assert result.exit_code == 2, result.output


@pytest.mark.parametrize("text", ["1 +", "PLUGINS = 3", "PLUGINS = {'a': 1}", "raise SystemError('no')"])
def test_a_file_without_plugins_is_refused(text, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.py"):
        variants.load_plugins(path)


def test_nothing_but_the_reference(monkeypatch):
    from fastdiff.backends import registry

    monkeypatch.setattr(registry, "BACKENDS", registry.BACKENDS[-1:])
    result = command("--cases", "1")
    assert result.exit_code == 2
    assert "no backend but the reference" in result.output
