"""The reference against two independent oracles, numpy arrays by name and exact rationals, and its promises."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastdiff import ops
from fastdiff.backends import reference
from fastdiff.backends.registry import use_backend
from fastdiff.maths.draw import Draw
from fastdiff.rows.layout import ROW_MAJOR
from fastdiff.rows.row import Output, Row
from fastdiff.testing.rows import Case, Placement, random_case, same_bits


@pytest.fixture(autouse=True)
def forced():
    """These tests are about the reference, whatever else is installed."""
    with use_backend("reference"):
        yield


def draw_noise(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The normals of a case by the name of the draw."""
    found = {}
    for j, (name, _) in enumerate(case.row.draws):
        assert case.seeds is not None
        assert case.draws is not None
        flat = reference.normals(case.shape[1:].numel(), case.seeds, case.draws[:, j])
        found[name] = flat.reshape(case.shape).to(dtype)
    return found


def by_name(case: Case) -> dict[str, torch.Tensor]:
    """The row of a case in numpy, from its names instead of its program: one rounded operation after another."""
    state = case.coef.dtype
    values = {n: v.to(state).numpy() for n, (v, _) in zip(case.row.columns, case.columns, strict=True)}
    values |= {name: xi.numpy() for name, xi in draw_noise(case, state).items()}
    labels = iter(range(case.coef.shape[1]))
    column = (-1, *(1 for _ in case.shape[1:]))

    def following() -> tuple[np.ndarray, np.ndarray]:
        k = next(labels)
        bits = torch.tensor([-1]) if case.present is None else case.present
        return case.coef[:, k].numpy().reshape(column), ((bits >> k) & 1).bool().numpy().reshape(column)

    def add(total: np.ndarray, started: np.ndarray, value: np.ndarray, on: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.where(on, np.where(started, total + value, value), total), started | on

    def sum_up(output: Output) -> np.ndarray:
        total, started = np.zeros(case.shape, case.coef.numpy().dtype), np.zeros(case.shape, bool)
        for name, _ in output.terms:
            c, on = following()
            total, started = add(total, started, c * values[name], on)
        if output.base is not None:
            total = np.where(started, values[output.base] + total, values[output.base])
            started = np.ones(case.shape, bool)
        for name, _ in output.noise:
            c, on = following()
            total, started = add(total, started, c * values[name], on)
        return total

    with np.errstate(all="ignore"):
        wide = {}
        for i, output in enumerate(case.row.outputs):
            w = sum_up(output)
            if output.bound is not None:
                bound, on = following()
                w = np.where(on & (w > bound), bound, np.where(on & (w < -bound), -bound, w))
            if output.scale is not None:
                scale, on = following()
                w = np.where(on, scale * w, w)
            values[f"w{i}"] = wide[f"w{i}"] = w
        if case.row.network is not None:
            c_in, on = following()
            w = wide[f"w{case.row.network}"]
            wide["z"] = np.concatenate([np.where(on, c_in * w, w)] * case.row.copies)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in wide.items()}


