"""Tests of the tests: every fault of the table is planted in a copy of the tree, and its test must notice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from table import MUTANTS

ROOT = Path(__file__).parents[2]
FOLDERS = ("csrc", "fastdiff", "kernels", "tests")
FILES = ("pyproject.toml", "setup.py", "README.md")
PASSED, FAILED = 0, 1


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of the tree that can be imported."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, copy)
    (copy / "fastdiff" / "kernels").symlink_to(copy / "kernels")
    return copy


def run(tree, *tests):
    environment = os.environ | {"PYTHONPATH": str(tree)}
    # The tests named in the table may be those of the night.
    options = ["-x", "-q", "-m", "", "-p", "no:cacheprovider", "--rootdir", str(tree)]
    command = ["nice", sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.fault for mutant in MUTANTS])
def test_the_table_fits_the_sources(mutant):
    """Every text that is to be replaced occurs exactly once, and every test that is to fail is there."""
    assert (ROOT / mutant.file).read_text().count(mutant.right) == 1
    file, _, function = mutant.test.partition("::")
    assert f"def {function.partition('[')[0]}(" in (ROOT / file).read_text()


@pytest.mark.mutants
def test_without_a_fault_every_named_test_passes(tree):
    done = run(tree, *sorted({mutant.test for mutant in MUTANTS}))
    assert done.returncode == PASSED, done.stdout


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.fault for mutant in MUTANTS])
def test_the_fault_is_noticed(mutant, tree):
    source = tree / mutant.file
    text = source.read_text()
    source.write_text(text.replace(mutant.right, mutant.wrong))
    try:
        done = run(tree, mutant.test)
    finally:
        source.write_text(text)
    # A fault may also end the process by a signal: an access outside of all memory, or a ruined heap.
    assert done.returncode == FAILED or done.returncode < 0, (
        f"survived {mutant.test}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
    )
