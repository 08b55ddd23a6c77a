"""The gram of the CUDA backend, by each way of running its kernels, against its definition: bit for bit."""

from functools import cache

import pytest
import torch
from compiled import NVCC, TARGETS
from emulated import ORDERS, EmulatedCuda, registered
from test_cuda_emulated import normals_of_blocks, sparse

from fastdiff import ops
from fastdiff.backends import cuda
from fastdiff.backends.cuda_arguments import CHUNK, gram_arguments
from fastdiff.backends.reference import gram, larger, tree_sum
from fastdiff.backends.registry import use_backend
from fastdiff.rows.call import GramCall
from fastdiff.rows.gram import MAX_FACTORS, MAX_TERMS, parse_gram
from fastdiff.testing.gram import random_gram
from fastdiff.testing.rows import same_bits

CASES, PTX_CASES = 600, 24
BLOCKS = 4


@pytest.fixture(scope="module")
def library():
    return EmulatedCuda()


@pytest.fixture(autouse=True)
def _in_order(library):
    library.order("serial")


@pytest.fixture(scope="module")
def executed():
    """The PTX of each target, compiled when it is first asked for."""
    if NVCC is None:
        pytest.skip("nvcc is not installed")
    from executed import ExecutedCuda

    return cache(ExecutedCuda)


