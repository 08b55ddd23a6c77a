"""The corpus: a text file of cases that failed once, one a line, which every later run tries first.

A line that begins with ``#`` says what the next one is about.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fastdiff.app.io import check_folder, write
from fastdiff.errors import FastdiffError, InputError
from fastdiff.lab.fuzz import row_line, samplers
from fastdiff.lab.fuzz.rows import RowSubject
from fastdiff.lab.fuzz.subject import Subject
from fastdiff.lab.fuzz.variants import CHECKOUT

NAME = "fuzz.txt"


def default_path() -> Path:
    """``tests/corpus`` in a source checkout, else the user's cache folder."""
    if (CHECKOUT / "tests" / "corpus").is_dir():
        return CHECKOUT / "tests" / "corpus" / NAME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdiff" / NAME


def prepare(path: Path, made: bool) -> None:
    """See that a corpus can be written, before any work is done.

    Args:
        path: the file; it need not exist.
        made: whether its folder may be made.

    Raises:
        OutputError: it cannot.
    """
    if made:
        path.parent.mkdir(parents=True, exist_ok=True)
    check_folder(path)


def read_line(line: str) -> Subject:
    """The case of a line that the command has printed.

    Raises:
        InputError: it is not such a line; says why.
    """
    try:
        body = json.loads(line)
        if not isinstance(body, dict) or len(body) != 1 or not set(body) <= {"row", "sampler"}:
            raise ValueError("it must be one object with the key 'row' or 'sampler'")
        (kind, inner), *_ = body.items()
        return RowSubject(row_line.decode(inner)) if kind == "row" else samplers.decode(inner)
    except RecursionError:
        raise InputError("this is not a line that 'fastdiff fuzz' printed: it is nested too deeply") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        reason = f"{error}" if isinstance(error, FastdiffError | ValueError) else f"{type(error).__name__}: {error}"
        raise InputError(f"this is not a line that 'fastdiff fuzz' printed: {reason}") from None


def read(path: Path) -> list[str]:
    """The lines of a corpus that hold cases; none where there is no such file.

    Raises:
        InputError: it is not text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a corpus: not text") from None
    return [line for line in lines if line.strip() and not line.startswith("#")]


def add(path: Path, line: str, remark: str) -> None:
    """Append a case with a remark above it, unless it is there already.

    Raises:
        OutputError: the file cannot be written; it is untouched.
    """
    if line in read(path):
        return
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    remark = " ".join(remark.split())
    write(path, f"{before}# {remark}\n{line}\n".encode())
