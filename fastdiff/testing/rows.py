"""Testing: random rows on random tensors, exact comparison of bits, and poisoned memory.

A backend is right when ``same_bits`` holds between its results and the reference's for every ``random_case``. Whoever
writes a backend needs all of it at once, so it is one module.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.backends.registry import Stage, use_backend
from fastdiff.maths.draw import Draw
from fastdiff.rows.call import Call
from fastdiff.rows.dtypes import NETWORK_TYPES
from fastdiff.rows.layout import CHANNELS_LAST, ROW_MAJOR
from fastdiff.rows.row import Output, Row, Terms

SIZES = (0, 1, 2, 3, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 4095, 4096, 4097)
BIG_SIZES = (2**20 - 1, 2**20, 2**20 + 1)
CANARY = 0xA5
MARGIN = 64

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@dataclass(frozen=True)
class Placement:
    """Where a tensor lies in its storage.

    Args:
        layout: ``"row-major"`` or ``"channels-last"``.
        offset: elements before the first one; an odd offset misaligns every vector access.
        gap: elements between two samples that belong to nobody.
    """

    layout: str = ROW_MAJOR
    offset: int = 0
    gap: int = 0

    def place(self, values: Tensor) -> Guarded:
        """A copy of ``values`` ``[B, ...]`` in fresh memory, with canaries around it and between samples."""
        shape, size = values.shape, values.element_size()
        sample = shape[1:].numel()
        strides = _strides(shape[1:], self.layout)
        length = MARGIN + self.offset + shape[0] * (sample + self.gap) + MARGIN
        storage = torch.full((length * size,), CANARY, dtype=torch.uint8)
        view = storage.view(values.dtype).as_strided(shape, (sample + self.gap, *strides), MARGIN + self.offset)
        view.copy_(values)
        return Guarded(storage, view)


@dataclass(frozen=True)
class Guarded:
    """A tensor and the storage around it, which nobody may write."""

    storage: Tensor
    view: Tensor

    def intact(self) -> bool:
        """Whether every byte outside the tensor still is a canary."""
        expected = torch.full_like(self.storage, CANARY)
        integers = INTEGERS[self.view.element_size()]
        geometry = (self.view.shape, self.view.stride(), self.view.storage_offset())
        inside = expected.view(integers).as_strided(*geometry)
        inside.copy_(self.view.view(integers))
        return torch.equal(expected, self.storage)


@dataclass(frozen=True)
class Case:
    """A random row with everything that one launch of it needs.

    ``columns``, ``stores`` and ``z`` pair values with placements; a store that is a column name is in place.
    """

    seed: int
    row: Row
    columns: tuple[tuple[Tensor, Placement], ...]
    stores: tuple[tuple[torch.dtype, Placement] | str | None, ...]
    z: tuple[torch.dtype, Placement] | str | None
    shape: torch.Size
    coef: Tensor
    present: Tensor | None
    seeds: Tensor | None
    draws: Tensor | None
    options: str = ""

    def run(self, backend: str | Stage) -> dict[str, Tensor]:
        """Run the row on fresh copies and return what it wrote: ``w0`` …, ``z``.

        Args:
            backend: the name of a backend, or a function with the signature of the reference's ``stage``.

        Raises:
            AssertionError: a byte outside the outputs was written.
        """
        columns = {name: p.place(v) for name, (v, p) in zip(self.row.columns, self.columns, strict=True)}
        batch, rest = self.shape[0], self.shape[1:]
        written: dict[str, Guarded] = {}
        for i, store in enumerate((*self.stores, self.z)):
            key, rows = (f"w{i}", batch) if i < len(self.stores) else ("z", batch * self.row.copies)
            if isinstance(store, str):
                written[key] = columns[store]
            elif store is not None:
                dtype, placement = store
                written[key] = placement.place(torch.full((rows, *rest), math.nan, dtype=dtype))
        reads = [columns[name].view for name in self.row.columns]
        stores = [written[f"w{i}"].view if f"w{i}" in written else None for i in range(len(self.stores))]
        z = written["z"].view if "z" in written else None
        if isinstance(backend, str):
            tables = {"present": self.present, "seeds": self.seeds, "draws": self.draws}
            with use_backend(backend):
                ops.stage(reads, self.coef, self.row.program, stores=stores, z=z, **tables)
        else:
            backend(Call(reads, self.coef, self.row.program, self.seeds, self.draws, self.present, stores, z))
        in_place = {store for store in (*self.stores, self.z) if isinstance(store, str)}
        for name, (values, _) in zip(self.row.columns, self.columns, strict=True):
            if name not in in_place and not same_bits(columns[name].view, values):
                raise AssertionError(f"column {name} was written; {self.describe()}")
        for name, guarded in (*columns.items(), *written.items()):
            if not guarded.intact():
                raise AssertionError(f"memory outside {name} was written; {self.describe()}")
        return {key: guarded.view.clone() for key, guarded in written.items()}

    def describe(self) -> str:
        """One line that makes this case again and says what is in it."""
        dtypes = ",".join(str(values.dtype).removeprefix("torch.") for values, _ in self.columns)
        places = sorted({str(placement) for _, placement in self.columns})
        presence = "no presence" if self.present is None else f"presence {self.present.tolist()}"
        return (
            f"fastdiff.testing.rows.random_case({self.seed}{self.options}): shape {tuple(self.shape)}, "
            f"coef {tuple(self.coef.shape)} {self.coef.dtype}, columns [{dtypes}] at {places}, {presence}, "
            f"program {self.row.program.integers}, copies {self.row.copies}, stores {self.stores}, z {self.z}"
        )


def random_case(
    seed: int | np.random.Generator, *, wild: bool = True, max_elements: int = 2**20 + 1, state: str | None = None
) -> Case:
    """A valid case drawn from the whole space that a backend must handle.

    Args:
        seed: the case; a generator draws one.
        wild: also special values (NaN, infinities, the largest, subnormals, signed zeros) and coefficients up to
            1e12 and down to subnormals.
        max_elements: the largest number of elements in a sample.
        state: ``"float32"`` or ``"float64"``; drawn when None.
    """
    if isinstance(seed, np.random.Generator):
        seed = int(seed.integers(2**31))
    options = f", wild={wild}, max_elements={max_elements}, state={state!r}"
    rng = np.random.Generator(np.random.PCG64(seed))
    state = state or str(rng.choice(["float32", "float64"]))
    row = random_row(rng, state, wild)
    size = _random_size(rng, max_elements)
    batch = int(rng.choice([1, 2, 3, 5])) if size < 10**5 else 1
    shape = torch.Size((batch, *_random_shape(rng, size)))
    layout = CHANNELS_LAST if len(shape) in (4, 5) and rng.random() < 0.5 else ROW_MAJOR
    dtypes = [d for d in NETWORK_TYPES if state == "float64" or d is not torch.float64]

    def pick() -> torch.dtype:
        return dtypes[rng.integers(len(dtypes))]

    columns = tuple((_random_values(rng, shape, pick(), wild), _random_placement(rng, layout)) for _ in row.columns)
    free = list(row.columns)
    stores: list[tuple[torch.dtype, Placement] | str | None] = []
    for output in row.outputs:
        if output.store is not None and free and rng.random() < 0.3:
            stores.append(free.pop(rng.integers(len(free))))
        else:
            stores.append(None if output.store is None else (pick(), _random_placement(rng, layout)))
    z = None if row.network is None else (pick(), _random_placement(rng, layout))
    if z is not None and row.copies == 1 and free and rng.random() < 0.2:
        z = free.pop(rng.integers(len(free)))
    return Case(
        seed=seed,
        row=row,
        columns=columns,
        stores=tuple(stores),
        z=z,
        shape=shape,
        coef=_random_coefficients(rng, row, batch, state, wild),
        present=_random_presence(rng, batch),
        seeds=torch.from_numpy(rng.integers(0, 2**63, batch)) if row.draws else None,
        draws=_random_draws(rng, row, batch) if row.draws else None,
        options=options,
    )


def random_row(rng: np.random.Generator, state: str = "float32", wild: bool = True) -> Row:
    """A valid row with 0 to 8 columns, 1 to 6 outputs, some of which read earlier ones, and 0 to 4 draws."""
    columns = tuple(f"c{i}" for i in range(rng.integers(0, 9)))
    draws = tuple((f"xi{i}", Draw(1, i)) for i in range(rng.integers(0, 5)))

    def terms(names: tuple[str, ...], most: int) -> Terms:
        count = int(rng.integers(0, most + 1)) if names else 0
        return tuple((names[rng.integers(len(names))], _coefficient(rng, state, wild)) for _ in range(count))

    noises = (*(name for name, _ in draws), *columns[-2:])
    count = int(rng.choice([1, 1, 2, 2, 3, 3, 4, 5, 6]))
    network = int(rng.integers(count)) if rng.random() < 0.6 else None
    outputs, sources = [], columns
    for i in range(count):
        base = sources[rng.integers(len(sources))] if sources and rng.random() < 0.5 else None
        stored = (not columns and i == 0) or rng.random() < 0.7
        bound = abs(_coefficient(rng, state, wild)) if rng.random() < 0.25 else None
        scale = _coefficient(rng, state, wild) if rng.random() < 0.2 else None
        store = f"b{i}" if stored else None
        outputs.append(Output(base, terms(sources, 5), terms(noises, 2), store, bound, scale))
        if rng.random() < 0.6:
            sources = (*sources, f"w{i}")
    copies = int(rng.choice([1, 2, 3]))
    c_in = _coefficient(rng, state, wild)
    return Row(columns, tuple(outputs), draws, network, c_in, copies if network is not None else 1)


def run_on(device: torch.device | str, backend: str) -> Stage:
    """A backend's ``stage`` for tensors on the CPU.

    Whole storages go to the device and come back, so that what lies around and between the samples is looked at too.

    Args:
        device: where the backend runs.
        backend: its name.
    """

    def stage(call: Call) -> None:
        with moved_to(device) as there, use_backend(backend):
            tables = {name: there(getattr(call, name)) for name in ("present", "seeds", "draws", "z")}
            reads, stored = [there(column) for column in call.columns], [there(store) for store in call.stores]
            ops.stage(reads, there(call.coef), call.program, stores=stored, **tables)

    return stage


@contextmanager
def moved_to(device: torch.device | str) -> Iterator[Callable[[Tensor | None], Any]]:
    """A function that gives tensors on a device for those on the CPU; what was written there comes back in the end."""
    moved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def there(tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in moved:
            copy = torch.UntypedStorage(storage.nbytes(), device=device)
            copy.copy_(storage)
            moved[storage.data_ptr()] = storage, copy
        empty = torch.empty(0, dtype=tensor.dtype, device=device)
        _, copy = moved[storage.data_ptr()]
        return empty.set_(copy, tensor.storage_offset(), tensor.shape, tensor.stride())

    yield there
    for storage, copy in moved.values():
        storage.copy_(copy)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit: signed zeros differ, any NaN equals any NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    integers = INTEGERS[a.element_size()]
    equal = a.contiguous().view(integers) == b.contiguous().view(integers)
    return bool((equal | (a.isnan() & b.isnan())).all())


@contextmanager
def poison_empty() -> Iterator[None]:
    """Fill what ``torch.empty`` and its kin return with NaN (integers: their maximum) inside a ``with`` block."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = importlib.import_module("torch.utils.deterministic")
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


