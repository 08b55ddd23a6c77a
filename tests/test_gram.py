"""The op ``gram``: its definition against mpmath and plain Python, its kernel in C++, and what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from fastdiff import ops
from fastdiff.backends import cpu, reference
from fastdiff.backends.registry import use_backend
from fastdiff.errors import InputError, PlanError
from fastdiff.maths.draw import Draw
from fastdiff.rows.call import GramCall
from fastdiff.rows.gram import (
    MAX_FACTORS,
    MAX_STEPS,
    MAX_SUMS,
    MAX_TERMS,
    MAX_VECTORS,
    OPERATIONS,
    Gram,
    GramProgram,
    Inner,
    Step,
    Weighted,
    parse_gram,
)
from fastdiff.rows.row import Affine, Output, Row
from fastdiff.testing.gram import GramCase, random_gram
from fastdiff.testing.rows import same_bits

HOST = cpu.host()
ISAS = HOST.isas() if HOST else []
needs_cpu = pytest.mark.skipif(HOST is None, reason=str(cpu.unavailable()))
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu)]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CHUNK, LANES = 4096, 128

ROW = Row(
    columns=("x", "y"),
    outputs=(Output("x", (("y", Affine(0.5, ((0, 2.0), (3, -1.0)))),), (("xi", 0.3),), "w"),),
    draws=(("xi", Draw(1, 2)),),
    network=0,
    c_in=Affine(1.0, ((3, 1.0),)),
    gram=Gram(
        vectors=((("x", 1.0), ("y", -2.0)), (("xi", 1.0), ("1", 3.0)), (("y", 0.7),)),
        sums=(Inner(0, 1), Weighted(0, 1, 2, 1e-3, 1e-2), Inner(2, 2)),
        steps=(Step("div", 0, 1), Step("sqrt", 2), Step("max", 3, 4)),
    ),
)


def tables(row: Row, batch: int) -> dict:
    """What the op takes for a row beside its columns; sample i has the seed i."""
    draws = [[[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in row.draws]]
    return {
        "numbers": torch.tensor([row.gram_numbers], dtype=torch.float64),
        "program": row.gram_program,
        "seeds": torch.arange(batch),
        "draws": torch.tensor(draws),
        "scalars": torch.empty(batch, row.gram_program.scalars, dtype=torch.float64),
        "coef": torch.empty(batch, len(row.coefficients)),
    }


def made(columns: Sequence[Tensor], backend: str, row: Row = ROW, **changes: Tensor) -> tuple[Tensor, Tensor]:
    """The scalars and the coefficients that a backend makes of these columns."""
    call = tables(row, columns[0].shape[0]) | changes
    with use_backend(backend):
        ops.gram(columns, **call)
    return call["scalars"], call["coef"]


# Against exact mathematics -----------------------------------------------------------------------------------

U = 2.0**-53


class Bounded(NamedTuple):
    """Numbers, and how far at most those that were computed are from the exact ones.

    Bounds are computed in float64; that they are themselves rounded is far less than the ``SLACK`` given to them.
    """

    value: np.ndarray
    error: np.ndarray

    def rounded(self) -> Bounded:
        """After one more rounding to float64."""
        return Bounded(self.value, self.error + (abs(self.value) + self.error) * U)

    def __add__(self, other: Bounded) -> Bounded:
        return Bounded(self.value + other.value, self.error + other.error).rounded()

    def __mul__(self, other: Bounded) -> Bounded:
        carried = abs(self.value) * other.error + abs(other.value) * self.error + self.error * other.error
        return Bounded(self.value * other.value, carried).rounded()

    def __truediv__(self, other: Bounded) -> Bounded:
        size = abs(other.value)
        carried = (self.error * size + abs(self.value) * other.error) / (size * (size - other.error))
        return Bounded(self.value / other.value, carried).rounded()

    def __abs__(self) -> Bounded:
        return Bounded(abs(self.value), self.error)

    def larger(self, other: Bounded) -> Bounded:
        """The larger of two: no further from the larger exact number than either is from its own."""
        return Bounded(np.maximum(self.value, other.value), np.maximum(self.error, other.error))


SLACK = 1 + 2.0**-20


def depth(count: int) -> int:
    """How many roundings lie at most between one of ``count`` numbers and their sum; adding a zero is exact."""
    total = 0
    while True:
        quads = min(-(-count // 4), CHUNK // 4)
        total += min(count - 1, 2) + -(-quads // LANES) - 1 + (min(quads, LANES) - 1).bit_length()
        count = -(-count // CHUNK)
        if count == 1:
            return total


def error_of_sum(p: Bounded) -> float:
    """With d roundings on the way of every number: gamma_d times the sum of their sizes, and what they carry
    (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 4.2)."""
    d = depth(len(p.value))
    gamma = d * U / (1 - d * U)
    return float((p.error + gamma * (abs(p.value) + p.error)).sum()) * SLACK


def formula(case: GramCase, i: int) -> tuple[list[Any], tuple[list, ...]]:
    """Of sum i of a case's first sample: its numbers (atol and rtol last), and its vectors' terms (number, source)."""
    program, numbers = case.program, case.numbers[0].tolist()
    kind, *vectors = program.sums[i]
    starts = np.cumsum([0, *map(len, program.vectors)])
    at = int(starts[-1]) + 2 * sum(kind for kind, *_ in program.sums[:i])
    chosen = vectors[: 2 + kind]
    terms = tuple([(numbers[starts[v] + j], s) for j, s in enumerate(program.vectors[v])] for v in chosen)
    return numbers[at : at + 2] if kind else [], terms


def first_sources(case: GramCase) -> list[np.ndarray]:
    """Columns, draws and the constant of the first sample, in float64, which holds them exactly."""
    numel = case.columns[0][0][0].numel()
    sources = [values[0].reshape(-1).double().numpy() for values, _ in case.columns]
    if case.draws is not None and case.seeds is not None:
        sources += list(reference.normals(numel, case.seeds[:1, None], case.draws[:1])[0].double().numpy())
    return [*sources, np.ones(numel)]


def exact_sum(tolerances: list, terms: tuple[list, ...], sources: list[np.ndarray]) -> mpf:
    """In as many digits as it takes."""
    exact = {s: [mpf(x) for x in sources[s].tolist()] for vector in terms for _, s in vector}
    vectors = [[mp.fsum(c * exact[s][e] for c, s in vector) for e in range(len(sources[0]))] for vector in terms]
    if not tolerances:
        return mp.fsum(u * v for u, v in zip(*vectors, strict=True))
    atol, rtol = map(mpf, tolerances)
    weights = (max(atol, rtol * max(abs(v), abs(w))) for v, w in zip(*vectors[1:], strict=True))
    return mp.fsum((u / weight) ** 2 for u, weight in zip(vectors[0], weights, strict=True))


def bound(tolerances: list, terms: tuple[list, ...], sources: list[np.ndarray]) -> float:
    """How far at most the sum is off, from the operations and their order. Nothing here comes near underflow."""

    def exactly(x: float | np.ndarray) -> Bounded:
        return Bounded(np.broadcast_to(x, sources[0].shape), np.zeros(sources[0].shape))

    vectors = []
    for vector in terms:
        first, *others = [exactly(c) * exactly(sources[s]) for c, s in vector]
        for other in others:
            first = first + other
        vectors.append(first)
    if not tolerances:
        return error_of_sum(vectors[0] * vectors[1])
    atol, rtol = map(exactly, tolerances)
    q = vectors[0] / (rtol * abs(vectors[1]).larger(abs(vectors[2]))).larger(atol)
    return error_of_sum(q * q)


CASES, BLOCKS = 2000, 4
SMALL = (1, 1, 2, 3, 4, 5, 7, 31, 63, 127)
LARGE = (4095, 4096, 4097, 8193)
MOST = 4
"""So many of a case's sums are looked at."""


