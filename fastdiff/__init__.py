"""fastdiff: the per-step mathematics of diffusion sampling, one fused launch per network evaluation.

    import fastdiff

    plan = fastdiff.plan("edm", "edm", "heun", steps=18, guidance=2.0)
    images = fastdiff.sample(net, plan, (64, 1, 8, 8), seeds=0, cond={...}, uncond={...})

The same seed gives the same bits whatever the batch, position, threads, layout or backend.
"""

from fastdiff.backends.registry import list_backends, use_backend
from fastdiff.errors import BackendError, FastdiffError, InputError, NetworkError, PlanError
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance
from fastdiff.maths.prediction import Prediction
from fastdiff.maths.schedule import Schedule
from fastdiff.ops.schema import fill_noise, stage
from fastdiff.plans.compose import plan, plan_step
from fastdiff.plans.plan import Plan
from fastdiff.runs.graph import clear_graphs
from fastdiff.runs.network import in_chunks
from fastdiff.runs.run import Run
from fastdiff.runs.sample import sample
from fastdiff.solvers.solver import Solver

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Churn",
    "FastdiffError",
    "Guidance",
    "InputError",
    "NetworkError",
    "Plan",
    "PlanError",
    "Prediction",
    "Run",
    "Schedule",
    "Solver",
    "clear_graphs",
    "fill_noise",
    "in_chunks",
    "list_backends",
    "plan",
    "plan_step",
    "sample",
    "stage",
    "use_backend",
]
