"""Smaller rows: every way to make a row case simpler in one respect.

Hypothesis would do this for cases that it drew itself; it cannot be handed a failing case. Cases here are drawn by
numpy, a hundred times faster, so they are made smaller by what they are: a row loses a term, a tensor an element.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import PlanError
from fastdiff.lab.fuzz.row_line import tagged_row
from fastdiff.lab.fuzz.subject import Fault
from fastdiff.rows.row import Output, Row, Terms, fixed
from fastdiff.testing.rows import INTEGERS, Case, Placement

PLAIN = Placement()


def smaller_rows(case: Case, fault: Fault) -> Iterator[Case]:
    """Cases that differ from this one in one simplification, the boldest first; some may not be valid."""
    case = replace(case, row=tagged_row(case.row.program.integers, case.row.copies), **_renamed(case))
    yield from _fewer_samples(case, fault)
    yield from _fewer_elements(case)
    yield from _alike(case, fault)
    for row, stores in _simpler_rows(case):
        try:
            yield _with_row(case, row(), stores)
        except PlanError:
            continue
    yield from _plainer(case)
    yield from _simpler_numbers(case)


def weight(case: Case) -> int:
    """How large a case is: values, coefficients, tensors and draws."""
    tensors = len(case.columns) + sum(store is not None for store in (*case.stores, case.z))
    return case.shape.numel() * tensors + case.coef.numel() + tensors + len(case.row.draws)


def _renamed(case: Case) -> dict[str, Any]:
    """In-place stores under the names that a tagged row gives to columns."""
    names = {name: f"c{i}" for i, name in enumerate(case.row.columns)}

    def rename(store: Any) -> Any:
        return names[store] if isinstance(store, str) else store

    return {"stores": tuple(map(rename, case.stores)), "z": rename(case.z)}


def _fewer_samples(case: Case, fault: Fault) -> Iterator[Case]:
    batch = case.shape[0]
    if batch < 2:
        return
    likely = [fault.at[0] % batch] if fault.at else []
    for b in dict.fromkeys([*likely, *range(batch)]):
        yield _reshaped(case, torch.Size((1, *case.shape[1:])), lambda v, b=b: v[b : b + 1], b)


def _fewer_elements(case: Case) -> Iterator[Case]:
    batch, sample = case.shape[0], case.shape[1:]
    size = sample.numel()
    if len(sample) != 1:
        flat = replace(case, columns=_plain_columns(case), **_plain_targets(case))
        yield _reshaped(flat, torch.Size((batch, size)), lambda v: v.reshape(batch, size))
        return
    for kept in dict.fromkeys([1, 2, 4, size // 2, size - size // 4, size - size // 16, size - 4, size - 1]):
        if 0 <= kept < size:
            yield _reshaped(case, torch.Size((batch, kept)), lambda v, kept=kept: v[:, :kept])


def _alike(case: Case, fault: Fault) -> Iterator[Case]:
    """Every element like the one that failed: a column then is one number, however many elements it needs."""
    if not fault.at:
        return
    at = (fault.at[0] % case.shape[0], *fault.at[1:])
    if len(at) == len(case.shape) and any(_varies(values) for values, _ in case.columns):
        yield _reshaped(case, case.shape, lambda v: v[at].expand(case.shape).clone())


def _simpler_rows(case: Case) -> Iterator[tuple[Any, Any]]:
    """Thunks that make rows with one part less, and the stores that go with them."""
    row, stores = case.row, case.stores
    for i in range(len(row.outputs)):
        if len(row.outputs) > 1:
            network = None if row.network in (None, i) else row.network - (row.network > i)
            rest = _without_output(row.outputs, i)
            copies = row.copies if network is not None else 1
            yield (
                lambda rest=rest, network=network, copies=copies: replace(
                    row, outputs=rest, network=network, copies=copies
                ),
                stores[:i] + stores[i + 1 :],
            )
    if row.network is not None:
        yield lambda: replace(row, network=None, copies=1), stores
    if row.copies > 1:
        yield lambda: replace(row, copies=1), stores
    for i, output in enumerate(row.outputs):
        changed = [{"base": None}] if output.base is not None else []
        changed += [{"terms": terms} for terms in _shorter(output.terms)]
        changed += [{"noise": noise} for noise in _shorter(output.noise)]
        changed += [{part: None} for part in ("bound", "scale") if getattr(output, part) is not None]
        for change in changed:
            outputs = (*row.outputs[:i], replace(output, **change), *row.outputs[i + 1 :])
            yield lambda o=outputs: replace(row, outputs=o), stores
    used = _used(row) | {store for store in (*stores, case.z) if isinstance(store, str)}
    for name in row.columns:
        if name not in used:
            yield lambda n=name: replace(row, columns=tuple(c for c in row.columns if c != n)), stores
    for name, _ in row.draws:
        if name not in used:
            yield lambda n=name: replace(row, draws=tuple(d for d in row.draws if d[0] != n)), stores


def _plainer(case: Case) -> Iterator[Case]:
    """Simpler memory: fresh tensors of the state type, dense and aligned; no presence, shared coefficients."""
    if case.present is not None:
        yield replace(case, present=None)
    if case.coef.shape[0] > 1:
        yield replace(case, coef=case.coef[:1])
    if any(placement != PLAIN for _, placement in case.columns) or _plain_targets(case) != _targets(case):
        yield replace(case, columns=_plain_columns(case), **_plain_targets(case))
    state = case.coef.dtype
    for i, (values, placement) in enumerate(case.columns):
        if values.dtype is not state and case.row.columns[i] not in (*case.stores, case.z):
            columns = (*case.columns[:i], (values.to(state), placement), *case.columns[i + 1 :])
            yield replace(case, columns=columns)
    for i, store in enumerate(case.stores):
        if store is not None and store != (state, PLAIN):
            yield replace(case, stores=(*case.stores[:i], (state, PLAIN), *case.stores[i + 1 :]))
        if store is not None and sum(s is not None for s in (*case.stores, case.z)) > 1:
            yield replace(case, stores=(*case.stores[:i], None, *case.stores[i + 1 :]))
    if case.z is not None and case.z != (state, PLAIN):
        yield replace(case, z=(state, PLAIN))


def _simpler_numbers(case: Case) -> Iterator[Case]:
    for i, (values, placement) in enumerate(case.columns):
        if not bool((values == 1).all()):
            columns = (*case.columns[:i], (torch.ones_like(values), placement), *case.columns[i + 1 :])
            yield replace(case, columns=columns)
    for k in range(case.coef.shape[1]):
        if not bool((case.coef[:, k] == 1).all()):
            coef = case.coef.clone()
            coef[:, k] = 1
            yield replace(case, coef=coef)
    for name in ("seeds", "draws"):
        table: Tensor | None = getattr(case, name)
        if table is not None and bool(table.any()):
            yield replace(case, **{name: torch.zeros_like(table)})
            for part in range(table.shape[-1]):
                less = table.clone()
                less[..., part] = 0
                if bool((less != table).any()):
                    yield replace(case, **{name: less})


def _with_row(case: Case, row: Row, stores: Sequence[Any]) -> Case:
    """The case with a changed row: its coefficients are found by their tags, its tensors by their names."""
    kept = [int(fixed(tag)) for tag in row.coefficients]
    present = None
    if case.present is not None:
        words = [sum((word >> old & 1) << new for new, old in enumerate(kept)) for word in case.present.tolist()]
        present = torch.tensor([word - 2**64 if word >= 2**63 else word for word in words])
    columns = tuple(c for name, c in zip(case.row.columns, case.columns, strict=True) if name in row.columns)
    left = [j for j, draw in enumerate(case.row.draws) if draw in row.draws]
    changed = replace(
        case,
        row=row,
        columns=columns,
        stores=tuple(stores),
        z=case.z if row.network is not None else None,
        coef=case.coef[:, kept],
        present=present,
        draws=case.draws[:, left] if case.draws is not None and left else None,
        seeds=case.seeds if left else None,
    )
    return replace(changed, row=tagged_row(row.program.integers, row.copies), **_renamed(changed))


def _reshaped(case: Case, shape: torch.Size, change: Any, sample: int | None = None) -> Case:
    """The case with other tensors; tables keep one sample's row if it is given."""
    columns = tuple((change(values), placement) for values, placement in case.columns)
    tables = {name: getattr(case, name) for name in ("coef", "present", "seeds", "draws")}
    if sample is not None:
        batch = case.shape[0]
        for name, table in tables.items():
            if table is not None and table.shape[0] == batch:
                tables[name] = table[sample : sample + 1]
    return replace(case, columns=columns, shape=shape, **tables)


