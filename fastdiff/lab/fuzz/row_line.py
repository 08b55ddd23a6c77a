"""Rows on one line: a case as plain values and back, so that a failure does not depend on any random generator."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.maths.draw import Draw
from fastdiff.rows.program import parse
from fastdiff.rows.row import Output, Row
from fastdiff.testing.rows import INTEGERS, Case, Placement

LISTED = 64
"""From this many different values on, a column is written compressed."""
MOST_VALUES = 2**26


def encode(case: Case) -> dict[str, Any]:
    """A case as plain values."""
    names = list(case.row.columns)

    def target(store: tuple[torch.dtype, Placement] | str | None) -> Any:
        if store is None:
            return None
        return names.index(store) if isinstance(store, str) else [dtype_name(store[0]), *_place(store[1])]

    return {
        "program": case.row.program.integers,
        "shape": list(case.shape),
        "state": dtype_name(case.coef.dtype),
        "coef": case.coef.tolist(),
        "copies": case.row.copies,
        "columns": [[dtype_name(v.dtype), *_place(p), _encode_values(v)] for v, p in case.columns],
        "stores": [target(store) for store in case.stores],
        "z": target(case.z),
        "present": None if case.present is None else case.present.tolist(),
        "seeds": None if case.seeds is None else case.seeds.tolist(),
        "draws": None if case.draws is None else case.draws.tolist(),
    }


def decode(body: Mapping[str, Any]) -> Case:
    """The case that ``encode`` was given.

    Raises:
        InputError: it is too large. (A malformed body raises whatever Python does; ``lines.read`` explains it.)
    """
    shape = torch.Size(body["shape"])
    if min(shape) < 0 or shape.numel() * (len(body["columns"]) + 5) > MOST_VALUES:
        raise InputError(f"shape is {list(shape)}; a line describes at most {MOST_VALUES:,} values")
    state, copies = dtype_named(body["state"]), int(body["copies"])
    row = tagged_row(body["program"], copies)

    def target(store: Any) -> tuple[torch.dtype, Placement] | str | None:
        if store is None:
            return None
        return row.columns[store] if isinstance(store, int) else (dtype_named(store[0]), Placement(*store[1:4]))

    columns = [(_decode_values(c[4], shape, dtype_named(c[0])), Placement(*c[1:4])) for c in body["columns"]]
    draws = body["draws"]
    return Case(
        seed=0,
        row=row,
        columns=tuple(columns),
        stores=tuple(target(store) for store in body["stores"]),
        z=target(body["z"]),
        shape=shape,
        coef=torch.tensor(body["coef"], dtype=state).view(len(body["coef"]), len(row.coefficients)),
        present=None if body["present"] is None else torch.tensor(body["present"], dtype=torch.int64),
        seeds=None if body["seeds"] is None else torch.tensor(body["seeds"], dtype=torch.int64),
        draws=None if draws is None else torch.tensor(draws, dtype=torch.int64).view(len(draws), len(row.draws), 4),
    )


def tagged_row(program: Sequence[int], copies: int) -> Row:
    """The row of a program, in which coefficient k has the value k: so it can be found again in a changed row."""
    parsed, tag = parse([int(word) for word in program]), count()
    columns = tuple(f"c{i}" for i in range(parsed.columns))
    draws = tuple((f"xi{j}", Draw(1, j)) for j in range(parsed.draws))
    sources = (*columns, *(f"w{i}" for i in range(len(parsed.outputs))))
    outputs = []
    for i, output in enumerate(parsed.outputs):
        outputs.append(
            Output(
                base=None if output.base is None else sources[output.base],
                terms=tuple((sources[k], float(next(tag))) for k in output.terms),
                noise=tuple((draws[r][0] if r >= 0 else columns[-1 - r], float(next(tag))) for r in output.noise),
                store=f"stored{i}",
                bound=float(next(tag)) if output.clamp else None,
                scale=float(next(tag)) if output.scale else None,
            )
        )
    c_in = float(next(tag)) if parsed.network is not None else 1.0
    return Row(columns, tuple(outputs), draws, parsed.network, c_in, copies)


def _encode_values(values: Tensor) -> Any:
    """All values, or the one that all have; very many of them as compressed bytes."""
    flat = values.contiguous().flatten()
    bits = flat.view(INTEGERS[flat.element_size()])
    if flat.numel() and bool((bits == bits[0]).all()):
        return [flat[0].item()]
    if flat.numel() <= LISTED:
        return flat.tolist()
    packed = zlib.compress(flat.view(torch.uint8).numpy().tobytes(), 9)
    return base64.b64encode(packed).decode()


def _decode_values(values: Any, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if isinstance(values, str):
        raw = zlib.decompress(base64.b64decode(values, validate=True))
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
    if len(values) == 1:
        return torch.full(shape, values[0], dtype=dtype)
    return torch.tensor(values, dtype=dtype).reshape(shape)


def _place(placement: Placement) -> tuple[str, int, int]:
    return placement.layout, placement.offset, placement.gap


def dtype_name(dtype: torch.dtype) -> str:
    """As people write it, such as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a name.

    Raises:
        InputError: it is none of the four.
    """
    if name not in ("float64", "float32", "bfloat16", "float16"):
        raise InputError(f"dtype is {name!r}; float64, float32, bfloat16 and float16 are allowed")
    return getattr(torch, name)
