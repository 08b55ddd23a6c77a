"""What a loop asks of a device, operation by operation, on tensors that say they are on a GPU and have no memory.

with pretended_gpu(), Audit() as audit:
    fastdiff.sample(audit.network(net), plan, shape, 0, device="cuda")
audit.launches      # of fastdiff's, between the calls of the network
audit.hazards       # what waits, copies between host and device, allocates, or draws from a global generator
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from compiled import KEPT
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdiff.backends import registry
from fastdiff.testing.observe import STAGE, Observer, Operation

GUARD = Path(__file__).parent / "device_guard.cpp"


class Audit(Observer):
    """Writes down what is done outside the network.

    ``launches`` counts fastdiff's, one entry for what came before each call of the network and one for the rest;
    ``hazards`` names each operation that a loop on a device should not do, and why.
    """

    def __init__(self) -> None:
        super().__init__(self._look)
        self.launches: list[int] = [0]
        self.hazards: list[str] = []
        self._inside = False

    def network(self, net: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The network; what it does is its own affair."""

        def watched(*inputs, **conditioning):
            self._inside = True
            try:
                return net(*inputs, **conditioning)
            finally:
                self._inside = False
                self.launches.append(0)

        return watched

    def _look(self, operation: Operation) -> None:
        if self._inside:
            return
        self.launches[-1] += operation.full_name == STAGE
        if reason := operation.hazard:
            self.hazards.append(f"{reason}: {operation.function}")


@cache
def _guard() -> None:
    """Load the device guard. Its registration cannot be taken back, and changes nothing outside ``pretended_gpu``."""
    torch_at = Path(torch.__file__).parent
    command = ["g++", "-shared", "-fPIC", "-std=c++17", f"-I{torch_at / 'include'}"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}", str(GUARD)]
    command += [f"-L{torch_at / 'lib'}", "-lc10", f"-Wl,-rpath,{torch_at / 'lib'}"]
    digest = hashlib.sha256(repr((command, GUARD.read_text(), torch.__version__, sys.version)).encode())
    target = KEPT / f"guard-{digest.hexdigest()[:20]}.so"
    if not target.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(fresh)], check=True)
        os.replace(fresh, target)
    ctypes.CDLL(str(target))


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Tensors may say that they are on ``cuda``; the CUDA backend is there, and its launches are single operations."""
    if torch.version.cuda is None:
        _guard()

    def launched(*call) -> None:
        raise AssertionError("tensors without memory reached a backend")

    backend = registry.Backend(
        name="cuda",
        devices=("cuda",),
        unavailable=lambda: None,
        details=lambda: "pretended",
        stage=launched,
        fill_noise=launched,
        gram=launched,
    )
    with mock.patch.object(registry, "BACKENDS", (backend,)), FakeTensorMode():
        yield
