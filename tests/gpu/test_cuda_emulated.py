"""The CUDA kernels and their launcher, compiled by g++ with a stand-in runtime, against the reference: bit for bit."""

import ctypes
import mmap
import shutil
from importlib.machinery import EXTENSION_SUFFIXES
from types import SimpleNamespace

import pytest
import torch
from compiled import emulated
from emulated import ORDERS, EmulatedCuda, registered
from sampling import network

import fastdiff
from fastdiff.backends import cuda, reference
from fastdiff.backends.cuda_arguments import DTYPES, StageArgs, noise_arguments
from fastdiff.backends.registry import list_backends
from fastdiff.errors import BackendError
from fastdiff.maths.draw import Draw
from fastdiff.rows.call import Call
from fastdiff.rows.program import Program
from fastdiff.rows.row import Output, Row
from fastdiff.testing.rows import random_case, same_bits

CASES = 2000
BLOCKS = 8
MAP_NORESERVE = 0x4000


@pytest.fixture(scope="module")
def library():
    return EmulatedCuda()


@pytest.fixture(autouse=True)
def _in_order(library):
    library.order("serial")


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_rows_have_the_reference_bits(library, block):
    """A1: in whatever order threads run, through the op's own checks and choice of a backend."""
    ran = 0
    with registered(library):
        for seed in range(CASES // BLOCKS * block, CASES // BLOCKS * (block + 1)):
            # One row in eight is large, and those take turns too.
            library.order(ORDERS[1 + (seed + seed // 8) % 4], seed)
            before = library.launched().launches
            case = random_case(seed, max_elements=1025 if seed % 8 else 4097)
            got = case.run("emulated-cuda")
            for key, value in case.run("reference").items():
                assert same_bits(got[key], value), f"{key} of {case.describe()}"
            # One call is one launch, and nothing to write is none at all.
            assert library.launched().launches - before == any(value.numel() for value in got.values())
            ran += bool(got)
    assert ran > CASES // BLOCKS * 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_noise_has_the_reference_bits(library, dtype, memory_format):
    """B2: 2**20 normals for each storage type and layout, from a draw of its own for each sample."""
    shape = (4, 16, 128, 128)
    seeds = torch.tensor([0, 1, 2**40 + 3, 2**63 - 1])
    draws = torch.tensor([[0, 0, 0, 0], [255, 65535, 2**32 - 1, 2**24 - 1], [1, 2, 3, 4], [4, 3, 2, 1]])
    got, expected = (torch.empty(shape, dtype=dtype, memory_format=memory_format) for _ in "ab")
    library.fill_noise(got, seeds, draws)
    reference.fill_noise(expected, seeds, draws)
    assert same_bits(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_whole_samplings_have_the_reference_bits(library, dtype, guidance):
    """Stochastic Heun, one launch for each network evaluation and one before the first."""
    plan = fastdiff.plan(steps=5, churn=fastdiff.Churn(20.0), guidance=guidance, dtype=dtype)
    settings = {"network_dtype": torch.bfloat16, "memory_format": torch.channels_last}

    def net(z, c_noise):
        return network(z)

    before = library.launched().launches
    with registered(library), fastdiff.use_backend("emulated-cuda"):
        got = fastdiff.sample(net, plan, (3, 4, 9, 7), 5, **settings)
    assert library.launched().launches - before == plan.evaluations + 1
    with fastdiff.use_backend("reference"):
        expected = fastdiff.sample(net, plan, (3, 4, 9, 7), 5, **settings)
    assert same_bits(got, expected)


def test_libraries_are_independent(library):
    """What one does not run, another does: tools that open the same file side by side do not stop each other."""
    other, out, still = EmulatedCuda(), torch.zeros(1, 8), torch.zeros(1, 8)
    other.order("none")
    before = library.launched().launches
    seeds, draws = torch.tensor([1]), torch.tensor([[4, 0, 0, 0]])
    library.fill_noise(out, seeds, draws)
    other.fill_noise(still, seeds, draws)
    assert (library.launched().launches - before, other.launched().launches) == (1, 1)
    assert out.all()
    assert not still.any()


# Sizes that do not fit in 32 bits, in memory of which only a few pages are ever touched ---------------------------

NOISY = Row(
    columns=("x", "F"),
    outputs=(Output(base="x", terms=(("F", -0.375),), noise=(("xi", 0.5),), store="x"),),
    draws=(("xi", Draw(1, 2, 3, 4)),),
    network=0,
    c_in=0.75,
)


def sparse(numel, dtype):
    pages = mmap.mmap(-1, numel * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return torch.frombuffer(pages, dtype=dtype)


def normals_of_blocks(blocks, seed, draw):
    """The reference's normals ``[n, 4]`` of some blocks, however far along a sample they are."""
    counter = reference.pack(blocks, torch.tensor(draw))
    key = torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([seed >> 32])
    words = torch.stack(reference.philox(counter, tuple(k.expand(blocks.shape) for k in key)), -1)
    r, (cosine, sine) = reference.radius(words[..., 0::2]), reference.cos_sin(words[..., 1::2])
    return torch.stack((r * cosine, r * sine), -1).flatten(-2)


def run_noisy(library, x, f, z, seeds):
    coef = torch.tensor([NOISY.coefficients])
    draws = torch.tensor([[[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in NOISY.draws]])
    library.stage(Call([x, f], coef, NOISY.program, seeds, draws, stores=[x], z=z))


@pytest.mark.parametrize("numel", [2**32 + 1027, 2**34 + 1027])
def test_beyond_two_to_the_32_elements(library, numel):
    """With 2**34 elements the number of a Philox block needs more than 32 bits too."""
    seed = 2**33 + 5
    x, f, z = sparse(numel, torch.float32), sparse(numel, torch.bfloat16), sparse(numel, torch.bfloat16)
    library.order("ends", 2)
    run_noisy(library, x[None], f[None], z[None], torch.tensor([seed]))
    (blocks, _, _), (threads, _, _) = library.launched().grid, library.launched().block
    # The threads of the first two and last two blocks, each with four quads a quarter of the sample apart.
    thread = torch.cat([torch.arange(2 * threads), torch.arange((blocks - 2) * threads, blocks * threads)])
    quads = torch.cat([thread + turn * blocks * threads for turn in range(4)])
    quads = quads[4 * quads < numel]
    assert int(quads.max()) == numel // 4
    expected = normals_of_blocks(quads, seed, [1, 4, 2, 3]) * 0.5
    place = (4 * quads[:, None] + torch.arange(4)).flatten()
    inside = place < numel
    expected, place = expected.flatten()[inside], place[inside]
    assert same_bits(x[place], expected)
    assert same_bits(z[place], (expected * 0.75).bfloat16())


def test_more_samples_than_a_grid_is_high(library):
    batch, numel = 5 * 65536, 512
    types = (torch.float32, torch.bfloat16, torch.bfloat16)
    x, f, z = (sparse(batch * numel, dtype).view(batch, numel) for dtype in types)
    library.order("ends", 1)
    run_noisy(library, x, f, z, torch.arange(batch))
    (wide, high, _), block = library.launched().grid, library.launched().block
    assert (wide, high) == (1, 65535)
    # The first block's samples, in every turn that it takes.
    turns = range(0, batch, high * block[1])
    assert len(turns) == 2
    for sample in turns:
        expected = normals_of_blocks(torch.arange(numel // 4), sample, [1, 4, 2, 3]).flatten() * 0.5
        assert same_bits(x[sample], expected)


def test_a_batch_stride_beyond_two_to_the_32_elements(library):
    numel, stride = 37, 2**32 + 64
    places = ((torch.float32, 4), (torch.bfloat16, 8), (torch.bfloat16, 8))
    x, f, z = (sparse(2 * stride, dtype).as_strided((2, numel), (stride, 1)) for dtype, _ in places)
    run_noisy(library, x, f, z, torch.tensor([3, 4]))
    for sample in range(2):
        expected = normals_of_blocks(torch.arange(10), sample + 3, [1, 4, 2, 3]).flatten()[:numel] * 0.5
        assert same_bits(x[sample], expected)
        assert same_bits(z[sample], (expected * 0.75).bfloat16())


# The launcher on the host ----------------------------------------------------------------------------------------


def launch_on(device, monkeypatch, library):
    """Launch as for a CUDA tensor on this device, whose current stream is number 1234."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=1234))
    out, seeds, draws = torch.empty(2, 8), torch.tensor([1, 2]), torch.tensor([[4, 0, 0, 0]])
    args = noise_arguments(out, seeds, draws)
    tensor = SimpleNamespace(is_cuda=True, device=torch.device("cuda", device))
    cuda._launch(library._fill_noise, args, tensor)


def test_the_tensors_device_and_its_current_stream_are_used(monkeypatch):
    library = EmulatedCuda()
    library.devices(3)
    launch_on(2, monkeypatch, library)
    launched = library.launched()
    assert (launched.device, launched.current_device, launched.stream) == (2, 0, 1234)
    library.devices(1)


def test_what_the_runtime_says_reaches_the_caller(monkeypatch):
    library = EmulatedCuda()
    before = library.launched().launches
    with pytest.raises(BackendError, match="not launched: invalid device ordinal"):
        launch_on(1, monkeypatch, library)
    assert library.launched().launches == before
    # Nobody else finds the error later on.
    assert library.launched().error == 0
    launch_on(0, monkeypatch, library)


@pytest.mark.parametrize(
    ("driver", "runtime", "targets", "capability", "reason"),
    [
        (0, 13000, "sm_80", None, "this machine has no NVIDIA driver"),
        (12080, 13000, "sm_80", None, "driver is for CUDA 12.8 .* runtime of CUDA 13.0; update the driver"),
        (13000, 13010, "sm_80", (8, 6), None),
        (13000, 13000, "sm_80 compute_120", None, None),
        (13000, 13000, "sm_80 sm_90 compute_120", (8, 9), None),
        (13000, 13000, "sm_80 sm_90 compute_120", (12, 1), None),
        (
            13000,
            13000,
            "sm_80 sm_90 compute_120",
            (7, 5),
            "compiled for sm_80, .*; this device has capability 7.5",
        ),
        (13000, 13000, "sm_80 sm_90 compute_120", (10, 0), "this device has capability 10.0"),
        (13000, 13000, "sm_86", (8, 0), "this device has capability 8.0"),
    ],
)
def test_refusals_say_why(driver, runtime, targets, capability, reason):
    library = EmulatedCuda()
    library.driver, library.runtime, library.targets = driver, runtime, targets.split()
    refusal = library.refusal(capability)
    if reason is None:
        assert refusal is None
    else:
        with pytest.raises(BackendError, match=reason):
            raise BackendError(refusal)


def test_a_library_of_another_build_is_refused(monkeypatch):
    monkeypatch.setattr(cuda, "ABI", 0)
    with pytest.raises(BackendError, match="another build of fastdiff"):
        EmulatedCuda()


def test_arguments_are_those_of_the_header():
    """ctypes and the compiler lay ``StageArgs`` out alike: what Python wrote is what a kernel was given."""
    library = EmulatedCuda()
    case = random_case(4, max_elements=33)
    library.order("none")
    case.run(library.stage)
    args = StageArgs.from_buffer_copy(library.launched().argument)
    # After them stand the slots, which the launcher gives.
    assert ctypes.sizeof(args) + 8 == len(library.launched().argument)
    assert (args.batch, args.numel) == (case.shape[0], case.shape[1:].numel())
    assert args.program.coefficients == len(case.row.coefficients)
    assert args.coef == case.coef.data_ptr()
    assert [args.column[i].dtype for i in range(args.program.columns)] == [
        DTYPES[values.dtype] for values, _ in case.columns
    ]


def test_only_outputs_that_are_read_take_shared_memory(library):
    """A slot of 64 bytes for each column, for each output that a later one reads, and for what is on its way."""
    term = (("x", 1.0),)
    for last, slots in ((Output(terms=term), 2), (Output(base="w1"), 3), (Output(terms=(("w0", 1.0), ("w1", 1.0))), 4)):
        row = Row(("x",), (Output(terms=term), Output(terms=term), last))
        x, out = torch.ones(1, 8192), torch.empty(1, 8192)
        library.stage(Call([x], torch.tensor([row.coefficients]), row.program, stores=[None, None, out]))
        threads = library.launched().block[0]
        assert (threads, library.launched().shared) == (128, 128 * slots * 64)


def test_the_backend_runs_what_it_opened(monkeypatch, library):
    monkeypatch.setattr(cuda, "_library", lambda: library)
    assert cuda.unavailable() is None
    assert cuda.details() == "CUDA 13.0, driver for 13.0, compiled for sm_80, sm_90, compute_90"
    got, expected = torch.empty(2, 33), torch.empty(2, 33)
    seeds, draws = torch.tensor([8, 9]), torch.tensor([[1, 2, 3, 4]])
    cuda.fill_noise(got, seeds, draws)
    reference.fill_noise(expected, seeds, draws)
    assert same_bits(got, expected)


def test_a_file_that_cannot_be_opened_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "__file__", str(tmp_path / "backends" / "cuda.py"))
    look = cuda._library.__wrapped__
    assert look().startswith("fastdiff._cuda was not built; install fastdiff where nvcc")
    (tmp_path / f"_cuda{EXTENSION_SUFFIXES[0]}").write_text("nothing")
    assert look().startswith("fastdiff._cuda cannot be opened (")
    shutil.copy(emulated(), tmp_path / f"_cuda{EXTENSION_SUFFIXES[0]}")
    monkeypatch.setattr(cuda, "ABI", 0)
    assert "comes from another build of fastdiff" in look()
    monkeypatch.setattr(cuda, "_library", look)
    with pytest.raises(BackendError, match=r"backend 'cuda' cannot be used: .* another build"):
        cuda.stage(Call([], torch.ones(1, 0), Program(0, ())))


def test_without_the_library_the_reason_is_given():
    reasons = {report.name: report.reason for report in list_backends()}
    if reasons["cuda"] is None:
        pytest.skip("fastdiff._cuda is installed and usable here")
    with pytest.raises(BackendError, match="backend 'cuda' cannot be used"), fastdiff.use_backend("cuda"):
        pass
