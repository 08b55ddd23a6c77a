"""fastdiff: the per-step mathematics of diffusion sampling, one fused launch per network evaluation.

    import fastdiff

    plan = fastdiff.plan("edm", "edm", "heun", steps=18, guidance=2.0)
    images = fastdiff.sample(net, plan, (64, 1, 8, 8), seeds=0, cond={...}, uncond={...})

The same seed gives the same bits whatever the batch, position, threads, layout or backend.
"""

from fastdiff.backends.registry import list_backends, use_backend
from fastdiff.errors import BackendError, FastdiffError, InputError, NetworkError, PlanError
from fastdiff.graph import clear_graphs
from fastdiff.guidance import Guidance
from fastdiff.network import in_chunks
from fastdiff.ops import fill_noise, stage
from fastdiff.plan import Plan, plan
from fastdiff.prediction import Prediction
from fastdiff.run import Run
from fastdiff.sampler import sample
from fastdiff.schedule import Schedule
from fastdiff.solver import Solver
from fastdiff.trace import Churn

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
    "sample",
    "stage",
    "use_backend",
]
