"""What is compared: every usable backend, each instruction set of the CPU's on its own, and plug-ins.

A plug-in is another implementation of ``stage`` that works on CPU tensors, such as a kernel run in an emulator. A
Python file offers plug-ins by a mapping of that name, from a label to a ``Plugin``::

    PLUGINS = {"my-kernel": Plugin(stage=my_stage, share=0.1)}
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastdiff.backends import cpu, registry
from fastdiff.backends import reference as reference_module
from fastdiff.backends.registry import Backend, Stage
from fastdiff.errors import BackendError, InputError
from fastdiff.testing.rows import Case, run_on

REFERENCE = "reference"
CHECKOUT = Path(__file__).parents[3]
CHECKOUT_PLUGINS = CHECKOUT / "tests" / "fuzz_plugins.py"


class Plugin(NamedTuple):
    """Another implementation to compare.

    Args:
        stage: as ``fastdiff.backends.reference.stage``, on CPU tensors.
        share: the part of the time that it may take; 1 runs it on every case.
        cases: makes the case of a number, for implementations that cannot take any case at a bearable price.
    """

    stage: Stage
    share: float = 0.1
    cases: Callable[[int], Case] | None = None


@dataclass(frozen=True)
class Variant:
    """One implementation of the ops.

    Args:
        label: what people call it.
        backend: the name that ``use_backend`` takes while it is active.
        active: a context in which that name is this implementation.
        device: where its tensors must lie.
        share: as of ``Plugin``.
        cases: as of ``Plugin``.
    """

    label: str
    backend: str
    active: Callable[[], AbstractContextManager[None]] = nullcontext
    device: str = "cpu"
    share: float = 1.0
    cases: Callable[[int], Case] | None = None

    def run(self, case: Case) -> dict[str, Tensor]:
        """What it writes for a row."""
        with self.active():
            return case.run(self.backend if self.device == "cpu" else run_on(self.device, self.backend))


def reference() -> Variant:
    """The specification, which every other variant is compared with."""
    return Variant(REFERENCE, REFERENCE)


def usable(plugins: Mapping[str, Plugin] | None = None) -> list[Variant]:
    """Everything on this machine that can be compared with the reference."""
    found = [*_registered(), *(_from_plugin(label, plugin) for label, plugin in (plugins or {}).items())]
    labels = [variant.label for variant in found]
    if repeated := sorted({label for label in labels if labels.count(label) > 1 or label == REFERENCE}):
        raise InputError(f"plug-ins are called {repeated}, as backends are; give them other names")
    return found


def choose(variants: Iterable[Variant], names: str | None) -> list[Variant]:
    """Those that a list such as ``"cpu,emulated-cuda"`` names; a backend's name means all its instruction sets.

    Raises:
        BackendError: nothing is left to compare with the reference.
        InputError: a name is unknown; the known ones are listed.
    """
    known = list(variants)
    if names is None:
        chosen = known
    else:
        wanted = [name.strip() for name in names.split(",")]
        every = [REFERENCE, *dict.fromkeys(v.backend for v in known), *(v.label for v in known)]
        if unknown := [name for name in wanted if name not in every]:
            refused = [f"{r.name} cannot run ({r.reason})" for r in registry.list_backends() if r.name in unknown]
            known_names = ", ".join(dict.fromkeys(every))
            raise InputError(
                "; ".join([f"--backends: {unknown[0]!r} is not here", *refused, f"here are {known_names}"])
            )
        chosen = [variant for variant in known if variant.label in wanted or variant.backend in wanted]
    if not chosen:
        reasons = [f"{r.name}: {r.reason}" for r in registry.list_backends() if not r.usable]
        raise InputError("; ".join(["there is no backend but the reference, so nothing can be compared", *reasons]))
    return chosen


def load_plugins(path: Path) -> dict[str, Plugin]:
    """The mapping ``PLUGINS`` of a Python file.

    Raises:
        InputError: the file cannot be run, or has no such mapping.
    """
    spec = importlib.util.spec_from_file_location(f"fastdiff_plugins_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file; it must end in .py and hold a mapping PLUGINS")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, "PLUGINS", None)
    if not isinstance(found, Mapping) or not all(isinstance(plugin, Plugin) for plugin in found.values()):
        raise InputError(f"{path} has no mapping PLUGINS from names to fastdiff.lab.fuzz.variants.Plugin")
    return dict(found)


def checkout_plugins() -> dict[str, Plugin]:
    """The test tools of a source checkout (emulated CUDA, executed PTX, the Triton interpreter), where they work."""
    return load_plugins(CHECKOUT_PLUGINS) if CHECKOUT_PLUGINS.exists() else {}


def _registered() -> Iterator[Variant]:
    for backend in registry.BACKENDS:
        if backend.name == REFERENCE or backend.unavailable() is not None:
            continue
        host = cpu.host() if backend.name == "cpu" else None
        if host is not None:
            for isa in host.isas():
                yield Variant(f"cpu-{isa}", "cpu", lambda host=host, isa=isa: _instruction_set(host, isa))
        else:
            yield Variant(backend.name, backend.name, device=(backend.devices or ("cpu",))[0])


@contextmanager
def _instruction_set(host: Any, isa: str) -> Iterator[None]:
    before = host.isa()
    host.set_isa(isa)
    try:
        yield
    finally:
        host.set_isa(before)


def _from_plugin(label: str, plugin: Plugin) -> Variant:
    def refuse(*arguments: Any) -> None:
        raise BackendError(f"{label} is a plug-in and fills no noise")

    backend = Backend(label, ("cpu",), lambda: None, lambda: "plug-in", plugin.stage, refuse, reference_module.gram)
    return Variant(label, label, lambda: registry.registered(backend), share=plugin.share, cases=plugin.cases)
