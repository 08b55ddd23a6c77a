"""Build the compiled parts of fastdiff; each of them is optional.

``fastdiff._host`` holds the CPU kernels and needs a C++17 compiler. ``fastdiff._C`` registers them with torch and
needs torch's headers too, so it is built where torch can be imported: ``pip install --no-build-isolation``.
``fastdiff._cuda`` holds the CUDA kernels; it is built where nvcc is found and torch is a build for CUDA, or anywhere
with nvcc when the environment says FASTDIFF_CUDA=1. Without them the package works on the reference and Triton
backends, and ``fastdiff doctor`` says what is missing.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")
# Appended after every other flag, so that no environment can switch on contraction or fast math.
EXACT = ["-O3", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-fno-fast-math", "-fno-strict-aliasing"]
# g++ 12 warns about its own AVX-512 headers, and about vectors as template arguments.
QUIET = ["-g0", "-Wno-maybe-uninitialized", "-Wno-ignored-attributes", "-Wno-unknown-pragmas"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# name, vector width in bits, flags
ISAS = [("scalar", 0, [])] + ([("avx2", 256, AVX2), ("avx512", 512, AVX512)] if X86 else [])
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"

# Machine code for these generations of NVIDIA devices, and PTX from which drivers make that of later ones.
CUDA_TARGETS = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]


class Unit(tuple):
    """One object file: source, folder for it inside the build, flags."""


def host_units() -> list[Unit]:
    """The kernels once per instruction set, and what chooses between them."""
    import pybind11

    include = f"-I{pybind11.get_include()}"
    x86 = ["-DFD_X86"] if X86 else []
    units = [Unit((f"csrc/{name}.cpp", "host", [include, *x86])) for name in ("host", "loop", "launch", "roofline")]
    for isa, bits, flags in ISAS:
        for source in ("cpu", "cpu_gram"):
            units.append(Unit((f"csrc/{source}.cpp", isa, [f"-DFD_ISA={isa}", f"-DFD_BITS={bits}", *flags])))
    return units


def op_units() -> list[Unit]:
    """The torch registration."""
    return [Unit(("csrc/ops.cpp", "ops", [f"-I{torch_folder() / 'include'}", TORCH_TARGET]))]


def torch_folder() -> Path:
    """Where torch is installed, without importing it.

    Raises:
        ModuleNotFoundError: it is not installed in the environment that builds.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torch is not installed where fastdiff is built; use pip's --no-build-isolation")
    return Path(spec.origin).parent


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def wants_cuda() -> bool:
    """Whether the CUDA kernels are asked for; if nobody says, whether they are of use and can be compiled."""
    asked = os.environ.get("FASTDIFF_CUDA")
    if asked is not None:
        return asked == "1"
    spec = find_spec("torch")
    if nvcc() is None or spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py").read_text()
    return re.search(r"^cuda\b.*=\s*['\"]", version, re.MULTILINE) is not None


def nvcc_command(target: Path) -> list[str]:
    """Compile ``csrc/cuda.cu`` for all targets into one shared object that needs no CUDA library beside it.

    Raises:
        FileNotFoundError: there is no compiler.
    """
    compiler = nvcc()
    if compiler is None:
        raise FileNotFoundError("nvcc is neither in PATH nor in CUDA_HOME/bin")
    command = [compiler, "--options-file=csrc/nvcc.options", "-shared", "-cudart=static", "--threads=0"]
    command += ["-Xcompiler=-fPIC,-fvisibility=hidden", f'-DFD_CUDA_TARGETS="{" ".join(CUDA_TARGETS)}"']
    for name in CUDA_TARGETS:
        command.append(f"-gencode=arch=compute_{name.partition('_')[2]},code={name}")
    return [*command, "csrc/cuda.cu", "-o", str(target)]


class BuildOptional(build_ext):
    """Compile units in parallel, some sources more than once; a failure leaves its extension out."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension, or say why it is left out."""
        try:
            self._build(ext)
        except Exception as error:  # any reason at all: a missing compiler must not stop the installation
            self.warn(
                f"{ext.name} was NOT built: {error}. The package works without it, more slowly; see fastdiff doctor"
            )

    def _build(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if ext.name.endswith("_cuda"):
            subprocess.run(nvcc_command(target), check=True)
            return
        host = ext.name.endswith("_host")
        units = host_units() if host else op_units()

        def compile_unit(unit: Unit) -> list[str]:
            source, folder, flags = unit
            return self.compiler.compile(
                [source],
                output_dir=str(Path(self.build_temp) / folder),
                include_dirs=self.compiler.include_dirs,
                extra_postargs=[*QUIET, *flags, *EXACT],
            )

        with ThreadPoolExecutor() as pool:
            objects = [path for paths in pool.map(compile_unit, units) for path in paths]
        # Without a path to libtorch in it: torch is loaded before this library is.
        torch = [] if host else [f"-L{torch_folder() / 'lib'}", "-ltorch_cpu"]
        self.compiler.link_shared_object(objects, str(target), extra_postargs=torch, target_lang="c++")


SOURCES = [str(path) for path in sorted(Path("csrc").glob("*.cpp"))]
# Named so that a source distribution carries them.
HEADERS = [str(path) for path in sorted(Path("csrc").iterdir()) if path.suffix not in (".cpp", ".cu")]
EXTENSIONS = (
    []
    if sys.platform == "win32"
    else [
        Extension("fastdiff._host", SOURCES, depends=HEADERS, optional=True),
        Extension("fastdiff._C", SOURCES, depends=HEADERS, optional=True),
        *([Extension("fastdiff._cuda", ["csrc/cuda.cu"], optional=True)] if wants_cuda() else []),
    ]
)

setup(
    packages=[*find_packages(include=["fastdiff", "fastdiff.*"]), "fastdiff.kernels"],
    # Never a top-level `kernels`, which another package is.
    package_dir={"fastdiff.kernels": "kernels"},
    package_data={"fastdiff": ["data/*.safetensors", "py.typed"]},
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildOptional},
)
