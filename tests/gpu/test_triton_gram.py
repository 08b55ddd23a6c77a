"""The gram of the Triton backend, run as PTX and in the interpreter, against its definition: bit for bit."""

import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
from interpreted import interpreted
from mutants import mutated
from pretend_gpu import PretendGpu
from ptx import PtxError
from test_cuda_gram import agree, inner_product
from test_triton_gates import NVIDIA, resources
from triton.backends.compiler import GPUTarget

import fastdiff
from fastdiff.backends import reference
from fastdiff.backends import triton as backend
from fastdiff.backends.registry import Backend, registered
from fastdiff.maths.guidance import RescaledGuidance
from fastdiff.rows.call import GramCall
from fastdiff.rows.gram import parse_gram
from fastdiff.testing.gram import random_gram
from fastdiff.testing.rows import same_bits

MOST_REGISTERS = 96
"""Of a plain inner product; a thread adds four quads a turn. In blocks of one warp, 128 leave 16 blocks to an SM."""

CASES, FEW_CASES, MORE_CASES = (5, 7, 20, 31, 33, 44, 61, 98, 140), (33, 44, 70), range(400, 440)
"""Of few sums and steps, because each is a kernel of its own: with draws, errors that are weighed, all operations, both
layouts, one chunk and several, numbers that are shared and not, nothing to sum."""


@pytest.mark.parametrize("seed", CASES)
def test_grams_have_the_bits_of_the_definition(seed):
    """Two launches where a sample has several chunks, else one."""
    case = random_gram(seed)
    with PretendGpu() as gpu:
        agree(backend.gram, case)
    several = case.columns[0][0][0].numel() > backend.CHUNK
    assert len(gpu.launches) == 1 + several


@pytest.mark.night
@pytest.mark.parametrize("seed", MORE_CASES)
def test_more_grams_have_the_bits_of_the_definition(seed):
    with PretendGpu():
        agree(backend.gram, random_gram(seed))


@pytest.mark.parametrize("arch", [80, 120])
def test_code_for_other_targets_has_the_same_bits(arch):
    with PretendGpu(GPUTarget("cuda", arch, 32)):
        agree(backend.gram, random_gram(31))


def test_the_interpreter_has_the_bits_of_the_definition():
    with interpreted() as launches:
        for seed in FEW_CASES:
            agree(backend.gram, random_gram(seed))
    assert len(launches) == 4


@pytest.mark.parametrize("name", NVIDIA)
def test_every_operation_rounds_once_and_nothing_is_spilled(name):
    """Sums of products and of weighed errors, in float64: their roundings are named, and what is fused is noise."""
    with PretendGpu(NVIDIA[name], run=False) as gpu:
        backend.gram(inner_product([torch.zeros(1, 4096)] * 2))
        random_gram(31).run(backend.gram)
    used = [resources(launch.files["cubin"]) for launch in gpu.launches]
    assert {(use["STACK"], use["LOCAL"]) for use in used} == {(0, 0)}
    assert used[0]["REG"] <= MOST_REGISTERS
    opcodes = set(re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.]+)\s", gpu.launches[1].ptx, re.M))
    assert {"mul.rn.f64", "add.rn.f64", "div.rn.f64", "sqrt.rn.f64"} <= opcodes
    assert {op for op in opcodes if re.match(r"fma\b|mad\b.*\.f", op)} <= {"fma.rn.f32", "fma.rn.f32x2"}
    for op in opcodes:
        assert not re.search(r"\.(ftz|approx|full|sat)\b", op), op
        assert not re.match(r"(add|sub|mul)\b(?!.*\.rn).*\.f(32|64|32x2)$", op), op


def test_a_sum_of_more_chunks_than_one_chunk_has():
    """As samples of 2**24 elements have: the sums of chunks of chunks are summed once more."""
    call = inner_product([torch.zeros(2, 1)] * 2)
    parts = torch.linspace(-3, 5, 2 * 8195, dtype=torch.float64).view(2, 1, 8195)
    with PretendGpu() as gpu:
        rest = backend._sum_parts(call, parts)
        assert rest.shape == (2, 1, 3)
        assert backend._sum_parts(call, rest) is None
    assert len(gpu.launches) == 2
    assert same_bits(call.scalars, reference.tree_sum(parts))


def test_launches_by_the_size_of_a_sample():
    for numel, launches in ((1, 1), (4096, 1), (4097, 2), (2**24, 2), (2**24 + 1, 3)):
        with PretendGpu(run=False) as gpu:
            backend.gram(inner_product([torch.empty(1, numel, dtype=torch.bfloat16)] * 2))
        assert len(gpu.launches) == launches


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_quads_of_a_column_move_at_once_and_once(dtype):
    call = inner_product([torch.randn(2, 4096).to(dtype), torch.randn(2, 4096).to(dtype)])
    expected = torch.empty_like(call.scalars)
    reference.gram(call._replace(scalars=expected))
    with PretendGpu() as gpu:
        backend.gram(call)
    assert same_bits(call.scalars, expected)
    regions = gpu.launches[0].memory.named("columns")
    assert sum(region.bytes_read for region in regions) == 2 * 2 * 4096 * dtype.itemsize
    assert {access for region in regions for access in region.accesses} == {("load", min(16, 4 * dtype.itemsize))}


