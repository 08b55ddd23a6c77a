"""The compiled extensions of a copy of the tree, brought up to date with its sources.

Flags are those of its ``setup.py``, but for the level of optimisation. A unit is compiled again when its preprocessed
text has changed, so a fault costs the units that it is in.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock


class Extensions:
    """``fastdiff._host`` and ``fastdiff._C`` of a copy of the tree.

    Args:
        tree: the copy.
        kept: a folder for object files.
    """

    def __init__(self, tree: Path, kept: Path) -> None:
        self._tree, self._kept = tree, kept
        self._built: list[bytes] = []

    def update(self) -> None:
        """Compile what has changed since the last time, and link both.

        Raises:
            RuntimeError: it does not compile; the compiler's words.
        """
        sources = [path.read_bytes() for path in (self._tree / "setup.py", *sorted((self._tree / "csrc").iterdir()))]
        if sources == self._built:
            return
        with mock.patch("setuptools.setup"), mock.patch.object(sys, "argv", ["setup.py"]):
            here = os.getcwd()
            os.chdir(self._tree)
            try:
                build = runpy.run_path("setup.py")
                units = {"_host": build["host_units"](), "_C": build["op_units"]()}
            finally:
                os.chdir(here)
        # Quick to compile, and yet contracting products and sums where that is allowed.
        quick = ["-O1", "-fexpensive-optimizations"]
        exact = [part for flag in build["EXACT"] for part in (quick if flag == "-O3" else [flag])]
        python = f"-I{sysconfig.get_paths()['include']}"
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        libraries = {"_host": [], "_C": [f"-L{build['torch_folder']() / 'lib'}", "-ltorch_cpu"]}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, of_extension in units.items():
                commands = [
                    (source, ["-fPIC", python, *build["QUIET"], *flags, *exact]) for source, _, flags in of_extension
                ]
                objects = list(pool.map(lambda unit: self._object(*unit), commands))
                target = self._tree / "fastdiff" / f"{name}{suffix}"
                # A file that is open elsewhere stays what it is there.
                target.unlink(missing_ok=True)
                self._compiler("-shared", *objects, *libraries[name], "-o", str(target))
        self._built = sources

    def _object(self, source: str, flags: list[str]) -> str:
        text = self._compiler(*flags, "-E", "-P", source)
        key = hashlib.sha256(repr((flags, text)).encode()).hexdigest()[:20]
        target = self._kept / f"{key}.o"
        if not target.exists():
            self._compiler(*flags, "-c", source, "-o", str(target))
        return str(target)

    def _compiler(self, *arguments: str) -> str:
        command = ["nice", "g++", *arguments]
        done = subprocess.run(command, cwd=self._tree, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        return done.stdout
