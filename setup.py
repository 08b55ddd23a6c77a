"""Build the compiled parts of fastdiff; each of them is optional.

``fastdiff._host`` holds the CPU kernels and needs a C++17 compiler. ``fastdiff._C`` registers them with torch and
needs torch's headers too, so it is built where torch can be imported: ``pip install --no-build-isolation``. Without
them the package works on the reference and Triton backends, and ``fastdiff doctor`` says what is missing.
"""

from __future__ import annotations

import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")
# Appended after every other flag, so that no environment can switch on contraction or fast math.
EXACT = ["-O3", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-fno-fast-math"]
# g++ 12 warns about its own AVX-512 headers.
QUIET = ["-g0", "-Wno-maybe-uninitialized", "-Wno-unknown-pragmas"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# name, vector width in bits, flags
ISAS = [("scalar", 0, [])] + ([("avx2", 256, AVX2), ("avx512", 512, AVX512)] if X86 else [])
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"


class Unit(tuple):
    """One object file: source, folder for it inside the build, flags."""


def host_units() -> list[Unit]:
    """The kernels once per instruction set, and what chooses between them."""
    import pybind11

    include = f"-I{pybind11.get_include()}"
    x86 = ["-DFD_X86"] if X86 else []
    units = [Unit((f"csrc/{name}.cpp", "host", [include, *x86])) for name in ("host", "loop", "launch", "roofline")]
    for isa, bits, flags in ISAS:
        units.append(Unit(("csrc/cpu.cpp", isa, [f"-DFD_ISA={isa}", f"-DFD_BITS={bits}", *flags])))
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


class BuildOptional(build_ext):
    """Compile units in parallel, some sources more than once; a failure leaves its extension out."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except Exception as error:  # any reason at all: a missing compiler must not stop the installation
            self.get_finalized_command("build_ext").announce(
                f"fastdiff: {ext.name} was NOT built: {error}. The package works without it, more slowly; "
                "see `fastdiff doctor`.",
                level=4,
            )

    def _build(self, ext: Extension) -> None:
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
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Without a path to libtorch in it: torch is loaded before this library is.
        torch = [] if host else [f"-L{torch_folder() / 'lib'}", "-ltorch_cpu"]
        self.compiler.link_shared_object(objects, str(target), extra_postargs=torch, target_lang="c++")


SOURCES = [str(path) for path in sorted(Path("csrc").glob("*.cpp"))]
EXTENSIONS = [] if sys.platform == "win32" else [
    Extension("fastdiff._host", SOURCES, optional=True),
    Extension("fastdiff._C", SOURCES, optional=True),
]

setup(
    packages=[*find_packages(include=["fastdiff", "fastdiff.*"]), "fastdiff.kernels"],
    # Never a top-level `kernels`, which another package is.
    package_dir={"fastdiff.kernels": "kernels"},
    package_data={"fastdiff": ["data/*.safetensors", "py.typed"]},
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildOptional},
)
