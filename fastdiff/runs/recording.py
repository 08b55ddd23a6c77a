"""Recordings of launches that can be made again: CUDA graphs, with what torch leaves to its callers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Protocol

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError, NetworkError


class Recording(Protocol):
    """Launches that can be made again."""

    def turn(self, held: Sequence[Tensor]) -> AbstractContextManager[None]:
        """While inside, work of this stream comes after all that earlier turns began, on whatever stream.

        Args:
            held: tensors that the launches read and write.
        """
        ...

    def replay(self) -> None:
        """Make the launches, on the current stream."""
        ...


class CudaRecording:
    """A CUDA graph.

    Args:
        work: makes the launches; it is run once to warm up, and once to be recorded.
        device: a CUDA device, with its index.

    Raises:
        NetworkError: the work did something that cannot be recorded.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._home, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(self._home)
            try:
                with torch.cuda.stream(side):
                    work()
            finally:
                self._home.wait_stream(side)
            self._graph, self._used = torch.cuda.CUDAGraph(), torch.cuda.Event()
            # cuBLAS keeps one workspace for each stream. Made while recording it lies in the graph's own memory, where
            # no other graph finds it.
            _forget_workspaces()
            try:
                self._record(work, side)
            finally:
                # torch leaves the stream of a recording that failed in place.
                torch.cuda.set_stream(self._home)
                _forget_workspaces()

    def _record(self, work: Callable[[], None], stream: torch.cuda.Stream) -> None:
        first: Exception | None = None
        try:
            # Without a stream torch would take that of the first recording of the process, on whatever device. Other
            # threads may go on allocating memory.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    work()
                except Exception as error:
                    first = error
                    raise
        except Exception as error:
            # What came first says more than what torch found when it ended the recording.
            cause = first or error
            problem = _unrecordable(cause)
            if problem is cause:
                raise cause from None
            raise problem from cause

    @contextmanager
    def turn(self, held: Sequence[Tensor]) -> Iterator[None]:
        """See ``Recording``."""
        with torch.cuda.device(self._device):
            self._used.wait()
            if torch.cuda.current_stream() != self._home:
                # Should the recording be dropped, its memory must not be used anew before this stream is done with it.
                for tensor in held:
                    tensor.record_stream(torch.cuda.current_stream())
            try:
                yield
            finally:
                self._used.record()

    def replay(self) -> None:
        """See ``Recording``."""
        self._graph.replay()


RECORDERS: dict[str, Callable[[Callable[[], None], torch.device], Recording]] = {"cuda": CudaRecording}
"""What records launches, by type of device."""


def _unrecordable(error: Exception) -> Exception:
    """What to raise for an error that came up while recording."""
    if isinstance(error, FastdiffError | torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return error
    libraries = (Path(torch.__file__).parent, Path(__file__).parents[1])
    frames = extract_tb(error.__traceback__)
    places = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(at) for at in libraries)]
    place = f" at {places[-1].filename}:{places[-1].lineno}" if places else ""
    reason = str(error).partition("\n")[0]
    return NetworkError(
        f"the network did something{place} that a CUDA graph cannot record ({reason}). It must not wait for the device "
        "(.item(), .cpu(), nonzero, boolean masks), copy from the host (torch.tensor(..., device='cuda')) or choose "
        "shapes by data; change that, or sample with cuda_graph=False"
    )


def _forget_workspaces() -> None:
    """Make cuBLAS allocate its workspaces anew."""
    if forget := getattr(torch._C, "_cuda_clearCublasWorkspaces", None):
        forget()
