"""Kernels of csrc compiled in every way that the tests need, each once.

``csrc/cuda.cu`` by g++ with the stand-in runtime, and by nvcc; ``csrc/cpu.cpp`` without torch, for the sanitizers.

Results are kept under ``build/tests``, named after a digest of everything that went into them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
EMULATION = Path(__file__).parent / "emulation"
KEPT = ROOT / "build" / "tests"
DRIVER = ROOT / "tests" / "sanitizers" / "cpu.cpp"
EXACT = ("-ffp-contract=off", "-fno-fast-math")
CROWD = 300
"""Small enough that random cases fall on both sides: launches of few quads, and threads that take several."""

SHORT_UNITS = {"launch.cpp": ("kUnit = 16384", "kUnit = 64")}
"""So that small rows are shared between threads."""

TARGETS = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
"""What ``setup.py`` asks machine code for."""

NVCC = shutil.which("nvcc")
Patch = Mapping[str, tuple[str, str]]
"""Planted faults: file name in csrc to a text in it and what takes its place."""


class CompileError(Exception):
    """A compiler said no; its words."""


def emulated(*flags: str, patch: Patch | None = None) -> Path:
    """The shared object of ``csrc/cuda.cu`` for the CPU, with the stand-in runtime.

    Args:
        flags: more flags for g++, such as a sanitizer.
        patch: faults to plant in a copy of the sources.

    Raises:
        CompileError: it does not compile.
    """
    command = ["g++", "-shared", "-fPIC", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    # A planted fault may leave something unused.
    command += [] if patch else ["-Werror"]
    # Slots of shared memory are written as one type and read as another, as CUDA allows.
    command += [
        "-fno-strict-aliasing",
        "-fno-gnu-unique",
        "-Wl,-Bsymbolic",
        *flags,
        *EXACT,
        f"-DFD_CROWD={CROWD}",
    ]
    command += ['-DFD_CUDA_TARGETS="sm_80 sm_90 compute_90"', f"-I{EMULATION}"]

    def build(source: Path, target: Path) -> None:
        here = ["-x", "c++", str(source / "cuda.cu"), str(EMULATION / "emulation.cpp"), "-o", str(target)]
        _run([*command, *here])

    return _kept(command, ".so", build, patch)


def cpu_kernels(*flags: str) -> Path:
    """The shared object of the kernels for the CPU, scalar and AVX2, with the driver ``tests/sanitizers/cpu.cpp``.

    Args:
        flags: more flags for g++, such as a sanitizer.

    Raises:
        CompileError: it does not compile.
    """
    command = ["g++", "-fPIC", "-std=c++17", "-O2", "-w", "-fno-strict-aliasing", *flags, *EXACT, "-DFD_X86"]
    vectors = {"scalar": ["-DFD_BITS=0"], "avx2": ["-DFD_BITS=256", "-mavx2", "-mfma", "-mf16c"]}

    def build(source: Path, target: Path) -> None:
        objects = []
        for isa, options in vectors.items():
            for unit in ("cpu", "cpu_gram"):
                objects.append(str(target.with_name(f"{unit}_{isa}.o")))
                _run([*command, f"-DFD_ISA={isa}", *options, "-c", str(source / f"{unit}.cpp"), "-o", objects[-1]])
        rest = [str(source / "launch.cpp"), str(DRIVER), *objects]
        _run([*command, f"-I{source}", "-shared", "-Wl,-Bsymbolic", *rest, "-o", str(target)])

    return _kept([*command, repr(vectors), DRIVER.read_text()], ".so", build, SHORT_UNITS)


def nvcc(arch: str, kind: str, *flags: str, patch: Patch | None = None) -> Path:
    """The PTX, machine code or shared object that nvcc makes of ``csrc/cuda.cu``; beside it a ``.log`` of ptxas.

    Args:
        arch: such as ``"sm_90"``.
        kind: ``"ptx"``, ``"cubin"`` (machine code alone) or ``"so"``.
        flags: more flags, after those that the package is built with.
        patch: faults to plant in a copy of the sources.

    Raises:
        CompileError: it does not compile.
    """
    options = f"--options-file={CSRC / 'nvcc.options'}"
    command = [
        str(NVCC),
        options,
        f"-arch={arch}",
        f'-DFD_CUDA_TARGETS="{arch}"',
        "-Xptxas=-v",
        "-Werror=all-warnings",
    ]
    command += ["-shared", "-cudart=static", "-Xcompiler=-fPIC"] if kind == "so" else [f"-{kind}"]

    def build(source: Path, target: Path) -> None:
        text = _run([*command, *flags, str(source / "cuda.cu"), "-o", str(target)])
        target.with_suffix(".log").write_text(text)

    return _kept([*command, *flags], f".{kind}", build, patch)


def _kept(command: Sequence[str], suffix: str, build, patch: Patch | None) -> Path:
    """What was built from these sources by this command, now or before."""
    sources = {
        path.name: path.read_text()
        for path in sorted(CSRC.glob("*"))
        if path.suffix in (".h", ".cu", ".options") or path.name in ("cpu.cpp", "cpu_gram.cpp", "launch.cpp")
    }
    for name, (right, wrong) in (patch or {}).items():
        if sources[name].count(right) != 1:
            raise ValueError(f"{right!r} occurs {sources[name].count(right)} times in {name}; want once")
        sources[name] = sources[name].replace(right, wrong)
    stand_in = [path.read_text() for path in sorted(EMULATION.iterdir())]
    digest = hashlib.sha256(repr((list(command), sources, stand_in)).encode()).hexdigest()[:20]
    target = KEPT / f"cuda-{digest}{suffix}"
    if target.exists():
        return target
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT) as folder:
        for name, text in sources.items():
            (Path(folder) / name).write_text(text)
        fresh = Path(folder) / f"fresh{suffix}"
        build(Path(folder), fresh)
        for path in Path(folder).glob("fresh.*"):
            os.replace(path, target.with_suffix(path.suffix))
    return target


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(["nice", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout + done.stderr


def resources(log: str) -> dict[str, dict[str, int]]:
    """What ptxas says each kernel takes: bytes of stack and spills, and registers."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        stack, stores, loads = map(int, re.search(r"(\d+) bytes stack frame, (\d+) bytes.*?, (\d+)", part).groups())
        registers = int(re.search(r"Used (\d+) registers", part).group(1))
        found[part.split("'")[0]] = {"stack": stack, "spills": stores + loads, "registers": registers}
    return found
