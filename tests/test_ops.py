"""The ops: validation, layouts, overlap, backends, gradients, tracing."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdiff import ops
from fastdiff.backends import registry
from fastdiff.backends.registry import BACKENDS, Backend, choose, forced_backend, list_backends, use_backend
from fastdiff.errors import BackendError, InputError
from fastdiff.maths.draw import Draw
from fastdiff.rows.layout import layout, same_memory, share_memory
from fastdiff.rows.program import parse
from fastdiff.rows.row import Output, Row
from fastdiff.testing.rows import Placement, poison_empty, random_case, same_bits

ROW = Row(
    columns=("x", "f"),
    outputs=(
        Output(base="x", terms=(("f", 0.5),), noise=(("xi", 0.7),), store="w0"),
        Output(terms=(("x", 1.5), ("f", 2.0)), store="w1"),
    ),
    draws=(("xi", Draw(1, 4)),),
    network=1,
    c_in=0.8,
    copies=2,
)


def arguments(**changes: object) -> dict:
    """A valid call of ``stage`` on ``[3, 4, 2, 2]``, with some arguments replaced."""
    torch.manual_seed(0)
    values = {
        "columns": [torch.randn(3, 4, 2, 2) for _ in range(2)],
        "coef": torch.tensor([ROW.coefficients]),
        "program": ROW.program.integers,
        "seeds": torch.tensor([1, 2, 3]),
        "draws": torch.tensor([[[1, 0, 4, 0]]]),
        "stores": [torch.empty(3, 4, 2, 2), torch.empty(3, 4, 2, 2)],
        "z": torch.empty(6, 4, 2, 2),
    }
    return values | changes


X = torch.zeros(3, 4, 2, 2)
LAST = torch.zeros(3, 4, 2, 2).to(memory_format=torch.channels_last)
BUFFER = torch.zeros(4, 4, 2, 2)

REFUSALS: dict[str, tuple[Callable[[], dict], str]] = {
    "too few columns": (lambda: {"columns": [X]}, "1 columns were given; the program reads 2"),
    "not a tensor": (lambda: {"columns": [X, 3.0]}, "column 1 is a float; it must be a torch.Tensor"),
    "no batch": (lambda: {"columns": [torch.tensor(1.0)] * 2}, "no dimensions; its first dimension must be the batch"),
    "sparse": (lambda: {"columns": [X, X.to_sparse()]}, "column 1 is torch.sparse_coo; only strided"),
    "shapes": (lambda: {"columns": [X, X[:2]]}, "column 1 has shape (2, 4, 2, 2); all must have (3, 4, 2, 2)"),
    "store shape": (lambda: {"stores": [X[:1].clone()]}, "store 0 has shape (1, 4, 2, 2)"),
    "too many stores": (lambda: {"stores": [None] * 3}, "3 stores were given; the program has 2 outputs"),
    "z shape": (lambda: {"z": torch.empty(4, 4, 2, 2)}, "it must be [copies * 3, *(4, 2, 2)]"),
    "two devices": (lambda: {"columns": [X, X.to("meta")]}, "column 1 is on meta and column 0 on cpu; move all"),
    "integers": (lambda: {"columns": [X, X.long()]}, "column 1 is torch.int64; float64, float32, bfloat16 and float16"),
    "complex": (lambda: {"columns": [X, X.to(torch.complex64)]}, "column 1 is torch.complex64"),
    "fp8": (lambda: {"z": torch.empty(6, 4, 2, 2).to(torch.float8_e4m3fn)}, "z is torch.float8_e4m3fn"),
    "mixed states": (lambda: {"columns": [X, X.double()]}, "column 1 is torch.float64 and coef is torch.float32"),
    "wide store": (lambda: {"stores": [X.double()]}, "store 0 is torch.float64 and coef is torch.float32"),
    "coef dtype": (lambda: {"coef": torch.tensor([ROW.coefficients]).bfloat16()}, "must be a float32 or float64"),
    "coef count": (lambda: {"coef": torch.zeros(1, 4)}, "coef has shape (1, 4); it must be [1 or 3, 5]"),
    "coef rows": (lambda: {"coef": torch.zeros(2, 5)}, "coef has 2 rows; 1 or one for each of the 3 samples"),
    "coef strides": (lambda: {"coef": torch.zeros(5, 3).t()}, "pass coef.contiguous()"),
    "seeds missing": (lambda: {"seeds": None}, "seeds is None; the program draws noise"),
    "draws missing": (lambda: {"draws": None}, "draws is None; the program draws noise"),
    "seeds count": (lambda: {"seeds": torch.tensor([1, 2])}, "it must be torch.int64 [3], one for each sample"),
    "seeds dtype": (lambda: {"seeds": torch.tensor([1, 2, 3]).int()}, "seeds is torch.int32 [3]"),
    "seeds negative": (lambda: {"seeds": torch.tensor([1, -2, 3])}, "a seed is -2; seeds lie in 0 .. 2**63 - 1"),
    "draws shape": (lambda: {"draws": torch.zeros(1, 2, 4).long()}, "it must be int64 [1 or 3, 1, 4]"),
    "draws rows": (lambda: {"draws": torch.zeros(2, 1, 4).long()}, "draws has 2 rows"),
    "draws range": (lambda: {"draws": torch.tensor([[[256, 0, 0, 0]]])}, "a purpose outside 0 .. 2**8 - 1"),
    "present shape": (lambda: {"present": torch.zeros(3, 1).long()}, "present is torch.int64 [3, 1]; it must be"),
    "present rows": (lambda: {"present": torch.zeros(2).long()}, "present has 2 rows"),
    "present dtype": (lambda: {"present": torch.ones(3, dtype=torch.bool)}, "present is torch.bool; it must be"),
    "expanded": (lambda: {"columns": [X, X[:1].expand(3, 4, 2, 2)]}, "samples that overlap (an expanded batch)"),
    "expanded inside": (lambda: {"columns": [X, X[..., :1].expand(3, 4, 2, 2)]}, "samples that are not dense"),
    "cropped": (lambda: {"columns": [X, torch.zeros(3, 4, 2, 4)[..., :2]]}, "samples that are not dense"),
    "overlapping windows": (lambda: {"stores": [torch.zeros(64).as_strided((3, 4, 2, 2), (8, 4, 2, 1))]}, "overlap"),
    "two layouts": (lambda: {"columns": [X, LAST]}, "the layouts differ"),
    "column and store shifted": (
        lambda: {"columns": [X, BUFFER[1:]], "stores": [BUFFER[:3]]},
        "store 0 overlaps column 1",
    ),
    "store twice": (lambda: {"stores": [BUFFER[:3], BUFFER[:3]]}, "store 1 overlaps store 0"),
    "z on a store": (lambda: {"z": torch.zeros(6, 4, 2, 2), "stores": None}, "z overlaps store 0"),
    "store on coef": (lambda: {"stores": None, "coef": None}, "store 0 overlaps coef"),
    "column requires grad": (
        lambda: {"columns": [X, X.clone().requires_grad_()]},
        "column 1 requires grad; use stage_f",
    ),
    "program cut": (lambda: {"program": ROW.program.integers[:-1]}, "it ends too early"),
    "program long": (lambda: {"program": [*ROW.program.integers, 0]}, "it goes on after its last output"),
    "program index": (
        lambda: {"program": [9 if i == 8 else v for i, v in enumerate(ROW.program.integers)]},
        "malformed",
    ),
}


def refused(name: str) -> dict:
    changes = REFUSALS[name][0]()
    if name == "z on a store":
        changes["stores"] = [changes["z"][3:]]
    if name == "store on coef":
        memory = torch.zeros(48)
        changes = {"stores": [memory.view(3, 4, 2, 2)], "coef": memory[:5].view(1, 5)}
    return arguments(**changes)


@pytest.mark.parametrize("name", REFUSALS)
def test_stage_refuses(name: str) -> None:
    call = refused(name)
    written = [out for out in (*call["stores"], call["z"]) if out is not None and out.is_floating_point()]
    before = [out.clone() for out in written]
    with pytest.raises(InputError, match=re.escape(REFUSALS[name][1])):
        ops.stage(call.pop("columns"), call.pop("coef"), call.pop("program"), **call)
    if written[0].dtype is torch.float32:
        assert all(same_bits(a, b) for a, b in zip(before, written, strict=True) if a.dtype is torch.float32)


def run(call: dict) -> None:
    call = dict(call)
    ops.stage(call.pop("columns"), call.pop("coef"), call.pop("program"), **call)


def test_stage_refuses_z_without_a_network_input() -> None:
    row = Row(("x",), (Output(base="x", store="w"),))
    with pytest.raises(InputError, match="the program makes no network input"):
        ops.stage([X], torch.ones(1, 0), row.program, stores=[X.clone()], z=X.clone())


def test_too_many_elements() -> None:
    huge = torch.empty((1, 2**42 + 1), device="meta", dtype=torch.bfloat16)
    row = Row(("x",), (Output(base="x", store="w"),))
    with pytest.raises(InputError, match=re.escape("more than 2**42 elements")):
        ops.stage([huge], torch.ones((1, 0), device="meta"), row.program, stores=[huge])
    with pytest.raises(InputError, match=re.escape("more than 2**42 elements")):
        ops.fill_noise(huge, 0)


def test_no_elements_return_at_once() -> None:
    for shape in ((0, 4), (3, 0)):
        x = torch.empty(shape)
        seeds = ops.normalise_seeds(0, shape[0])
        draws = torch.tensor([[[1, 0, 4, 0]]])
        z = torch.empty((2 * shape[0], shape[1]))
        ops.stage([x, x], torch.tensor([ROW.coefficients]), ROW.program, seeds=seeds, draws=draws, stores=[x], z=z)
        ops.fill_noise(x, 0)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (True, "seeds is True; it must be an integer"),
        (1.0, "seeds is 1.0; it must be an integer"),
        (None, "seeds is None"),
        ("7", "seeds is '7'"),
        ([1, 2.0, 3], "a seed is 2.0; it must be an integer"),
        ([1, 2], "there are 2 seeds for 3 samples; give one for each"),
        (-1, "a seed is -1; seeds lie in 0 .. 2**63 - 1"),
        ([0, 2**63, 1], f"a seed is {2**63}"),
        (2**63 - 2, f"a seed is {2**63}; seeds lie in 0 .. 2**63 - 1 (sample i of an int s uses s + i)"),
        (torch.tensor([1.0, 2.0, 3.0]), "seeds is torch.float32 [3]"),
        (torch.tensor([1, 2]), "seeds is torch.int64 [2]; it must be torch.int64 [3]"),
        (torch.tensor([1, -2, 4]), "a seed is -2"),
    ],
)
def test_seeds_refused(seeds: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ops.normalise_seeds(seeds, 3)  # type: ignore[arg-type]


def test_seeds() -> None:
    assert ops.normalise_seeds(5, 3).tolist() == [5, 6, 7]
    assert ops.normalise_seeds(2**63 - 3, 3).tolist() == [2**63 - 3, 2**63 - 2, 2**63 - 1]
    assert ops.normalise_seeds([3, 3, 0], 3).tolist() == [3, 3, 0]
    assert ops.normalise_seeds(np.array([1, 2, 3]), 3).tolist() == [1, 2, 3]  # type: ignore[arg-type]
    assert ops.normalise_seeds(np.int64(4), 2).tolist() == [4, 5]  # type: ignore[arg-type]
    assert ops.normalise_seeds(7, 0).shape == (0,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"purpose": 256}, "purpose is 256; it must lie in 0 .. 2**8 - 1"),
        ({"draw": -1}, "draw is -1; it must lie in 0 .. 2**32 - 1"),
        ({"sub_draw": 2**24}, "sub_draw is 16777216"),
        ({"tensor": 2**16}, "tensor is 65536"),
        ({"draw": [1, 2, 3]}, "draw has 3 entries for 2 samples"),
        ({"draw": 1.5}, "draw is 1.5; it must be an integer"),
    ],
)
def test_fill_noise_refuses(words: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ops.fill_noise(torch.empty(2, 3), 0, **words)


def test_fill_noise_refuses_tensors() -> None:
    for out, message in (
        (torch.empty(2, 3).long(), "out is torch.int64"),
        (torch.empty(()), "out has no dimensions"),
        (torch.empty(2, 6)[:, ::2], "samples that are not dense"),
        (torch.empty(1, 3).expand(2, 3), "samples that overlap"),
        (torch.empty(2, 3, requires_grad=True), "out requires grad"),
    ):
        with pytest.raises(InputError, match=message):
            ops.fill_noise(out, 0)


def test_layout() -> None:
    last = torch.channels_last
    for tensor, expected in (
        (torch.empty(2, 3, 4, 5), "row-major"),
        (torch.empty(2, 3, 4, 5).to(memory_format=last), "channels-last"),
        (torch.empty(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d), "channels-last"),
        (torch.empty(2, 1, 4, 5).to(memory_format=last), "either"),
        (torch.empty(2, 3, 1, 1), "either"),
        (torch.empty(2, 0, 4, 5), "either"),
        (torch.empty(2, 3), "row-major"),
        (torch.empty(2), "row-major"),
        (torch.empty(4, 6, 4, 5)[::2, :3], "row-major"),
        (torch.empty(4, 3, 4, 5).to(memory_format=last)[1::2], "channels-last"),
        # Strides of dimensions of size 1 mean nothing.
        (torch.empty(60).as_strided((1, 3, 4, 5), (7, 20, 5, 1)), "row-major"),
        (torch.empty(60).as_strided((1, 1, 4, 5), (999, 999, 5, 1)), "either"),
        (torch.empty(2, 3, 4, 5).transpose(2, 3), None),
        (torch.empty(2, 3, 4, 5)[:, :, 1:], None),
        (torch.empty(()), None),
    ):
        assert layout(tensor) == expected, (tensor.shape, tensor.stride())


def test_overlap_is_exact() -> None:
    """Samples of one buffer may be interleaved, as in a slice of the channels; bytes decide."""
    buffer = torch.zeros(4, 6, 3)
    left, right, middle = buffer[:, :3], buffer[:, 3:], buffer[:, 2:5]
    assert not share_memory(left, right)
    assert share_memory(left, middle)
    assert share_memory(middle, right)
    assert not share_memory(buffer[0::2], buffer[1::2])
    assert share_memory(buffer[0::2], buffer[1:3])
    assert not share_memory(buffer[:2], buffer[2:])
    assert same_memory(left, buffer[:, :3])
    assert not same_memory(left, left.view(torch.int32))
    row = Row(("x", "y"), (Output(base="x", terms=(("y", 2.0),), store="w"),))
    left.fill_(1.0)
    right.fill_(2.0)
    ops.stage([left, right], torch.full((1, 1), 2.0), row.program, stores=[right])
    assert left.eq(1).all()
    assert right.eq(5).all()


def test_ambiguous_tensors_go_with_either_layout() -> None:
    one = torch.randn(2, 1, 4, 4)
    other = torch.randn(2, 1, 4, 4).to(memory_format=torch.channels_last)
    row = Row(("x", "y"), (Output(base="x", terms=(("y", 2.0),), store="w"),))
    out = torch.empty(2, 1, 4, 4)
    ops.stage([one, other], torch.full((1, 1), 2.0), row.program, stores=[out])
    assert torch.equal(out, one + 2 * other)


def test_program_survives_encoding() -> None:
    for seed in range(100):
        row = random_case(seed, max_elements=1).row
        program = parse(row.program.integers)
        assert program.integers == row.program.integers
        assert program.coefficients == len(row.coefficients)
        labels = [label for label, _ in row.labelled_coefficients()]
        for i in range(len(program.outputs)):
            own = labels[program.starts[i] : program.starts[i + 1]]
            assert all(label.startswith((f"w{i}[", f"w{i}.")) for label in own)
        if program.network is not None:
            assert labels[program.c_in_at] == "c_in"


def test_backends() -> None:
    report = {line.name: line for line in list_backends()}
    assert report["reference"].usable
    assert report["reference"].reason is None
    assert all(line.usable == (line.reason is None) for line in report.values())
    with pytest.raises(BackendError, match="there is no backend 'cuda13'; the names are"), use_backend("cuda13"):
        pass
    assert choose("cpu", (torch.float32,), "row-major").name == next(
        line.name for line in list_backends() if line.usable
    )


def test_a_device_that_no_backend_serves_is_an_error_with_all_reasons_and_the_way_out() -> None:
    with pytest.raises(BackendError) as caught:
        choose("xpu", (torch.float32,), "row-major")
    assert "cuda: it runs on cuda, and the tensors are on xpu" in str(caught.value)
    assert "reference: on xpu it is taken only when asked for, with use_backend('reference')" in str(caught.value)
    with use_backend("reference"):
        assert choose("xpu", (torch.float32,), "row-major").name == "reference"


def test_a_missing_forced_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Backend(
        name="stand-in",
        devices=("cuda",),
        unavailable=lambda: "it was never built; build it",
        details=lambda: "",
        stage=BACKENDS[-1].stage,
        fill_noise=BACKENDS[-1].fill_noise,
        gram=BACKENDS[-1].gram,
    )
    monkeypatch.setattr(registry, "BACKENDS", (stand_in, *BACKENDS))
    message = "backend 'stand-in' cannot be used: it was never built; build it; usable now: .*'reference'"
    with pytest.raises(BackendError, match=message), use_backend("stand-in"):
        pass
    object.__setattr__(stand_in, "unavailable", lambda: None)
    with (
        use_backend("stand-in"),
        pytest.raises(BackendError, match="stand-in: it runs on cuda, and the tensors are on"),
    ):
        run(arguments())
    run(arguments())


def test_all_refusals_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Backend("narrow", (), lambda: None, lambda: "", *[BACKENDS[-1].stage] * 3, dtypes=(torch.float16,))  # type: ignore[arg-type]
    square = Backend("square", (), lambda: None, lambda: "", *[BACKENDS[-1].stage] * 3, layouts=())  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "BACKENDS", (narrow, square))
    expected = "narrow: it does not handle torch.float32; square: it does not handle the row-major layout"
    with pytest.raises(BackendError, match=expected):
        run(arguments())


def test_use_backend_is_per_thread_and_nests() -> None:
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(forced_backend()))
        thread.start()
        thread.join()
        with use_backend("reference"):
            pass
        seen.append(forced_backend())
    seen.append(forced_backend())
    assert seen == [None, "reference", None]


GRADIENT_ROW = Row(
    columns=("x", "f", "n", "unused"),
    outputs=(
        Output(terms=(("x", 0.5), ("f", -0.25)), bound=0.4, scale=1.1),
        Output(base="x", terms=(("w0", 0.5), ("f", 0.3)), noise=(("n", 0.7), ("xi", 1.0)), store="a"),
        Output(terms=(("x", 2.0), ("w0", -0.7), ("x", 0.1)), store="b"),
    ),
    draws=(("xi", Draw(1, 3)),),
    network=2,
    c_in=0.6,
    copies=2,
)
UNCLAMPED = replace(GRADIENT_ROW, outputs=(replace(GRADIENT_ROW.outputs[0], bound=None), *GRADIENT_ROW.outputs[1:]))
CHAIN = Row(
    columns=("x", "f", "n"),
    outputs=(
        Output(terms=(("x", 0.5), ("f", -0.25)), scale=1.1),
        Output(base="w0", terms=(("f", 0.8), ("w0", -0.3)), noise=(("n", 0.7), ("xi", 1.0)), store="a", bound=0.9),
        Output(base="w1", terms=(("w0", 2.0), ("w1", -0.7), ("x", 0.1)), store="b", bound=1.5, scale=-0.8),
    ),
    draws=(("xi", Draw(1, 3)),),
    network=2,
    c_in=0.6,
    copies=2,
)
"""Every output is read by a later one, as base and as term; two clamps cut one after the other."""
PRESENCE = {"all": None, "some": [-1, 0b10110101101101, 0b01101110110111], "none": [0]}


def functional(row: Row, columns: tuple, present: list[int] | None = None, **options: object) -> list[torch.Tensor]:
    batch = columns[0].shape[0]
    outputs = {"outputs": (1, 2), "z_dtype": torch.float64, "copies": row.copies} | options
    return ops.stage_functional(
        columns,
        torch.tensor([row.coefficients], dtype=torch.float64),
        row.program,
        seeds=ops.normalise_seeds(7, batch),
        draws=torch.tensor([[[1, 0, 3, 0]]]),
        present=None if present is None else torch.tensor(present),
        **outputs,  # type: ignore[arg-type]
    )


def leaves(count: int = 4, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(3, 1, 2, generator=generator, dtype=dtype).requires_grad_() for _ in range(count))


@pytest.mark.parametrize("row", [GRADIENT_ROW, UNCLAMPED, CHAIN], ids=["clamped", "unclamped", "chain"])
@pytest.mark.parametrize("present", PRESENCE)
def test_gradients(row: Row, present: str) -> None:
    """First and second derivatives against finite differences, also of single outputs and of z alone."""

    def call(*columns: torch.Tensor) -> tuple:
        return tuple(functional(row, columns, PRESENCE[present])[:3])

    first = 0.5 * leaves()[0] - 0.25 * leaves()[1]
    assert 0 < (first.abs() > 0.4).sum() < first.numel(), "both sides of the clamp must be seen"
    columns = leaves(len(row.columns))
    assert torch.autograd.gradcheck(call, columns)
    assert torch.autograd.gradgradcheck(call, columns, fast_mode=True)
    for which in ({"outputs": (2,), "z_dtype": None}, {"outputs": ()}):
        assert torch.autograd.gradcheck(lambda *c, w=which: tuple(functional(row, c, **w)), columns)


def test_gradients_take_as_many_launches_as_needed() -> None:
    """Eleven columns need three launches of at most four; every column hears of every output."""
    names = tuple(f"c{i}" for i in range(11))
    weights = {name: 0.25 * (i + 1) for i, name in enumerate(names)}
    row = Row(names, tuple(Output(terms=tuple(weights.items()), store=f"w{k}") for k in range(2)))
    columns = leaves(11)
    coef = torch.tensor([row.coefficients], dtype=torch.float64)
    first, second = ops.stage_functional(columns, coef, row.program, outputs=(0, 1))
    (first.sum() + 2 * second.sum()).backward()
    for column, weight in zip(columns, weights.values(), strict=True):
        assert column.grad is not None
        assert column.grad.eq(3 * weight).all()


def test_gradients_pass_casts_and_layouts() -> None:
    """Gradients come in the column's dtype; an expanded incoming gradient is no obstacle."""
    row = Row(("x", "f"), (Output(base="x", terms=(("f", 0.5),), store="w"),), network=0, c_in=4.0)
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    f = x.detach().bfloat16().requires_grad_()
    coef = torch.tensor([row.coefficients])
    w, z = ops.stage_functional([x, f], coef, row.program, z_dtype=torch.float16)
    assert (w.dtype, z.dtype) == (torch.float32, torch.float16)
    assert layout(w) == layout(z) == "channels-last"
    (w.sum() + z.float().sum()).backward()
    assert x.grad is not None
    assert x.grad.eq(5).all()
    assert layout(x.grad) == "channels-last"
    assert f.grad is not None
    assert f.grad.dtype is torch.bfloat16
    assert f.grad.eq(2.5).all()


