"""The ops in CUDA C++ for NVIDIA devices: one launch for each call, nothing else on the stream.

``fastdiff._cuda`` is ``csrc/cuda.cu``, compiled by nvcc together with the CUDA runtime and without torch. It is opened
when it is first asked for, on any machine; without a driver it says so. It is called through ctypes
(``docs/adr/0006-cuda.md``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from fastdiff.backends.registry import Prepared
from fastdiff.errors import BackendError
from fastdiff.rows.call import Call
from fastdiff.rows.gram import MAX_STEPS, MAX_SUMS, MAX_VECTORS, OPERATIONS
from fastdiff.rows.dtypes import NETWORK_TYPES
from fastdiff.rows.layout import CHANNELS_LAST, layout
from fastdiff.rows.program import MAX_COEFFICIENTS, MAX_COLUMNS, MAX_DRAWS, MAX_OUTPUTS, Formula, Program

ABI = 2
REBUILD = "install fastdiff where nvcc and a CUDA build of torch are: pip install --no-build-isolation"
DTYPES = {dtype: code for code, dtype in enumerate(NETWORK_TYPES)}
FIRST_OUTPUT = MAX_COLUMNS
FIRST_DRAW = FIRST_OUTPUT + MAX_OUTPUTS
MAX_TERMS = 256
MAX_FACTORS = 512
"""How many terms the vectors of a gram have together, and how many factors its coefficients, at most."""
CHUNK = 4096
"""Elements whose sums one block of threads makes."""
NOISE = Program(columns=0, outputs=(Formula(noise=(0,)),), draws=1)
"""The program of one draw and nothing else."""


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("dtype", ctypes.c_int32))


class _Output(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_int8),
        ("first", ctypes.c_uint8),
        ("terms", ctypes.c_uint8),
        ("noises", ctypes.c_uint8),
        ("bound", ctypes.c_int8),
        ("scale", ctypes.c_int8),
    )


class _Program(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int8) for name in ("columns", "draws", "network", "outputs", "c_in")),
        ("coefficients", ctypes.c_uint8),
        ("source", ctypes.c_uint8 * MAX_COEFFICIENTS),
        ("output", _Output * MAX_OUTPUTS),
    )


class _StageArgs(ctypes.Structure):
    """``StageArgs`` of ``csrc/stage.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "numel", "channels")),
        *((name, ctypes.c_int32) for name in ("state", "copies")),
        *((name, ctypes.c_void_p) for name in ("coef", "present", "seeds", "draws")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("coef", "present", "seeds", "draws")),
        ("program", _Program),
        ("column", _Buffer * MAX_COLUMNS),
        ("store", _Buffer * MAX_OUTPUTS),
        ("z", _Buffer),
    )


class _Sum(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int8) for name in ("kind", "a", "b", "c"))


class _Step(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int8) for name in ("operation", "left", "right"))


class _GramProgram(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint8) for name in ("vectors", "sums", "steps", "coefficients")),
        ("terms", ctypes.c_uint8 * MAX_VECTORS),
        ("source", ctypes.c_uint8 * MAX_TERMS),
        ("sum", _Sum * MAX_SUMS),
        ("step", _Step * MAX_STEPS),
        ("factors", ctypes.c_uint8 * MAX_COEFFICIENTS),
        ("scalar", ctypes.c_uint8 * MAX_FACTORS),
        *((name, ctypes.c_int16) for name in ("tolerances", "constants", "affine")),
    )


