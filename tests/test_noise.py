"""The noise: Philox, the counter, the polynomials, and what comes out of them, all on the reference."""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats

from fastdiff import ops
from fastdiff.backends import reference

ROOT = Path(__file__).parents[1]
KAT = ROOT / "tests" / "kat"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ALPHA = 1e-6
WORD = 0xFFFFFFFF


def read_lines(name: str) -> list[list[str]]:
    lines = (KAT / name).read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def philox_integers(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python integers, straight from the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & WORD, (p0 >> 32) ^ c[3] ^ k[1], p0 & WORD]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return c


def philox_tensors(words: np.ndarray) -> np.ndarray:
    """The reference on rows of four counter words and two key words."""
    c0, c1, c2, c3, k0, k1 = torch.from_numpy(words.astype(np.int64)).unbind(1)
    return torch.stack(reference.philox((c0, c1, c2, c3), (k0, k1)), 1).numpy()


def test_philox_known_answers() -> None:
    rows = np.array([[int(word, 16) for word in line[1:]] for line in read_lines("philox.txt")])
    assert len(rows) == 3
    np.testing.assert_array_equal(philox_tensors(rows[:, :6]), rows[:, 6:])


def test_philox_against_integers() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (10_000, 6))
    expected = [philox_integers(row[:4], row[4:]) for row in words.tolist()]
    np.testing.assert_array_equal(philox_tensors(words), expected)


def test_normals_known_answers() -> None:
    lines = read_lines("normals.txt")
    table = [[int(word) for word in line[:5]] for line in lines]
    found = reference.normals(8, torch.tensor([t[0] for t in table]), torch.tensor([t[1:] for t in table]))
    assert [[f"{word & WORD:08x}" for word in row] for row in found.view(torch.int32).tolist()] == [
        line[5:] for line in lines
    ]


def test_normals_from_words_of_the_counter() -> None:
    """Element, lane and key are where the contract says: an independent walk from integers to the normal."""
    seed, (purpose, tensor, draw, sub_draw) = 2**40 + 12345, (3, 7, 11, 13)
    found = reference.normals(13, torch.tensor([seed]), torch.tensor([[purpose, tensor, draw, sub_draw]]))[0]
    for element in range(13):
        counter = [element >> 2, (element >> 34) | purpose << 8 | tensor << 16, draw, sub_draw | 1 << 24]
        words = philox_integers(counter, [seed & WORD, seed >> 32])
        even, odd = words[element & 2], words[element & 2 | 1]
        angle = math.tau * odd / 2**32
        expected = math.sqrt(-2 * math.log((even + 0.5) / 2**32)) * (math.sin if element & 1 else math.cos)(angle)
        assert found[element].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def unpack(words: list[int]) -> tuple[int, ...]:
    """The inverse of the packing: block, purpose, tensor, draw, sub_draw, noise format."""
    c0, c1, c2, c3 = words
    return c0 | (c1 & 0xFF) << 32, c1 >> 8 & 0xFF, c1 >> 16, c2, c3 & 0xFFFFFF, c3 >> 24


def test_packing_has_an_inverse() -> None:
    """A function with an inverse is injective: no two (element // 4, draw) share a counter."""
    bits = (40, 8, 16, 32, 24)
    rng = np.random.default_rng(1)
    edges = [[0, 1, 2 ** (b - 1) - 1, 2 ** (b - 1), 2**b - 2, 2**b - 1] for b in bits]
    rows = [list(row) for row in zip(*edges, strict=True)]
    for i, values in enumerate(edges):
        rows += [[value if j == i else 0 for j in range(5)] for value in values]
        rows += [[value if j == i else 2 ** bits[j] - 1 for j in range(5)] for value in values]
    rows += [[int(rng.integers(2**b)) for b in bits] for _ in range(1000)]
    for block, *draw in rows:
        packed = reference.pack(torch.tensor([block]), torch.tensor(draw))
        words = [word.item() for word in packed]
        assert all(0 <= word <= WORD for word in words)
        assert unpack(words) == (block, *draw, reference.NOISE_FORMAT)