@pytest.mark.parametrize("block", range(BLOCKS))
def test_sums_are_within_the_bound_of_their_tree(block: int) -> None:
    """2,000 random cases; the bound comes near to the truth, so it says something."""
    nearest = 0.0
    with mp.workprec(200):
        for seed in range(CASES // BLOCKS * block, CASES // BLOCKS * (block + 1)):
            case = random_gram(seed, (LARGE[block],) if seed % 500 == 17 else SMALL)
            got = case.run(reference.gram)
            if HOST:
                assert all(same_bits(value, got[name]) for name, value in case.run(cpu.gram).items()), case.describe()
            sources = first_sources(case)
            if not np.isfinite(sources).all():
                continue
            for i in range(min(len(case.program.sums), MOST)):
                off = abs(mpf(got["scalars"][0, i].item()) - exact_sum(*formula(case, i), sources))
                limit = bound(*formula(case, i), sources)
                assert off <= limit, f"sum {i} of {case.describe()}"
                # Of zeros alone the sum is exact.
                nearest = max(nearest, float(off) / limit if limit else 0.0)
    assert nearest > 1 / 8


def rounded_once(operation: str, a: float, b: float) -> float | None:
    """An operation in float64; None where the result is not an ordinary number."""
    if (
        not (math.isfinite(a) and math.isfinite(b))
        or (operation == "div" and b == 0)
        or (operation == "sqrt" and a < 0)
    ):
        return None
    with mp.workprec(53):
        x, y = mpf(a), mpf(b)
        exact = {
            "add": lambda: x + y,
            "sub": lambda: x - y,
            "mul": lambda: x * y,
            "div": lambda: x / y,
            "sqrt": lambda: mp.sqrt(x),
            "max": lambda: x if x > y else y,
        }[operation]()
    return float(exact) if exact == 0 or 2.0**-1022 <= abs(exact) < 2.0**1023 else None


def test_steps_and_coefficients_are_rounded_once_each() -> None:
    """From the sums on, every operation is the one of float64: by mpmath at 53 bits, and numpy for the state type."""
    seen = dict.fromkeys(OPERATIONS, 0)
    for seed in range(400):
        case = random_gram(seed, (1, 3, 33))
        program, got = case.program, case.run(reference.gram)
        for b, scalars in enumerate(got["scalars"].tolist()):
            numbers = case.numbers[b % len(case.numbers)].tolist()
            tail = sum(1 + len(used) for used in program.coefficients)
            constants = sum(code == 0 for code, *_ in program.steps)
            take = iter(numbers[len(numbers) - tail - constants :])
            for s, (code, left, right) in enumerate(program.steps, len(program.sums)):
                name = OPERATIONS[code]
                expected = next(take) if name == "number" else rounded_once(name, scalars[left], scalars[max(right, 0)])
                if expected is not None:
                    assert scalars[s] == expected, f"step {s} of sample {b} of {case.describe()}"
                    seen[name] += 1
            for k, used in enumerate(program.coefficients):
                total: float | None = next(take)
                for s in used:
                    product = rounded_once("mul", next(take), scalars[s])
                    total = None if total is None or product is None else rounded_once("add", total, product)
                if total is not None:
                    assert got["coef"][b, k] == torch.tensor(total, dtype=torch.float64).to(got["coef"].dtype)
    assert min(seen.values()) > 300


# The order, by a second definition ---------------------------------------------------------------------------


def tree(p: Sequence[float], fused: Sequence[tuple[float, float]] = ()) -> float:
    """The sum in plain Python, one addition after the other. With the factors of ``p`` it contracts, as FMA does."""
    numbers = list(p)
    while True:
        sums = []
        for first in range(0, len(numbers), CHUNK):
            lane = [0.0] * LANES
            for at in range(first, min(first + CHUNK, len(numbers)), 4):
                a, b, c, d = (*numbers[at : min(at + 4, first + CHUNK)], 0.0, 0.0, 0.0)[:4]
                low = fma(*fused[at], b) if fused else a + b
                lane[(at - first) // 4 % LANES] += low + (c + d)
            half = LANES // 2
            while half:
                for i in range(half):
                    lane[i] += lane[i + half]
                half //= 2
            sums.append(lane[0])
        numbers, fused = sums, ()
        if len(numbers) == 1:
            return numbers[0]


def fma(a: float, b: float, c: float) -> float:
    return float(Fraction(a) * Fraction(b) + Fraction(c))


SIZES = (1, 2, 3, 4, 5, 127, 511, 513, 4095, 4096, 4097, 8193, 5 * CHUNK + 3)


def values(numel: int) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(numel), dtype=torch.float64)


@pytest.mark.parametrize("numel", SIZES)
def test_the_order_is_the_one_written_down(numel: int) -> None:
    p = values(numel)
    assert reference.tree_sum(p[None]).item() == tree(p.tolist())


def test_faults_of_the_order_are_noticed() -> None:
    """A fold by neighbours, an element dropped, contraction: each gives other bits on the data of these tests."""
    faults = dict.fromkeys(("neighbours", "first dropped", "last dropped", "contracted"), 0)
    for numel in SIZES[2:]:
        u, v = values(numel), values(numel).flip(0)
        products = (u * v).tolist()
        right = reference.tree_sum((u * v)[None]).item()
        assert tree(products) == right
        p = torch.nn.functional.pad(u * v, (0, -numel % CHUNK))
        while len(p) > 1:
            p = p[0::2] + p[1::2] if len(p) % 2 == 0 else torch.cat((p[:1] + p[1:2], p[2:]))
        faults["neighbours"] += p.item() != right
        faults["first dropped"] += tree([0.0, *products[1:]]) != right
        faults["last dropped"] += tree(products[:-1]) != right
        faults["contracted"] += tree(products, list(zip(u.tolist(), v.tolist(), strict=True))) != right
    # Rounding agrees by luck now and then; a missing element never does.
    assert faults["first dropped"] == faults["last dropped"] == len(SIZES[2:])
    assert min(faults.values()) > 2


@needs_cpu
def test_three_levels() -> None:
    """More than 2**24 elements: more chunks than one chunk has elements."""
    x = torch.linspace(-3, 5, 2**24 + 4099).bfloat16()[None]
    program = parse_gram([1, 0, 1, 1, 0, 1, 0, 0, 0, -1, 0, 0])
    scalars = torch.empty(1, 1, dtype=torch.float64)
    cpu.gram(GramCall([x], torch.ones(1, 1, dtype=torch.float64), program, scalars))
    assert same_bits(scalars[0], reference.tree_sum(x.double().square()))


# The kernel in C++ -------------------------------------------------------------------------------------------


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest):
    before = HOST.isa()
    HOST.set_isa(request.param)
    yield request.param
    HOST.set_isa(before)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


