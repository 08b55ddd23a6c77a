"""Samplers, one step each, and the trace on which a step runs. Importing a family registers its solvers."""

from fastdiff.solvers import ancestral, multistep, runge_kutta, sde  # noqa: F401
