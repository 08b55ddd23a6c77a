"""`fastdiff noise`: good noise passes, and every planted fault is rejected by the test that is there for it."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastdiff.backends.registry import list_backends
from fastdiff.cli import main
from fastdiff.lab.noise import hypotheses
from fastdiff.lab.noise.draws import ANSWERS, FAR, draw_all, fill_on

DRAWS = 2**18
BACKEND = next(report.name for report in list_backends() if report.usable)
RIGHT = fill_on(BACKEND)


def spoiled(change):
    """A generator whose normals are changed afterwards."""

    def fill(out, seeds, draws):
        RIGHT(out, seeds, draws)
        change(out)

    return fill


def swapped_words(out, seeds, draws):
    RIGHT(out, seeds, draws[:, [0, 1, 3, 2]] % torch.tensor([2**8, 2**16, 2**32, 2**24]))


def short_seeds(out, seeds, draws):
    RIGHT(out, [seed % 2**32 for seed in seeds], draws)


def same_for_all_samples(out, seeds, draws):
    RIGHT(out, [seeds[0]] * len(seeds), draws)


def twice(out):
    out[:, 1::4] = out[:, 0::4][:, : out[:, 1::4].shape[1]]


def one_nan(out):
    out[0, 0] = math.nan


def mirrored_square(out):
    """Uncorrelated with the neighbour, but of the same size."""
    signs = torch.sign(out[:, 1::2])
    out[:, 1::2] = out[:, 0::2][:, : signs.shape[1]].abs() * signs


# A radius of 24 bits ends at sqrt(-2 ln 2**-25) = 5.887.
CONTROLS = {
    "scaled by 1.02": (spoiled(lambda out: out.mul_(1.02)), "moments", "mean of x^2"),
    "shifted by 0.02": (spoiled(lambda out: out.add_(0.02)), "moments", "mean"),
    "tails cut at 5.887": (spoiled(lambda out: out.clamp_(-5.887, 5.887)), "known answers", "beyond 6 sigma"),
    "tails cut at 3.5": (spoiled(lambda out: out.clamp_(-3.5, 3.5)), "tail counts", "largest |x|"),
    "duplicated lanes": (spoiled(twice), "correlation", "lanes 0, 1"),
    "one NaN": (spoiled(one_nan), "moments", "mean"),
    "lanes of one size": (spoiled(mirrored_square), "correlation of squares", "lanes 0, 1"),
    "swapped counter words": (swapped_words, "known answers", "every word of the counter"),
    "seeds of 32 bits": (short_seeds, "correlation", "seed + 2^32"),
    "one sample for all": (same_for_all_samples, "correlation", "sample + 1"),
    "lane 3 uniform": (
        spoiled(lambda out: out[:, 3::4].mul_(0).add_(torch.linspace(-1.73, 1.73, out[:, 3::4].shape[1]))),
        "Kolmogorov-Smirnov",
        "lane 3",
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_planted_fault_is_rejected(name):
    fill, group, what = CONTROLS[name]
    wrong = [(v.group, v.name) for v in hypotheses.failed(hypotheses.run(draw_all(fill, DRAWS, 0)))]
    assert (group, what) in wrong


def test_a_slight_fault_needs_more_draws_only():
    """A scale of 1.0005 is 0.4 standard errors of the variance here: only the known answers see it."""
    slight = hypotheses.run(draw_all(spoiled(lambda out: out.mul_(1.0005)), DRAWS, 0))
    assert all(v.group == "known answers" for v in hypotheses.failed(slight))


@pytest.mark.parametrize("seed", [0, 123456789, 2**61])
def test_right_noise_passes(seed):
    verdicts = hypotheses.run(draw_all(RIGHT, DRAWS, seed))
    assert hypotheses.failed(verdicts) == []
    # As VERIFY asks of four moments.
    assert all(abs(v.z) < 4 for v in verdicts if v.group == "moments")


def test_p_values_of_right_noise_are_spread_evenly():
    """Of 12 seeds: a battery whose p-values were too large would reject nothing."""
    from scipy import stats

    found = [hypotheses.run(draw_all(RIGHT, 2**16, 1000 * k)) for k in range(12)]
    for name in ("mean", "mean of x^2", "x >2", "all", "lanes 0, 1", "element + 1"):
        p = [next(v.p for v in verdicts if v.name == name) for verdicts in found]
        assert stats.kstest(p, "uniform").pvalue > 1e-6, name
    assert min(v.p for verdicts in found for v in verdicts) < 0.05


def test_answers_are_those_of_the_known_answer_file():
    lines = (Path(__file__).parent / "kat" / "normals.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    expected = [
        (int(row[0]), tuple(map(int, row[1:5])), element, int(word, 16))
        for row in rows
        for element, word in enumerate(row[5:])
    ]
    assert [tuple(answer) for answer in ANSWERS] == expected
    assert all(abs(torch.tensor(a.bits, dtype=torch.int32).view(torch.float32)) > 6 for a in FAR)


# The command.


def command(*arguments):
    return CliRunner().invoke(main, ["noise", "--draws", "65536", *arguments], catch_exceptions=False)


class Page(HTMLParser):
    """What a page is made of, and what it asks for from elsewhere."""

    def __init__(self):
        super().__init__()
        self.cells, self.elsewhere, self.open = 0, [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.cells += tag == "td"
        self.elsewhere += [v for k, v in attributes if k in ("src", "href") and not v.startswith("data:")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_command_writes_a_picture_and_a_page(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    png, page = tmp_path / "noise.png", tmp_path / "noise.html"
    result = command("--png", str(png), "--html", str(page))
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines()[:20])) <= 80
    assert "Bonferroni" in result.output
    with Image.open(png) as image:
        assert image.width > 1000
    parsed = Page()
    parsed.feed(page.read_text())
    assert parsed.open == []
    assert parsed.elsewhere == []
    assert not re.search(r"url\(|@import|https?:|<script", page.read_text())
    assert parsed.cells == 7 * len(hypotheses.run(draw_all(RIGHT, 2**16, 0)))
    again = command("--png", str(png))
    assert again.exit_code == 2
    assert "exists" in again.output


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hypotheses, "run", interrupt)
    result = command("--png", str(tmp_path / "noise.png"))
    assert result.exit_code == 130
    assert result.stderr == "interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def test_a_fault_is_exit_code_1_and_in_the_json(monkeypatch):
    monkeypatch.setattr("fastdiff.lab.noise.command.fill_on", lambda backend: spoiled(lambda out: out.mul_(1.02)))
    result = command("--json")
    assert result.exit_code == 1
    body = json.loads(result.stdout)
    assert body["passed"] is False
    assert body["correction"] == "Bonferroni"
    assert body["level"] == pytest.approx(1e-6 / len(body["tests"]))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--draws", "10"], 2, "not in the range"),
        (["--draws", "-1"], 2, "not in the range"),
        (["--seed", str(2**63 - 1)], 2, "at most"),
        (["--backend", "quantum"], 2, "is not one of"),
        (["--png", "/no/such/folder/x.png"], 2, "there is no folder"),
        (["--html", "page.txt"], 2, "must end in .html"),
    ],
)
def test_bad_input_is_refused(arguments, code, message):
    result = command(*arguments)
    assert result.exit_code == code
    assert message in result.output