def agree(run, case):
    got, expected = case.run(run), case.run(gram)
    for key, value in expected.items():
        assert same_bits(got[key], value), f"{key} of {case.describe()}"


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_grams_have_the_bits_of_the_definition(library, block):
    """In whatever order threads run between barriers; two launches where a sample has several chunks, else one."""
    for seed in range(CASES // BLOCKS * block, CASES // BLOCKS * (block + 1)):
        # Threads of the system take their time.
        library.order(ORDERS[4] if seed % 16 == 15 else ORDERS[1 + seed % 3], seed)
        before, case = library.launched().launches, random_gram(seed)
        agree(library.gram, case)
        several = case.columns[0][0][0].numel() > CHUNK
        assert library.launched().launches - before == 1 + several


def test_the_op_takes_the_backend(library):
    """Through the op's own checks, and the choice of a backend."""

    def run(call):
        tables = {"scalars": call.scalars, "coef": call.coef, "seeds": call.seeds, "draws": call.draws}
        with registered(library), use_backend("emulated-cuda"):
            ops.gram(call.columns, call.numbers, call.program, **tables)

    before = library.launched().launches
    for seed in range(16):
        agree(run, random_gram(seed, (3, 130, 513)))
    assert library.launched().launches - before == 16


def test_as_many_terms_and_factors_as_there_may_be(library):
    """In one vector, and in one coefficient."""
    terms, factors = [0] * MAX_TERMS, [0] * MAX_FACTORS
    program = parse_gram([1, 0, 1, MAX_TERMS, *terms, 1, 0, 0, 0, -1, 0, 1, MAX_FACTORS, *factors])
    numbers = torch.linspace(-1, 2, program.numbers, dtype=torch.float64)[None]
    made = []
    for run in (library.gram, gram):
        made.append(torch.empty(2, 1, dtype=torch.float64))
        scalars = torch.empty(2, 1, dtype=torch.float64)
        run(GramCall([torch.linspace(0, 1, 10).view(2, 5)], numbers, program, scalars, coef=made[-1]))
    assert same_bits(*made)


@pytest.mark.parametrize("seed", range(PTX_CASES))
def test_compiled_grams_have_the_bits_of_the_definition(executed, seed):
    agree(executed("sm_90").gram, random_gram(seed))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_the_bits_of_the_definition(executed, target):
    for seed in (1, 5, 14):
        agree(executed(target).gram, random_gram(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_quads_of_a_column_move_at_once(executed, dtype):
    """128 bits, or 64 for four elements of 16 bits, once for each term that names the column."""
    x, y = torch.randn(2, 4096).to(dtype), torch.randn(2, 4096).to(dtype)
    library = executed("sm_90")
    call = inner_product([x, y])
    library.gram(call)
    expected = torch.empty_like(call.scalars)
    gram(call._replace(scalars=expected))
    assert same_bits(call.scalars, expected)
    regions = library.memory.named("columns")
    assert sum(region.bytes_read for region in regions) == 2 * 2 * 4096 * dtype.itemsize
    assert {access for region in regions for access in region.accesses} == {("load", min(16, 4 * dtype.itemsize))}


def inner_product(columns):
    """The sum of products of two columns."""
    program = parse_gram([2, 0, 2, 1, 0, 1, 1, 1, 0, 0, 1, -1, 0, 0])
    scalars = torch.empty(columns[0].shape[0], 1, dtype=torch.float64)
    return GramCall(columns, torch.ones(1, 2, dtype=torch.float64), program, scalars)


def test_a_sum_of_more_chunks_than_one_chunk_has(library):
    """More than 2**24 elements take three levels."""
    x = torch.linspace(-3, 5, 2**24 + 4099).bfloat16()[None]
    call = inner_product([x, x])
    library.gram(call)
    assert same_bits(call.scalars[0], tree_sum(x.double() * x.double()))


def test_beyond_two_to_the_32_elements(library):
    """The last two chunks of a sample that is one draw: their counters and places need more than 32 bits."""
    numel, seed, draw = 2**34 + 4096 + 1027, 2**33 + 5, [1, 4, 2, 3]
    x = sparse(numel, torch.bfloat16)[None]
    program = parse_gram([1, 1, 1, 2, 0, 1, 1, 0, 0, 0, -1, 0, 0])
    seeds, draws = torch.tensor([seed]), torch.tensor([[draw]])
    scalars, numbers = torch.empty(1, 1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    args, parts = gram_arguments(GramCall([x], numbers, program, scalars, seeds, draws))
    library.order("ends", 2)
    cuda._launch(library._gram, args, scalars)
    chunks = parts.shape[-1]
    assert chunks > 2**22
    for chunk in (chunks - 2, chunks - 1):
        quads = torch.arange(1024 * chunk, min(1024 * (chunk + 1), -(-numel // 4)))
        normal = normals_of_blocks(quads, seed, draw).flatten()[: numel - 4096 * chunk].double()
        assert same_bits(parts[0, :, chunk], tree_sum(normal * normal)[None])


def test_more_samples_than_a_grid_is_high(library):
    batch = 65536 + 300
    x = torch.arange(batch, dtype=torch.float32)[:, None]
    call = inner_product([x, x])
    library.order("ends", 1)
    library.gram(call)
    assert library.launched().grid[:2] == (1, 65535)
    # The first block's two samples, and the last one's.
    for sample in (0, 65535, 65534):
        assert call.scalars[sample].item() == sample**2


def test_a_nan_stays_in_its_sample_and_is_never_lost():
    """Also where maxima are taken of it."""
    nan, one = torch.tensor([float("nan")]), torch.tensor([1.0])
    assert all(larger(a, b).isnan() for a, b in ((nan, one), (one, nan)))
    # atol and rtol weigh 1 by two columns, of which one has a NaN in its second sample.
    program = parse_gram([2, 0, 3, 1, 2, 1, 0, 1, 1, 2, 1, 0, 1, 2, 1, 0, 2, 1, 0, 0])
    for broken in range(2):
        columns = [torch.ones(3, 8), torch.full((3, 8), 2.0)]
        columns[broken][1, 5] = torch.nan
        scalars = torch.empty(3, 2, dtype=torch.float64)
        numbers = torch.tensor([[1.0, 1.0, 1.0, 0.5, 0.25, 0.5, 0.25]], dtype=torch.float64)
        EmulatedCuda().gram(GramCall(columns, numbers, program, scalars))
        assert scalars.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
