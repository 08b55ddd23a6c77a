"""Files: safetensors, JSON and PNG in and out; never a pickle, and never half a file.

A result is written beside its place under another name, flushed to the disk, and renamed: whoever looks sees the
old file or the whole new one. The same content always gives the same bytes.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastdiff.errors import CheckpointError, OutputError, PlanError
from fastdiff.plans.plan import Plan

SAMPLES = "samples"


class SampleSet(NamedTuple):
    """Samples ``[N, ...]`` and what is written with them: seeds, plan digest, noise format, version, settings."""

    samples: Tensor
    facts: dict[str, str]


def write(path: Path, content: bytes) -> None:
    """Write a file, all or nothing, also if the process is killed or the power fails.

    Raises:
        OutputError: the folder cannot be written, or the disk is full; what was there before is untouched.
    """
    temporary = _beside(path)
    try:
        _write_and_flush(temporary, content)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Refuse a place where no file can be made, before any work is done.

    Raises:
        OutputError: the folder does not exist, or a file cannot be made in it.
    """
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {folder}; make it first, or choose another place")
    longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if len(os.fsencode(path.name)) > longest:
        raise OutputError(f"cannot write {path}: its name has more than {longest} bytes; choose a shorter one")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    probe = _beside(path)
    try:
        _write_and_flush(probe, b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def encode_samples(samples: Tensor, facts: Mapping[str, str]) -> bytes:
    """A safetensors file with the tensor ``samples`` and its facts; the same bytes every time."""
    encoded = safetensors.torch.save({SAMPLES: samples.contiguous()}, dict(facts))
    # The library writes metadata in the order of a hash table, which differs from run to run; sort the header.
    length = int.from_bytes(encoded[:8], "little")
    header = json.dumps(json.loads(encoded[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + encoded[8 + length :]


def read_samples(path: Path) -> SampleSet:
    """Read what ``encode_samples`` made.

    Raises:
        CheckpointError: not a safetensors file, or one without the tensor ``samples``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return SampleSet(file.get_tensor(SAMPLES), dict(file.metadata() or {}))
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a set of samples ({error}); it must be a safetensors file with the tensor {SAMPLES!r}"
        ) from error


def read_plan(path: Path) -> Plan:
    """Read a plan that was written as JSON.

    Raises:
        PlanError: not a plan, of another version, or changed since it was written.
    """
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise PlanError(f"{path} is not a plan: not text; write one with 'fastdiff plan --export FILE.json'") from None
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def _beside(path: Path) -> Path:
    """A name in the same folder that nobody else takes; it does not hold the file's own, which may be long already."""
    return path.with_name(f".{secrets.token_hex(8)}.tmp")


def _write_and_flush(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself last; a folder can be opened on POSIX only."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