MANY = (1, 2, 3, 4, 5, 31, 33, 127, 129, 511, 512, 513, 1023, 4095, 4096, 4097, 8193, 12289)


def test_random_grams_have_the_bits_of_the_reference(isa: str) -> None:
    for seed in range(400):
        case = random_gram(seed, MANY)
        expected = case.run(reference.gram)
        for name, value in case.run(cpu.gram).items():
            assert same_bits(value, expected[name]), f"{name} of {case.describe()}"


def test_threads_do_not_change_bits(isa: str, two_threads: None) -> None:
    """Enough elements for the work to be shared; chunks are its units, in samples of one and of several."""
    for batch, numel in ((9, 4096), (2, 40_001)):
        columns = [values(batch * numel).view(batch, numel) * c for c in (1.0, 0.3)]
        shared = made(columns, "cpu")
        torch.set_num_threads(1)
        alone = made(columns, "cpu")
        torch.set_num_threads(2)
        assert all(same_bits(a, b) for a, b in zip(shared, alone, strict=True))


def test_as_many_of_everything_as_there_may_be(isa: str) -> None:
    terms, per = [MAX_TERMS - 5, *[1] * 5], MAX_FACTORS // 64
    integers = [16, 32, MAX_VECTORS]
    integers += [i for count in terms for i in (count, *(t % 49 for t in range(count)))]
    integers += [MAX_SUMS, *[i for k in range(MAX_SUMS) for i in (1, k % 6, (k + 1) % 6, (k + 2) % 6)]]
    integers += [MAX_STEPS, *[i for k in range(MAX_STEPS) for i in (1 + k % 3, k, MAX_SUMS + k - 1)]]
    integers += [64, *[i for k in range(64) for i in (per, *range(k, k + per))]]
    program = parse_gram(integers)
    batch, draws = 2, torch.tensor([[[1, 0, d, 0] for d in range(32)]])
    numbers = torch.linspace(0.1, 2, program.numbers, dtype=torch.float64)[None]
    columns = [torch.linspace(-1, 1 + c, batch * 600).view(batch, 600) for c in range(16)]
    results = []
    for gram in (reference.gram, cpu.gram):
        scalars = torch.empty(batch, program.scalars, dtype=torch.float64)
        results.append((scalars, torch.empty(batch, 64)))
        gram(GramCall(columns, numbers, program, scalars, torch.arange(batch), draws, results[-1][1]))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_flushing_of_subnormals_is_undone_and_restored(isa: str) -> None:
    x, program = torch.full((1, 9), 2.0**-140), parse_gram([1, 0, 2, 1, 0, 1, 1, 1, 0, 0, 1, -1, 0, 0])
    numbers, scalars = torch.tensor([[2.0**-920, 1.0]], dtype=torch.float64), torch.empty(1, 1, dtype=torch.float64)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        cpu.gram(GramCall([x], numbers, program, scalars))
        assert HOST.flushes_subnormals()
    finally:
        torch.set_flush_denormal(False)
    assert scalars.item() == 9 * 2.0**-1060