def test_constants() -> None:
    """Written in hexadecimal they cannot be misread: a backend that copies decimals must arrive at these."""
    expected = {
        "LOG_EVEN": "-0x1.0ae000p-3 -0x1.f19968p-4 -0x1.55b362p-3 -0x1.fffe02p-3",
        "LOG_ODD": "0x1.208000p-3 0x1.1e5740p-3 0x1.99d8b2p-3",
        "LOG_TAIL": "0x1.5554fap-2 -0x1.000000p-1",
        "COS": "0x1.d9e000p-3 -0x1.55c400p+0 0x1.03c1a0p+2 -0x1.3bd3ccp+2 0x1.000000p+0",
        "SIN": "-0x1.310000p-1 0x1.4672fcp+1 -0x1.4abbfep+2",
    }
    for name, text in expected.items():
        assert getattr(reference, name) == tuple(float.fromhex(word) for word in text.split()), name
    assert (float.fromhex("0x1.62e430p-1"), float.fromhex("0x1.921fb6p+1")) == (reference.LN_2, reference.PI)


def nearest_float32(value: Fraction) -> float:
    """A rational rounded once to float32, to nearest even."""
    if value == 0:
        return 0.0
    exponent = math.frexp(float(value))[1] - 1
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    ulp = Fraction(2) ** max(exponent - 23, -149)
    return float(round(value / ulp) * ulp)


def hard_products() -> np.ndarray:
    """Triples a, b, c in float32 whose a * b + c is hard to round: ties, near ties, cancellation, subnormals."""
    rng = np.random.default_rng(2)
    n = 3000
    a, b = (rng.uniform(1, 2, n) * 2.0 ** rng.integers(-6, 6, n) for _ in range(2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    product = a.astype(np.float64) * b
    cancelling = -product.astype(np.float32)
    shifted = (product * 2.0 ** rng.integers(20, 60, n)).astype(np.float32)
    tiny = np.float32(2.0**-140) * rng.integers(1, 100, n).astype(np.float32)
    near_tie = (1 + 2.0**-15, 2.0**-24 * (1 - 2.0**-15), 1 + 2.0**-23)
    rows = [np.stack(t, 1) for t in ((a, b, cancelling), (a, b, shifted), (a, b, -shifted), (a * tiny, b, tiny))]
    few = np.array([near_tie, (0.0, 1.0, -0.5), (1.0, 2.0**-24, 1.0)])
    return np.concatenate([*rows, few]).astype(np.float32)


def test_fma_is_exact() -> None:
    rows = hard_products()
    exact = [nearest_float32(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))) for a, b, c in rows]
    a, b, c = torch.from_numpy(rows).unbind(1)
    found = reference.fma(a, b, c).double().tolist()
    assert found == exact
    # The cases are hard enough to see what is wrong with rounding twice.
    twice = (a.double() * b.double() + c.double()).float().double().tolist()
    assert twice != exact


@pytest.fixture(scope="module")
def words() -> torch.Tensor:
    """A stratified sample of the 2**32 words, dense at both ends, at octants and at powers of two."""
    rng = np.random.default_rng(3)
    strata = np.arange(0, 2**32, 2**14) + rng.integers(0, 2**14, 2**18)
    near = np.arange(-1024, 1024)
    edges = (np.concatenate([np.arange(9) * 2**29, 2 ** np.arange(32)])[:, None] + near).ravel() % 2**32
    return torch.from_numpy(np.unique(np.concatenate([strata, edges])))


