"""Samplers, one step each, and the trace on which a step runs. Importing a family registers its solvers."""

from fastdiff.solvers import runge_kutta  # noqa: F401

# isort: split
from fastdiff.solvers import ancestral, multistep, sde  # noqa: F401
