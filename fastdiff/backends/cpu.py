"""The ops in C++ for the CPU: vector kernels chosen for this machine when they are first needed.

Two files carry them: ``fastdiff._host`` (kernels and the eager loop, without torch) and ``fastdiff._C`` (their
registration with torch). Loading connects the two: kernels one way, torch's thread pool the other.
"""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import torch

from fastdiff.backends.registry import fill_noise_by_dispatcher as fill_noise
from fastdiff.backends.registry import gram_by_dispatcher as gram
from fastdiff.backends.registry import stage_by_dispatcher as stage

__all__ = ["details", "fill_noise", "gram", "host", "stage", "unavailable"]

REBUILD = "install fastdiff with a C++17 compiler, in an environment that has torch: pip install --no-build-isolation"


def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None where it can."""
    return _load()[1]


def details() -> str:
    """The instruction set in use, all usable ones, and the compiler."""
    module = host()
    if module is None:
        return ""
    flush = "; this thread flushes subnormals to zero, and the kernels undo that" if module.flushes_subnormals() else ""
    return f"{module.isa()} of {', '.join(module.isas())}; compiler {module.compiler}{flush}"


def host() -> ModuleType | None:
    """The module ``fastdiff._host``, connected to torch; None where this backend is unavailable."""
    return _load()[0]


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The host module and None, or None and what is missing."""
    try:
        module = importlib.import_module("fastdiff._host")
    except ImportError as error:
        return None, f"fastdiff._host cannot be loaded ({error}); {REBUILD}"
    folder = Path(__file__).parents[1]
    library = next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_C{suffix}").exists()), None)
    if library is None:
        return None, f"fastdiff._C was not built; {REBUILD}"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return None, f"fastdiff._C cannot be loaded with torch {torch.__version__} ({error}); {REBUILD}"
    connect = ctypes.CDLL(str(library)).fastdiff_connect
    connect.argtypes, connect.restype = [ctypes.c_void_p], ctypes.c_bool
    if not connect(module.kernel_table()):
        return None, f"fastdiff._host and fastdiff._C come from different builds; {REBUILD}"
    module.use_tensor_type(torch.Tensor)
    return module, None
