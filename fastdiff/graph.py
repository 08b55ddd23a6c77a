"""Whole samplings as CUDA graphs: recorded once, network included, and replayed for other numbers.

A graph fixes which launches are made and where they read and write. Row structure, shapes and whatever the network's
Python decided are therefore baked in; seeds, coefficients, noise levels, guidance weights, conditioning and a
caller's noise are read from device memory, which is rewritten before a replay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from types import MethodType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastdiff.backends.registry import forced_backend
from fastdiff.errors import FastdiffError, InputError, NetworkError
from fastdiff.network import Branches, Network, in_chunks
from fastdiff.plan import Plan
from fastdiff.row import NOISE_PREFIX
from fastdiff.run import CallerNoise, Run
from fastdiff.seeds import normalise_seeds

MOST_PER_NETWORK = 4
"""Recordings kept for one network, each with the memory of all its activations; the least recently used one goes."""


class Recording(Protocol):
    """Launches that can be made again."""

    def turn(self) -> AbstractContextManager[None]:
        """While inside, work of this stream comes after all that earlier turns began, on whatever stream."""
        ...

    def replay(self) -> None:
        """Make the launches, on the current stream."""
        ...


class CudaRecording:
    """A CUDA graph.

    Args:
        work: makes the launches; it is run once to warm up, and once to be recorded.
        device: a CUDA device.

    Raises:
        NetworkError: the work did something that cannot be recorded.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                work()
            torch.cuda.current_stream().wait_stream(side)
            self._graph, self._used = torch.cuda.CUDAGraph(), torch.cuda.Event()
            # Other threads may go on allocating memory.
            with _as_network_error(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                work()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See ``Recording``."""
        with torch.cuda.device(self._device):
            self._used.wait()
            yield
            self._used.record()

    def replay(self) -> None:
        """See ``Recording``."""
        self._graph.replay()


Drawn = dict[tuple[int, int], Tensor]
"""A caller's noise: a tensor for each row and draw."""

RECORDERS: dict[str, Callable[[Callable[[], None], torch.device], Recording]] = {"cuda": CudaRecording}
"""What records launches, by type of device."""


@dataclass(frozen=True)
class Settings:
    """What a recording is made for, beside the network, the plan's structure and the conditioning's.

    Args:
        shape: ``[B, ...]``.
        device: of all tensors, with its index.
        network_dtype: dtype of the network's input; the state type if None.
        memory_format: of all tensors.
        network_batch: evaluate the network on so many samples a call.
    """

    shape: tuple[int, ...]
    device: torch.device
    network_dtype: torch.dtype | None
    memory_format: torch.memory_format
    network_batch: int | None


class Recorded:
    """One recorded sampling, with the memory that it reads and writes.

    Args:
        net: the network; it is called while recording, and not kept.
        plan: any plan of the structure.
        settings: see there.
        conditioning: any of the structure.
        noise: tensors of a caller's noise, for a plan of it; kept.
    """

    def __init__(self, net: Network, plan: Plan, settings: Settings, conditioning: Branches, noise: Drawn) -> None:
        self._lock, self._plan = Lock(), plan
        self._conditioning, self._noise = conditioning.owned(), noise
        self._run = Run(
            plan,
            settings.shape,
            0,
            device=settings.device,
            network_dtype=settings.network_dtype,
            memory_format=settings.memory_format,
            noise=(lambda row, draw: noise[row, draw]) if plan.caller_noise else None,
        )
        call = net if settings.network_batch is None else in_chunks(net, settings.network_batch)

        def work() -> None:
            self._run.restart()
            for evaluation in self._run:
                outputs = self._conditioning.call(call, evaluation.z, evaluation.c_noise, evaluation.branches)
                self._run.step(*outputs)

        self._recording = RECORDERS[settings.device.type](work, settings.device)

    def sample(self, plan: Plan, seeds: int | Sequence[int] | Tensor, conditioning: Branches, noise: Drawn) -> Tensor:
        """The samples for other numbers, in a tensor of their own."""
        run = self._run
        keys = normalise_seeds(seeds, run.shape[0], run.device)
        with self._lock, self._recording.turn():
            run.seeds.copy_(keys, non_blocking=True)
            if plan is not self._plan:
                run.tables.load(plan)
                self._plan = plan
            self._conditioning.load(conditioning)
            for at, own in self._noise.items():
                own.copy_(noise[at], non_blocking=True)
            self._recording.replay()
            return run.finish(copy=True)


_recorded: WeakKeyDictionary[Any, OrderedDict[Hashable, Recorded]] = WeakKeyDictionary()
_guard = Lock()


def sample_by_graph(
    net: Network,
    plan: Plan,
    settings: Settings,
    seeds: int | Sequence[int] | Tensor,
    conditioning: Branches,
    noise: CallerNoise | None,
) -> Tensor:
    """Replay the recording that fits, or make it first. It is kept for as long as the network lives.

    Raises:
        InputError: nothing can be recorded on this device, or an argument cannot be told apart from another.
        NetworkError: the network did something that cannot be recorded.
    """
    if settings.device.type not in RECORDERS:
        raise InputError(
            f"cuda_graph=True was asked for on {settings.device}; graphs exist on {', '.join(RECORDERS)} only: leave "
            "it out"
        )
    with torch.inference_mode(False), torch.no_grad():
        drawn = _drawn(plan, noise)
        recorded = _recorded_for(net, plan, settings, conditioning, drawn)
        return recorded.sample(plan, seeds, conditioning, drawn)


def _recorded_for(net: Network, plan: Plan, settings: Settings, conditioning: Branches, drawn: Drawn) -> Recorded:
    """The recording that fits, made where there is none."""
    looks = tuple((at, tensor.dtype, tensor.shape, tensor.stride()) for at, tensor in drawn.items())
    key = (plan.structure, settings, conditioning.structure, looks, _surroundings(net, settings.device.type))
    with _guard, _no_autocast_cache(settings.device.type):
        kept = _kept_for(net)
        try:
            found = kept.pop(key, None)
        except TypeError as error:
            raise InputError(
                f"conditioning that is no tensor is baked into a graph and must be hashable ({error}); pass tensors"
            ) from None
        kept[key] = found or Recorded(net, plan, settings, conditioning, drawn)
        while len(kept) > MOST_PER_NETWORK:
            kept.popitem(last=False)
        return kept[key]


def clear_graphs() -> None:
    """Forget all recorded samplings, and give their memory back.

    Recordings of a network go by themselves when the network does. Call this after changing what a network's Python
    reads, such as a flag or a hook: a recording does not see it.
    """
    with _guard:
        _recorded.clear()


def _kept_for(net: Network) -> OrderedDict[Hashable, Recorded]:
    """The recordings of a network."""
    try:
        return _recorded.setdefault(_owner(net), OrderedDict())
    except TypeError as error:
        raise InputError(
            f"a recorded sampling lives as long as its network, and a {type(net).__name__} cannot be watched "
            f"({error}); wrap it in a function or an nn.Module"
        ) from None


def _owner(net: Network) -> Any:
    """What lives as long as the network. A bound method is made anew at each mention, so its object stands for it."""
    return net.__self__ if isinstance(net, MethodType) else net


def _surroundings(net: Network, device: str) -> Hashable:
    """What else decides which launches a network makes, as far as it can be seen from outside."""
    owner = _owner(net)
    state: tuple[Any, ...] = (getattr(net, "__func__", None), forced_backend())
    state += (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    if isinstance(owner, nn.Module):
        # Parameters that were moved or replaced are in other memory than the graph reads. Each module's own tables are
        # walked, because owner.parameters() takes three times as long.
        own = (chain(module._parameters.values(), module._buffers.values()) for module in owner.modules())
        held = chain.from_iterable(own)
        state += (owner.training, tuple(None if tensor is None else tensor.data_ptr() for tensor in held))
    return state


def _drawn(plan: Plan, noise: CallerNoise | None) -> Drawn:
    """Every tensor of a caller's noise."""
    if noise is None:
        return {}
    counts = [sum(name.startswith(NOISE_PREFIX) for name in row.columns) for row in plan.rows]
    # The caller may fill one tensor again and again.
    return {(at, j): noise(at, j).clone() for at, count in enumerate(counts) for j in range(count)}


@contextmanager
def _as_network_error() -> Iterator[None]:
    try:
        yield
    except FastdiffError:
        raise
    except RuntimeError as error:
        raise NetworkError(
            f"the network did something that a CUDA graph cannot record ({error}). It must not wait for the device "
            "(.item(), .cpu(), nonzero, boolean masks), copy from the host (torch.tensor(..., device='cuda')) or "
            "choose shapes by data; change that, or sample with cuda_graph=False"
        ) from error


@contextmanager
def _no_autocast_cache(device: str) -> Iterator[None]:
    """Autocast's casts of weights are made inside the recording, not taken from a cache that is emptied later."""
    with torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    ):
        yield
