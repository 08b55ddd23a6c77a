"""Benchmarks run on one thread with its own clock, like ``fastdiff bench``; see docs/benchmarks.md."""

from __future__ import annotations

import pytest

from fastdiff.lab.bench import timing


@pytest.fixture(autouse=True)
def _one_thread():
    with timing.one_thread():
        yield
