"""A step allocates nothing: neither a tensor, nor memory that the system would have to find."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastdiff.backends import cpu
from fastdiff.lab.bench.audit import audit
from fastdiff.lab.bench.contestant import Contestant, backend
from fastdiff.lab.bench.rivals import RIVALS
from fastdiff.lab.bench.workload import Workload, first_noise, free_network

resource = pytest.importorskip("resource", reason="page faults are counted on POSIX systems")
pytestmark = pytest.mark.skipif(cpu.host() is None, reason="the C++ backend was not built")

PAGE = resource.getpagesize()
LARGE = Workload(batch=160, sample=(4, 128, 128), steps=2, s_churn=20.0)
"""40 MiB a state tensor. From 32 MiB on, glibc takes memory from the system and gives it back, whatever was before."""
TENSOR_PAGES = 4 * LARGE.elements // PAGE


def page_faults(contestant: Contestant) -> int:
    """Pages that the system had to find while the timed steps ran."""
    with torch.no_grad():
        job = contestant.start(LARGE, free_network(LARGE), first_noise(LARGE))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        job.advance()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_no_page_is_touched_for_the_first_time():
    # A single state tensor would be 10,240 pages; Python itself may ask for a few.
    assert page_faults(backend("cpu")) < TENSOR_PAGES / 16


def test_the_page_faults_of_temporaries_are_seen():
    assert page_faults(RIVALS["textbook"]) > TENSOR_PAGES


@pytest.mark.parametrize(
    "changes", [{}, {"s_churn": 0.0}, {"solver": "euler"}, {"guidance": 1.0}, {"dtype": "float64"}]
)
def test_no_tensor_is_allocated(changes: dict):
    assert audit(backend("cpu"), replace(LARGE, **changes)).allocations == 0


def test_the_allocations_of_a_textbook_are_seen():
    assert audit(RIVALS["textbook"], LARGE).allocations > 10
