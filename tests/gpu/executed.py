"""The CUDA backend on CPU tensors, over the PTX that nvcc makes, run by the executor.

    library = ExecutedCuda("sm_90")
    case.run(library.stage)
    library.memory.named("columns")

Host code and launch are those of the emulated build, which tells what it would launch; kernels are found by their
symbols, which g++ and nvcc form alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiled import CROWD, Patch, emulated, nvcc
from emulated import EmulatedCuda
from pretend_gpu import regions_of
from ptx import Kernel, Memory, Statistics, execute, parse
from torch import Tensor

from fastdiff.backends import cuda
from fastdiff.backends.cuda_arguments import gram_arguments
from fastdiff.rows.call import Call, GramCall


class ExecutedCuda(EmulatedCuda):
    """As ``EmulatedCuda``, but what runs is PTX.

    Args:
        arch: what nvcc compiles for, such as ``"sm_90"``.
        flags: more flags for nvcc.
        patch: faults to plant in the sources.
    """

    prepare = None
    """What is launched again and again goes through ``stage``, so that it is executed."""

    def __init__(self, arch: str, *flags: str, patch: Patch | None = None) -> None:
        super().__init__(emulated(patch=patch))
        self.order("none")
        self.ptx = nvcc(arch, "ptx", f"-DFD_CROWD={CROWD}", *flags, patch=patch).read_text()
        self._kernels: dict[str, Kernel] = {}
        self.memory = Memory([])
        self.statistics = Statistics()

    def stage(self, call: Call) -> None:
        """As ``Library.stage``."""
        super().stage(call)
        named = [(f"columns.{i}", column) for i, column in enumerate(call.columns)]
        named += [(f"stores.{i}", store) for i, store in enumerate(call.stores) if store is not None]
        tables = {name: getattr(call, name) for name in ("coef", "present", "seeds", "draws", "z")}
        named += [(name, table) for name, table in tables.items() if table is not None]
        if (*call.columns, *call.written)[0].numel():
            self._execute(named)

    def fill_noise(self, out: Tensor, seeds: Tensor, draws: Tensor) -> None:
        """As ``Library.fill_noise``."""
        super().fill_noise(out, seeds, draws)
        if out.numel():
            self._execute([("stores.0", out), ("seeds", seeds), ("draws", draws)])

    def gram(self, call: GramCall) -> None:
        """As ``Library.gram``, whose launches are executed once the last one is known."""
        args, parts = gram_arguments(call)
        before = self.launched().launches
        cuda._launch(self._gram, args, call.scalars)
        named = [(f"columns.{i}", column) for i, column in enumerate(call.columns)]
        tables = {name: getattr(call, name) for name in ("numbers", "seeds", "draws", "coef", "scalars")}
        named += [(name, table) for name, table in (tables | {"parts": parts}).items() if table is not None]
        for ago in reversed(range(self.launched().launches - before)):
            self._execute(named, ago)

    def _execute(self, named: Sequence[tuple[str, Tensor]], ago: int = 0) -> None:
        launch = self.launched(ago)
        kernel = self._kernels.get(launch.kernel)
        if kernel is None:
            kernel = self._kernels[launch.kernel] = parse(self.ptx, launch.kernel)
        self.memory = Memory(regions_of(named))
        grid, block = launch.grid[:2], launch.block[:2]
        self.statistics = execute(kernel, grid, block, [launch.argument], self.memory, launch.shared)