def ulps(found: torch.Tensor, exact: np.ndarray) -> np.ndarray:
    """Errors in units of the last place of a float32 of that size."""
    return np.abs(found.double().numpy() - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def test_radius_accuracy(words: torch.Tensor) -> None:
    """At most 1.11 ulp: 0.85 ulp of the logarithm is at most 0.85 / sqrt(2) ulp of its root, and the root rounds."""
    u = reference.fma(words.float(), 2.0**-32, 2.0**-33).double().numpy()
    exact = np.sqrt(-2 * np.log(u))
    found = reference.radius(words)
    assert ulps(found, exact)[exact > 0].max() <= 0.85 / math.sqrt(2) + 0.5 + 1e-6
    assert (found[torch.from_numpy(exact == 0)] == 0).all()


# Of the cosine and of the sine, in ulp: for the angle rounded to float32, and for the exact one.
ANGLE_ERRORS = {"rounded": (1.580, 1.953), "exact": (1.847, 2.703)}


@pytest.mark.parametrize("angle", ANGLE_ERRORS)
def test_cos_sin_accuracy(words: torch.Tensor, angle: str) -> None:
    """A quadrant that is odd shows the sine where the cosine belongs, so each may be as wrong as the worse of them."""
    # The words at which the largest errors of all lie.
    words = torch.cat([words, torch.tensor([21363906, 42744902])])
    quadrant = ((words + 0x20000000) >> 30).numpy()
    offset = words.numpy() - (quadrant << 30)
    held = offset.astype(np.float32) if angle == "rounded" else offset
    t = held.astype(np.longdouble) * np.longdouble(2.0) ** -31
    pi = np.longdouble("3.14159265358979323846264338327950288")
    cos, sin = np.cos(pi * t).astype(np.float64), np.sin(pi * t).astype(np.float64)
    turns = [(cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos)]
    which = [quadrant % 4 == q for q in range(4)]
    largest = 0.0
    for found, expected in zip(reference.cos_sin(words), zip(*turns, strict=True), strict=True):
        exact = np.select(which, expected)
        largest = max(largest, ulps(found, exact)[exact != 0].max())
        assert (found.double().numpy()[exact == 0] == 0).all()
    assert largest == pytest.approx(max(ANGLE_ERRORS[angle]), abs=5e-4)


@pytest.mark.night
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles a program")
def test_cos_sin_accuracy_for_every_angle(tmp_path: Path) -> None:
    """All 2**29 angles up to symmetry, through the formulas of the C++ kernels; half a minute."""
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", *(["-mfma"] if X86 else [])]
    program = tmp_path / "angles"
    subprocess.run(["g++", *flags, str(ROOT / "tests/accuracy/angles.cpp"), "-o", str(program)], check=True)
    found = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    assert [float(value) for value in found] == [*ANGLE_ERRORS["rounded"], *ANGLE_ERRORS["exact"]]


def test_extreme_words_are_finite() -> None:
    extreme = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
    radius = reference.radius(extreme)
    assert radius.isfinite().all()
    assert radius[0] > 6.6
    assert radius[-1] == 0
    for value in reference.cos_sin(extreme):
        assert value.isfinite().all()
        assert value.abs().max() <= 1


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return draw_normals()


def draw_normals(numel: int = 2**20, seed: int = 11, **words: int) -> np.ndarray:
    draw = [words.get(name, 0) for name in ("purpose", "tensor", "draw", "sub_draw")]
    return reference.normals(numel, torch.tensor([seed]), torch.tensor([draw]))[0].double().numpy()


def moments_agree(x: np.ndarray) -> bool:
    """The first four moments within four standard errors of those of a standard normal."""
    errors = {1: 1.0, 2: math.sqrt(2), 3: math.sqrt(15), 4: math.sqrt(96)}
    expected = {1: 0.0, 2: 1.0, 3: 0.0, 4: 3.0}
    return all(abs(np.mean(x**k) - expected[k]) <= 4 * se / math.sqrt(x.size) for k, se in errors.items())


def kolmogorov_smirnov(x: np.ndarray) -> float:
    return stats.kstest(x, "norm").pvalue


def anderson_darling(x: np.ndarray) -> float:
    """Upper tail of A**2 = sum chi2_j / (j (j + 1)) with all parameters known: sqrt(3) erfc(sqrt(A**2))."""
    x, n = np.sort(x), x.size
    weights = 2 * np.arange(1, n + 1) - 1
    a2 = -n - np.mean(weights * (special.log_ndtr(x) + special.log_ndtr(-x[::-1])))
    return math.sqrt(3) * special.erfc(math.sqrt(max(a2, 0.0)))


def tail_count(x: np.ndarray, sigma: float = 4.0) -> float:
    return stats.binomtest(int((np.abs(x) > sigma).sum()), x.size, 2 * stats.norm.sf(sigma)).pvalue


TESTS = (kolmogorov_smirnov, anderson_darling, tail_count)


def test_distribution(sample: np.ndarray) -> None:
    assert moments_agree(sample)
    for test in TESTS:
        assert test(sample) > ALPHA, test.__name__


def test_distribution_tests_reject(sample: np.ndarray) -> None:
    """Positive controls: each test sees the fault that it is there for."""
    assert not moments_agree(sample * 1.02)
    assert not moments_agree(sample + 0.005)
    assert kolmogorov_smirnov(np.clip(sample, -2, 2)) < ALPHA
    assert anderson_darling(np.clip(sample, -2.5, 2.5)) < ALPHA
    assert tail_count(np.clip(sample, -3.9, 3.9)) < ALPHA


@pytest.mark.parametrize("neighbour", ["seed", "purpose", "tensor", "draw", "sub_draw", "element", "pair", "block"])
def test_neighbours_are_uncorrelated(neighbour: str) -> None:
    n = 2**17
    x = draw_normals(n + 4)
    shifts = {"element": 1, "pair": 2, "block": 4}
    if neighbour in shifts:
        y = x[shifts[neighbour] :][:n]
    else:
        y = draw_normals(n, seed=12) if neighbour == "seed" else draw_normals(n, **{neighbour: 1})
    x = x[:n]
    limit = stats.norm.isf(ALPHA / 2) / math.sqrt(n)
    assert abs(np.mean(x * y)) < limit
    # Var(x**2 - 1) = 2, so the product of two such has variance 4.
    assert abs(np.mean((x**2 - 1) * (y**2 - 1))) < 2 * limit
    assert abs(np.mean(x * (0.9 * y + 0.1 * x))) > limit, "a correlation of 0.1 must be seen"


def test_a_normal_depends_on_its_element_only() -> None:
    draws = torch.tensor([[1, 0, 5, 0]])
    long = reference.normals(1025, torch.tensor([3, 4, 5]), draws)
    for numel in (1, 2, 3, 4, 5, 33, 1024):
        assert torch.equal(reference.normals(numel, torch.tensor([4]), draws)[0], long[1, :numel])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_fill_noise_rounds_once(dtype: torch.dtype) -> None:
    expected = reference.normals(35, torch.tensor([9, 10]), torch.tensor([[4, 0, 0, 0]])).to(dtype)
    out = torch.empty((2, 5, 7), dtype=dtype)
    ops.fill_noise(out, 9)
    assert torch.equal(out, expected.view(2, 5, 7))
    last = torch.empty((2, 5, 7, 1), dtype=dtype).to(memory_format=torch.channels_last)
    ops.fill_noise(last, 9)
    assert torch.equal(last[..., 0], out)


def test_fill_noise_takes_one_draw_for_each_sample() -> None:
    out, single = torch.empty(3, 8), torch.empty(1, 8)
    ops.fill_noise(out, [5, 5, 6], purpose=1, draw=[2, 3, 2], sub_draw=torch.tensor([0, 1, 2]))
    for i, (seed, draw, sub_draw) in enumerate(((5, 2, 0), (5, 3, 1), (6, 2, 2))):
        ops.fill_noise(single, seed, 1, draw, sub_draw)
        assert torch.equal(out[i], single[0])