class _GramArgs(ctypes.Structure):
    """``GramArgs`` of ``csrc/cuda_gram.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "numel", "channels")),
        ("state", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("numbers", "seeds", "draws")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("numbers", "seeds", "draws")),
        *((name, ctypes.c_void_p) for name in ("coef", "scalars")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("coef", "scalars")),
        ("parts", ctypes.c_void_p),
        ("program", _GramProgram),
        ("column", _Buffer * MAX_COLUMNS),
    )


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
        if handle.fastdiff_cuda_abi() != ABI ^ ctypes.sizeof(_StageArgs) << 32 ^ ctypes.sizeof(_GramArgs) << 48:
            raise BackendError(f"{path.name} comes from another build of fastdiff; {REBUILD}")
        handle.fastdiff_cuda_targets.restype = ctypes.c_char_p
        self.targets = handle.fastdiff_cuda_targets().decode().split()
        driver, runtime = ctypes.c_int32(), ctypes.c_int32()
        handle.fastdiff_cuda_versions(ctypes.byref(driver), ctypes.byref(runtime))
        self.driver, self.runtime = driver.value, runtime.value
        self._stage, self._fill_noise = handle.fastdiff_cuda_stage, handle.fastdiff_cuda_fill_noise
        self._gram = handle.fastdiff_cuda_gram
        for launch, args in ((self._stage, _StageArgs), (self._fill_noise, _StageArgs), (self._gram, _GramArgs)):
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
        _launch(self._stage, _stage_arguments(call), call.coef)

    def prepare(self, call: Call) -> Prepared:
        """The launch of a row whose arguments stay where they are, but for the columns that are None."""
        args = _stage_arguments(call)
        missing = [buffer for buffer, column in zip(args.column, call.columns, strict=False) if column is None]

        def launch(given: Sequence[Tensor]) -> None:
            for buffer, column in zip(missing, given, strict=True):
                _point(buffer, column)
            _launch(self._stage, args, call.coef)

        return launch

    def fill_noise(self, out: Tensor, seeds: Tensor, draws: Tensor) -> None:
        """Fill ``out`` with normals; arguments as for ``fastdiff.backends.reference.fill_noise``, in one launch."""
        args = _arguments(out, NOISE)
        args.state = DTYPES[torch.float64 if out.dtype is torch.float64 else torch.float32]
        args.seeds, args.seeds_stride = _table(seeds)
        args.draws, args.draws_stride = _table(draws)
        _point(args.store[0], out)
        _launch(self._fill_noise, args, out)


    def gram(self, call: GramCall) -> None:
        """Make the scalars and coefficients of a gram, in two launches, or one where a sample is one chunk."""
        args, parts = _gram_arguments(call)
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


def _stage_arguments(call: Call) -> _StageArgs:
    """All of a row's arguments, but for columns that are None."""
    args = _arguments(next(t for t in (*call.columns, *call.stores) if t is not None), call.program)
    args.state = DTYPES[call.coef.dtype]
    args.coef, args.coef_stride = _table(call.coef)
    args.present, args.present_stride = _table(call.present)
    args.seeds, args.seeds_stride = _table(call.seeds)
    args.draws, args.draws_stride = _table(call.draws)
    for buffers, tensors in ((args.column, call.columns), (args.store, call.stores)):
        for buffer, tensor in zip(buffers, tensors, strict=False):
            if tensor is not None:
                _point(buffer, tensor)
    if call.z is not None:
        args.copies = call.z.shape[0] // max(args.batch, 1)
        _point(args.z, call.z)
    return args


def _arguments(tensor: Tensor, program: Program) -> _StageArgs:
    """Arguments with a program, and with the sizes and layout that all tensors of a call have."""
    args = _StageArgs()
    args.batch, args.numel, args.channels = _sizes(tensor)
    args.copies = 1
    args.program = _program(program)
    return args


def _sizes(tensor: Tensor) -> tuple[int, int, int]:
    """Samples, elements in each, and the channels between neighbours in memory."""
    # Which layouts a shape allows does not depend on the tensor, so those of a call agree beyond "either".
    channels = tensor.shape[1] if layout(tensor) == CHANNELS_LAST else 1
    return tensor.shape[0], tensor.shape[1:].numel(), channels


@lru_cache(maxsize=1024)
def _program(program: Program) -> _Program:
    """A program as kernels read it: the source of every coefficient, and where each output's begin."""

    def source(index: int) -> int:
        return index if index < program.columns else FIRST_OUTPUT + index - program.columns

    found, sources = _Program(columns=program.columns, draws=program.draws), []
    for i, output in enumerate(program.outputs):
        found.output[i] = _Output(
            base=-1 if output.base is None else source(output.base),
            first=len(sources),
            terms=len(output.terms),
            noises=len(output.noise),
            bound=program.bound_at(i) if output.clamp else -1,
            scale=program.scale_at(i) if output.scale else -1,
        )
        sources += map(source, output.terms)
        sources += [FIRST_DRAW + r if r >= 0 else -1 - r for r in output.noise]
        # Bound and scale multiply the output itself.
        sources += [0] * (output.clamp + output.scale)
    found.network = found.c_in = -1
    if program.network is not None:
        found.network, found.c_in = program.network, program.c_in_at
        sources.append(0)
    found.outputs, found.coefficients = len(program.outputs), len(sources)
    found.source[: len(sources)] = sources
    return found


