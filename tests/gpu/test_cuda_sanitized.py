"""The emulated CUDA kernels under the sanitizers of g++: memory, undefined behaviour, and races between threads.

That they notice faults is shown in ``tests/mutants``.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import emulated

pytestmark = pytest.mark.night

SCRIPT = Path(__file__).with_name("sanitized.py")
MEMORY = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RACES = ("-O1", "-g", "-fsanitize=thread")


def run(library, preload, *orders, cases, **options):
    """Random rows in a process of its own, into which the sanitizer is loaded before anything else."""
    runtime = subprocess.run(["g++", f"-print-file-name={preload}"], capture_output=True, text=True, check=True)
    path = Path(runtime.stdout.strip())
    if not path.is_absolute():
        pytest.skip(f"{preload} is not installed beside g++")
    # Shadow memory needs the addresses that randomisation may take.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    environment = os.environ | {"LD_PRELOAD": str(path.resolve())} | options
    command = ["nice", *fixed, sys.executable, str(SCRIPT), str(library), str(cases), *orders]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_no_byte_out_of_bounds_and_nothing_undefined():
    done = run(emulated(*MEMORY), "libasan.so", "shuffled", cases=150, ASAN_OPTIONS="detect_leaks=0")
    assert (done.returncode, done.stderr) == (0, "")


def test_no_race_between_threads():
    done = run(emulated(*RACES), "libtsan.so", "two threads", cases=100, TSAN_OPTIONS="halt_on_error=1")
    assert (done.returncode, done.stderr) == (0, "")