def is_output(name: str | None) -> bool:
    """Whether a tagged row calls an output so, not a column or a draw."""
    return name is not None and name.startswith("w")


def _without_output(outputs: tuple[Output, ...], i: int) -> tuple[Output, ...]:
    """The other outputs: what read this one reads nothing in its place, what read a later one finds it."""

    def renamed(name: str | None) -> str | None:
        if name is None or not is_output(name) or int(name[1:]) < i:
            return name
        return None if int(name[1:]) == i else f"w{int(name[1:]) - 1}"

    def changed(output: Output) -> Output:
        terms = tuple((new, c) for name, c in output.terms if (new := renamed(name)) is not None)
        return replace(output, base=renamed(output.base), terms=terms)

    return tuple(changed(output) for k, output in enumerate(outputs) if k != i)


def _shorter(terms: Terms) -> Iterator[Terms]:
    if len(terms) > 1:
        yield ()
    for i in range(len(terms)):
        yield terms[:i] + terms[i + 1 :]


def _used(row: Row) -> set[str]:
    found: set[str] = set()
    for output in row.outputs:
        found |= {name for name, _ in (*output.terms, *output.noise)} | {output.base or ""}
    return found


def _varies(values: Tensor) -> bool:
    # By their bits: a NaN differs from itself.
    bits = values.contiguous().flatten().view(INTEGERS[values.element_size()])
    return bool((bits != bits[:1]).any())


def _targets(case: Case) -> dict[str, Any]:
    return {"stores": case.stores, "z": case.z}


def _plain_targets(case: Case) -> dict[str, Any]:
    def plain(store: Any) -> Any:
        return (store[0], PLAIN) if isinstance(store, tuple) else store

    return {"stores": tuple(map(plain, case.stores)), "z": plain(case.z)}


def _plain_columns(case: Case) -> tuple[tuple[Tensor, Placement], ...]:
    return tuple((values, PLAIN) for values, _ in case.columns)
