"""Elements far inside a sample: offsets and counters that need more than 32 bits, on samples too large to allocate."""

from __future__ import annotations

import mmap
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdiff.backends import cpu, reference
from fastdiff.rows.call import Call
from fastdiff.rows.row import Output, Row
from fastdiff.testing.rows import same_bits

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-w", "-ffp-contract=off"]
ISAS = {"scalar": ["-DFD_BITS=0"], "avx2": ["-DFD_BITS=256", "-mavx2", "-mfma", "-mf16c"]}
SEED, DRAW = 1234567890123456789, (1, 2, 3, 4)
TURN = 2**34  # the block index passes 2^32 here


def sparse(elements: int) -> Tensor:
    """A bfloat16 tensor whose pages come into being when they are touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return torch.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=torch.bfloat16)


@pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
def test_samples_more_than_two_to_the_31_elements_apart() -> None:
    stride, numel = 2**31 + 5, 700
    row = Row(("x",), (Output(terms=(("x", 1.0),), store="w"),), network=0)
    try:
        places = [sparse(stride + numel).as_strided((2, numel), (stride, 1)) for _ in range(3)]
    except OSError as error:
        pytest.skip(f"this machine does not give out {2 * stride} bytes of addresses ({error})")
    x, w, z = places
    values = torch.randn(2, numel).bfloat16()
    x.copy_(values)
    coef = torch.tensor([[0.3, 0.7]])
    cpu.stage(Call([x], coef, row.program, stores=[w], z=z))
    expected, expected_z = torch.empty_like(values), torch.empty_like(values)
    reference.stage(Call([values], coef, row.program, stores=[expected], z=expected_z))
    assert same_bits(w, expected)
    assert same_bits(z, expected_z)


def normals_at(elements: Tensor) -> Tensor:
    """The normals of these elements, each from its own counter, by the reference's formulas."""
    block = elements >> 2
    purpose, tensor, draw, sub_draw = (torch.full_like(block, word) for word in DRAW)
    second = (block >> 32) | (purpose << 8) | (tensor << 16)
    counter = (block & 0xFFFFFFFF, second, draw, sub_draw | reference.NOISE_FORMAT << 24)
    key = (torch.full_like(block, SEED & 0xFFFFFFFF), torch.full_like(block, SEED >> 32))
    words = reference.philox(counter, key)
    lanes = []
    for even in (0, 2):
        r, (cosine, sine) = reference.radius(words[even]), reference.cos_sin(words[even + 1])
        lanes += [r * cosine, r * sine]
    return torch.stack(lanes).gather(0, (elements & 3)[None])[0]


@pytest.fixture(scope="module", params=list(ISAS))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("g++ is not installed")
    if request.param != "scalar" and (cpu.host() is None or request.param not in cpu.host().isas()):
        pytest.skip(f"this processor has no {request.param}")
    path = tmp_path_factory.mktemp("far") / request.param
    sources = [str(ROOT / "tests" / "far" / "far.cpp"), str(ROOT / "csrc" / "cpu.cpp")]
    flags = [*FLAGS, f"-DFD_ISA={request.param}", *ISAS[request.param], f"-I{ROOT / 'csrc'}"]
    subprocess.run([str(COMPILER), *flags, *sources, "-o", str(path)], check=True)
    return path


def run(program: Path, numel: int, channels: int, begin: int, count: int) -> Tensor:
    arguments = [str(n) for n in (numel, channels, begin, count)]
    printed = subprocess.run([str(program), *arguments], check=True, capture_output=True, text=True).stdout
    return torch.tensor([float.fromhex(line) for line in printed.split()])


@pytest.mark.night
@pytest.mark.parametrize("begin", [2**31 - 1024, 2**32 - 1024, TURN - 1024, 2**41 + 512])
def test_row_major(program: Path, begin: int) -> None:
    found = run(program, 2**42, 1, begin, 2048)
    assert same_bits(found, normals_at(torch.arange(begin, begin + 2048)))


@pytest.mark.night
@pytest.mark.parametrize("channels", [3, 400])
def test_channels_last(program: Path, channels: int) -> None:
    positions = TURN // 2 + 100
    begin = positions * channels - 1500
    place = torch.arange(begin, begin + 1500)
    logical = place % channels * positions + place // channels
    assert same_bits(run(program, positions * channels, channels, begin, 1500), normals_at(logical))
