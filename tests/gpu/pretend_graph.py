"""CUDA graphs on the CPU: ``torch.cuda`` as far as a recording needs it, over operations on tensors in memory.

with recorded(library) as runtime:            # an EmulatedCuda; its launches are recorded too
    fastdiff.sample(..., cuda_graph=True)

What torch and CUDA do, this does: a graph makes the recorded operations again on the same memory, with all that Python
decided baked in; what is recorded has not happened yet; what waits for the device or comes from the host is refused,
with an error that says so at the end only; a recording that failed leaves its stream in place; and a graph that is not
told its stream takes that of the first one of all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from emulated import EmulatedCuda, registered
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdiff.rows import checks as arguments
from fastdiff.rows import seeds
from fastdiff.runs import graph, recording
from fastdiff.testing.observe import WAITS

REFUSED = (*WAITS, "lift_fresh")
NAMES = ("Stream", "Event", "CUDAGraph", "graph", "stream", "set_stream", "current_stream", "device", "empty_cache")
ENDED = "operation failed due to a previous error during capture"


class Graph:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.again: list[Callable[[], object]] = []
        self.made: list[torch.Tensor] = []
        self.allowed = True

    def replay(self) -> None:
        self._runtime.happens("replay")
        self._runtime.replays += 1
        for again in self.again:
            again()


class _Operations(TorchDispatchMode):
    """Writes operations into a graph."""

    def __init__(self, into: Graph) -> None:
        super().__init__()
        self._into = into

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name, keywords = function._schema.name.split("::")[1], keywords or {}
        if name in REFUSED or torch.Tag.dynamic_output_shape in function.tags:
            self._into.allowed = False
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")
        made = function(*arguments, **keywords)
        aliases = [returned.alias_info for returned in function._schema.returns]
        if any(alias is not None and not alias.is_write for alias in aliases):
            return made  # a view: the memory is there already

        def again() -> None:
            new = function(*arguments, **keywords)
            if not any(aliases):
                for old, fresh in zip(tree_leaves(made), tree_leaves(new), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(fresh)

        self._into.again.append(again)
        self._into.made += [tensor for tensor in tree_leaves(made) if isinstance(tensor, torch.Tensor)]
        return made


class Stream:
    """``torch.cuda.Stream``."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self._runtime, self.name, self.device = runtime, name, runtime.device_now

    def wait_stream(self, other: Stream) -> None:
        self._runtime.happens(f"{self.name} waits for {other.name}")


class Event:
    """``torch.cuda.Event``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def wait(self) -> None:
        self._runtime.happens("wait")

    def record(self) -> None:
        self._runtime.happens("record")


class Runtime:
    """The names of ``torch.cuda``.

    ``made`` counts graphs, ``replays`` their replays; ``events`` says what happened, and ``kept_for`` for which stream
    each tensor's memory was kept.
    """

    def __init__(self) -> None:
        self.made = self.replays = 0
        self.events: list[str] = []
        self.kept_for: list[Stream] = []
        self.capturing: Graph | None = None
        self.device_now = "cpu"
        self._thread = threading.local()
        self._main = Stream(self, "main")
        self._first: Stream | None = None

    def happens(self, event: str) -> None:
        self.events.append(event)

    def Stream(self) -> Stream:
        return Stream(self, "side")

    def Event(self) -> Event:
        return Event(self)

    def CUDAGraph(self) -> Graph:
        return Graph(self)

    def current_stream(self) -> Stream:
        return getattr(self._thread, "stream", self._main)

    def set_stream(self, stream: Stream) -> None:
        self._thread.stream = stream

    def empty_cache(self) -> None:
        pass

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self.set_stream(stream)
        self.happens(f"on {stream.name}")
        try:
            yield
        finally:
            self.set_stream(before)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.device_now = self.device_now, str(device)
        try:
            yield
        finally:
            self.device_now = before

    @contextmanager
    def graph(self, into: Graph, stream: Stream | None = None, capture_error_mode: str = "global") -> Iterator[None]:
        assert self.capturing is None, "two captures at once"
        assert capture_error_mode == "thread_local", "other threads could not allocate memory"
        if stream is None:
            stream = self._first = self._first or Stream(self, "default")
        assert stream.device == self.device_now, "the stream is one of another device: nothing would be recorded"
        self.happens(f"capture begins on {stream.name}")
        before, self.capturing = self.current_stream(), into
        self.set_stream(stream)
        try:
            with _Operations(into):
                yield
        except Exception as error:
            if into.allowed:
                raise
            raise RuntimeError(ENDED) from error
        finally:
            self.capturing = None
            if into.allowed:
                self.set_stream(before)
        # What was recorded has not been done.
        for tensor in into.made:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        self.happens("capture ends")
        self.made += 1


class _Noted:
    """A library whose launches are recorded."""

    def __init__(self, library: EmulatedCuda, runtime: Runtime) -> None:
        self._library, self._runtime = library, runtime

    def __getattr__(self, name):
        return getattr(self._library, name)

    def stage(self, call) -> None:
        # Addresses are taken at the launch: the caller's list may change later.
        call = call._replace(columns=list(call.columns))
        self._noted(lambda: self._library.stage(call), call.written)

    def prepare(self, call):
        launch = self._library.prepare(call)

        def noted(given) -> None:
            given = list(given)
            self._noted(lambda: launch(given), call.written)

        return noted

    def gram(self, call) -> None:
        call = call._replace(columns=list(call.columns))
        self._noted(lambda: self._library.gram(call), [t for t in (call.scalars, call.coef) if t is not None])

    def _noted(self, launch, written) -> None:
        launch()
        if into := self._runtime.capturing:
            into.again.append(launch)
            into.made += written


@contextmanager
def recorded(library: EmulatedCuda) -> Iterator[Runtime]:
    """Samplings on the CPU can be recorded, and run on an emulated CUDA backend."""
    runtime = Runtime()
    with ExitStack() as stack:
        stack.enter_context(registered(_Noted(library, runtime)))
        stack.enter_context(mock.patch.dict(recording.RECORDERS, {"cpu": recording.CudaRecording}))
        for name in NAMES:
            stack.enter_context(mock.patch.object(torch.cuda, name, getattr(runtime, name)))
        note = runtime.kept_for.append
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", lambda tensor, stream: note(stream)))
        # Arguments on the CPU have their values checked; those on a GPU have not.
        for module in (seeds, arguments):
            stack.enter_context(mock.patch.object(module, "can_read", return_value=False))
        stack.callback(graph.clear_graphs)
        yield runtime
