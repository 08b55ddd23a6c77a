"""The AVX-512 kernel where there is no AVX-512: its source compiled against emulated intrinsics, in its own process."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fastdiff.backends import cpu

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("g++")
REASONS = {
    "the compiled backend is missing": cpu.host() is None,
    "g++ is not installed": COMPILER is None,
    "the headers of SIMDe are not installed (Debian's libsimde-dev)": not Path("/usr/include/simde").exists(),
    "this processor has no AVX2": "avx2" not in (cpu.host().isas() if cpu.host() else []),
}
pytestmark = [pytest.mark.night] + [pytest.mark.skipif(given, reason=reason) for reason, given in REASONS.items()]

FLAGS = ["-std=c++17", "-O2", "-w", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# The unit named avx2 holds the 512-bit source, so that the choice by cpuid takes it; real 512-bit code stays out.
FORWARD = """
#include "kernel.h"
namespace fastdiff::avx512 {
void stage(const StageArgs&, const Walk&, int64_t, int64_t) { __builtin_trap(); }
}
"""
# Runs in a process of its own, as the kernels are connected to torch once.
COMPARE = """
import ctypes, importlib.util, sys
import torch
import fastdiff
from fastdiff.backends import cpu, reference
from fastdiff.testing.rows import random_case, same_bits

spec = importlib.util.spec_from_file_location("emulated._host", sys.argv[1])
host = importlib.util.module_from_spec(spec)
cpu.host = lambda: host
spec.loader.exec_module(host)
library = next(cpu.Path(cpu.__file__).parents[1].glob("_C*.so"))
torch.ops.load_library(library)
connect = ctypes.CDLL(str(library)).fastdiff_connect
connect.argtypes, connect.restype = [ctypes.c_void_p], ctypes.c_bool
assert connect(host.kernel_table())
host.set_isa("avx2")
for seed in range(int(sys.argv[2])):
    case = random_case(seed, max_elements=1025)
    expected, found = case.run(reference.stage), case.run(cpu.stage)
    for key, value in expected.items():
        assert same_bits(found[key], value), key + ": " + case.describe()
for shape in ((1, 2**18), (70, 3), (2, 3, 20, 21)):
    out, expected = torch.empty(shape), torch.empty(shape)
    tables = torch.arange(shape[0]) + 2**40, torch.tensor([[1, 2, 3, 4]])
    cpu.fill_noise(out, *tables)
    reference.fill_noise(expected, *tables)
    assert same_bits(out, expected)
host.set_isa("scalar")
print("same bits")
"""


def build(folder: Path) -> Path:
    """A host module whose vector kernel is the emulated 512-bit one."""
    import pybind11

    includes = [f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    (folder / "forward.cpp").write_text(FORWARD)
    emulated = ["-include", str(ROOT / "tests" / "avx512" / "emulated.h")]
    units = [(path, ["-DFD_X86"]) for path in (ROOT / "csrc").glob("*.cpp") if path.name not in ("cpu.cpp", "ops.cpp")]
    units.append((folder / "forward.cpp", []))
    units.append((ROOT / "csrc" / "cpu.cpp", ["-DFD_ISA=scalar", "-DFD_BITS=0"]))
    units.append((ROOT / "csrc" / "cpu.cpp", ["-DFD_ISA=avx2", "-DFD_BITS=512", *AVX2, *emulated]))
    objects = []
    for i, (source, flags) in enumerate(units):
        objects.append(str(folder / f"{i}.o"))
        subprocess.run([COMPILER, *FLAGS, *includes, *flags, "-c", str(source), "-o", objects[-1]], check=True)
    module = folder / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([COMPILER, "-shared", *objects, "-o", str(module)], check=True)
    return module


def test_the_512_bit_source_has_the_bits_of_the_reference(tmp_path: Path) -> None:
    module = build(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(module), "300"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same bits"
