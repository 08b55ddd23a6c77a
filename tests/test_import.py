"""Importing the package: cheap, because what an import does not need is loaded when it is first used."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import fastdiff

# torch itself brings numpy and tqdm.
LATER = ("mpmath", "rich", "click", "safetensors", "PIL", "triton", "matplotlib", "scipy")

REPORT = """
import sys
import torch
before = set(sys.modules)
import fastdiff
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
fastdiff.plan(steps=2)
print("mpmath" in sys.modules)
"""


def test_an_import_loads_nothing_that_it_does_not_need() -> None:
    run = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True, check=True)
    loaded, compiled_with_mpmath = run.stdout.splitlines()
    assert "fastdiff" in loaded.split()
    assert not set(LATER) & set(loaded.split())
    assert compiled_with_mpmath == "True"


def test_the_root_holds_what_sampling_needs_and_no_more() -> None:
    assert len(fastdiff.__all__) == 15
    assert all(getattr(fastdiff, name) is not None for name in fastdiff.__all__)
    public = {name for name, value in vars(fastdiff).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert public == set(fastdiff.__all__)
