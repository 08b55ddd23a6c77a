"""Faults planted in the sources, one at a time, and for each a test that must fail with it (``make mutants``).

To add one: a text that occurs once in a file, what takes its place, and the node id of a test that notices.
More faults of the Triton kernels are planted in every run of the tests (``tests/gpu/test_triton_mutants.py``).
"""

from __future__ import annotations

from faults_cpu import CPU, LOOP
from faults_cuda import CUDA
from faults_gram import GRAM
from faults_host import HOST
from faults_run import RUN
from faults_triton import TRITON

MUTANTS = (*CUDA, *TRITON, *CPU, *LOOP, *GRAM, *HOST, *RUN)