def test_beyond_two_to_the_31_elements():
    """A batch stride beyond 2**31 is followed; nothing between the two samples is touched."""
    stride = 2**31 + 16
    x = torch.empty(0, dtype=torch.bfloat16).set_(torch.UntypedStorage(2 * stride + 32), 0, (2, 16), (stride, 1))
    x.copy_(torch.arange(32).view(2, 16))
    call = inner_product([x, x])
    with PretendGpu():
        backend.gram(call)
    assert call.scalars[:, 0].tolist() == [sum(v * v for v in range(16)), sum(v * v for v in range(16, 32))]


def test_more_chunks_than_a_launch_has_instances_are_refused():
    many = torch.empty(2**20, 2**24, device="meta", dtype=torch.bfloat16)
    with pytest.raises(fastdiff.FastdiffError, match="a launch holds"):
        backend.gram(inner_product([many, many]))


@pytest.mark.parametrize(
    "settings",
    [{"solver": "predictor_corrector"}, {"solver": "heun", "guidance": RescaledGuidance(2.0)}],
    ids=["predictor-corrector", "rescaled guidance"],
)
def test_a_sampling_has_the_reference_bits(settings):
    """Through ``sample``: the scalars of a gram are the coefficients of the row that follows."""
    plan = fastdiff.plan(steps=2, **settings)

    def sampled():
        return fastdiff.sample(lambda z, c: torch.sin(2 * z) - 0.3 * z, plan, (2, 3, 4, 6), [3, 2**50])

    here = Backend(
        "triton-here", ("cpu",), lambda: None, lambda: "", backend.stage, backend.fill_noise, gram=backend.gram
    )
    with registered(here), PretendGpu() as gpu:
        got = sampled()
    grams = [launch for launch in gpu.launches if launch.name == "gram_kernel"]
    assert len(grams) == sum(row.gram is not None for row in plan.rows) > 0
    assert len(gpu.launches) == len(plan.rows) + len(grams)
    with fastdiff.use_backend("reference"):
        assert same_bits(got, sampled())


# Faults ------------------------------------------------------------------------------------------------------------

TURN = (
    "quad = (chunk * TURNS + turn) * LANES + tl.arange(0, LANES)\n"
    "            element = quad[:, None] * 4 + tl.arange(0, 4)[None, :]\n            products"
)

MUTANTS = [
    ("a quad is summed from left to right", 88, "first, second = tl.split(even + odd)\n    return first + second",
     "a, c = tl.split(even)\n    b, d = tl.split(odd)\n    return ((a + b) + c) + d"),
    ("neighbours are folded", 88, "tl.permute(tl.reshape(lanes, (2, lanes.shape[0] // 2)), (1, 0))",
     "tl.reshape(lanes, (lanes.shape[0] // 2, 2))"),
    ("a turn's quads lie beside each other", 88, TURN, TURN.replace(
        "(chunk * TURNS + turn) * LANES + tl.arange(0, LANES)", "(chunk * LANES + tl.arange(0, LANES)) * TURNS + turn"
    )),
    ("what lies past the end is summed", 31, "tl.where(element < numel, left * right, 0.0)", "left * right"),
    ("memory order is summed", 61, "place = element\n        if CHANNELS_LAST:", "place = element\n        if False:"),
    ("all samples take the first one's seed", 140, "seed = tl.load(seeds + sample)", "seed = tl.load(seeds)"),
    ("the first draw is every draw", 98, "draws + 4 * (SOURCE - len(columns))", "draws"),
    ("a vector is squared that is not", 31, "if SUM.tolerance >= 0 or not SUM.square:", "if SUM.tolerance >= 0:"),
    ("the smaller error weighs", 61, "_larger(tl.abs(right), tl.abs(other))", "tl.abs(right)"),
    ("a NaN is lost", "nan", "tl.where(a == a, b, a)", "b"),
    ("a difference the other way round", 122, "made = scalars[STEP.left] - scalars[STEP.right]",
     "made = scalars[STEP.right] - scalars[STEP.left]"),
    ("coefficients have one factor", 44, "GRAM.coefficients[k].number + 1 + j + one",
     "GRAM.coefficients[k].number + 1 + one"),
    ("chunks are stored at one place", 44, "* chunks + chunk + tl.arange(0, 1), scalars[s])",
     "* chunks + tl.arange(0, 1), scalars[s])"),
    ("a chunk's sum is left out", 44, "mask=element < count, other=0.0", "mask=element < count - 1, other=0.0"),
]  # fmt: skip


def noticed(seed):
    """Whether a case, or a NaN beside a number that is compared with it, shows that something is wrong."""
    try:
        with PretendGpu():
            return not nan_is_kept() if seed == "nan" else bool(agree(backend.gram, random_gram(seed)))
    except (AssertionError, PtxError):
        return True


def nan_is_kept():
    program = parse_gram([2, 0, 2, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0])
    columns = [torch.ones(2, 8), torch.full((2, 8), 2.0)]
    columns[0][1, 5] = torch.nan
    scalars = torch.empty(2, 1, dtype=torch.float64)
    numbers = torch.tensor([[1.0, 1.0, 0.5, 0.25]], dtype=torch.float64)
    backend.gram(GramCall(columns, numbers, program, scalars))
    return scalars.isnan().tolist() == [[False], [True]]


@pytest.mark.parametrize(("seed", "right", "wrong"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_the_fault_is_noticed(seed, right, wrong):
    with mutated("gram", right, wrong):
        assert noticed(seed)


def test_nothing_is_noticed_without_a_fault():
    for seed in (88, "nan"):
        assert not noticed(seed)