# What is promised of every backend ---------------------------------------------------------------------------


def sample_columns(batch: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, *shape, generator=generator).to(dtype) for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_neither_batch_nor_position_changes_bits(backend: str) -> None:
    columns, seeds = sample_columns(64, 3, 1500), torch.arange(64) ** 3
    scalars, coef = made(columns, backend, seeds=seeds)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    for batch in (1, 2, 3, 7, 64):
        chosen = order[:batch]
        for got, expected in zip(
            made([column[chosen] for column in columns], backend, seeds=seeds[chosen]), (scalars, coef), strict=True
        ):
            assert same_bits(got, expected[chosen])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 32, 32), (5, 2, 3, 150), (1, 9, 9), (8, 1, 1)])
def test_layout_does_not_change_bits(backend: str, shape: tuple[int, ...]) -> None:
    columns = sample_columns(2, *shape)
    last = torch.channels_last if len(shape) == 3 else torch.channels_last_3d
    expected, got = (made([c.to(memory_format=f) for c in columns], backend) for f in (torch.contiguous_format, last))
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("special", [math.nan, math.inf])
@pytest.mark.parametrize("column", range(2))
def test_a_nan_stays_in_its_sample(backend: str, special: float, column: int) -> None:
    """And is not lost where a maximum is taken of it: y alone is in both sides of the weight."""
    columns = sample_columns(3, 600)
    before = made(columns, backend)
    columns[column][1, 333] = special
    after = made(columns, backend)
    for a, b in zip(before, after, strict=True):
        assert same_bits(a[[0, 2]], b[[0, 2]])
    # <x - 2y, .> and the weighted sum of x - 2y
    assert not after[0][1, :2].isfinite().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", range(3))
