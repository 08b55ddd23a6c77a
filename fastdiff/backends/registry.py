"""Which backend runs a call: chosen by what each one declares, before the call, never by trying.

A backend is one module and one entry of ``BACKENDS``, fastest first. The first usable entry whose declaration
covers the call's device, dtypes and layout runs it. ``use_backend`` forces one; a forced backend that cannot run
a call is an error that says why, never a reason to take another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fastdiff.backends import reference
from fastdiff.errors import BackendError
from fastdiff.rows.call import Call, GramCall
from fastdiff.rows.dtypes import NETWORK_TYPES
from fastdiff.rows.program import MAX_OUTPUTS

Stage = Callable[[Call], None]
FillNoise = Callable[[Tensor, Tensor, Tensor], None]
MakeGram = Callable[[GramCall], None]
Prepared = Callable[[Sequence[Tensor]], None]
"""A launch that is given its missing columns."""
Prepare = Callable[[Call], Prepared]


@dataclass(frozen=True)
class Backend:
    """An implementation of the ops and what it declares of itself.

    Args:
        name: what ``use_backend`` and ``fastdiff doctor`` call it.
        devices: torch device types it runs on; empty means any.
        layouts: the layouts it reads and writes.
        unavailable: None where it can run on this machine, else a sentence that says what is missing.
        details: one line about what was built or found.
        stage: as ``fastdiff.backends.reference.stage``.
        fill_noise: as ``fastdiff.backends.reference.fill_noise``.
        gram: as ``fastdiff.backends.reference.gram``.
        dtypes: storage types it reads and writes.
        unasked: device types on which it is taken without being forced; all of ``devices`` if None.
        prepare: binds a call once for many launches (columns that come later are None); without it ``stage`` is
            called anew each time.
    """

    name: str
    devices: tuple[str, ...]
    unavailable: Callable[[], str | None]
    details: Callable[[], str]
    stage: Stage
    fill_noise: FillNoise
    gram: MakeGram
    layouts: tuple[str, ...] = ("row-major", "channels-last", "either")
    dtypes: tuple[torch.dtype, ...] = NETWORK_TYPES
    unasked: tuple[str, ...] | None = None
    prepare: Prepare | None = None

    def refusal(self, device: str, dtypes: Sequence[torch.dtype], layout: str) -> str | None:
        """Why this backend cannot run such a call, or None where it can."""
        if self.devices and device not in self.devices:
            return f"it runs on {' and '.join(self.devices)}, and the tensors are on {device}"
        for dtype in dtypes:
            if dtype not in self.dtypes:
                return f"it does not handle {dtype}"
        if layout not in self.layouts:
            return f"it does not handle the {layout} layout"
        return self.unavailable()

    def prepared(self, call: Call) -> Prepared:
        """The launch of a row on tensors that stay the same, but for the columns that are None; nothing is checked."""
        if self.prepare is not None:
            return self.prepare(call)

        def launch(given: Sequence[Tensor]) -> None:
            later = iter(given)
            filled = [next(later) if column is None else column for column in call.columns]
            self.stage(call._replace(columns=filled))

        return launch


@dataclass(frozen=True)
class BackendReport:
    """One line of ``fastdiff doctor``: a backend, whether it can run here, and why not."""

    name: str
    usable: bool
    reason: str | None
    details: str


def stage_by_dispatcher(call: Call) -> None:
    """Run a row by the kernel that is registered for the tensors' dispatch key."""
    stores = (*call.stores, *(None for _ in range(MAX_OUTPUTS - len(call.stores))))
    flat = call.columns, call.coef, call.present, call.seeds, call.draws, call.program.integers, *stores, call.z
    torch.ops.fastdiff.stage(*flat)


def gram_by_dispatcher(call: GramCall) -> None:
    """Make scalars and coefficients by the kernel that is registered for the tensors' dispatch key."""
    flat = call.columns, call.numbers, call.seeds, call.draws, call.program.integers, call.coef, call.scalars
    torch.ops.fastdiff.gram(*flat)