def narrow(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.float().to(dtype) if dtype.itemsize == 2 else value.to(dtype)


def check_by_name(case: Case) -> None:
    expected, found = by_name(case), case.run("reference")
    assert found, case.describe()
    for name, value in found.items():
        assert same_bits(value, narrow(expected[name], value.dtype)), f"{name} of {case.describe()}"


@pytest.mark.parametrize("block", range(3))
def test_rows_by_name(block: int) -> None:
    ran = 0
    for seed in range(50 * block, 50 * block + 50):
        case = random_case(seed, max_elements=1025)
        if any(store is not None for store in (*case.stores, case.z)):
            check_by_name(case)
            ran += 1
    assert ran > 40


def exactly(case: Case) -> tuple[list[list[Fraction]], dict[str, float]]:
    """Every output of a case in rationals, and a bound on each column and draw."""
    columns = {n: v.flatten().tolist() for n, (v, _) in zip(case.row.columns, case.columns, strict=True)}
    columns |= {name: xi.flatten().tolist() for name, xi in draw_noise(case, torch.float64).items()}
    magnitude = {name: max(map(abs, value), default=0.0) for name, value in columns.items()}
    outputs: list[list[Fraction]] = [[] for _ in case.row.outputs]
    for i in range(case.shape.numel()):
        values = {name: Fraction(value[i]) for name, value in columns.items()}
        for k, (found, output) in enumerate(zip(outputs, case.row.outputs, strict=True)):
            base = values[output.base] if output.base is not None else Fraction(0)
            w = base + sum(Fraction(c) * values[n] for n, c in (*output.terms, *output.noise))
            if output.bound is not None:
                bound = Fraction(output.bound)
                w = max(-bound, min(bound, w))
            values[f"w{k}"] = w * Fraction(1 if output.scale is None else output.scale)
            found.append(values[f"w{k}"])
    return outputs, magnitude


def plain(seed: int, state: str) -> Case:
    """A tame random case whose coefficients are those of its row and whose outputs all are stored in T."""
    case = random_case(seed, wild=False, max_elements=33, state=state)
    dtype = getattr(torch, state)
    coef = torch.tensor([case.row.coefficients], dtype=dtype)
    layout = case.columns[0][1].layout if case.columns else ROW_MAJOR
    stores = tuple((dtype, Placement(layout)) for _ in case.row.outputs)
    return dataclasses.replace(case, coef=coef, present=None, stores=stores, z=None)


@pytest.mark.parametrize("state", ["float32", "float64"])
def test_error_is_within_the_bound_of_the_row(state: str) -> None:
    """A2: the bound comes from the row alone; some case must come within a factor of 50 of it."""
    closest = 0.0
    for seed in range(40):
        case = plain(seed, state)
        exact, magnitude = exactly(case)
        results = case.run("reference")
        for i, bound in enumerate(case.row.bound(magnitude, state)):
            found = results[f"w{i}"].flatten().tolist()
            error = max((abs(Fraction(a) - b) for a, b in zip(found, exact[i], strict=True)), default=Fraction(0))
            assert error <= Fraction(bound.error), case.describe()
            closest = max(closest, float(error) / bound.error if bound.error else 0.0)
    assert closest > 1 / 50


def test_samples_do_not_depend_on_their_batch() -> None:
    for seed in range(300, 340):
        case = random_case(seed, max_elements=129)
        batch = case.shape[0]
        together = case.run("reference")
        for i in range(batch):
            alone = one_sample(case, i).run("reference")
            for name, value in alone.items():
                rows = together[name][i::batch] if name == "z" else together[name][i : i + 1]
                assert same_bits(value, rows), case.describe()


def one_sample(case: Case, i: int) -> Case:
    def row(table: torch.Tensor | None) -> torch.Tensor | None:
        return table if table is None or table.shape[0] == 1 else table[i : i + 1].contiguous()

    columns = tuple((values[i : i + 1], placement) for values, placement in case.columns)
    coef = row(case.coef)
    assert coef is not None
    return dataclasses.replace(
        case,
        shape=torch.Size((1, *case.shape[1:])),
        columns=columns,
        coef=coef,
        present=row(case.present),
        seeds=None if case.seeds is None else case.seeds[i : i + 1],
        draws=row(case.draws),
    )


EVERYTHING = Row(
    columns=("x", "f", "e"),
    outputs=(
        Output(terms=(("x", 0.9), ("f", 0.4)), bound=1.0, scale=1.25),
        Output(base="x", terms=(("w0", 0.5), ("f", -0.25)), noise=(("xi", 0.7), ("e", 0.3)), store="a"),
        Output(terms=(("x", 1.5), ("f", 2.0)), store="b"),
    ),
    draws=(("xi", Draw(1, 4)),),
    network=2,
    c_in=0.8,
    copies=2,
)


def run_everything(columns: list[torch.Tensor], present: int | None = None) -> list[torch.Tensor]:
    row, x = EVERYTHING, columns[0]
    stores, z = [torch.empty_like(x), torch.empty_like(x)], x.new_empty((2 * x.shape[0], *x.shape[1:]))
    ops.stage(
        columns,
        torch.tensor([row.coefficients], dtype=x.dtype),
        row.program,
        seeds=ops.normalise_seeds(3, x.shape[0]),
        draws=torch.tensor([[[1, 0, 4, 0]]]),
        present=None if present is None else torch.tensor([present]),
        stores=[None, *stores],
        z=z,
    )
    return [*stores, *z.chunk(2)]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_poisoned_element_changes_only_itself(poison: float, column: int) -> None:
    """E1: no element reads another one."""
    columns = [torch.linspace(-2, 2, 21).view(3, 7) * (i + 1) for i in range(3)]
    clean = run_everything(columns)
    columns[column][1, 3] = poison
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[1, 3] = True
    for i, (before, after) in enumerate(zip(clean, run_everything(columns), strict=True)):
        assert same_bits(before[~mask], after[~mask])
        reads = column in (0, 1) or i == 0
        assert same_bits(before[mask], after[mask]) != reads


def test_the_clamp_keeps_nan_and_cuts_infinities() -> None:
    row = Row(("x",), (Output(terms=(("x", 1.0),), bound=2.0), Output(terms=(("w0", 1.0),), store="w")))
    x = torch.tensor([[math.nan, math.inf, -math.inf, 3.0, -3.0, 2.0, -0.0]])
    out = torch.empty_like(x)
    ops.stage([x], torch.tensor([row.coefficients]), row.program, stores=[None, out])
    assert same_bits(out, torch.tensor([[math.nan, 2.0, -2.0, 2.0, -2.0, 2.0, -0.0]]))


def test_absent_terms_are_skipped_not_multiplied() -> None:
    """An absent column may hold anything: 0 * NaN is NaN, so it must not be multiplied by zero."""
    labels = [label for label, _ in EVERYTHING.labelled_coefficients()]
    x = torch.linspace(-2, 2, 14).view(2, 7)
    poisoned = torch.full_like(x, math.nan)
    keep = sum(1 << k for k, label in enumerate(labels) if "[f]" not in label and "[e]" not in label)
    for value in run_everything([x, poisoned, poisoned], keep):
        assert value.isfinite().all()
    # Nothing present: the base alone, a positive zero, and the network input unscaled.
    w0, w1, *z = run_everything([-x, poisoned, poisoned], 0)
    assert same_bits(w0, -x)
    assert all(same_bits(value, torch.zeros_like(x)) for value in (w1, *z))


def test_nothing_is_added_to_a_zero() -> None:
    """The first thing present is taken as it is: -0 stays -0, which +0 + -0 would lose."""
    row = Row(("x",), (Output(terms=(("x", 1.0),), store="w"),))
    out = torch.empty(1, 1)
    ops.stage([torch.tensor([[-0.0]])], torch.ones(1, 1), row.program, stores=[out])
    assert math.copysign(1, out.item()) == -1


def test_float64_goes_to_sixteen_bits_through_float32() -> None:
    """1 + 2**-8 + 2**-40 is above a bfloat16 tie; float32 loses the last bit and the tie goes to even."""
    row = Row(("x",), (Output(terms=(("x", 1.0),), store="w"),))
    out = torch.empty(1, 1, dtype=torch.bfloat16)
    x = torch.tensor([[1 + 2.0**-8 + 2.0**-40]], dtype=torch.float64)
    ops.stage([x], torch.ones(1, 1, dtype=torch.float64), row.program, stores=[out])
    assert out.item() == 1.0


def test_inputs_stay_as_they_are_and_in_place_is_exact() -> None:
    x = [torch.randn(2, 9, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    apart = run_everything(x)
    coef = torch.tensor([EVERYTHING.coefficients])
    inside = [t.clone() for t in x]
    z = torch.empty(4, 9)
    keywords = {"seeds": ops.normalise_seeds(3, 2), "draws": torch.tensor([[[1, 0, 4, 0]]])}
    ops.stage(inside, coef, EVERYTHING.program, stores=[None, *inside[:2]], z=z, **keywords)
    assert all(same_bits(a, b) for a, b in zip(apart, [*inside[:2], *z.chunk(2)], strict=True))
    assert same_bits(inside[2], x[2])