def test_a_nan_in_any_vector_of_a_weighted_sum_is_kept(backend: str, place: int) -> None:
    names = ("a", "b", "c")
    row = Row(
        names, (Output("a", store="w"),), gram=Gram(tuple(((n, 1.0),) for n in names), (Weighted(0, 1, 2, 0.1, 0.5),))
    )
    columns = [torch.full((2, 7), 1.0 + i) for i in range(3)]
    columns[place][1, 3] = torch.nan
    got, _ = made(columns, backend, row)
    assert got[:, 0].isnan().tolist() == [False, True]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormals_are_kept(backend: str, dtype: torch.dtype) -> None:
    """Those of the columns' dtype, widened, and those of float64, as products."""
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    program = parse_gram([1, 0, 2, 1, 0, 1, 1, 1, 0, 0, 1, -1, 0, 0])
    x, scalars = torch.full((1, 5), tiny, dtype=dtype), torch.empty(1, 1, dtype=torch.float64)
    assert x[0, 0].item() == tiny > 0
    made_small = 2.0**-1070 / tiny
    with use_backend(backend):
        for number, expected in ((1.0, 5 * tiny), (made_small, 5 * 2.0**-1070)):
            if math.isfinite(number):
                ops.gram([x], torch.tensor([[number, 1.0]], dtype=torch.float64), program, scalars=scalars)
                assert scalars.item() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_coefficients_feed_a_row(backend: str, state: torch.dtype) -> None:
    """Gram and Schmidt: w = x - <x, u> / <u, u> u stands upright on u, to the roundings of the state type."""
    step = Affine(0.0, ((2, -1.0),))
    gram = Gram(((("x", 1.0),), (("u", 1.0),)), (Inner(0, 1), Inner(1, 1)), (Step("div", 0, 1),))
    row = Row(("x", "u"), (Output("x", (("u", step),), store="w"),), gram=gram)
    x, u = (column.to(state) for column in sample_columns(3, 3000))
    _, coef = made([x, u], backend, row, coef=torch.empty(3, 1, dtype=state))
    w = torch.empty_like(x)
    with use_backend(backend):
        ops.stage([x, u], coef, row.program, stores=[w])
    c = -((x.double() * u.double()).sum(1) / u.double().square().sum(1))
    assert torch.allclose(coef[:, 0].double(), c, rtol=2 * torch.finfo(state).eps, atol=1e-14)
    assert same_bits(w, coef * u + x)
    # Two roundings of every element of w, and that of c.
    sizes = ((w.abs() + 2 * (coef * u).abs()) * u.abs()).double().sum(1)
    assert ((w.double() * u.double()).sum(1).abs() <= torch.finfo(state).eps / 2 * 1.01 * sizes).all()


