"""The Triton backend before a launch: whether it can run, how it covers a batch, and what it refuses."""

import subprocess
import sys

import pytest
import torch

from fastdiff.backends import triton as backend
from fastdiff.errors import BackendError
from fastdiff.rows.call import Call
from fastdiff.rows.program import Formula, Program


def test_importing_the_package_does_not_import_triton():
    code = "import sys, fastdiff, fastdiff.backends.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_says_that_triton_is_missing(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert backend.unavailable() == "triton is not installed (pip install triton)"


def test_it_says_that_there_is_no_driver(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton.runtime import driver

    def nothing(self):
        raise RuntimeError("0 active drivers")

    monkeypatch.setattr(type(driver), "active", property(nothing))
    assert backend.unavailable() == "Triton found no GPU driver (0 active drivers)"


@pytest.mark.parametrize(("version", "right"), [("3.5.1", False), ("3.6.0+git1", True), ("3.10.0", True)])
def test_it_says_that_triton_is_too_old(version, right, monkeypatch):
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from pretend_gpu import PretendGpu

    monkeypatch.setattr(triton, "__version__", version)
    with PretendGpu():
        assert (backend.unavailable() is None) == right
        if not right:
            assert backend.unavailable().startswith("Triton 3.5.1 is older than 3.6, the first that compiles")


def test_it_can_run_where_a_driver_is():
    pytest.importorskip("triton", reason="Triton is not installed")
    from pretend_gpu import PretendGpu

    with PretendGpu():
        assert backend.unavailable() is None
        assert backend.details().endswith("for cuda 90")


def strided(batch, numel, stride, offset=0, dtype=torch.float32):
    return torch.empty(offset + batch * stride, dtype=dtype).as_strided((batch, numel), (stride, 1), offset)


@pytest.mark.parametrize(
    ("tensors", "access"),
    [
        ([strided(3, 1024, 1024)], "quads"),
        ([strided(3, 1024, 1028)], "quads"),
        ([strided(3, 1024, 1024, dtype=torch.bfloat16), strided(3, 1024, 1028)], "quads"),
        ([strided(1, 1023, 1023)], "tail"),
        ([strided(3, 1023, 1024)], "tail"),
        ([strided(2, 1023, 1023)], "elements"),
        ([strided(1, 1024, 1024, offset=1)], "elements"),
        ([strided(1, 1024, 1024, offset=2)], "elements"),
        ([strided(1, 1024, 1024, offset=2, dtype=torch.float64)], "quads"),
        ([strided(1, 1024, 1024, offset=4, dtype=torch.bfloat16)], "quads"),
        ([strided(1, 1024, 1024), strided(1, 1024, 1024, offset=1, dtype=torch.float16)], "elements"),
    ],
)
def test_access_is_as_wide_as_the_memory_allows(tensors, access):
    assert backend.tiling(tensors, tensors[0].shape[0], 4 * backend.QUADS).access == access


@pytest.mark.parametrize(("numel", "tiles"), [(1, 1), (511, 1), (512, 1), (513, 2), (2**33 + 4, 2**24 + 1)])
def test_tiles_cover_a_sample(numel, tiles):
    assert backend.tiling([torch.empty(1, numel, device="meta")], 1, 4 * backend.QUADS).tiles == tiles


def test_a_grid_that_is_too_large_is_refused():
    many = torch.empty(2**31, 4, device="meta")
    with pytest.raises(
        BackendError, match=r"2147483648 program instances; a launch holds 2147483647\. Split the batch"
    ):
        backend.tiling([many], 2**31, 4 * backend.QUADS)


def test_nothing_is_launched_for_nothing():
    pytest.importorskip("triton", reason="Triton is not installed")
    from pretend_gpu import PretendGpu

    seeds, draws = torch.zeros(3, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)
    with PretendGpu() as gpu:
        backend.fill_noise(torch.empty(3, 0), seeds, draws)
        program = Program(1, (Formula(base=0),))
        backend.stage(Call([torch.empty(0, 5)], torch.ones(1, 0), program, stores=[torch.empty(0, 5)]))
    assert gpu.launches == []
