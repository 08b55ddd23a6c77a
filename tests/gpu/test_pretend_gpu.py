"""The pretend GPU: Triton's own launch path, with faults that must be caught on it."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
import triton
import triton.language as tl
from pretend_gpu import PretendGpu, regions_of
from ptx import PtxError


@triton.jit
def copy_kernel(source, target, count, MASK: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count if MASK == "right" else place <= count if MASK == "one more" else place < count + BLOCK
    tl.store(target + place, tl.load(source + place, mask=mask), mask=mask)


def launch(source, target, mask="right"):
    count = target.numel()
    with PretendGpu() as gpu:
        copy_kernel[(triton.cdiv(count, 128),)](source, target, count, MASK=mask, BLOCK=128)
    return gpu.launches


def test_a_launch_runs_on_cpu_tensors():
    source, target = torch.randn(300), torch.full((300,), torch.nan)
    (run,) = launch(source, target)
    assert torch.equal(source, target)
    assert (run.name, run.grid, run.statistics.threads) == ("copy_kernel", 3, 384)
    assert [region.bytes_read for region in run.memory.named("source")] == [1200]
    assert [region.bytes_written for region in run.memory.named("target")] == [1200]


@pytest.mark.parametrize("mask", ["one more", "none"])
def test_a_wrong_mask_is_caught(mask):
    with pytest.raises(PtxError, match="out of bounds"):
        launch(torch.randn(300), torch.empty(300), mask)


def test_what_lies_between_samples_is_out_of_bounds():
    rows = torch.empty(4, 300).as_strided((2, 100), (300, 1))
    assert [region.data.size for region in regions_of([("x", rows)])] == [400, 400]
    with pytest.raises(PtxError, match="out of bounds"):
        launch(rows, torch.empty(200))


def test_one_tensor_is_one_region_and_shared_memory_is_shared():
    x = torch.empty(3, 8)
    assert [r.name for r in regions_of([("a", x), ("b", x)])] == ["a=b"]
    left, right = x.view(-1)[:12], x.view(-1)[12:]
    assert [r.name for r in regions_of([("left", left[None]), ("right", right[None])])] == ["left", "right"]


def test_reading_what_another_instance_writes_is_caught():
    both = torch.randn(384)
    with pytest.raises(PtxError, match=r"written by one block and read by another|read after this launch wrote"):
        launch(both[:256], both[128:384])


def test_another_driver_is_left_as_it_was():
    before = triton.runtime.driver._active
    with PretendGpu():
        assert triton.runtime.driver.active is not before
    assert triton.runtime.driver._active is before