def _strides(sizes: torch.Size, layout: str) -> list[int]:
    order = [*range(1, len(sizes)), 0] if layout == CHANNELS_LAST else list(range(len(sizes)))
    strides, expected = [0] * len(sizes), 1
    for dim in reversed(order):
        strides[dim] = expected
        expected *= sizes[dim]
    return strides


def _random_size(rng: np.random.Generator, max_elements: int) -> int:
    if max_elements >= max(BIG_SIZES) and rng.random() < 0.005:
        return int(rng.choice(BIG_SIZES))
    return int(rng.choice([size for size in SIZES if size <= max_elements]))


def _random_shape(rng: np.random.Generator, size: int) -> list[int]:
    """A sample of ``size`` elements in up to five dimensions, its prime factors dealt out at random."""
    dims = int(rng.integers(0 if size == 1 else 1, 6))
    shape = [1] * dims
    factor = 2
    while size > 1 and dims:
        if size % factor == 0:
            shape[rng.integers(dims)] *= factor
            size //= factor
        else:
            factor += 1
    if size == 0:
        shape[rng.integers(dims)] = 0
    return shape


def _random_placement(rng: np.random.Generator, layout: str) -> Placement:
    offset = int(rng.choice([0, 1, 16]))
    gap = int(rng.choice([0, 0, 1, 32]))
    return Placement(layout, offset, gap)


