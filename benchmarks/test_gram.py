"""Inner products of every sample beside torch's: the three sums of two float32 columns, in turns.

``python -m pytest benchmarks/test_gram.py -s`` prints microseconds and ratios. torch works in memory that is there
already, so that nobody pays for fresh pages; in float64 it widens first, in float32 it rounds earlier and differently.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.backends import cpu
from fastdiff.lab.bench import timing
from fastdiff.lab.bench.noise import FILLS, Filling
from fastdiff.rows.call import GramCall
from fastdiff.rows.gram import parse_gram

PROGRAM = parse_gram([2, 0, 2, 1, 0, 1, 1, 3, 0, 0, 0, -1, 0, 0, 1, -1, 0, 1, 1, -1, 0, 0])
SAMPLE = 4096


def torchs(x: Tensor, y: Tensor, out: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """The same sums by torch."""
    wide = [torch.empty_like(x, dtype=dtype) for _ in "xy"]
    product, total = torch.empty_like(wide[0]), torch.empty(len(x), dtype=dtype)

    def sums() -> None:
        u, v = (x, y) if dtype is x.dtype else (wide[0].copy_(x), wide[1].copy_(y))
        for i, (a, b) in enumerate(((u, u), (u, v), (v, v))):
            torch.mul(a, b, out=product)
            out[:, i].copy_(torch.sum(product, 1, out=total))

    return sums


@pytest.mark.skipif(cpu.host() is None, reason="the C++ backend was not built")
@pytest.mark.parametrize("elements", [2**12, 2**16, 2**20], ids=["4Ki", "64Ki", "1Mi"])
@pytest.mark.parametrize("samples", ["of 4Ki", "one"])
def test_three_sums(elements: int, samples: str) -> None:
    batch = elements // SAMPLE if samples == "of 4Ki" else 1
    x, y = (torch.randn(batch, elements // batch, generator=torch.Generator().manual_seed(i)) for i in range(2))
    numbers = torch.ones(1, 2, dtype=torch.float64)
    made = {name: torch.zeros(batch, 3, dtype=torch.float64) for name in ("gram", "op", "float64", "float32")}
    call = GramCall([x, y], numbers, PROGRAM, made["gram"])
    fills = {
        "gram": partial(cpu.gram, call),
        "op": partial(ops.gram, [x, y], numbers, PROGRAM, scalars=made["op"]),
        "float64": torchs(x, y, made["float64"], torch.float64),
        "float32": torchs(x, y, made["float32"], torch.float32),
    }
    times = timing.interleave(
        {name: partial(Filling, fill) for name, fill in fills.items()}, budget=5.0, fewest=15, most=201
    )
    for name, tolerance in (("op", 0.0), ("float64", 2.0**-44), ("float32", 2.0**-14)):
        scale = made["gram"][:, [0, 0, 2]].abs()
        assert ((made[name] - made["gram"]).abs() <= tolerance * scale).all()
    shown = [f"gram {times.of('gram').median / FILLS * 1e6:8.1f} us"]
    shown += [f"{name} x{times.ratio(name, 'gram').median:.2f}" for name in fills if name != "gram"]
    print(f"\n{elements:8d} elements, {batch:4d} samples: " + ", ".join(shown))
