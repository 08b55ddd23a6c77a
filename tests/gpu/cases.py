"""Cases for the compiled Triton kernels: twelve structures, each on many shapes, values and placements.

Compiling is what costs time, so structure, dtypes and access are fixed by kind; everything that is read at run time
is random: sizes, batch, coefficients (shared or per sample), presence, seeds, draws, offsets, gaps, special values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fastdiff.maths.draw import Draw
from fastdiff.rows.layout import CHANNELS_LAST, ROW_MAJOR
from fastdiff.rows.row import Output, Row
from fastdiff.testing.rows import Case, Placement

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Kind:
    """What is baked into one compiled kernel.

    Args:
        row: its structure; its coefficients are replaced.
        state: the state type.
        columns: dtype of each column.
        stores: dtype of each output's buffer, the name of a column to write in place, or None.
        z: dtype of the network input.
        access: how tiles are to be moved (``fastdiff.kernels.stage``), which decides sizes and offsets.
        presence: whether terms may be absent.
        layout: the layout.
    """

    row: Row
    state: torch.dtype
    columns: tuple[torch.dtype, ...]
    stores: tuple[torch.dtype | str | None, ...]
    z: torch.dtype | None = None
    access: str = "quads"
    presence: bool = False
    layout: str = ROW_MAJOR


def _heun_corrector(branches: tuple[str, ...]) -> Row:
    noise = (("xi", 1.0),)
    output = Output(base="q", terms=tuple((b, 1.0) for b in branches), noise=noise, store="q")
    return Row(("q", *branches), (output,), (("xi", Draw(1, 0)),), network=0, copies=len(branches))


HEUN_PREDICTOR = Row(
    ("x", "F"),
    (Output(terms=(("x", 1.0), ("F", 1.0)), store="x"), Output(terms=(("x", 1.0), ("F", 1.0)))),
    network=1,
)
MULTISTEP = Row(
    ("x", "cond", "uncond", "h"),
    (
        Output(terms=(("x", 1.0), ("cond", 1.0), ("uncond", 1.0)), bound=1.0, scale=1.0),
        Output(base="x", terms=(("w0", 1.0), ("h", 1.0), ("x", 1.0)), noise=(("xi", 1.0), ("eta", 1.0)), store="x"),
        Output(terms=(("w0", 1.0),), store="h"),
    ),
    (("xi", Draw(1, 0)), ("eta", Draw(2, 1))),
    network=1,
    copies=2,
)
FIRST_NOISE = Row((), (Output(noise=(("xi", 1.0),), store="x"),), (("xi", Draw(0, 0)),), network=0)
CALLER_NOISE = Row(
    ("x", "F", "given"),
    (
        Output(base="x", noise=(("given", 1.0),), store="a"),
        Output(terms=(("F", 1.0), ("x", 1.0), ("F", 1.0)), store="b"),
        Output(base="F", store="c"),
        Output(store="d"),
    ),
)

KINDS = {
    "heun predictor": Kind(HEUN_PREDICTOR, F32, (F32, BF16), ("x", None), BF16),
    "heun corrector": Kind(_heun_corrector(("F",)), F32, (F32, BF16), ("q",), BF16),
    "guided corrector": Kind(_heun_corrector(("cond", "uncond")), F32, (F32, F16, F16), ("q",), F16),
    "multistep": Kind(MULTISTEP, F32, (F32, BF16, BF16, F32), (None, "x", "h"), BF16),
    "continuous batching": Kind(MULTISTEP, F32, (F32, F16, F16, F32), (None, "x", F16), F32, presence=True),
    "left-over elements": Kind(_heun_corrector(("F",)), F32, (F32, BF16), (F32,), BF16, access="tail"),
    "unaligned": Kind(_heun_corrector(("F",)), F32, (F32, BF16), ("q",), F16, access="elements"),
    "caller's noise": Kind(CALLER_NOISE, F32, (F32, BF16, F16), (F32, BF16, F16, F32), access="tail"),
    "channels last": Kind(_heun_corrector(("F",)), F32, (F32, BF16), ("q",), BF16, layout=CHANNELS_LAST),
    "fp64 multistep": Kind(MULTISTEP, F64, (F64, BF16, BF16, F64), (None, "x", "h"), BF16),
    "fp64 narrow": Kind(MULTISTEP, F64, (F64, F32, F16, F32), (None, BF16, F32), F16, access="elements", presence=True),
    "first noise": Kind(FIRST_NOISE, F32, (), (F32,), BF16),
}


def make(kind: Kind, seed: int) -> Case:
    """A random case of this kind."""
    rng = np.random.default_rng(seed)
    batch, sample = _shape(kind, rng)
    wild = rng.random() < 0.5

    def place(dtype: torch.dtype) -> Placement:
        quad = 16 // dtype.itemsize
        if kind.access == "elements":
            return Placement(kind.layout, offset=1, gap=int(rng.choice([0, 1, 32])))
        gap = int(rng.choice([0, 32])) if kind.access == "quads" else 0
        return Placement(kind.layout, offset=quad * int(rng.integers(3)), gap=gap)

    def values(dtype: torch.dtype) -> torch.Tensor:
        found = torch.from_numpy(rng.normal(size=(batch, *sample)) * 10.0 ** rng.uniform(-2, 2)).to(dtype)
        if wild:
            info = torch.finfo(dtype)
            special = [0.0, -0.0, math.nan, math.inf, -math.inf, info.max, info.min, info.tiny, info.tiny / 4]
            which = torch.from_numpy(rng.integers(0, 4 * len(special), size=(batch, *sample)))
            for i, value in enumerate(special):
                found[which == i] = value
        return found

    row, n_draws = kind.row, len(kind.row.draws)
    rows = int(rng.choice([1, batch]))
    coef = rng.normal(size=(rows, len(row.coefficients)))
    if wild:
        coef *= rng.choice([1.0, 0.0, -0.0, 1e12, 1e-12, 1e-41], size=coef.shape)
    return Case(
        seed=seed,
        row=row,
        columns=tuple((values(dtype), place(dtype)) for dtype in kind.columns),
        stores=tuple((s, place(s)) if isinstance(s, torch.dtype) else s for s in kind.stores),
        z=None if kind.z is None else (kind.z, place(kind.z)),
        shape=torch.Size((batch, *sample)),
        coef=torch.tensor(coef, dtype=kind.state),
        present=torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, rows)) if kind.presence else None,
        seeds=torch.from_numpy(rng.integers(0, 2**63, batch)) if n_draws else None,
        draws=_draws(rng, n_draws, batch) if n_draws else None,
    )


def _draws(rng: np.random.Generator, count: int, batch: int) -> torch.Tensor:
    rows = int(rng.choice([1, batch]))
    words = [rng.integers(0, 2**bits, size=(rows, count)) for bits in (8, 16, 32, 24)]
    return torch.from_numpy(np.stack(words, -1))


def _shape(kind: Kind, rng: np.random.Generator) -> tuple[int, tuple[int, ...]]:
    """A batch and a sample whose size calls for the kind's access; elements, up to 4,097, in all."""
    if kind.layout == CHANNELS_LAST:
        images = [(3, 8, 8), (5, 2, 4, 6), (4, 9, 7), (2, 1, 1026)]
        return int(rng.integers(1, 4)), images[rng.integers(len(images))]
    if kind.access == "quads":
        sizes = [(4,), (32,), (2, 64), (128,), (1, 4, 255), (1024,), (4, 16, 16), (1028,)]
        return int(rng.integers(1, 4)), sizes[rng.integers(len(sizes))]
    sizes = [(1,), (2,), (3,), (31,), (33,), (127,), (3, 43), (1023,), (1025,), (3, 5, 7, 13), (4095,), (4097,)]
    size = sizes[rng.integers(len(sizes))]
    return (1 if kind.access == "tail" or math.prod(size) > 2000 else int(rng.integers(1, 4))), size