# Rows and programs -------------------------------------------------------------------------------------------


def test_a_row_and_its_program_agree() -> None:
    program = ROW.gram_program
    assert program is not None
    assert parse_gram(program.integers) == program
    assert program == GramProgram(
        columns=2,
        draws=1,
        vectors=((0, 1), (2, 3), (1,)),
        sums=((0, 0, 1, -1), (1, 0, 1, 2), (0, 2, 2, -1)),
        steps=((4, 0, 1), (5, 2, -1), (6, 3, 4)),
        coefficients=((0, 3), (), (3,)),
    )
    assert ROW.gram_numbers == [1.0, -2.0, 1.0, 3.0, 0.7, 1e-3, 1e-2, 0.5, 2.0, -1.0, 0.3, 1.0, 1.0]
    assert len(ROW.gram_numbers) == program.numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sums": ()}, "sums nothing"),
        ({"vectors": ((),) * 7}, "7 vectors; at most 6"),
        ({"sums": (Inner(0, 0),) * 22}, "22 sums; at most 21"),
        ({"steps": (Step("number"),) * 65}, "65 steps; at most 64"),
        ({"vectors": ((("x", 1.0),) * 257,)}, "257 terms; at most 256"),
        ({"sums": (Inner(0, 1),)}, "the vectors"),
        ({"sums": (Weighted(0, 0, 0, 0.0, 1.0),)}, "atol must be positive"),
        ({"sums": (Weighted(0, 0, 0, 1.0, math.inf),)}, "atol must be positive"),
        ({"steps": (Step("pow", 0, 0),)}, "operation is 'pow'"),
        ({"steps": (Step("add", 0, 1),)}, "the scalars"),
        ({"steps": (Step("number", number=math.nan),)}, "every one must be finite"),
    ],
)
def test_a_gram_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    sound = {"vectors": ((("x", 1.0),),), "sums": (Inner(0, 0),)}
    Gram(**sound)
    with pytest.raises(PlanError, match=message):
        Gram(**(sound | changes))


@needs_cpu
def test_python_and_the_op_read_programs_alike() -> None:
    """Every integer of a program replaced by others: both refuse, or both compute the same."""
    program = [
        2,
        1,
        2,
        2,
        0,
        3,
        1,
        2,
        3,
        0,
        0,
        1,
        -1,
        1,
        0,
        1,
        1,
        0,
        1,
        0,
        -1,
        3,
        0,
        -1,
        -1,
        1,
        0,
        1,
        5,
        2,
        -1,
        2,
        1,
        4,
        0,
    ]
    parse_gram(program)
    agreed = {True: 0, False: 0}
    for position in range(len(program) + 1):
        for integer in (-2, -1, 0, 1, 2, 3, 5, 6, 7, 16, 17, 22, 64, 65, 2**40):
            changed = [*program[:position], integer, *program[position + 1 :]]
            agreed[agree(changed)] += 1
    for length in range(len(program)):
        agreed[agree(program[:length])] += 1
    assert min(agreed.values()) > 50


