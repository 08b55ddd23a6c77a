"""Fixtures for all tests."""

import pytest
import torch

from fastdiff.testing.rows import poison_empty


@pytest.fixture(autouse=True)
def _one_thread_and_no_luck():
    """One torch thread, so that shared cores do not fight; fresh tensors hold NaN, so that none is read by luck."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with poison_empty():
        yield
    torch.set_num_threads(threads)
