"""Processes into which a sanitizer of g++ is loaded before anything else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sanitized.py")
MEMORY = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RACES = ("-O1", "-g", "-fsanitize=thread")


def no_byte_out_of_bounds(kind: str, library: Path, *orders: str, cases: int, most_elements: int) -> None:
    """Run random rows on a library that was compiled with ``MEMORY``; nothing may be reported."""
    _run("libasan.so", kind, library, cases, most_elements, *orders, ASAN_OPTIONS="detect_leaks=0")


def no_race(kind: str, library: Path, *orders: str, cases: int, most_elements: int) -> None:
    """Run random rows on a library that was compiled with ``RACES``; nothing may be reported."""
    _run("libtsan.so", kind, library, cases, most_elements, *orders, TSAN_OPTIONS="halt_on_error=1")


def _run(preload: str, *arguments: object, **options: str) -> None:
    path = _library(preload)
    if not path.is_absolute():
        pytest.skip(f"{preload} is not installed beside g++")
    # The runtime looks for what throws exceptions when it is loaded, before Python loads the library that it is in.
    preloads = f"{path.resolve()} {_library('libstdc++.so.6').resolve()}"
    # Shadow memory needs the addresses that randomisation may take.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    environment = os.environ | {"LD_PRELOAD": preloads} | options
    command = ["nice", *fixed, sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def _library(name: str) -> Path:
    """Where a library lies that comes with the compiler; the bare name if it is not there."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())
