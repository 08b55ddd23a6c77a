"""Copies of the Triton kernels with a fault planted, in place of the real ones."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import fastdiff.kernels

NAMES = ("philox", "normal", "structure", "stage", "gram")


@contextmanager
def mutated(module: str, right: str, wrong: str) -> Iterator[None]:
    """Run with ``wrong`` in place of ``right`` in one module of ``fastdiff.kernels``.

    Raises:
        ValueError: the module's source does not hold ``right`` exactly once, so the fault would be another.
    """
    (folder,) = fastdiff.kernels.__path__
    with tempfile.TemporaryDirectory() as copy:
        for name in NAMES:
            shutil.copy(Path(folder) / f"{name}.py", copy)
        source = Path(copy) / f"{module}.py"
        text = source.read_text()
        if text.count(right) != 1:
            raise ValueError(f"{right!r} occurs {text.count(right)} times in {module}.py; want once")
        source.write_text(text.replace(right, wrong))
        with fresh_kernels([copy]):
            yield


@contextmanager
def fresh_kernels(folders: list[str]) -> Iterator[None]:
    """Import the modules of ``fastdiff.kernels`` anew, from these folders, and the old ones again afterwards."""
    package = fastdiff.kernels
    names = [f"fastdiff.kernels.{name}" for name in NAMES]
    attributes = {name: getattr(package, name) for name in NAMES if hasattr(package, name)}
    # Only these are put back: what Triton imports meanwhile would otherwise be forgotten, and imported twice.
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        with mock.patch.object(package, "__path__", folders):
            # Two files of one size written within a second would share their bytecode.
            importlib.invalidate_caches()
            importlib.import_module("fastdiff.kernels.gram")
            yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
        _restore(attributes)


def _restore(attributes: dict[str, ModuleType]) -> None:
    """Put the modules that the package had as attributes back."""
    package = fastdiff.kernels
    for name in NAMES:
        if name in attributes:
            setattr(package, name, attributes[name])
        elif hasattr(package, name):
            delattr(package, name)
