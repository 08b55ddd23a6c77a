"""The C++ kernels and the loop in C++: the bits of the reference, memory, refusals."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdiff.backends import cpu, reference
from fastdiff.maths.draw import Draw
from fastdiff.rows.call import Call
from fastdiff.rows.row import Output, Row
from fastdiff.testing.rows import Placement, random_case, same_bits

HOST = cpu.host()
pytestmark = pytest.mark.skipif(HOST is None, reason=str(cpu.unavailable()))
ISAS = HOST.isas() if HOST else []
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NARROW = DTYPES[1:]
STATES = ["float32", "float64"]
# Storage types that go with each state type.
PAIRS = [(torch.float64, dtype) for dtype in DTYPES] + [(torch.float32, dtype) for dtype in NARROW]
KAT = Path(__file__).parent / "kat" / "philox.txt"


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


def run_both(
    columns: list[Tensor], row: Row, coef: Tensor, dtype: torch.dtype, z_dtype: torch.dtype, **tables: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """What reference and kernel write for a row whose outputs are all stored in fresh memory."""
    shape = columns[0].shape
    written = []
    for stage in (reference.stage, cpu.stage):
        stores = [torch.empty(shape, dtype=dtype) for _ in row.outputs]
        z = torch.empty((row.copies * shape[0], *shape[1:]), dtype=z_dtype) if row.network is not None else None
        stage(Call(columns, coef, row.program, stores=stores, z=z, **tables))
        written.append([*stores, *([] if z is None else [z])])
    return list(zip(*written, strict=True))


# The bits of the reference -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(8))
def test_random_rows_have_the_bits_of_the_reference(block: int) -> None:
    """2,000 cases: sizes, dtypes, layouts, placements, presence, coefficients, in place, canaries."""
    before = HOST.isa()
    for seed in range(250 * block, 250 * (block + 1)):
        case = random_case(seed, max_elements=129 if seed % 4 else 4097)
        expected = case.run("reference")
        for name in ISAS:
            HOST.set_isa(name)
            found = case.run("cpu")
            for key, value in expected.items():
                assert same_bits(found[key], value), f"{key} on {name}: {case.describe()}"
    HOST.set_isa(before)


def test_known_answers_of_philox() -> None:
    lines = [line.split() for line in KAT.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == 3
    for _, *words in lines:
        values = [int(word, 16) for word in words]
        assert HOST.philox(values[:4], values[4:6]) == values[6:]


def test_a_million_normals(isa: str) -> None:
    """2^20 normals of one sample; the scalar kernel's are those of the formula in csrc/normal.h."""
    out, expected = torch.empty(1, 2**20), torch.empty(1, 2**20)
    tables = torch.tensor([2**63 - 1]), torch.tensor([[255, 2**16 - 1, 2**32 - 1, 2**24 - 1]])
    cpu.fill_noise(out, *tables)
    reference.fill_noise(expected, *tables)
    assert same_bits(out, expected)