def test_the_clamp_passes_gradients_at_nan_and_stops_them_outside() -> None:
    row = Row(("x",), (Output(terms=(("x", 1.0),), bound=1.0), Output(terms=(("w0", 3.0),), store="w")))
    x = torch.tensor([[0.5, 2.0, -2.0, 1.0, float("nan"), float("inf")]], requires_grad=True)
    (w,) = ops.stage_functional([x], torch.tensor([row.coefficients]), row.program, outputs=(1,))
    w.nansum().backward()
    # nansum sends 0 to the NaN, and the clamp lets it through.
    assert x.grad is not None
    assert x.grad.tolist() == [[3.0, 0.0, 0.0, 3.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": (1, 0)}, "outputs is [1, 0]; give increasing indices below 3"),
        ({"outputs": (3,)}, "outputs is [3]"),
        ({"dtypes": [torch.float32]}, "dtypes has 1 entries for 2 outputs"),
        ({"dtypes": [torch.int32, torch.float32]}, "output 1 is torch.int32"),
        ({"copies": 13}, "copies is 13; 1 to 12 are allowed"),
    ],
)
def test_functional_refuses(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        functional(GRADIENT_ROW, leaves(), **options)


def test_functional_refuses_gradients_of_coefficients_and_no_columns() -> None:
    coef = torch.tensor([GRADIENT_ROW.coefficients], requires_grad=True)
    keywords = {"seeds": ops.normalise_seeds(0, 3), "draws": torch.zeros(1, 1, 4).long()}
    with pytest.raises(InputError, match="coef requires grad; gradients reach columns only"):
        ops.stage_functional(leaves(4, torch.float32), coef, GRADIENT_ROW.program, **keywords)
    row = Row((), (Output(noise=(("xi", 1.0),), store="w"),), (("xi", Draw(0, 0)),))
    with pytest.raises(InputError, match="stage_functional was given no column"):
        ops.stage_functional([], torch.ones(1, 1), row.program, **keywords)


def test_functional_equals_in_place() -> None:
    columns = [leaf.detach() for leaf in leaves()]
    w0, w1, z = functional(GRADIENT_ROW, tuple(columns))
    stores, out = [torch.empty_like(w0), torch.empty_like(w1)], torch.empty_like(z)
    with poison_empty():
        again = functional(GRADIENT_ROW, tuple(columns))
    coef = torch.tensor([GRADIENT_ROW.coefficients], dtype=torch.float64)
    keywords = {"seeds": ops.normalise_seeds(7, 3), "draws": torch.tensor([[[1, 0, 3, 0]]])}
    ops.stage(columns, coef, GRADIENT_ROW.program, stores=[None, *stores], z=out, **keywords)
    for a, b, c in zip((w0, w1, z), (*stores, out), again, strict=True):
        assert same_bits(a, b)
        assert same_bits(a, c)


def positional(call: dict) -> tuple:
    stores = (*call["stores"], *[None] * 4)
    tables = (call["coef"], None, call["seeds"], call["draws"], call["program"])
    return call["columns"], *tables, *stores, call["z"]


def test_opcheck() -> None:
    """Schema, fake implementation, autograd registration and ahead-of-time dispatch, by torch's own checks."""
    call = arguments()
    torch.library.opcheck(torch.ops.fastdiff.stage.default, positional(call))
    torch.library.opcheck(torch.ops.fastdiff.fill_noise.default, (call["z"][:3], call["seeds"], call["draws"][:, 0]))
    coef = torch.tensor([UNCLAMPED.coefficients], dtype=torch.float64)
    tables = (None, torch.arange(3), torch.tensor([[[1, 0, 3, 0]]]), UNCLAMPED.program.integers)
    for columns in (leaves(), [leaf.detach() for leaf in leaves()]):
        arguments_ = (list(columns), coef, *tables, [0, 1], [0, 1], torch.float16, 2)
        torch.library.opcheck(torch.ops.fastdiff.stage_functional.default, arguments_)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend: str) -> None:
    call = arguments()
    run(call)
    expected = [*call["stores"], call["z"]]
    traced = arguments()
    torch.compile(run, fullgraph=True, backend=backend)(traced)
    assert all(same_bits(a, b) for a, b in zip(expected, [*traced["stores"], traced["z"]], strict=True))

    def loss(*columns: torch.Tensor) -> torch.Tensor:
        return functional(UNCLAMPED, columns)[0].square().sum()

    eager, compiled = leaves(), leaves()
    loss(*eager).backward()
    torch.compile(loss, fullgraph=True, backend=backend)(*compiled).backward()
    for a, b in zip(eager[:3], compiled[:3], strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert same_bits(a.grad, b.grad)


def test_compile_traces_the_forced_reference() -> None:
    """The reference itself goes into the graph, which then holds no op of ours."""
    row = Row(("x", "f"), (Output(base="x", terms=(("f", 0.5),), store="w"),), network=0, c_in=4.0)
    coef, x = torch.tensor([row.coefficients]), torch.randn(2, 3)
    seen: list[str] = []

    def record(graph: torch.fx.GraphModule, _: list) -> Callable:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def step(x: torch.Tensor, out: torch.Tensor) -> None:
        ops.stage([x, x], coef, row.program, stores=[out])

    torch._dynamo.reset()
    out = torch.empty_like(x)
    with use_backend("reference"):
        torch.compile(step, fullgraph=True, backend=record)(x, out)
    assert torch.equal(out, x + 0.5 * x)
    assert seen
    assert not any("fastdiff" in name for name in seen)


def test_compile_reports_bad_input() -> None:
    call = arguments(columns=[X, X.double()])
    with pytest.raises(Exception, match=r"column 1 is torch\.float64 and coef is torch\.float32"):
        torch.compile(run, fullgraph=True, backend="eager")(call)


def test_export() -> None:
    class Step(torch.nn.Module):
        def forward(self, *columns: torch.Tensor) -> list[torch.Tensor]:
            return functional(GRADIENT_ROW, columns)

    columns = tuple(leaf.detach() for leaf in leaves())
    program = torch.export.export(Step(), columns)
    found = program.module()(*columns)
    assert all(same_bits(a, b) for a, b in zip(found, functional(GRADIENT_ROW, columns), strict=True))
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.fastdiff.stage_functional.default) == 1


