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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdiff.backends import registry
from fastdiff.lab.bench.audit import COPIES, WAITS

GUARD = Path(__file__).parent / "device_guard.cpp"
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class Audit(TorchDispatchMode):
    """Writes down what is done outside the network.

    ``launches`` counts fastdiff's, one entry for what came before each call of the network and one for the rest;
    ``hazards`` names each operation that a loop on a device should not do, and why.
    """

    def __init__(self) -> None:
        super().__init__()
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

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if self._inside:
            return function(*arguments, **keywords)
        if function._schema.name == "fastdiff::stage":
            self.launches[-1] += 1
        if reason := _before(function, arguments, keywords):
            self.hazards.append(f"{reason}: {function}")
        made = function(*arguments, **keywords)
        if reason := _after(function, arguments, made):
            self.hazards.append(f"{reason}: {function}")
        return made


def _before(function, arguments, keywords) -> str | None:
    """What is wrong with a call, from its arguments."""
    name, tags = function._schema.name.split("::")[1], function.tags
    if name in WAITS or torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags:
        return "waits for the device"
    if name in INDEXING and any(
        tensor.dtype is torch.bool for tensor in tree_leaves(arguments[1]) if isinstance(tensor, torch.Tensor)
    ):
        return "waits for the device, to count what a mask selects"
    if torch.Tag.nondeterministic_seeded in tags and keywords.get("generator") is None:
        return "draws from the global generator"
    return None


def _after(function, arguments, made) -> str | None:
    """What is wrong with a call, from what it made."""
    name = function._schema.name.split("::")[1]
    results = [tensor for tensor in tree_leaves(made) if isinstance(tensor, torch.Tensor)]
    given = [tensor for tensor in tree_leaves(arguments) if isinstance(tensor, torch.Tensor)]
    kinds = {tensor.device.type for tensor in (*given, *results)}
    if name in COPIES and len(kinds) > 1:
        return "copies between host and device"
    fresh = not any(returned.alias_info for returned in function._schema.returns)
    return "allocates" if fresh and results else None


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
