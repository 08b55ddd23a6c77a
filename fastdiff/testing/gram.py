"""Random grams on random tensors: a backend is right when it makes the reference's bits of every ``random_gram``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.backends.registry import MakeGram, use_backend
from fastdiff.rows.call import GramCall
from fastdiff.rows.dtypes import NETWORK_TYPES
from fastdiff.rows.gram import MAX_STEPS, MAX_SUMS, MAX_VECTORS, OPERATIONS, GramProgram, parse_gram
from fastdiff.rows.layout import CHANNELS_LAST, ROW_MAJOR
from fastdiff.rows.program import MAX_COEFFICIENTS
from fastdiff.testing.rows import Placement, moved_to, same_bits

SIZES = (0, 1, 2, 3, 4, 5, 31, 33, 127, 129, 511, 512, 513, 1023, 4095, 4096, 4097, 8192, 12289)
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 6e4)
TAKES_NO, TAKES_ONE = ("number",), ("number", "sqrt")


@dataclass(frozen=True)
class GramCase:
    """A random gram; ``columns`` pair values with placements, ``state`` is None where no coefficients are wanted."""

    seed: int
    program: GramProgram
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
        written = {"scalars": Placement().place(torch.full((batch, scalars), math.nan, dtype=torch.float64))}
        if self.state is not None:
            written["coef"] = Placement().place(torch.full((batch, coefficients), math.nan, dtype=self.state))
        views = {name: guarded.view for name, guarded in written.items()}
        gram(
            GramCall([c.view for c in columns], self.numbers, self.program, seeds=self.seeds, draws=self.draws, **views)
        )
        for column, (values, _) in zip(columns, self.columns, strict=True):
            if not same_bits(column.view, values):
                raise AssertionError(f"a column was written; {self.describe()}")
        for guarded in (*columns, *written.values()):
            if not guarded.intact():
                raise AssertionError(f"memory outside was written; {self.describe()}")
        return {name: view.clone() for name, view in views.items()}

    def describe(self) -> str:
        """One line that makes this case again and says what is in it."""
        shapes = [(tuple(values.shape), values.dtype, placement) for values, placement in self.columns]
        program, numbers = self.program.integers, self.numbers.tolist()
        return f"fastdiff.testing.gram.random_gram({self.seed}): columns {shapes}, program {program}, numbers {numbers}"


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
        program=parse_gram(integers),
        numbers=torch.from_numpy(np.array([numbers]) * rows),
        columns=[(_values(rng, shape), _placement(rng, layout)) for _ in range(columns)],
        seeds=torch.from_numpy(rng.integers(0, 2**63, batch)) if draws else None,
        draws=torch.from_numpy(np.stack(words, -1)) if draws else None,
        state=(torch.float32, torch.float64)[rng.integers(2)] if coefficients else None,
        made=(sums + steps, coefficients),
    )


def run_on(device: torch.device | str, backend: str) -> MakeGram:
    """A backend's ``gram`` for tensors on the CPU, as ``fastdiff.testing.rows.run_on`` is for rows.

    Args:
        device: where the backend runs.
        backend: its name.
    """

    def gram(call: GramCall) -> None:
        with moved_to(device) as there, use_backend(backend):
            tables = {name: there(getattr(call, name)) for name in ("scalars", "coef", "seeds", "draws")}
            ops.gram([there(column) for column in call.columns], there(call.numbers), call.program, **tables)

    return gram


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
