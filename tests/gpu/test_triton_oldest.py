"""The Triton kernels under the oldest Triton that is supported: what it compiles has the reference's bits too.

``make test`` brings it along, in a folder of its own beside the Triton that is installed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.backends import triton as backend

ROOT = Path(__file__).parents[2]
OLDEST = "3.6.0"
assert OLDEST.startswith(".".join(map(str, backend.OLDEST)))
FOLDER = ROOT / "build" / f"triton-{OLDEST}"
WHAT = [
    "tests/gpu/test_triton_stage.py::test_rows_have_the_reference_bits",
    "tests/gpu/test_triton_stage.py::test_sizes_are_widened_before_they_are_multiplied",
    "tests/gpu/test_triton_noise.py",
    "tests/gpu/test_triton_gram.py::test_grams_have_the_bits_of_the_definition",
    "tests/gpu/test_triton_sampling.py::test_stochastic_heun_moves_what_it_must",
]
"""All structures of rows, on 156 rows; noise; grams; and whole samplings."""


@pytest.mark.skipif(not FOLDER.exists(), reason=f"{FOLDER.relative_to(ROOT)} is not there; make test brings it along")
def test_the_oldest_triton_compiles_the_kernels_to_the_same_bits():
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    version = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *WHAT]
    asked = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    assert subprocess.run(version, **asked).stdout.strip() == OLDEST
    run = subprocess.run(command, **asked)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr
