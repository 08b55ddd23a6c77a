"""Random grams for the CUDA kernels, each with all that one call needs, and what they must make of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdiff.backends.reference import normals
from fastdiff.rows.call import GramCall
from fastdiff.rows.dtypes import NETWORK_TYPES
from fastdiff.rows.gram import MAX_STEPS, MAX_SUMS, MAX_VECTORS, OPERATIONS
from fastdiff.rows.layout import CHANNELS_LAST, ROW_MAJOR
from fastdiff.rows.program import MAX_COEFFICIENTS
from fastdiff.testing.rows import Placement, same_bits

SIZES = (0, 1, 2, 3, 4, 5, 31, 33, 127, 129, 511, 512, 513, 1023, 4095, 4096, 4097, 8192, 12289)
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 6e4)
TAKES_NO, TAKES_ONE = ("number",), ("number", "sqrt")


@dataclass(frozen=True)
class GramCase:
    """A random gram; ``columns`` pair values with placements, ``state`` is None where no coefficients are wanted."""

    seed: int
    integers: list[int]
    numbers: Tensor
    columns: list[tuple[Tensor, Placement]]
    seeds: Tensor | None
    draws: Tensor | None
    state: torch.dtype | None
    made: tuple[int, int]

    def run(self, gram: Callable[[GramCall], None]) -> dict[str, Tensor]:
        """Run it on fresh copies; returns ``scalars`` and, where there are any, ``coef``.

        Raises:
            AssertionError: a byte outside the results was written.
        """
        columns = [placement.place(values) for values, placement in self.columns]
        batch, (scalars, coefficients) = self.columns[0][0].shape[0], self.made
        written = {"scalars": Placement(gap=3).place(torch.full((batch, scalars), math.nan, dtype=torch.float64))}
        if self.state is not None:
            written["coef"] = Placement(gap=1).place(torch.full((batch, coefficients), math.nan, dtype=self.state))
        views = {name: guarded.view for name, guarded in written.items()}
        gram(
            GramCall(
                [c.view for c in columns], self.numbers, self.integers, seeds=self.seeds, draws=self.draws, **views
            )
        )
        for column, (values, _) in zip(columns, self.columns, strict=True):
            assert same_bits(column.view, values), f"a column was written; {self.describe()}"
        for guarded in (*columns, *written.values()):
            assert guarded.intact(), f"memory outside was written; {self.describe()}"
        return {name: view.clone() for name, view in views.items()}

    def describe(self) -> str:
        """One line that makes this case again and says what is in it."""
        shapes = [(tuple(values.shape), values.dtype, placement) for values, placement in self.columns]
        return f"grams.random_gram({self.seed}): columns {shapes}, program {self.integers}, numbers {self.numbers}"


def random_gram(seed: int, sizes: tuple[int, ...] = SIZES) -> GramCase:
    """A valid gram drawn from the whole space that a backend must handle, with samples of these sizes."""
    rng = np.random.default_rng(seed)
    columns, draws = int(rng.integers(1, 6)), int(rng.integers(0, 3))
    vectors = int(rng.integers(1, MAX_VECTORS + 1))
    integers, numbers = [columns, draws, vectors], []
    for _ in range(vectors):
        terms = int(rng.integers(1, 5))
        integers += [terms, *rng.integers(columns + draws + 1, size=terms).tolist()]
        numbers += rng.normal(size=terms).tolist()
    sums = int(rng.choice([1, 2, 3, 5, MAX_SUMS]))
    integers.append(sums)
    for _ in range(sums):
        a, b, c = rng.integers(vectors, size=3).tolist()
        weighted = rng.random() < 0.3
        integers += [int(weighted), a, b, c if weighted else -1]
        numbers += rng.uniform(0.01, 1, size=2).tolist() if weighted else []
    steps = int(rng.choice([0, 1, 3, 8, MAX_STEPS]))
    integers.append(steps)
    for known in range(sums, sums + steps):
        code = int(rng.integers(len(OPERATIONS)))
        left, right = rng.integers(known, size=2).tolist()
        none, one = OPERATIONS[code] in TAKES_NO, OPERATIONS[code] in TAKES_ONE
        integers += [code, -1 if none else left, -1 if one else right]
        numbers += [float(rng.normal())] if none else []
    coefficients = int(rng.choice([0, 1, 3, 8, MAX_COEFFICIENTS]))
    integers.append(coefficients)
    for _ in range(coefficients):
        factors = int(rng.integers(0, 4))
        integers += [factors, *rng.integers(sums + steps, size=factors).tolist()]
        numbers += rng.normal(size=factors + 1).tolist()
    batch = int(rng.choice([1, 2, 3]))
    shape, layout = _shape(rng, batch, int(rng.choice(sizes)))
    rows = rng.uniform(0.5, 1.5, size=(batch, 1)) if rng.random() < 0.4 else np.ones((1, 1))
    words = [rng.integers(0, 2**bits, size=(int(rng.choice([1, batch])), draws)) for bits in (8, 16, 32, 24)]
    words = [np.broadcast_to(word, words[0].shape) if word.shape[0] == 1 else word[: len(words[0])] for word in words]
    return GramCase(
        seed=seed,
        integers=integers,
        numbers=torch.from_numpy(np.array([numbers]) * rows),
        columns=[(_values(rng, shape), _placement(rng, layout)) for _ in range(columns)],
        seeds=torch.from_numpy(rng.integers(0, 2**63, batch)) if draws else None,
        draws=torch.from_numpy(np.stack(words, -1)) if draws else None,
        state=(torch.float32, torch.float64)[rng.integers(2)] if coefficients else None,
        made=(sums + steps, coefficients),
    )


def _shape(rng: np.random.Generator, batch: int, size: int) -> tuple[tuple[int, ...], str]:
    channels = next((c for c in (3, 7, 2) if size and size % c == 0), 1)
    if channels == 1 or rng.random() < 0.4:
        return (batch, size), ROW_MAJOR
    return (batch, channels, 1, size // channels), CHANNELS_LAST if rng.random() < 0.6 else ROW_MAJOR


def _values(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    values = torch.from_numpy(rng.normal(size=shape)).to(NETWORK_TYPES[rng.integers(len(NETWORK_TYPES))])
    if values.numel() and rng.random() < 0.15:
        # In one sample alone, so that the others can be seen to be left alone.
        values[-1].view(-1)[int(rng.integers(values[-1].numel()))] = SPECIAL[rng.integers(len(SPECIAL))]
    return values


def _placement(rng: np.random.Generator, layout: str) -> Placement:
    return Placement(layout, int(rng.choice([0, 1, 16])), int(rng.choice([0, 1, 32])))


# What must come out -------------------------------------------------------------------------------------------------


def gram(call: GramCall) -> None:
    """The definition of the op, in plain PyTorch."""
    rest, numbers = iter(call.program), iter(call.numbers.unbind(1))
    batch, size = call.columns[0].shape[0], call.columns[0].shape[1:].numel()
    columns, draws, vectors = (next(rest) for _ in range(3))
    assert columns == len(call.columns)
    sources = [column.double().reshape(batch, size) for column in call.columns]
    if draws:
        drawn = normals(size, call.seeds[:, None], call.draws).double().expand(batch, draws, size)
        sources += drawn.unbind(1)
    sources.append(torch.ones(batch, size, dtype=torch.float64))
    made = []
    for _ in range(vectors):
        products = [next(numbers)[:, None] * sources[source] for source in _some(rest)]
        made.append(_in_order(products))
    scalars = []
    for _ in range(next(rest)):
        kind, a, b, c = (next(rest) for _ in range(4))
        factors = made[a], made[b]
        if kind:
            atol, rtol = next(numbers)[:, None], next(numbers)[:, None]
            factors = (made[a] / larger(atol, rtol * larger(made[b].abs(), made[c].abs())),) * 2
        scalars.append(total(factors[0] * factors[1]))
    for _ in range(next(rest)):
        code, left, right = (next(rest) for _ in range(3))
        name = OPERATIONS[code]
        scalars.append(
            next(numbers).expand(batch)
            if name in TAKES_NO
            else _operation(name, scalars[left], scalars[right] if name not in TAKES_ONE else None)
        )
    coefficients = []
    for _ in range(next(rest)):
        parts = [next(numbers).expand(batch)]
        for scalar in _some(rest):
            parts.append(next(numbers) * scalars[scalar])
        coefficients.append(_in_order(parts))
    call.scalars.copy_(torch.stack(scalars, 1))
    if call.coef is not None:
        call.coef.copy_(torch.stack(coefficients, 1).to(call.coef.dtype))


def total(p: Tensor) -> Tensor:
    """The sum over the last dimension, in the order that is fixed: at least one level."""
    while True:
        p = _chunks(p)
        if p.shape[-1] == 1:
            return p[..., 0]


def _chunks(p: Tensor) -> Tensor:
    """The sums of chunks of 4096 numbers: eight quads for each of 128 lanes, which are folded in halves."""
    chunks = max(1, -(-p.shape[-1] // 4096))
    padded = torch.nn.functional.pad(p, (0, chunks * 4096 - p.shape[-1]))
    quads = padded.view(*p.shape[:-1], chunks, 8, 128, 4)
    quads = (quads[..., 0] + quads[..., 1]) + (quads[..., 2] + quads[..., 3])
    lanes = _in_order([torch.zeros_like(quads[..., 0, :]), *quads.unbind(-2)])
    while lanes.shape[-1] > 1:
        left, right = lanes.chunk(2, -1)
        lanes = left + right
    return lanes[..., 0]


def larger(a: Tensor, b: Tensor) -> Tensor:
    """The larger one, or NaN where one of them is."""
    return torch.where((a > b) | a.isnan(), a, b)


def _operation(name: str, left: Tensor, right: Tensor | None) -> Tensor:
    if name == "sqrt":
        # numpy's is rounded correctly, torch's is not.
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.sqrt(left.numpy()))
    return {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": larger}[name](left, right)


def _some(rest: Iterator[int]) -> list[int]:
    return [next(rest) for _ in range(next(rest))]


def _in_order(numbers: list[Tensor]) -> Tensor:
    found = numbers[0]
    for number in numbers[1:]:
        found = found + number
    return found
