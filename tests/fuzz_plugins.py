"""What a source checkout adds to ``fastdiff fuzz``: the compiled GPU kernels, run on the CPU by the tools of tests/gpu.

Each is there where its tools are: g++ for emulated CUDA, nvcc for its PTX, Triton for its PTX and its interpreter.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastdiff.lab.fuzz.variants import Plugin

SLOW = 1 / 30
"""Of the time, for each of the slow ones: together a tenth."""

sys.path.insert(0, str(Path(__file__).parent / "gpu"))


def plugins() -> Iterator[tuple[str, Plugin]]:
    """Those whose tools are here."""
    if shutil.which("g++"):
        yield "emulated-cuda", Plugin(_emulated_cuda, share=1.0)
        if shutil.which("nvcc"):
            yield "cuda-ptx", Plugin(_executed_cuda, SLOW)
    if find_spec("triton"):
        from cases import KINDS, make

        kinds = list(KINDS.values())

        def compiled_once(number: int) -> Any:
            """Of one of the twelve structures, so that Triton compiles each only once."""
            return make(kinds[number % len(kinds)], number)

        yield "triton-ptx", Plugin(_executed_triton, SLOW, compiled_once)
        yield "triton-interpreted", Plugin(_interpreted, SLOW)


@cache
def _library(kind: str) -> Any:
    """Compiled when it is first needed, and kept under ``build/tests``."""
    if kind == "emulated":
        from emulated import EmulatedCuda

        return EmulatedCuda()
    from executed import ExecutedCuda

    return ExecutedCuda("sm_90")


def _emulated_cuda(*call: Any) -> None:
    _library("emulated").stage(*call)


def _executed_cuda(*call: Any) -> None:
    _library("executed").stage(*call)


def _executed_triton(*call: Any) -> None:
    from pretend_gpu import PretendGpu

    from fastdiff.backends import triton

    with PretendGpu():
        triton.stage(*call)


def _interpreted(*call: Any) -> None:
    from interpreted import interpreted

    from fastdiff.backends import triton

    with interpreted():
        triton.stage(*call)


PLUGINS = dict(plugins())
