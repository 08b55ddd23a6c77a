"""The machine: what a reader must know before comparing figures with another one's."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import numpy as np
import torch

from fastdiff.backends import cpu

ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")


def facts() -> dict[str, str]:
    """Processor, versions, instruction set and memory allocator."""
    host = cpu.host()
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "instruction_set": "none (reference only)" if host is None else host.isa(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "allocator": allocator(),
    }


def allocator() -> str:
    """Which ``malloc`` serves torch's tensors: it decides how much large temporaries cost."""
    maps = Path("/proc/self/maps")
    loaded = maps.read_text() if maps.exists() else ""
    for name in ALLOCATORS:
        if re.search(rf"/lib{name}[\w.-]*\.so", loaded):
            return f"{name} (preloaded)"
    library, version = platform.libc_ver()
    return f"{library} {version}".strip() or "the system's"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
