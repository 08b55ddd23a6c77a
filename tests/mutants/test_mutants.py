"""Tests of the tests: every fault of the table is planted in a copy of the tree, and its test must notice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from extensions import Extensions
from table import MUTANTS

from fastdiff.backends import cpu

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "csrc", "docs", "fastdiff", "kernels", "tests")
FILES = ("pyproject.toml", "setup.py", "README.md")
PASSED, FAILED = 0, 1
COMPILED_HERE = "tests/gpu/"
"""Tests that compile what they test themselves; all others run the extensions."""


def identity(mutant):
    return f"{mutant.file}: {mutant.fault}"


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of the tree that can be imported, with extensions of its own."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for file in FILES:
        shutil.copy(ROOT / file, copy)
    (copy / "fastdiff" / "kernels").symlink_to(copy / "kernels")
    _take_warnings(copy / "tests" / "gpu" / "compiled.py")
    return copy


def _take_warnings(compiled):
    """A fault may leave something unused, which is no reason to call it noticed."""
    text = compiled.read_text()
    for strict in ('["-Werror"]', '"-Werror=all-warnings",'):
        assert strict in text
        text = text.replace(strict, '["-Wall"]' if strict[0] == "[" else "")
    compiled.write_text(text)


@pytest.fixture(scope="session")
def extensions(tree, tmp_path_factory):
    return Extensions(tree, tmp_path_factory.mktemp("objects"))


def run(tree, *tests):
    environment = os.environ | {"PYTHONPATH": str(tree)}
    # The tests named in the table may be those of the night.
    options = ["-x", "-q", "-m", "", "-p", "no:cacheprovider", "--rootdir", str(tree)]
    command = ["nice", sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("mutant", MUTANTS, ids=identity)
def test_the_table_fits_the_sources(mutant):
    """Every text that is to be replaced occurs exactly once, and every test that is to fail is there."""
    count = (ROOT / mutant.file).read_text().count(mutant.right)
    if count != 1:
        pytest.fail(
            f"{mutant.file} was changed: it holds {mutant.right!r} {count} times, and the planted fault "
            f"{mutant.fault!r} wants it once; write in tests/mutants where that fault can be planted now"
        )
    file, _, function = mutant.test.partition("::")
    if f"def {function.partition('[')[0]}(" not in (ROOT / file).read_text():
        pytest.fail(f"{mutant.test} is gone; name the test that notices {mutant.fault!r} now, in tests/mutants")


def test_no_fault_is_listed_twice():
    assert len({identity(mutant) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.mutants
def test_without_a_fault_every_named_test_passes(tree, extensions):
    extensions.update()
    done = run(tree, *sorted({mutant.test for mutant in MUTANTS}))
    assert done.returncode == PASSED, done.stdout
    # A test that is skipped notices nothing.
    assert " skipped" not in done.stdout, done.stdout


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=identity)
def test_the_fault_is_noticed(mutant, tree, extensions):
    if "avx2" in mutant.file and "avx2" not in (cpu.host().isas() if cpu.host() else []):
        pytest.skip("this processor has no AVX2, so nothing runs what the fault is in")
    source = tree / mutant.file
    text = source.read_text()
    source.write_text(text.replace(mutant.right, mutant.wrong))
    try:
        if not mutant.test.startswith(COMPILED_HERE):
            extensions.update()
        done = run(tree, mutant.test)
    finally:
        source.write_text(text)
    # A fault may also end the process by a signal: an access outside of all memory, or a ruined heap.
    assert done.returncode == FAILED or done.returncode < 0, (
        f"survived {mutant.test}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
    )
    # What does not compile, or cannot be imported, was noticed by nobody.
    for stillborn in ("CompileError", "CompilationError", "ImportError", "SyntaxError", "IndentationError"):
        assert stillborn not in done.stdout, done.stdout[-3000:]
