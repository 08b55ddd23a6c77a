"""Whole samplings as CUDA graphs: recorded once, network included, and replayed for other numbers.

A graph fixes which launches are made and where they read and write. Row structure, shapes and whatever the network's
Python decided are therefore baked in; seeds, coefficients, noise levels, guidance weights, conditioning and a
caller's noise are read from device memory, which is rewritten before a replay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from threading import Lock, local
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastdiff.backends.registry import forced_backend
from fastdiff.errors import InputError
from fastdiff.plans.plan import Plan
from fastdiff.rows.row import NOISE_PREFIX
from fastdiff.rows.seeds import normalise_seeds
from fastdiff.runs.accepted import CallerNoise, check_noise, drawn_by, refuse_capture
from fastdiff.runs.chunks import in_chunks
from fastdiff.runs.conditioning import Branches
from fastdiff.runs.network import Network
from fastdiff.runs.recording import RECORDERS
from fastdiff.runs.run import Run

MOST_PER_NETWORK = 4
"""Recordings kept for one network, each with the memory of all its activations; the least recently used one goes."""


Drawn = dict[tuple[int, int], Tensor]
"""A caller's noise: a tensor for each row and draw."""


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
        self._lock = Lock()
        self._plan: Plan | None = plan
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
        self._held = [*self._run.memory.tensors, *self._conditioning.tensors, *noise.values()]

    def sample(self, plan: Plan, seeds: int | Sequence[int] | Tensor, conditioning: Branches, noise: Drawn) -> Tensor:
        """The samples for other numbers, in a tensor of their own."""
        run = self._run
        keys = normalise_seeds(seeds, run.shape[0], run.device)
        with self._lock, self._recording.turn(self._held):
            run.memory.seeds.copy_(keys, non_blocking=True)
            if plan is not self._plan:
                self._plan = None  # until all of the new one is there
                run.memory.tables.load(plan)
                self._plan = plan
            self._conditioning.load(conditioning)
            for at, own in self._noise.items():
                own.copy_(noise[at], non_blocking=True)
            self._recording.replay()
            return run.finish(copy=True)


_recorded: WeakKeyDictionary[Any, OrderedDict[Hashable, Recorded]] = WeakKeyDictionary()
_guard = Lock()
"""Held for a look at ``_recorded``, never while a network runs."""

_one_at_a_time = Lock()
_here = local()


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
        InputError: nothing can be recorded here and now, or an argument cannot be told apart from another.
        NetworkError: the network did something that cannot be recorded.
    """
    if settings.device.type not in RECORDERS:
        raise InputError(
            f"cuda_graph=True was asked for on {settings.device}; graphs exist on {', '.join(RECORDERS)} only: leave "
            "it out"
        )
    refuse_capture(settings.device)
    check_noise(plan, noise)
    for tensor in conditioning.tensors:
        if tensor.device != settings.device:
            raise InputError(
                f"a conditioning tensor is on {tensor.device} and the sampling on {settings.device}; a graph would not "
                "see it change, so move it there"
            )
    with torch.inference_mode(False), torch.no_grad():
        drawn = _drawn(plan, noise, settings)
        looks = tuple((at, tensor.dtype, tensor.shape, tensor.stride()) for at, tensor in drawn.items())
        key = (plan.structure, settings, conditioning.structure, looks, _surroundings(net, settings.device.type))
        recorded = _kept(net, key) or _record(net, key, plan, settings, conditioning, drawn)
        return recorded.sample(plan, seeds, conditioning, drawn)


def _record(
    net: Network, key: Hashable, plan: Plan, settings: Settings, conditioning: Branches, drawn: Drawn
) -> Recorded:
    """A new recording, unless another thread has just made it."""
    if getattr(_here, "records", False):
        raise InputError(
            "the network itself calls sample(cuda_graph=True) while it is being recorded, and recordings do not nest; "
            "leave cuda_graph out inside"
        )
    with _one_at_a_time, _no_autocast_cache(settings.device.type):
        if found := _kept(net, key):
            return found
        _here.records = True
        try:
            made = Recorded(net, plan, settings, conditioning, drawn)
        finally:
            _here.records = False
        with _guard:
            recordings = _recorded.setdefault(_owner(net), OrderedDict())
            recordings[key] = made
            while len(recordings) > MOST_PER_NETWORK:
                recordings.popitem(last=False)
        return made


def _kept(net: Network, key: Hashable) -> Recorded | None:
    """The recording that fits, if there is one; it becomes the most recently used."""
    try:
        hash(key)
    except TypeError as error:
        raise InputError(
            f"conditioning that is no tensor is baked into a graph and must be hashable ({error}); pass tensors"
        ) from None
    try:
        with _guard:
            recordings = _recorded.get(_owner(net), OrderedDict())
            # The key is long, and each look at it costs a hash.
            recordings.move_to_end(key)
            return recordings[key]
    except KeyError:
        return None
    except TypeError as error:
        raise InputError(
            f"a recorded sampling lives as long as its network, and a {type(net).__name__} cannot be watched "
            f"({error}); wrap it in a function or an nn.Module"
        ) from None


def clear_graphs() -> None:
    """Forget all recorded samplings, and give their memory back.

    Recordings of a network go by themselves when the network does. Call this after changing what a network's Python
    reads, such as a flag or a hook: a recording does not see it.
    """
    with _guard:
        _recorded.clear()


def _owner(net: Network) -> Any:
    """What lives as long as the network. A bound method is made anew at each mention, so its object stands for it."""
    return net.__self__ if isinstance(net, MethodType) else net


def _surroundings(net: Network, device: str) -> Hashable:
    """What else decides which launches a network makes, as far as it can be seen from outside."""
    owner = _owner(net)
    state: tuple[Any, ...] = (getattr(net, "__func__", None), forced_backend())
    state += (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    if isinstance(owner, nn.Module):
        # Each module's own tables are walked, because owner.parameters() takes three times as long.
        modules = list(owner.modules())
        held = chain.from_iterable(chain(m._parameters.values(), m._buffers.values()) for m in modules)
        state += (tuple(m.training for m in modules), tuple(map(_place, held)))
    return state


def _place(tensor: Tensor | None) -> Hashable:
    """Where a graph reads a parameter; another place, type or shape is another recording."""
    if tensor is None:
        return None
    if is_lazy(tensor):
        raise InputError("a parameter of the network has no shape yet; call the network once before it is recorded")
    # Tensors made of others have no memory of their own.
    address = tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter, nn.Buffer) else id(tensor)
    return address, tensor.dtype, tensor.shape, tensor.stride()


def _drawn(plan: Plan, noise: CallerNoise | None, settings: Settings) -> Drawn:
    """Every tensor of a caller's noise."""
    if noise is None:
        return {}
    counts = [sum(name.startswith(NOISE_PREFIX) for name in row.columns) for row in plan.rows]
    # The caller may fill one tensor again and again.
    places = [(at, j) for at, count in enumerate(counts) for j in range(count)]
    return {(at, j): drawn_by(noise, at, j, settings.shape, settings.device).clone() for at, j in places}


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
