"""Golden plans: the same hexadecimal floats on every machine, now and after a refactoring (VERIFY, C4)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))

from regenerate import FIRST, FOLDER, PLANS

from fastdiff.errors import PlanError
from fastdiff.plans.plan import Plan


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_still_its_golden_one(name: str) -> None:
    """Compared as text first, so that a failure shows the coefficient; then by digest, which covers it all."""
    golden = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    compiled = PLANS[name]()
    assert json.loads(compiled.to_json())["rows"] == json.loads(golden)["rows"]
    assert compiled.to_json() + "\n" == golden
    assert Plan.from_json(golden) == compiled
    assert Plan.from_json(golden).sha256 == compiled.sha256


@pytest.mark.parametrize("name", FIRST)
def test_a_plan_of_the_first_format_is_still_what_is_compiled(name: str) -> None:
    """Files of format 1, written by the first version: read, and coefficient for coefficient the same."""
    read, compiled = Plan.from_json((FOLDER / "format1" / f"{name}.json").read_text(encoding="utf-8")), FIRST[name]()
    assert read.rows == compiled.rows
    assert (read.dtype, read.batched, read.caller_noise) == (compiled.dtype, compiled.batched, compiled.caller_noise)


def test_a_changed_file_of_the_first_format_is_refused() -> None:
    text = (FOLDER / "format1" / "heun.json").read_text(encoding="utf-8")
    with pytest.raises(PlanError, match="the file was changed"):
        Plan.from_json(text.replace("0x1.4", "0x1.5", 1))


def test_every_golden_file_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(PLANS)
    assert {path.stem for path in (FOLDER / "format1").glob("*.json")} == set(FIRST)


def digests(**environment: str) -> dict[str, str]:
    """The digest of every golden plan, compiled by a fresh interpreter."""
    run = subprocess.run(
        [sys.executable, str(FOLDER / "regenerate.py"), "--print"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line.split("  ") for line in run.stdout.splitlines())
    return {name: digest for digest, name in lines}


def test_plans_do_not_depend_on_the_processor_or_on_the_interpreter() -> None:
    """With numpy's and libm's fast paths switched off, another hash seed and mpmath's pure Python integers."""
    umath = np._core._multiarray_umath  # type: ignore[attr-defined]
    present = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]
    found = digests(
        NPY_DISABLE_CPU_FEATURES=" ".join(present),
        GLIBC_TUNABLES="glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-FMA,-FMA_Usable,-AVX512F",
        MPMATH_NOGMPY="1",
        PYTHONHASHSEED="12345",
    )
    assert found == {name: json.loads((FOLDER / f"{name}.json").read_text())["sha256"] for name in PLANS}
