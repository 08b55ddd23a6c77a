"""CUDA graphs on the CPU: operations on tensors are recorded while they run, and made again on the same memory.

with recorded(library):            # an EmulatedCuda; its launches are recorded too
    fastdiff.sample(..., cuda_graph=True)

Like a real one, a recording refuses what waits for the device or copies from the host, does not nest, and bakes in all
that Python decided: numbers, shapes, and which tensors are read and written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from emulated import EmulatedCuda, registered
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdiff import arguments, graph, seeds
from fastdiff.errors import InputError

WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "lift_fresh")


class PretendRecording(TorchDispatchMode):
    """In the place of ``fastdiff.graph.CudaRecording``: the same promises, kept on the CPU.

    ``active`` is the one that records now; ``made`` counts recordings and ``replays`` their replays.
    """

    active: PretendRecording | None = None
    made = replays = 0

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        super().__init__()
        if PretendRecording.active:
            raise InputError("the current stream is being captured already")
        self._again: list[Callable[[], object]] = []
        self._turns = 0
        work()
        PretendRecording.active = self
        try:
            with graph._as_network_error(), self:
                work()
        finally:
            PretendRecording.active = None
        PretendRecording.made += 1

    @contextmanager
    def turn(self) -> Iterator[None]:
        assert self._turns == 0, "two threads use the memory of one recording"
        self._turns += 1
        yield
        self._turns -= 1

    def replay(self) -> None:
        assert self._turns == 1, "replayed out of turn"
        PretendRecording.replays += 1
        for again in self._again:
            again()

    def note(self, again: Callable[[], object]) -> None:
        self._again.append(again)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name, keywords = function._schema.name.split("::")[1], keywords or {}
        if name in WAITS or torch.Tag.dynamic_output_shape in function.tags:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
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

        self.note(again)
        return made


class _Noted:
    """A library whose launches are recorded."""

    def __init__(self, library: EmulatedCuda) -> None:
        self._library = library

    def __getattr__(self, name):
        return getattr(self._library, name)

    def stage(self, columns, *rest) -> None:
        # Addresses are taken at the launch: the caller's list may change later.
        columns = list(columns)
        self._noted(lambda: self._library.stage(columns, *rest))

    def prepare(self, *call):
        launch = self._library.prepare(*call)

        def noted(given) -> None:
            given = list(given)
            self._noted(lambda: launch(given))

        return noted

    @staticmethod
    def _noted(launch) -> None:
        launch()
        if PretendRecording.active:
            PretendRecording.active.note(launch)


@contextmanager
def recorded(library: EmulatedCuda) -> Iterator[type[PretendRecording]]:
    """Samplings on the CPU can be recorded, and run on an emulated CUDA backend."""
    PretendRecording.made = PretendRecording.replays = 0
    with ExitStack() as stack:
        stack.enter_context(registered(_Noted(library)))
        stack.enter_context(mock.patch.dict(graph.RECORDERS, {"cpu": PretendRecording}))
        # Arguments on the CPU have their values checked; those on a GPU have not.
        for module in (seeds, arguments):
            stack.enter_context(mock.patch.object(module, "can_read", return_value=False))
        stack.callback(graph.clear_graphs)
        yield PretendRecording