def fill_noise_by_dispatcher(out: Tensor, seeds: Tensor, draws: Tensor) -> None:
    """Draw noise by the kernel that is registered for the tensor's dispatch key."""
    torch.ops.fastdiff.fill_noise(out, seeds, draws)


def _deferred(name: str, device: str) -> Backend:
    """The backend of the module of this name, which is imported when it is first asked for."""

    def module() -> Any:
        return import_module(f"fastdiff.backends.{name}")

    return Backend(
        name=name,
        devices=(device,),
        unavailable=lambda: module().unavailable(),
        details=lambda: module().details(),
        stage=lambda call: module().stage(call),
        fill_noise=lambda *call: module().fill_noise(*call),
        gram=lambda call: module().gram(call),
    )


BACKENDS: tuple[Backend, ...] = (
    _deferred("cpu", "cpu"),
    replace(_deferred("cuda", "cuda"), prepare=lambda call: import_module("fastdiff.backends.cuda").prepare(call)),
    _deferred("triton", "cuda"),
    Backend(
        name="reference",
        devices=(),
        unavailable=lambda: None,
        details=lambda: f"plain PyTorch {torch.__version__}",
        stage=reference.stage,
        fill_noise=reference.fill_noise,
        gram=reference.gram,
        # On a GPU it would be some hundred launches for one, which nobody should get without knowing.
        unasked=("cpu",),
    ),
)

_forced: ContextVar[str | None] = ContextVar("fastdiff_forced_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend inside a ``with`` block, for this thread or task only.

    A function compiled inside the block keeps the backend that it was compiled with.

    Raises:
        BackendError: no backend has this name, or it cannot run on this machine.
    """
    backend = _named(name)
    reason = backend.unavailable()
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot be used: {reason}; usable now: {_usable_names()}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def registered(backend: Backend) -> Iterator[None]:
    """Have a backend inside a ``with`` block, for the whole process: in place of that of its name, or before all."""
    global BACKENDS
    before = BACKENDS
    others = any(known.name == backend.name for known in before)
    BACKENDS = tuple(backend if known.name == backend.name else known for known in before)
    BACKENDS = BACKENDS if others else (backend, *BACKENDS)
    try:
        yield
    finally:
        BACKENDS = before


def forced_backend() -> str | None:
    """The name that ``use_backend`` set for this thread or task, or None."""
    return _forced.get()


def list_backends() -> list[BackendReport]:
    """Every backend, fastest first: its name, whether it is usable here, why not, and what was built or found."""
    found = []
    for backend in BACKENDS:
        reason = backend.unavailable()
        details = backend.details() if reason is None else ""
        found.append(BackendReport(backend.name, reason is None, reason, details))
    return found


def choose(device: str, dtypes: Sequence[torch.dtype], layout: str) -> Backend:
    """The backend that runs a call on these tensors.

    Args:
        device: a torch device type.
        dtypes: all storage types in the call.
        layout: the common layout of its tensors.

    Raises:
        BackendError: the forced backend cannot run the call, or none can; each one's reason is given.
    """
    forced = forced_backend()
    candidates = BACKENDS if forced is None else (_named(forced),)
    refusals = []
    for backend in candidates:
        reason = backend.refusal(device, dtypes, layout)
        if reason is None and forced is None and backend.unasked is not None and device not in backend.unasked:
            reason = f"on {device} it is taken only when asked for, with use_backend({backend.name!r}): it is slow"
        if reason is None:
            return backend
        refusals.append(f"{backend.name}: {reason}")
    advice = "" if forced is None else f" Leave use_backend({forced!r}) to let fastdiff choose."
    raise BackendError(f"no backend can run this call. {'; '.join(refusals)}.{advice}")


def _named(name: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise BackendError(f"there is no backend {name!r}; the names are {[b.name for b in BACKENDS]}")


def _usable_names() -> list[str]:
    return [report.name for report in list_backends() if report.usable]