def agree(integers: list[int]) -> bool:
    """Whether a program is sound; both readers must say the same, and both kernels compute the same."""
    try:
        parsed = parse_gram(integers)
    except InputError:
        parsed = GramProgram(2, 1, ((0, 3), (2,)), ((0, 0, 1, -1),))
        sound = False
    else:
        sound = parsed.columns > 0
    columns = [torch.linspace(-1, 1 + c, 10).view(2, 5) for c in range(parsed.columns)]
    numbers = torch.linspace(0.1, 2, parsed.numbers, dtype=torch.float64)[None]
    noise = torch.arange(2), torch.tensor([[[1, 0, d, 0] for d in range(parsed.draws)]]).view(1, -1, 4)
    results = []
    for gram in (op, reference.gram) if sound else (op,):
        scalars = torch.empty(2, parsed.scalars, dtype=torch.float64)
        results.append((scalars, torch.empty(2, len(parsed.coefficients))))
        call = GramCall(columns, numbers, parsed, scalars, *noise, results[-1][1])
        if sound:
            gram(call) if gram is not op else op(call, integers)
        else:
            with pytest.raises(RuntimeError, match=r"gram program is malformed|needs at least one"):
                op(call, integers)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True)) if sound else True
    return sound


def op(call: GramCall, integers: list[int]) -> None:
    """The op of the C++ library, past the checks in Python."""
    torch.ops.fastdiff.gram(call.columns, call.numbers, call.seeds, call.draws, integers, call.coef, call.scalars)


# Refusals ----------------------------------------------------------------------------------------------------

X = torch.zeros(3, 4, 2, 2)
LAST = torch.ones(3, 4, 2, 2).to(memory_format=torch.channels_last)
BUFFER = torch.zeros(200, dtype=torch.float64)
NUMBERS = len(ROW.gram_numbers)

REFUSALS: dict[str, tuple[Callable[[], dict], str]] = {
    "too few columns": (lambda: {"columns": [X]}, "1 columns were given; the program reads 2"),
    "no column": (
        lambda: {"columns": [], "program": [0, 0, 1, 1, 0, 1, 0, 0, 0, -1, 0, 0]},
        "gram was given no column; pass one",
    ),
    "not a tensor": (lambda: {"columns": [X, 3.0]}, "column 1 is a float; it must be a torch.Tensor"),
    "shapes": (lambda: {"columns": [X, X[:2]]}, "column 1 has shape (2, 4, 2, 2); all must have (3, 4, 2, 2)"),
    "no elements": (lambda: {"columns": [X[:, :0]] * 2}, "has no elements, so there is nothing to sum"),
    "integers": (lambda: {"columns": [X, X.long()]}, "column 1 is torch.int64"),
    "layouts": (lambda: {"columns": [X, LAST]}, "the layouts differ"),
    "not dense": (lambda: {"columns": [X, X.transpose(2, 3)]}, "has samples that are not dense"),
    "two devices": (lambda: {"columns": [X, X.to("meta")]}, "column 1 is on meta and column 0 on cpu"),
    "grad": (lambda: {"columns": [X, X.clone().requires_grad_()]}, "column 1 requires grad; a gram has no gradient"),
    "numbers dtype": (lambda: {"numbers": torch.zeros(1, NUMBERS)}, f"it must be float64 [rows, {NUMBERS}]"),
    "numbers count": (lambda: {"numbers": torch.zeros(1, 3).double()}, f"it must be float64 [rows, {NUMBERS}]"),
    "numbers rows": (lambda: {"numbers": torch.zeros(2, NUMBERS).double()}, "numbers has 2 rows; 1 or one for each"),
    "numbers strides": (
        lambda: {"numbers": torch.zeros(NUMBERS, 3).double().t()},
        "numbers has strides (1, 3); pass numbers.contiguous()",
    ),
    "scalars dtype": (lambda: {"scalars": torch.zeros(3, 6)}, "scalars is torch.float32 [3, 6]; it must be float64"),
    "scalars count": (lambda: {"scalars": torch.zeros(3, 5).double()}, "it must be float64 [rows, 6]"),
    "scalars rows": (lambda: {"scalars": torch.zeros(1, 6).double()}, "scalars has 1 rows; it must have one for each"),
    "coef dtype": (lambda: {"coef": torch.zeros(3, 3).half()}, "it must be float32 or float64 [rows, 3]"),
    "coef rows": (lambda: {"coef": torch.zeros(1, 3)}, "coef has 1 rows; it must have one for each of the 3 samples"),
    "seeds missing": (lambda: {"seeds": None}, "seeds is None; the program draws noise"),
    "draws missing": (lambda: {"draws": None}, "draws is None; the program draws noise"),
    "seeds negative": (lambda: {"seeds": torch.tensor([1, -2, 3])}, "a seed is -2"),
    "draws range": (lambda: {"draws": torch.tensor([[[256, 0, 0, 0]]])}, "a purpose outside 0 .. 2**8 - 1"),
    "scalars over a column": (
        lambda: {"columns": [X, BUFFER[:48].view(3, 4, 2, 2)], "scalars": BUFFER[40:58].view(3, 6)},
        "scalars overlaps input column 1",
    ),
    "scalars over numbers": (
        lambda: {"numbers": BUFFER[:NUMBERS].view(1, -1), "scalars": BUFFER[5:23].view(3, 6)},
        "scalars overlaps input numbers",
    ),
    "coef over scalars": (
        lambda: {"coef": BUFFER[:9].view(3, 3), "scalars": BUFFER[8:26].view(3, 6)},
        "coef overlaps scalars",
    ),
    "program": (lambda: {"program": [2, 1, 0]}, "is malformed: it ends too early"),
    "nothing to sum": (lambda: {"program": [2, 0, 1, 1, 0, 0, 0, 0]}, "it has 0 sums; 1 to 21 are allowed"),
}


