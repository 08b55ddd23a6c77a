"""fastdiff: the per-step mathematics of diffusion sampling, one fused launch per network evaluation.

    import fastdiff

    plan = fastdiff.plan(schedule="edm", prediction="edm", solver="heun", steps=18, guidance=2.0)
    images = fastdiff.sample(net, plan, (64, 1, 8, 8), seeds=0, cond={...}, uncond={...})

The same seed gives the same bits whatever the batch, position, threads, layout or backend. Ops are in
``fastdiff.ops``, errors in ``fastdiff.errors``; named schedules, predictions and guidance in ``fastdiff.maths``.
"""

from fastdiff.backends.registry import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance
from fastdiff.maths.point import Point
from fastdiff.maths.prediction import Prediction
from fastdiff.maths.schedule import Schedule
from fastdiff.plans.compose import plan, plan_step
from fastdiff.plans.plan import Plan
from fastdiff.runs.run import Run
from fastdiff.runs.sample import sample
from fastdiff.runs.steps import Steps
from fastdiff.solvers.solver import Solver, solver

__version__ = "0.1.0"

__all__ = [
    "Churn",
    "FastdiffError",
    "Guidance",
    "Plan",
    "Point",
    "Prediction",
    "Run",
    "Schedule",
    "Solver",
    "Steps",
    "plan",
    "plan_step",
    "sample",
    "solver",
    "use_backend",
]
