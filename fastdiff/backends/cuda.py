"""The ops in CUDA C++ for NVIDIA devices: one launch for each call, at most two for a gram, and nothing else.

``fastdiff._cuda`` is ``csrc/cuda.cu``, compiled by nvcc together with the CUDA runtime and without torch. It is opened
when it is first asked for, on any machine; without a driver it says so. It is called through ctypes
(``docs/adr/0006-cuda.md``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from fastdiff.backends.cuda_arguments import (
    GramArgs,
    StageArgs,
    gram_arguments,
    noise_arguments,
    point,
    stage_arguments,
)
from fastdiff.backends.registry import Prepared
from fastdiff.errors import BackendError
from fastdiff.rows.call import Call, GramCall

ABI = 2
REBUILD = "install fastdiff where nvcc and a CUDA build of torch are: pip install --no-build-isolation"


class Library:
    """The compiled file, opened.

    Args:
        path: the shared object.

    ``driver`` and ``runtime`` are the CUDA versions of the driver (0 without one) and of the library's own runtime,
    as 1000 * major + 10 * minor; ``targets`` names what it was compiled for.

    Raises:
        OSError: it cannot be opened.
        BackendError: it belongs to another build of fastdiff.
    """

    def __init__(self, path: Path) -> None:
        handle = ctypes.CDLL(str(path))
        handle.fastdiff_cuda_abi.restype = ctypes.c_uint64
        if handle.fastdiff_cuda_abi() != ABI ^ ctypes.sizeof(StageArgs) << 32 ^ ctypes.sizeof(GramArgs) << 48:
            raise BackendError(f"{path.name} comes from another build of fastdiff; {REBUILD}")
        handle.fastdiff_cuda_targets.restype = ctypes.c_char_p
        self.targets = handle.fastdiff_cuda_targets().decode().split()
        driver, runtime = ctypes.c_int32(), ctypes.c_int32()
        handle.fastdiff_cuda_versions(ctypes.byref(driver), ctypes.byref(runtime))
        self.driver, self.runtime = driver.value, runtime.value
        self._stage, self._fill_noise = handle.fastdiff_cuda_stage, handle.fastdiff_cuda_fill_noise
        self._gram = handle.fastdiff_cuda_gram
        for launch, args in ((self._stage, StageArgs), (self._fill_noise, StageArgs), (self._gram, GramArgs)):
            launch.argtypes = (ctypes.POINTER(args), ctypes.c_int32, ctypes.c_void_p)
            launch.restype = ctypes.c_char_p

    def refusal(self, capability: tuple[int, int] | None = None) -> str | None:
        """Why its kernels cannot run on this machine, or None where they can.

        Args:
            capability: of the device, where one is in use.
        """
        if self.driver == 0:
            return "this machine has no NVIDIA driver"
        # Within a generation of CUDA an older driver runs the machine code of a newer runtime.
        if self.driver // 1000 < self.runtime // 1000:
            return (
                f"the NVIDIA driver is for CUDA {_version(self.driver)} and fastdiff._cuda has the runtime of "
                f"CUDA {_version(self.runtime)}; update the driver, or install fastdiff with an older nvcc"
            )
        if capability is not None and not any(_runs_on(target, capability) for target in self.targets):
            asked = ".".join(map(str, capability))
            return f"fastdiff._cuda is compiled for {', '.join(self.targets)}; this device has capability {asked}"
        return None

    def stage(self, call: Call) -> None:
        """Run one row in one launch."""
        _launch(self._stage, stage_arguments(call), call.coef)

    def prepare(self, call: Call) -> Prepared:
        """The launch of a row whose arguments stay where they are, but for the columns that are None."""
        args = stage_arguments(call)
        missing = [buffer for buffer, column in zip(args.column, call.columns, strict=False) if column is None]

        def launch(given: Sequence[Tensor]) -> None:
            for buffer, column in zip(missing, given, strict=True):
                point(buffer, column)
            _launch(self._stage, args, call.coef)

        return launch

    def fill_noise(self, out: Tensor, seeds: Tensor, draws: Tensor) -> None:
        """Fill ``out`` with normals; arguments as for ``fastdiff.backends.reference.fill_noise``, in one launch."""
        _launch(self._fill_noise, noise_arguments(out, seeds, draws), out)

    def gram(self, call: GramCall) -> None:
        """Make the scalars and coefficients of a gram, in two launches, or one where a sample is one chunk."""
        args, parts = gram_arguments(call)
        _launch(self._gram, args, call.scalars)
        # Until the launches are on their stream, which is the one that the memory is of.
        del parts


def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None where it can."""
    found = _library()
    if isinstance(found, str):
        return found
    # Asking a device for its capability wakes it up, which a process that is about to fork must not do.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    refusals = [found.refusal(torch.cuda.get_device_capability(device)) for device in devices] or [found.refusal()]
    # On one that is not served the launch is refused, with the runtime's reason.
    return refusals[0] if all(refusals) else None


def details() -> str:
    """The versions of runtime and driver, and the devices that were compiled for."""
    found = _opened()
    versions = f"CUDA {_version(found.runtime)}, driver for {_version(found.driver)}"
    return f"{versions}, compiled for {', '.join(found.targets)}"


def stage(call: Call) -> None:
    """Run one row in one launch."""
    _opened().stage(call)


def fill_noise(out: Tensor, seeds: Tensor, draws: Tensor) -> None:
    """Fill ``out`` with normals; arguments as for ``fastdiff.backends.reference.fill_noise``, in one launch."""
    _opened().fill_noise(out, seeds, draws)


def gram(call: GramCall) -> None:
    """Make the scalars and coefficients of a gram, in two launches, or one where a sample is one chunk."""
    _opened().gram(call)


def prepare(call: Call) -> Prepared:
    """The launch of a row whose arguments stay where they are, but for the columns that are None."""
    return _opened().prepare(call)


@cache
def _library() -> Library | str:
    """The library that was installed, or why there is none."""
    folder = Path(__file__).parents[1]
    path = next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_cuda{suffix}").exists()), None)
    if path is None:
        return f"fastdiff._cuda was not built; {REBUILD}"
    try:
        return Library(path)
    except OSError as error:
        return f"fastdiff._cuda cannot be opened ({error}); {REBUILD}"
    except BackendError as error:
        return str(error)


def _opened() -> Library:
    found = _library()
    if isinstance(found, str):
        raise BackendError(f"backend 'cuda' cannot be used: {found}")
    return found


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _runs_on(target: str, capability: tuple[int, int]) -> bool:
    """Machine code (``sm_80``) runs on later devices of its generation, ``compute_120`` on all later ones."""
    kind, _, number = target.partition("_")
    major, minor = divmod(int(number), 10)
    return capability >= (major, minor) if kind == "compute" else capability[0] == major and capability[1] >= minor


def _launch(run: ctypes._NamedFuncPointer, args: StageArgs | GramArgs, tensor: Tensor) -> None:
    """Launch on the current stream of the tensor's device."""
    device, stream = 0, None
    if tensor.is_cuda:
        device, stream = tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
    problem = run(args, device, stream)
    if problem is not None:
        raise BackendError(f"the CUDA kernel was not launched: {problem.decode()}")
