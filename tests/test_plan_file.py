"""Plan files: both formats are read, and whatever is wrong with one is a PlanError that says so."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))

from regenerate import FIRST, FOLDER, PLANS

from fastdiff.errors import PlanError
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import RescaledGuidance
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan

JUNK = (None, True, -1, 0.5, 10**9, "", "x", "nan", "-inf", "0x1p99999", [], {}, [[]], [0, 0], {"a": 1})
CONTENT = json.loads(plan(steps=2, guidance=RescaledGuidance(2.0), churn=Churn(1.0)).to_json())
"""A plan with draws, grams, steps on scalars and affine coefficients."""


def signed(content: dict[str, Any]) -> str:
    """A plan file with the digest that fits its content."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    named = {key: value for key, value in content.items() if key != "description"}
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"sha256": hashlib.sha256(text.encode()).hexdigest()})


def changed(*path: str | int, to: Any, content: dict[str, Any] = CONTENT) -> str:
    """The file with one thing in it changed."""
    content = copy.deepcopy(content)
    inner: Any = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return signed(content)


def where(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of everything in it."""
    if path:
        yield path
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from where(content[key], (*path, key))


def row_with_gram() -> tuple[int, dict[str, Any]]:
    return next((k, row) for k, row in enumerate(CONTENT["rows"]) if row["gram"] is not None)


def affine() -> tuple[str | int, ...]:
    """Where a coefficient is that is known at run time."""
    k, row = row_with_gram()
    for i, output in enumerate(row["outputs"]):
        for kind in ("terms", "noise"):
            for j, (_, coefficient) in enumerate(output[kind]):
                if isinstance(coefficient, list):
                    return "rows", k, "outputs", i, kind, j, 1
    raise AssertionError


def test_a_file_that_is_signed_anew_is_read() -> None:
    assert Plan.from_json(signed(CONTENT)) == Plan.from_json(json.dumps(CONTENT))


@pytest.mark.parametrize("name", PLANS)
def test_what_is_read_is_what_was_written(name: str) -> None:
    compiled = PLANS[name]()
    again = Plan.from_json(compiled.to_json())
    assert again == compiled
    assert again.to_json() == compiled.to_json()
    assert again.sha256 == compiled.sha256
    assert [row.gram_numbers for row in again.rows] == [row.gram_numbers for row in compiled.rows]


@pytest.mark.parametrize("name", FIRST)
def test_a_file_of_the_first_format_is_written_in_the_second(name: str) -> None:
    read = Plan.from_json((FOLDER / "format1" / f"{name}.json").read_text(encoding="utf-8"))
    assert json.loads(read.to_json())["fastdiff_plan"] == 2
    assert Plan.from_json(read.to_json()) == read


@pytest.mark.parametrize("name", FIRST)
def test_a_file_of_the_first_format_that_was_changed_is_refused(name: str) -> None:
    text = (FOLDER / "format1" / f"{name}.json").read_text(encoding="utf-8")
    for old, new in (("0x1.", "0x1.0"), ('"x"', '"y"'), ('"dtype": "float', '"dtype": "Float')):
        assert old in text
        with pytest.raises(PlanError, match=r"the file was changed$"):
            Plan.from_json(text.replace(old, new, 1))


@pytest.mark.parametrize("content", [CONTENT, json.loads((FOLDER / "format1" / "heun.json").read_text())])
def test_another_format_is_refused(content: dict[str, Any]) -> None:
    for found in (0, 3, "2", None, [2], 2.5):
        with pytest.raises(PlanError, match=r"fastdiff_plan is .*; this version reads 1 and 2: compile the plan anew"):
            Plan.from_json(changed("fastdiff_plan", to=found, content=content))


def test_a_format_that_does_not_fit_the_rows_is_refused() -> None:
    """Rows of one format under the number of the other."""
    with pytest.raises(PlanError, match="the plan is malformed"):
        Plan.from_json(changed("fastdiff_plan", to=1))
    with pytest.raises(PlanError, match="the plan is malformed"):
        Plan.from_json(
            changed("fastdiff_plan", to=2, content=json.loads((FOLDER / "format1" / "heun.json").read_text()))
        )


AFFINE = affine()
GRAM = ("rows", row_with_gram()[0], "gram")


@pytest.mark.parametrize(
    ("path", "to", "complaint"),
    [
        (AFFINE, ["0x0.0p+0", [[99, "0x1p0"]]], "uses scalar 99; the row's gram makes"),
        (AFFINE, ["0x0.0p+0", [[-1, "0x1p0"]]], "uses scalar -1; the row's gram makes"),
        (AFFINE, ["nan", []], "is nan; every coefficient must be finite"),
        (AFFINE, ["0x0.0p+0", [[0, "inf"]]], "is inf; every coefficient must be finite"),
        (AFFINE, ["0x0.0p+0"], "malformed"),
        (AFFINE, ["0x0.0p+0", [[0]]], "malformed"),
        (AFFINE, ["0x0.0p+0", 7], "malformed"),
        (AFFINE, [0.0, []], "malformed"),
        (AFFINE, 0.5, "malformed"),
        (GRAM, None, "uses scalar .*; the row's gram makes 0"),
        ((*GRAM, "sums"), [], "a gram sums nothing"),
        ((*GRAM, "sums", 0), [0, 9], "there are 0 .."),
        ((*GRAM, "sums", 0), [0], "malformed"),
        ((*GRAM, "sums", 0), [0, 0, 0], "malformed"),
        ((*GRAM, "sums", 0), [0, 0, 0, "0x0p0", "0x1p0"], "atol must be positive"),
        ((*GRAM, "sums", 0), [0, 0, 0, "0x1p0", "nan"], "rtol"),
        ((*GRAM, "steps", 0), ["power", 0, 0, "0x0p0"], "operation is 'power'"),
        ((*GRAM, "steps", 0), ["add", 0, 99, "0x0p0"], "a step uses the scalars"),
        ((*GRAM, "steps", 0), ["add", 0, "0x0p0"], "malformed"),
        ((*GRAM, "steps", 0), ["number", -1, -1, "nan"], "every one must be finite"),
        ((*GRAM, "vectors", 0), [["nobody", "0x1p0"]], "a row uses 'nobody'"),
        ((*GRAM, "vectors", 0), [["1", 1.0]], "malformed"),
        ((*GRAM, "vectors", 0, 0), ["1", "inf"], "every one must be finite"),
        ((*GRAM, "vectors"), [[["1", "0x1p0"]]] * 7, "a gram has 7 vectors; at most 6"),
    ],
)
def test_a_malformed_gram_or_affine_coefficient_is_refused(
    path: tuple[str | int, ...], to: Any, complaint: str
) -> None:
    with pytest.raises(
        PlanError, match=f"the plan is malformed.*{complaint}" if complaint != "malformed" else complaint
    ):
        Plan.from_json(changed(*path, to=to))


@pytest.mark.parametrize(
    "content", [CONTENT, json.loads((FOLDER / "format1" / "heun-clip-interval-unbatched.json").read_text())]
)
def test_junk_anywhere_is_refused_or_makes_another_plan(content: dict[str, Any]) -> None:
    """Any one thing in the file replaced by any junk: a PlanError, or a plan that can be written and read again."""
    places = [path for path in where(content) if path[0] not in ("sha256", "description")]
    chance = random.Random(0)
    read = 0
    for path, junk in chance.sample([(path, junk) for path in places for junk in JUNK], 1500):
        text = changed(*path, to=junk, content=content)
        try:
            found = Plan.from_json(text)
        except PlanError:
            continue
        read += 1
        assert Plan.from_json(found.to_json()) == found
    assert read < 300
