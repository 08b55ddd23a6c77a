"""Noise from the Triton kernels against the reference and against known answers: bit for bit."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
import triton
import triton.language as tl
from fastdiff.kernels.normal import normals_of_blocks, normals_of_elements
from fastdiff.kernels.philox import philox
from pretend_gpu import PretendGpu

from fastdiff.backends import reference
from fastdiff.backends import triton as backend
from fastdiff.testing.rows import same_bits

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(shape, dtype, seeds, draws, layout=torch.contiguous_format):
    got = torch.full(shape, torch.nan, dtype=dtype).to(memory_format=layout)
    expected = got.clone(memory_format=layout)
    with PretendGpu() as gpu:
        backend.fill_noise(got, seeds, draws)
    reference.fill_noise(expected, seeds, draws)
    assert same_bits(got, expected)
    assert len(gpu.launches) == 1


def test_a_million_normals_have_the_reference_bits():
    """B2: 2**20 normals, a quarter of them from each of four seeds."""
    check((4, 2**18), torch.float32, torch.tensor([0, 1, 2**40 + 3, 2**63 - 1]), torch.tensor([[1, 2, 3, 4]]))


@pytest.mark.parametrize("dtype", TYPES)
def test_noise_is_rounded_to_every_type(dtype):
    draws = torch.tensor([[255, 65535, 2**32 - 1, 2**24 - 1], [0, 0, 0, 0]])
    check((2, 3, 43), dtype, torch.tensor([7, 8]), draws)


def test_channels_last_holds_the_same_noise():
    check((2, 3, 8, 6), torch.float32, torch.tensor([1, 2]), torch.tensor([[2, 0, 5, 9]]), torch.channels_last)


@triton.jit
def probe_philox(words, out, BLOCK: tl.constexpr):
    """Rows of six words in, rows of four out (both as int64)."""
    i = tl.arange(0, BLOCK)
    a, b, c = tl.load(words + 6 * i), tl.load(words + 6 * i + 1), tl.load(words + 6 * i + 2)
    d, k0, k1 = tl.load(words + 6 * i + 3), tl.load(words + 6 * i + 4), tl.load(words + 6 * i + 5)
    u32: tl.constexpr = tl.uint32
    a, b, c, d = philox(a.to(u32), b.to(u32), c.to(u32), d.to(u32), k0.to(u32), k1.to(u32))
    tl.store(out + 4 * i, a.to(tl.int64))
    tl.store(out + 4 * i + 1, b.to(tl.int64))
    tl.store(out + 4 * i + 2, c.to(tl.int64))
    tl.store(out + 4 * i + 3, d.to(tl.int64))


def test_philox_gives_known_answers_and_the_reference_words():
    ones = 0xFFFFFFFF
    words = torch.randint(0, 2**32, (128, 6), generator=torch.Generator().manual_seed(1))
    words[0], words[1] = torch.tensor([0] * 6), torch.tensor([ones] * 6)
    words[2] = torch.tensor([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0])
    out = torch.zeros(128, 4, dtype=torch.int64)
    with PretendGpu():
        probe_philox[(1,)](words, out, BLOCK=128, enable_fp_fusion=False)
    assert [f"{word:08x}" for word in out[0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert [f"{word:08x}" for word in out[1]] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    assert [f"{word:08x}" for word in out[2]] == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]
    expected = reference.philox(words[:, :4].unbind(-1), words[:, 4:].unbind(-1))
    assert torch.equal(out, torch.stack(expected, -1))


@triton.jit
def probe_blocks(blocks, seed, draw, whole, single, BLOCK: tl.constexpr):
    """The normals of blocks far out in a sample, by both of the ways to them."""
    block = tl.load(blocks + tl.arange(0, BLOCK))
    place = 4 * tl.arange(0, BLOCK)[:, None] + tl.arange(0, 4)[None, :]
    key = tl.load(seed)
    tl.store(whole + place, normals_of_blocks(block, key, draw))
    element = block[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(single + place, normals_of_elements(element, key, draw))


def test_counters_of_huge_samples():
    """Blocks up to 2**40 - 1, that is the last element 2**42 - 1, reach the upper word of the counter."""
    blocks = torch.randint(0, 2**40, (32,), generator=torch.Generator().manual_seed(2))
    blocks[:5] = torch.tensor([2**40 - 1, 2**32, 2**32 - 1, 2**31, 2**30])
    seed, draw = torch.tensor([2**62 + 12345]), torch.tensor([3, 9, 2**32 - 2, 77])
    whole, single = torch.zeros(32, 4), torch.zeros(32, 4)
    with PretendGpu():
        probe_blocks[(1,)](blocks, seed, draw, whole, single, BLOCK=32, enable_fp_fusion=False)
    zero = torch.zeros_like(blocks)
    counter = (blocks & 0xFFFFFFFF, blocks >> 32 | 3 << 8 | 9 << 16, zero + (2**32 - 2), zero + (77 | 1 << 24))
    words = reference.philox(counter, (zero + int(seed & 0xFFFFFFFF), zero + int(seed >> 32)))
    lanes = []
    for even, odd in (words[:2], words[2:]):
        r, (cosine, sine) = reference.radius(even), reference.cos_sin(odd)
        lanes += [r * cosine, r * sine]
    expected = torch.stack(lanes, -1)
    assert same_bits(whole, expected)
    assert same_bits(single, expected)