def _coefficient(rng: np.random.Generator, state: str, wild: bool) -> float:
    value = rng.normal()
    if wild:
        kind = rng.random()
        if kind < 0.15:
            value *= 10.0 ** rng.uniform(-12, 12)
        elif kind < 0.25:
            value = float(rng.choice([0.0, -0.0, 1.0, -1.0]))
        elif kind < 0.3:
            value *= float(np.finfo(state).smallest_subnormal) * 1000
    return float(np.dtype(state).type(value))


def _random_values(rng: np.random.Generator, shape: torch.Size, dtype: torch.dtype, wild: bool) -> Tensor:
    values = torch.from_numpy(rng.normal(size=tuple(shape)) * 10.0 ** rng.uniform(-2, 2)).to(dtype)
    if wild and rng.random() < 0.5:
        info = torch.finfo(dtype)
        special = [0.0, -0.0, math.nan, math.inf, -math.inf, info.max, info.min, info.tiny, info.smallest_normal / 4]
        which = torch.from_numpy(rng.integers(0, 4 * len(special), size=tuple(shape)))
        for i, value in enumerate(special):
            values[which == i] = value
    return values


def _random_coefficients(rng: np.random.Generator, row: Row, batch: int, state: str, wild: bool) -> Tensor:
    """The row's own coefficients, or one set for each sample."""
    rows = [row.coefficients]
    if rng.random() < 0.4:
        rows = [[_coefficient(rng, state, wild) for _ in row.coefficients] for _ in range(batch)]
    return torch.tensor(rows, dtype=getattr(torch, state)).view(len(rows), -1)


def _random_presence(rng: np.random.Generator, batch: int) -> Tensor | None:
    if rng.random() < 0.6:
        return None
    rows = 1 if rng.random() < 0.3 else batch
    words = rng.integers(-(2**63), 2**63 - 1, size=(2, rows), endpoint=True)
    return torch.from_numpy(words[0] | words[1])


def _random_draws(rng: np.random.Generator, row: Row, batch: int) -> Tensor:
    rows = 1 if rng.random() < 0.5 else batch
    words = [rng.integers(0, 2**bits, size=(rows, len(row.draws))) for bits in (8, 16, 32, 24)]
    return torch.from_numpy(np.stack(words, -1))
