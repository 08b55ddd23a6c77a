"""Faults planted in the Triton kernels and their launcher: the tests of this folder must notice each."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
from cases import KINDS, make
from mutants import mutated
from pretend_gpu import PretendGpu
from ptx import PtxError

from fastdiff.backends import reference
from fastdiff.backends import triton as backend
from fastdiff.testing.rows import same_bits

MUTANTS = [
    ("one element too many", "unaligned", "stage", "masks = (place < numel,)", "masks = (place <= numel,)"),
    ("one quad too many", "heun predictor", "stage", "(quad < numel // 4)[", "(quad <= numel // 4)["),
    ("the last quad is left out", "heun predictor", "stage", "(quad < numel // 4)[", "(quad < numel // 4 - 1)["),
    ("the left-over elements are left out", "left-over elements", "stage", "(place < numel),)", "(place < 0),)"),
    ("tiles overlap", "heun predictor", "stage", "quad = tile * QUADS + tl.arange(0, QUADS)\n    place = "
     "quad[:, None] * 4 + tl.arange(0, 4)[None, :]\n    masks = _masks(quad, place, numel, ACCESS)\n\n    coef",
     "quad = tile * (QUADS - 1) + tl.arange(0, QUADS)\n    place = "
     "quad[:, None] * 4 + tl.arange(0, 4)[None, :]\n    masks = _masks(quad, place, numel, ACCESS)\n\n    coef"),
    ("the wrong coefficient", "multistep", "stage", "tl.load(coef + K)", "tl.load(coef + K // 2)"),
    ("all samples take the first one's coefficients", "multistep", "stage", "coef += sample * coef_stride",
     "coef += sample * 0"),
    ("all samples take the first one's seed", "heun corrector", "stage", "seed = tl.load(seeds + sample)\n\n    wide",
     "seed = tl.load(seeds)\n\n    wide"),
    ("presence of the next coefficient", "continuous batching", "stage", "(present >> k) & 1",
     "(present >> (k + 1)) & 1"),
    ("the sum does not start", "continuous batching", "stage", "started = started | on", "started = on"),
    ("the clamp loses NaN", "multistep", "stage", "tl.where(w < lower, lower, w))",
     "tl.where(w > lower, w, lower))"),
    ("an output is read before it is clamped", "multistep", "stage", "wide = wide + (_cut(w, coef, present,"
     " ROW, i),)", "wide = wide + (w,)"),
    ("float64 goes straight to 16 bits", "fp64 multistep", "stage", "primitive_bitwidth == 16",
     "primitive_bitwidth == 1"),
    ("the state is narrowed", "fp64 multistep", "stage", ".to(state),)", ".to(tl.float32),)"),
    ("copies of the network input lie one sample apart", "guided corrector", "stage", "copy * batch", "copy"),
    ("memory order counts elements", "channels last", "stage", "if CHANNELS_LAST:", "if False:"),
    ("nine rounds", "noise", "philox", "tl.static_range(10)", "tl.static_range(9)"),
    ("the key stands still", "noise", "philox", "k1 + 0xBB67AE85", "k1"),
    ("a product is rounded before it is added", "noise", "normal", "r = tl.fma(r, s, f)", "r = r * s + f"),
    ("the quadrant is rounded down", "noise", "normal", "(word + 0x20000000) >> 30", "word >> 30"),
    ("an approximate square root", "noise", "normal", "tl.sqrt_rn", "tl.sqrt"),
    ("lanes change places", "noise", "normal", "tl.join(lane_0, lane_2)", "tl.join(lane_2, lane_0)"),
    ("the sub-draw is forgotten", "noise", "normal", "(tl.load(draw + 3) | 0x1000000)", "(purpose * 0 + 0x1000000)"),
    ("bounds and scales change places", "multistep", "structure", "bound=program.bound_at(i)",
     "bound=program.scale_at(i)"),
]  # fmt: skip


def noticed(name):
    """What the tests say of the first dozen cases of a kind, or of 2**14 normals for ``"noise"``; None if nothing."""
    try:
        with PretendGpu():
            right = noise_is_right() if name == "noise" else all(case_is_right(name, seed) for seed in range(12))
    except (AssertionError, PtxError) as error:
        return str(error)
    return None if right else "other bits"


def noise_is_right():
    got, expected = torch.zeros(4, 4096), torch.zeros(4, 4096)
    seeds, draws = torch.tensor([0, 1, 2**40 + 3, 2**63 - 1]), torch.tensor([[1, 2, 3, 4]])
    backend.fill_noise(got, seeds, draws)
    reference.fill_noise(expected, seeds, draws)
    return same_bits(got, expected)


def case_is_right(name, seed):
    case = make(KINDS[name], seed)
    got = case.run(backend.stage)
    return all(same_bits(got[key], value) for key, value in case.run(reference.stage).items())


@pytest.mark.parametrize(("kind", "module", "right", "wrong"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_the_fault_is_noticed(kind, module, right, wrong):
    with mutated(module, right, wrong):
        assert noticed(kind) is not None


def test_nothing_is_noticed_without_a_fault():
    with mutated("stage", '"""The ops', '""" The ops'):
        assert noticed("heun corrector") is None
        assert noticed("noise") is None


def test_a_misjudged_alignment_is_noticed(monkeypatch):
    monkeypatch.setattr(backend, "_quads_aligned", lambda tensor: True)
    assert "misaligned" in noticed("unaligned")


def test_contraction_is_noticed(monkeypatch):
    constants = backend._constants
    monkeypatch.setattr(backend, "_constants", lambda cover: constants(cover) | {"enable_fp_fusion": True})
    assert "may contract" in noticed("heun predictor")


def test_a_stride_of_32_bits_is_noticed():
    """The multiple of a batch stride beyond 2**31 bytes wraps; only two samples of the memory are ever touched."""
    stride = 2**31 + 16
    out = torch.empty(0, dtype=torch.bfloat16).set_(torch.UntypedStorage(2 * stride + 32), 0, (2, 16), (stride, 1))
    seeds, draws = torch.tensor([5, 6]), torch.tensor([[4, 0, 0, 0]])
    right = "offset = sample * (stride.to(tl.int64) >> STRIDE_SHIFT)"
    wrong = "offset = sample.to(tl.int32) * (stride.to(tl.int64) >> STRIDE_SHIFT).to(tl.int32)"
    with mutated("stage", right, wrong), pytest.raises(PtxError, match="out of bounds"), PretendGpu():
        backend.fill_noise(out, seeds, draws)