def test_random_cases_repeat_themselves() -> None:
    """A case is its seed: the same values, placements and description every time, and its canaries bark."""
    first, second = random_case(77), random_case(77)
    assert first.describe() == second.describe()
    pairs = zip(first.columns, second.columns, strict=True)
    assert all(same_bits(a, b) and p == q for (a, p), (b, q) in pairs)
    guarded = Placement(offset=1, gap=2).place(torch.zeros(2, 3))
    assert guarded.intact()
    guarded.view.fill_(7.0)
    assert guarded.intact()
    guarded.storage.view(torch.float32).as_strided((1,), (1,), guarded.view.storage_offset() + 3).fill_(0.0)
    assert not guarded.intact()


def test_same_bits() -> None:
    nan = torch.tensor([float("nan")])
    assert same_bits(nan, -nan)
    assert not same_bits(nan, torch.zeros(1))
    assert not same_bits(torch.zeros(1), -torch.zeros(1))
    assert not same_bits(torch.zeros(1), torch.zeros(1).double())
    one = torch.ones(1)
    assert not same_bits(one, torch.nextafter(one, 2 * one))


def test_poison_empty() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with poison_empty():
        for tensor in (torch.empty(3), torch.empty_like(torch.zeros(2)), torch.zeros(1).new_empty(4)):
            assert tensor.isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before