@pytest.mark.parametrize("shape", [(70, 1), (70, 2), (33, 3), (9, 31), (5, 511), (4, 512), (3, 513), (2, 7, 5, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_of_many_small_samples(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Noise is drawn through lists of blocks below 512 elements and in runs from there on."""
    seeds = torch.arange(shape[0]) * (2**40 + 7) + 3
    for draws in (torch.tensor([[1, 2, 3, 4]]), torch.arange(4 * shape[0]).view(-1, 4) % 200):
        out, expected = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        cpu.fill_noise(out, seeds, draws)
        reference.fill_noise(expected, seeds, draws)
        assert same_bits(out, expected)


CHANNELS_LAST = [(2, 3, 20, 21), (2, 130, 5, 3), (2, 700, 1, 2), (1, 4, 3, 9, 11), (3, 5, 1, 1)]
# Whole rectangles and what is left beside them: rows of one block, rows that begin inside one, channels left over.
CHANNELS_LAST += [(2, c, 16, 20) for c in (2, 3, 4, 7)] + [
    (2, c, 8, 8) for c in (8, 16, 20, 64, 127, 128, 192, 256, 320, 640)
]
CHANNELS_LAST += [(1, c, 7, 9) for c in (8, 33, 129, 192, 256, 320, 641)] + [(1, 320, 2, 3, 10), (2, 24, 1, 2)]
# Small samples, several to a tile, which ends between the channels of a position.
CHANNELS_LAST += [(40, 3, 5, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", CHANNELS_LAST, ids=str)
def test_noise_follows_the_logical_index(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    out, expected = torch.empty(shape, dtype=dtype, memory_format=last), torch.empty(shape, dtype=dtype)
    seeds, draws = torch.arange(shape[0]), torch.tensor([[4, 0, 0, 0]])
    cpu.fill_noise(out, seeds, draws)
    reference.fill_noise(expected, seeds, draws)
    assert same_bits(out, expected)


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 2.0**-149, 2.0**-126, -(2.0**-1074), 1.5e-45]
SPECIAL += [3.4028234e38, -3.4028236e38, 65504.0, 65519.99, 65520.0, 2.0**-24, 2.0**-25, 2.0**-25 + 2.0**-40, 3e-8]
SPECIAL += [1.00390625, 1.01171875, 1.0039062500001, 1.00048828125, 1.00146484375, 3.3961775e38, 1e300, -1e-300]


@pytest.mark.parametrize(("state", "source"), PAIRS)
def test_casts(isa: str, state: torch.dtype, source: torch.dtype) -> None:
    """Every storage type to every other, on ties, subnormals, overflow and a spread of ordinary numbers."""
    values = torch.tensor(SPECIAL * 9, dtype=torch.float64)
    spread = torch.randn(600, dtype=torch.float64) * torch.logspace(-46, 39, 600, dtype=torch.float64)
    column = torch.cat([values, spread]).to(source)[None]
    row = Row(("x",), (Output(base="x", store="w"),), network=0)
    coef = torch.ones(1, 1, dtype=state)
    for target in DTYPES if state is torch.float64 else NARROW:
        for found in run_both([column], row, coef, target, target):
            assert same_bits(*found), target


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
def test_every_sixteen_bit_number(isa: str, source: torch.dtype) -> None:
    column = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(source)[None]
    row = Row(("x",), (Output(terms=(("x", 1.0),), store="w"),), network=0)
    for state in (torch.float32, torch.float64):
        for found in run_both([column], row, torch.ones(1, 2, dtype=state), state, source):
            assert same_bits(*found)


def test_a_nan_of_any_payload_stays_one(isa: str) -> None:
    words = [0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF, 0x7FFF8000, 0xFF800001, 0xFFFFFFFF, 0xFFFF8000]
    column = torch.tensor([words * 5], dtype=torch.int64).to(torch.int32).view(torch.float32)
    row = Row(("x",), (Output(base="x", store="w"),), network=0)
    for target in (torch.bfloat16, torch.float16, torch.float32):
        for _, found in run_both([column], row, torch.ones(1, 1), target, target):
            assert found.isnan().all()


@pytest.mark.parametrize("state", STATES)
def test_long_sums_and_clamps(isa: str, state: str) -> None:
    """Up to 30 terms, more than one loop takes; D clamped by bounds that are negative, zero, infinite or NaN."""
    dtype = getattr(torch, state)
    names = tuple(f"c{i}" for i in range(16))
    columns = [torch.randn(4, 77, dtype=dtype) for _ in names]
    columns[3][:, ::5] = math.nan
    terms = tuple((names[i % 16], 1.0) for i in range(30))
    first = Output(None, terms[:17], bound=1.0, scale=1.0)
    outputs = (first, Output("c1", terms, store="b1"), Output(None, (("w0", 1.0), ("c2", 1.0)), store="b2"))
    row = Row(names, outputs, network=2)
    coef = torch.randn(4, 30 + 2 + 17 + 2 + 1, dtype=dtype)
    coef[:, 17] = torch.tensor([0.5, -0.5, math.nan, math.inf])
    for found in run_both(columns, row, coef, dtype, dtype):
        assert same_bits(*found)
    every = torch.arange(4) * 0x1234567 + 5
    for found in run_both(columns, row, coef, dtype, dtype, present=every):
        assert same_bits(*found)


def test_outputs_that_overwrite_each_others_columns(isa: str) -> None:
    """Swap two buffers, rotate three, and read what an earlier output overwrites."""
    names = ("a", "b", "c")
    for order in ((1, 0, 2), (1, 2, 0), (2, 0, 1), (0, 1, 2)):
        outputs = tuple(Output(terms=((names[i], 1.0), (names[(i + 1) % 3], 1.0)), store=names[i]) for i in order)
        row = Row(names, outputs, network=2, copies=2)
        values = [torch.randn(2, 700) for _ in names]
        coef = torch.randn(1, 7)
        results = []
        for stage in (reference.stage, cpu.stage):
            held = [value.clone() for value in values]
            z = torch.empty(4, 700, dtype=torch.bfloat16)
            stage(Call(held, coef, row.program, stores=held, z=z))
            results.append([*held, z])
        for expected, found in zip(*results, strict=True):
            assert same_bits(found, expected)


@pytest.mark.parametrize(
    "shape", [(1, 70_007), (3, 40_000), (4097, 17), (90_000, 1), (2, 3, 130, 131), (2, 320, 9, 12)]
)
def test_threads_do_not_change_bits(isa: str, two_threads: None, shape: tuple[int, ...]) -> None:
    row = Row(("x", "F"), (Output("x", (("F", 1.0),), (("xi", 1.0),), "x"),), (("xi", Draw(1, 3)),), network=0)
    formats = [torch.contiguous_format, torch.channels_last] if len(shape) == 4 else [torch.contiguous_format]
    seeds, draws, coef = torch.arange(shape[0]), torch.tensor([[[1, 0, 3, 0]]]), torch.tensor([[0.7, 1.3, 0.9]])
    start, network = torch.randn(shape), torch.randn(shape).bfloat16()
    for memory_format in formats:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            x = start.clone(memory_format=memory_format)
            z = torch.empty_like(x, dtype=torch.bfloat16)
            F = network.clone(memory_format=memory_format)
            cpu.stage(Call([x, F], coef, row.program, seeds=seeds, draws=draws, stores=[x], z=z))
            found.append((x, z))
        assert same_bits(found[0][0], found[1][0])
        assert same_bits(found[0][1], found[1][1])


def test_outputs_may_bypass_the_cache(isa: str) -> None:
    """Tensors larger than any cache take other store instructions; also where samples are not aligned to them."""
    numel = 2**22 + 3
    columns = [torch.randn(1, numel)]
    row = Row(("x",), (Output("x", (("x", 1.0),), store="w"),), network=0, copies=3)
    coef = torch.tensor([[0.37, 1.9]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for found in run_both(columns, row, coef, torch.float32, dtype):
            assert same_bits(*found)


def test_flushing_of_subnormals_is_undone_and_restored(isa: str) -> None:
    """A caller that set flush-to-zero gets exact results and keeps its setting, on every thread."""
    column = torch.full((1, 40_000), 2.0**-140)
    row = Row(("x",), (Output(terms=(("x", 1.0),), store="w"),))
    out = torch.empty_like(column)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert HOST.flushes_subnormals()
        cpu.stage(Call([column], torch.tensor([[0.5]]), row.program, stores=[out]))
        assert HOST.flushes_subnormals()
    finally:
        torch.set_flush_denormal(False)
    assert (out.view(torch.int32) == 2**8).all()


def test_zero_elements() -> None:
    row = Row(("x",), (Output("x", store="w"),), network=0)
    for shape in ((0, 5), (3, 0)):
        columns = [torch.empty(shape)]
        cpu.stage(Call(columns, torch.ones(1, 1), row.program, stores=[torch.empty(shape)], z=torch.empty(shape)))


# Refusals of the op itself, called past the checks in Python --------------------------------------------------

SIMPLE = Row(("x",), (Output("x", (("x", 1.0),), (("xi", 1.0),), "w"),), (("xi", Draw(1, 0)),), network=0)


def call(**changed: object) -> None:
    given: dict = {
        "columns": [torch.zeros(2, 3, 4, 4)],
        "coef": torch.ones(1, 3),
        "present": None,
        "seeds": torch.arange(2),
        "draws": torch.zeros(1, 1, 4, dtype=torch.int64),
        "program": SIMPLE.program.integers,
        "stores": [torch.zeros(2, 3, 4, 4)],
        "z": torch.zeros(4, 3, 4, 4),
    }
    given |= changed
    before = [tensor.clone() for tensor in (*given["columns"], *given["stores"], given["z"]) if tensor is not None]
    try:
        columns, coef, present, seeds, draws, program, stores, z = given.values()
        padded = [*stores, *(None for _ in range(6 - len(stores)))]
        torch.ops.fastdiff.stage(columns, coef, present, seeds, draws, program, *padded, z)
    except RuntimeError:
        after = [tensor for tensor in (*given["columns"], *given["stores"], given["z"]) if tensor is not None]
        assert all(same_bits(a, b) for a, b in zip(before, after, strict=True)), "something was written"
        raise


SHARED = torch.zeros(100)
BAD_CALLS = {
    "shape": ({"stores": [torch.zeros(2, 3, 4, 5)]}, "w0 has another shape"),
    "dims": ({"stores": [torch.zeros(2, 48)]}, "w0 has another shape"),
    "rows of z": ({"z": torch.zeros(3, 3, 4, 4)}, "z has 3 rows"),
    "integer": ({"columns": [torch.zeros(2, 3, 4, 4, dtype=torch.int32)]}, "column 0 has a dtype"),
    "complex": ({"z": torch.zeros(4, 3, 4, 4, dtype=torch.complex64)}, "z has a dtype"),
    "float64": ({"columns": [torch.zeros(2, 3, 4, 4, dtype=torch.float64)]}, "column 0 is float64"),
    "state": ({"coef": torch.ones(1, 3).bfloat16()}, "coef must be float32 or float64"),
    "coefficients": ({"coef": torch.ones(1, 4)}, "coef has size 4"),
    "rows of coef": ({"coef": torch.ones(3, 3)}, "coef has 3 rows for 2 samples"),
    "strided coef": ({"coef": torch.ones(1, 6)[:, ::2]}, "coef is not contiguous"),
    "layout": ({"stores": [torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)]}, "another memory format"),
    "step": ({"columns": [torch.zeros(2, 3, 4, 8)[..., ::2]]}, "neither row-major nor channels last"),
    "expanded": ({"columns": [torch.zeros(1, 3, 4, 4).expand(2, 3, 4, 4)]}, "samples that overlap"),
    "partial overlap": (
        {"columns": [SHARED[:96].view(2, 3, 4, 4)], "stores": [SHARED[1:97].view(2, 3, 4, 4)]},
        "w0 overlaps column 0",
    ),
    "z over a store": ({"stores": [SHARED[:96].view(2, 3, 4, 4)], "z": SHARED[:96].view(2, 3, 4, 4)}, "z overlaps w0"),
    "z over a table": ({"coef": SHARED[:3].view(1, 3), "z": SHARED[:96].view(2, 3, 4, 4)}, "z overlaps coef"),
    "seeds": ({"seeds": None}, "seeds and draws are needed"),
    "negative seed": ({"seeds": torch.tensor([1, -1])}, "a seed is negative"),
    "rows of seeds": ({"seeds": torch.arange(1)}, "seeds has 1 rows"),
    "draw": ({"draws": torch.tensor([[[256, 0, 0, 0]]])}, "draws has a word outside"),
    "rows of draws": ({"draws": torch.zeros(3, 1, 4, dtype=torch.int64)}, "draws has 3 rows"),
    "present": ({"present": torch.zeros(2)}, "present has the wrong dtype"),
    "no batch": ({"columns": [torch.tensor(1.0)]}, "column 0 has no dimensions"),
    "columns": ({"columns": []}, "0 columns were given"),
    "stores": ({"stores": [None, torch.zeros(2, 3, 4, 4)]}, "w1 was given"),
    "short": ({"program": SIMPLE.program.integers[:-1]}, "it ends too early"),
    "long": ({"program": [*SIMPLE.program.integers, 0]}, "it goes on after"),
    "source": ({"program": [1, 1, 0, 1, 0, 1, 1, 1, 0, 0, 0]}, "earlier output that it does not have"),
    "draw reference": ({"program": [1, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0]}, "a column, draw or earlier output"),
    "base": ({"program": [1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0]}, "earlier output that it does not have"),
    "later output": (
        {"program": [1, 0, 0, 2, -1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0]},
        "earlier output that it does not have",
    ),
    "network": ({"program": [1, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0]}, "an output that it does not have"),
    "outputs": ({"program": [1, 1, 0, 7]}, "more than 6 outputs"),
    "many terms": ({"program": [1, 1, 0, 1, 0, 70, *[0] * 70, 0, 0, 0]}, "more than 64 coefficients"),
    "negative count": ({"program": [1, 1, 0, 1, 0, -1, 0, 0, 0]}, "counts below zero"),
    "many columns": ({"program": [17, 0, -1, 0]}, "more than 16 columns"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_the_op_refuses(name: str) -> None:
    changed, message = BAD_CALLS[name]
    with pytest.raises(RuntimeError, match=message):
        call(**changed)


def test_the_op_takes_what_the_refused_calls_change() -> None:
    call()
    call(z=None)
    interleaved = torch.zeros(2, 2, 48)
    call(columns=[interleaved[:, 0].view(2, 3, 4, 4)], stores=[interleaved[:, 1].view(2, 3, 4, 4)])


def test_fill_noise_refuses() -> None:
    seeds, draws = torch.arange(2), torch.zeros(1, 4, dtype=torch.int64)
    for out, message in (
        (torch.zeros(2, 3, dtype=torch.int64), "out has a dtype"),
        (torch.zeros(3, 3), "seeds has 2 rows for 3"),
        (torch.zeros(2, 6)[:, ::2], "neither row-major"),
        (seeds.view(torch.float32).view(2, 2), "out overlaps seeds"),
    ):
        with pytest.raises(RuntimeError, match=message):
            cpu.fill_noise(out, seeds, draws)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="mmx is not usable"):
        HOST.set_isa("mmx")
    assert HOST.isas()[0] == "scalar"
    assert HOST.isa() in cpu.details()


def test_a_missing_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cpu.importlib, "import_module", missing)
    module, reason = cpu._load.__wrapped__()
    assert module is None
    assert "No module named 'fastdiff._host'" in reason
    assert "no-build-isolation" in reason
    monkeypatch.undo()
    monkeypatch.setattr(cpu, "EXTENSION_SUFFIXES", [".none"])
    module, reason = cpu._load.__wrapped__()
    assert module is None
    assert "fastdiff._C was not built" in reason


# The loop in C++ ----------------------------------------------------------------------------------------------

FIRST = Row(("x",), (Output(terms=(("x", 1.0),), noise=(("xi", 1.0),), store="x"),), (("xi", Draw(0, 0)),), network=0)
GUIDED = Row(
    ("x", "F0", "F1"),
    (Output("x", (("F0", 1.0), ("F1", 1.0)), (("xi", 1.0),), "x"),),
    (("xi", Draw(1, 0)),),
    network=0,
    copies=2,
)
LAST = Row(("x", "F0", "F1"), (Output("x", (("F0", 1.0), ("F1", 1.0)), store="x"),))


class Bench:
    """A loop of three rows beside the op on the same start: what the first writes must equal what the second does."""

    def __init__(self, shape: tuple[int, ...], state: torch.dtype, network: torch.dtype, last: bool, gap: int) -> None:
        generator = torch.Generator().manual_seed(len(shape))
        self.shape, self.network = shape, network
        place = Placement("channels-last" if last else "row-major", 1, gap)
        start = torch.randn(shape, generator=generator).to(state)
        self.x, self.x_op = (place.place(start) for _ in range(2))
        blank = torch.full((2 * shape[0], *shape[1:]), math.nan, dtype=network)
        self.z, self.z_op = place.place(blank), place.place(blank)
        self.rows = (FIRST, GUIDED, LAST)
        self.coef = [torch.randn(1, len(row.coefficients), generator=generator).to(state) for row in self.rows]
        self.draws = [
            torch.tensor([[[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in r.draws]]) for r in self.rows
        ]
        self.seeds = torch.arange(shape[0]) + 11
        self.loop = HOST.Loop(
            batch=shape[0],
            numel=math.prod(shape[1:]),
            channels=shape[1] if last else 1,
            state=str(state).removeprefix("torch."),
            threads=1,
            seeds=self.seeds.data_ptr(),
        )
        for row, coef, draws in zip(self.rows, self.coef, self.draws, strict=True):
            self.loop.add_row(
                program=row.program.integers,
                coef=(coef.data_ptr(), 0),
                draws=(draws.data_ptr(), 0),
                sources=[self.buffer(self.x.view), 0, 1][: len(row.columns)],
                stores=[self.buffer(self.x.view)],
                z=self.buffer(self.z.view) if row.network is not None else None,
                copies=row.copies,
            )
        strides = list(self.z.view.stride())
        self.loop.expect(dtype=str(network).removeprefix("torch."), shape=list(shape), strides=strides)

    @staticmethod
    def buffer(tensor: Tensor) -> tuple[int, int, str]:
        return tensor.data_ptr(), tensor.stride(0), str(tensor.dtype).removeprefix("torch.")

    def by_op(self, at: int, outputs: list[Tensor]) -> None:
        row, x = self.rows[at], self.x_op.view
        z = None if row.network is None else self.z_op.view[: row.copies * self.shape[0]]
        tables = {"seeds": self.seeds, "draws": self.draws[at]}
        cpu.stage(Call([x, *outputs], self.coef[at], row.program, **tables, stores=[x], z=z))

    def same(self) -> bool:
        alike = same_bits(self.x.view, self.x_op.view) and same_bits(self.z.view, self.z_op.view)
        return alike and self.x.intact() and self.z.intact()


@pytest.mark.parametrize("shape", [(3,), (2, 7), (2, 3, 5, 4), (1, 4, 3, 2, 2), (2, 1, 2, 1, 3, 2, 2), (3, 70_000)])
@pytest.mark.parametrize(("state", "network"), PAIRS)
def test_the_loop_writes_what_the_op_writes(shape: tuple[int, ...], state: torch.dtype, network: torch.dtype) -> None:
    for last in (False, True) if len(shape) in (4, 5) else (False,):
        for gap in (0, 3):
            bench = Bench(shape, state, network, last, gap)
            batch = shape[0]
            for _ in range(2):
                bench.loop.start()
                bench.by_op(0, [])
                assert bench.same()
                F = torch.randn_like(bench.z.view.float()).to(network)
                assert bench.loop.step(F)
                bench.by_op(1, [F[:batch], F[batch:]])
                assert bench.same()
                assert bench.loop.step(F[batch:], F[:batch])
                bench.by_op(2, [F[batch:], F[:batch]])
                assert bench.same()
                assert bench.loop.index == len(bench.loop) == 3
                assert not bench.loop.step(F), "no row is left"


def test_the_loop_leaves_alone_what_it_does_not_expect() -> None:
    bench = Bench((2, 3, 4, 4), torch.float32, torch.float32, False, 0)
    bench.loop.start()
    bench.by_op(0, [])
    F = torch.randn(4, 3, 4, 4)
    beside_z = bench.z.storage.view(torch.float32)[66 : 66 + 192].view(4, 3, 4, 4)
    beside_x = bench.x.storage.view(torch.float32)[66 : 66 + 96].view(2, 3, 4, 4)
    refused: list[tuple] = [
        (),
        (None,),
        (3,),
        ((F,),),
        (F[:2],),
        (F, F),
        (F[:2], F[:2], F[:2]),
        (F[:, :2],),
        (F.double(),),
        (F.bfloat16(),),
        (F.to(memory_format=torch.channels_last),),
        (F[..., None],),
        (F.view(4, 48),),
        (F[:1].expand(4, 3, 4, 4),),
        (torch.nn.Parameter(F),),
        (F.to("meta"),),
        (F.to_sparse(),),
        (torch._neg_view(F),),
        (beside_z,),
        (F[:2], beside_x),
    ]
    for outputs in refused:
        assert bench.loop.step(*outputs) is False
        assert bench.same()
        assert bench.loop.index == 1
    inside = torch.func.vmap(lambda f: torch.tensor(bench.loop.step(f)))(torch.randn(2, 4, 3, 4, 4))
    assert not inside.any()
    assert bench.loop.step(F)


def test_a_network_may_return_its_input_in_place() -> None:
    row = Row(("x", "F0"), (Output("x", (("F0", 1.0),), store="x"),), network=0)
    x, z, coef = torch.randn(2, 9), torch.randn(2, 9), torch.tensor([[0.3, 0.7]])
    x_op, z_op = x.clone(), z.clone()
    loop = HOST.Loop(batch=2, numel=9, state="float32", threads=1, seeds=0)
    for _ in range(2):
        tensor = Bench.buffer
        loop.add_row(
            program=row.program.integers,
            coef=(coef.data_ptr(), 0),
            sources=[tensor(x), 0],
            stores=[tensor(x)],
            z=tensor(z),
        )
    loop.expect(dtype="float32", shape=[2, 9], strides=[9, 1])
    assert loop.step(z)
    cpu.stage(Call([x_op, z_op], coef, row.program, stores=[x_op], z=z_op))
    assert same_bits(x, x_op)
    assert same_bits(z, z_op)
    assert not loop.step(torch.cat([z.view(-1), torch.zeros(1)])[1:].view(2, 9)[:, :8])


def test_the_loop_checks_rows_and_expectations() -> None:
    x, coef = torch.zeros(2, 6), torch.ones(1, 2)
    buffer = Bench.buffer(x)

    def add(program: list[int] = LAST.program.integers, **changed: object) -> None:
        loop = HOST.Loop(batch=2, numel=6, state="float32", threads=1, seeds=0)
        given: dict = {"coef": (coef.data_ptr(), 0), "sources": [buffer, 0, 1], "stores": [buffer]} | changed
        loop.add_row(program=program, **given)

    add()
    shifted = (x.data_ptr() + 4, 6, "float32")
    for message, changed in {
        "number of columns": {"sources": [buffer]},
        "float64": {"sources": [(x.data_ptr(), 6, "float64"), 0, 1]},
        "overlaps source 0": {"sources": [shifted, 0, 1]},
        "overlap each other": {"stores": [(x.data_ptr(), 5, "float32")]},
        "null": {"coef": (0, 0)},
        "more stores": {"stores": [buffer, buffer]},
        "at most 6": {"stores": [None] * 7},
        "no network input": {"z": buffer},
        "not one of": {"stores": [(x.data_ptr(), 6, "int8")]},
        "counted from 0": {"sources": [buffer, 0, -1]},
        "ends too early": {"program": LAST.program.integers[:-1]},
        "seeds and draws": {"program": GUIDED.program.integers, "z": (x.data_ptr(), 6, "float32")},
    }.items():
        with pytest.raises(ValueError, match=message):
            add(**changed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels must divide"):
        HOST.Loop(batch=2, numel=6, channels=4, state="float32", threads=1, seeds=0)
    with pytest.raises(ValueError, match="the state must be"):
        HOST.Loop(batch=2, numel=6, state="bfloat16", threads=1, seeds=0)
    loop = HOST.Loop(batch=2, numel=6, state="float32", threads=1, seeds=0)
    with pytest.raises(ValueError, match="first row must exist"):
        loop.start()
    with pytest.raises(ValueError, match="another memory format"):
        loop.expect(dtype="float32", shape=[2, 6], strides=[12, 2])
    with pytest.raises(IndexError):
        loop.index = 1


SMALL_STACK = """
import sys, threading, torch, fastdiff

def steps():
    for _ in run:
        run.step(torch_output)

torch.set_num_threads(1)
run = fastdiff.Run(fastdiff.plan(steps=3, churn=fastdiff.Churn(3.0), dtype=sys.argv[1]), (2, 3, 8, 8), 0)
torch_output = torch.zeros((2, 3, 8, 8), dtype=getattr(torch, sys.argv[1]))
threading.stack_size(64 * 1024)
thread = threading.Thread(target=steps)
thread.start()
thread.join()
print(run.index)
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_runs_on_a_small_stack(dtype: str) -> None:
    """Of 64 KiB, as threads of other languages and libraries have; what a thread works in is kept elsewhere."""
    run = subprocess.run([sys.executable, "-c", SMALL_STACK, dtype], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "5"), run.stderr