def arguments(**changes: object) -> dict:
    """A valid call on ``[3, 4, 2, 2]``, with some arguments replaced."""
    return {"columns": sample_columns(3, 4, 2, 2)} | tables(ROW, 3) | changes


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    """Each says what was given; nothing is written."""
    changes, message = REFUSALS[name]
    call = arguments(**changes())
    written = [call["scalars"], call["coef"]]
    before = [tensor.clone() for tensor in written]
    with pytest.raises(InputError, match=re.escape(message)):
        ops.gram(**call)
    assert all(same_bits(a, b) for a, b in zip(written, before, strict=True))


def test_what_the_refused_calls_change_is_taken() -> None:
    ops.gram(**arguments())
    ops.gram(**arguments(coef=None))
    ops.gram(**arguments(columns=[c[:0] for c in sample_columns(1, 5)], **tables(ROW, 0)))
    with torch.no_grad():
        ops.gram(**arguments(columns=[X, X.clone().requires_grad_()]))


PAST = [name for name in REFUSALS if name not in ("not a tensor", "two devices", "grad", "no column")]


@needs_cpu
@pytest.mark.parametrize("name", PAST)
def test_the_op_refuses(name: str) -> None:
    """What the dispatcher is called with directly is checked again in C++."""
    call = arguments(**REFUSALS[name][0]())
    with pytest.raises(RuntimeError):
        torch.ops.fastdiff.gram(*positional(call))


def positional(call: dict) -> tuple:
    program = call["program"].integers if isinstance(call["program"], GramProgram) else call["program"]
    tables_ = call["numbers"], call["seeds"], call["draws"], program
    return (call["columns"], *tables_, call["coef"], call["scalars"])


# torch -------------------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    """Schema, fake implementation and ahead-of-time dispatch, by torch's own checks."""
    torch.library.opcheck(torch.ops.fastdiff.gram.default, positional(arguments()))
    torch.library.opcheck(torch.ops.fastdiff.gram.default, positional(arguments(coef=None)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend: str) -> None:
    """The whole step, gram and stage, as one graph."""
    x, y = sample_columns(3, 4, 2, 2)

    def step(x: Tensor, y: Tensor) -> Tensor:
        call = tables(ROW, 3)
        ops.gram([x, y], **call)
        w = torch.empty(x.shape)
        ops.stage([x, y], call["coef"], ROW.program, seeds=call["seeds"], draws=call["draws"], stores=[w])
        return w

    expected = step(x, y)
    torch._dynamo.reset()
    assert same_bits(torch.compile(step, fullgraph=True, backend=backend)(x, y), expected)


def test_compile_reports_bad_input() -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match="scalars has 2 rows"):
        torch.compile(lambda x: ops.gram([x, x], **tables(ROW, 2)), fullgraph=True, backend="eager")(torch.zeros(3, 5))