def _gram_arguments(call: GramCall) -> tuple[_GramArgs, Tensor | None]:
    """All of a gram's arguments, and the memory of its parts, which torch may give to others afterwards."""
    args, parts = _GramArgs(), None
    args.program = program = _gram_program(tuple(call.program.integers))
    args.batch, args.numel, args.channels = _sizes(call.columns[0]) if call.columns else (call.scalars.shape[0], 0, 1)
    args.numbers, args.numbers_stride = _table(call.numbers)
    args.seeds, args.seeds_stride = _table(call.seeds)
    args.draws, args.draws_stride = _table(call.draws)
    if call.coef is not None:
        args.state, args.coef, args.coef_stride = DTYPES[call.coef.dtype], *_table(call.coef)
    args.scalars, args.scalars_stride = _table(call.scalars)
    for buffer, column in zip(args.column, call.columns, strict=False):
        _point(buffer, column)
    if args.numel > CHUNK:
        # By torch's allocator, so that it may happen while a graph is recorded.
        chunks = -(-args.numel // CHUNK)
        parts = call.scalars.new_empty(args.batch, program.sums, chunks)
        args.parts = parts.data_ptr()
    return args, parts


@lru_cache(maxsize=1024)
def _gram_program(integers: tuple[int, ...]) -> _GramProgram:
    """A gram's program as kernels read it.

    Raises:
        BackendError: it has more terms or factors than kernels take.
    """
    rest = iter(integers)
    columns, draws, vectors = (next(rest) for _ in range(3))
    found, sources = _GramProgram(vectors=vectors), []
    for v in range(vectors):
        found.terms[v] = next(rest)
        sources += [next(rest) for _ in range(found.terms[v])]
    _fits("terms in its vectors", len(sources), MAX_TERMS)
    # Kernels count draws from a place of their own.
    found.source[: len(sources)] = [
        s if s < columns else MAX_COLUMNS + (s - columns if s < columns + draws else MAX_DRAWS) for s in sources
    ]
    found.sums = next(rest)
    for i in range(found.sums):
        found.sum[i] = _Sum(*(next(rest) for _ in range(4)))
    found.steps = next(rest)
    for i in range(found.steps):
        found.step[i] = _Step(*(next(rest) for _ in range(3)))
    found.coefficients, scalars = next(rest), []
    for k in range(found.coefficients):
        found.factors[k] = next(rest)
        scalars += [next(rest) for _ in range(found.factors[k])]
    _fits("scalars in its coefficients", len(scalars), MAX_FACTORS)
    found.scalar[: len(scalars)] = scalars
    found.tolerances = len(sources)
    found.constants = found.tolerances + 2 * sum(found.sum[i].kind for i in range(found.sums))
    found.affine = found.constants + sum(found.step[i].operation == OPERATIONS.index("number") for i in range(found.steps))
    return found


def _fits(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise BackendError(f"a gram has {count} {what}; the CUDA kernels take at most {limit}: use_backend('reference')")


def _table(table: Tensor | None) -> tuple[int | None, int]:
    """Address, and the stride between samples: 0 where all share one row."""
    if table is None:
        return None, 0
    return table.data_ptr(), 0 if table.shape[0] == 1 else table.stride(0)


def _point(buffer: _Buffer, tensor: Tensor) -> None:
    buffer.data, buffer.batch_stride, buffer.dtype = tensor.data_ptr(), tensor.stride(0), DTYPES[tensor.dtype]


def _launch(run: ctypes._NamedFuncPointer, args: _StageArgs | _GramArgs, tensor: Tensor) -> None:
    """Launch on the current stream of the tensor's device."""
    device, stream = 0, None
    if tensor.is_cuda:
        device, stream = tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
    problem = run(args, device, stream)
    if problem is not None:
        raise BackendError(f"the CUDA kernel was not launched: {problem.decode()}")
