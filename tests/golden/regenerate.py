"""Write the golden plans again: ``python tests/golden/regenerate.py``; with ``--print`` only show their digests.

Do this when a change is meant to alter bits, look at the difference in version control, and say so under *Numerics* in
the change log. The plans in ``format1`` were written by the first version and stay as they are; ``FIRST`` makes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance, RescaledGuidance
from fastdiff.maths.schedule import Schedule, edm_levels, vp_path
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan
from fastdiff.solvers.solver import SOLVERS, Solver

FOLDER = Path(__file__).parent
EDM_CHURN = Churn(40.0, 0.05, 50.0, 1.003)
MIXED = Schedule(edm_levels(0.01, 50.0, 5.0), vp_path(), "edm on vp")

FIRST: dict[str, Callable[[], Plan]] = {
    "heun": partial(plan, steps=4),
    "heun-float64": partial(plan, steps=4, dtype="float64"),
    "heun-churn-guided": partial(plan, steps=4, guidance=2.0, churn=EDM_CHURN),
    "heun-clip-interval-unbatched": partial(
        plan, steps=4, guidance=Guidance(3.0, (0.1, 20.0)), clip=1.0, batched=False, denoised=True
    ),
    "heun-vp-v": partial(plan, schedule="vp", prediction="v", steps=3),
    "heun-iddpm": partial(plan, schedule="iddpm", prediction="iddpm", steps=3, churn=EDM_CHURN),
    "euler-vp": partial(plan, schedule="vp", prediction="vp", solver="euler", steps=3),
    "euler-ve-caller-noise": partial(
        plan, schedule="ve", prediction="ve", solver="euler", steps=3, churn=EDM_CHURN, noise="caller"
    ),
    "midpoint-flow": partial(plan, schedule="edm", prediction="flow", solver="midpoint", steps=3),
    "ralston-score-on-mixed-schedule": partial(plan, schedule=MIXED, prediction="score", solver="ralston", steps=3),
    "euler-x0-given-sigmas": partial(plan, schedule=[14.6, 2.5, 0.3, 0.0], prediction="x0", solver="euler"),
}


def _masked(trace, x, now, then, memory):
    """A step that asks for everything a caller may give."""
    D = trace.denoise(x, now)
    x = (D + (x / now.s - D) * (then.sigma / now.sigma)) * then.s
    return x + trace.call("mask", x, trace.given("known")), None


PLANS: dict[str, Callable[[], Plan]] = {
    "euler-ancestral": partial(plan, solver="euler_ancestral", steps=4),
    "ddpm-vp-epsilon": partial(plan, schedule="vp", prediction="epsilon", solver="ddpm", steps=4),
    "ddim": partial(plan, schedule="vp", prediction="epsilon", solver="ddim", steps=4),
    "ddim-eta": partial(plan, schedule="vp", prediction="epsilon", solver=SOLVERS["ddim"](eta=0.5), steps=4),
    "dpmpp-2m": partial(plan, solver="dpmpp_2m", steps=5, guidance=2.0),
    "lms": partial(plan, solver="lms", steps=6),
    "unipc": partial(plan, solver="unipc", steps=5),
    "reverse-sde": partial(plan, schedule="vp", prediction="score", solver="reverse_sde", steps=4),
    "predictor-corrector": partial(plan, solver="predictor_corrector", steps=3),
    "heun-rescaled": partial(plan, steps=3, guidance=RescaledGuidance(3.0)),
    "unipc-visible": partial(plan, solver="unipc", steps=4, visible=True, dtype="float64"),
    "given-and-call": partial(plan, solver=Solver("masked", 1, "these tests", _masked), steps=3),
}


def _solver(made: Any) -> str:
    """The registered name of the solver of a plan."""
    solver = made.keywords.get("solver", "heun")
    return str(getattr(solver, "name", solver)).partition("(")[0]


# A solver that no plan above is of has one of its own.
_KNOWN = {_solver(made) for made in (*FIRST.values(), *PLANS.values())}
PLANS |= {name.replace("_", "-"): partial(plan, solver=name, steps=4) for name in SOLVERS if name not in _KNOWN}


def main() -> None:
    """Write, or show, every golden plan of today's format."""
    for name, make in PLANS.items():
        compiled = make()
        print(f"{compiled.sha256}  {name}")
        if "--print" not in sys.argv[1:]:
            (FOLDER / f"{name}.json").write_text(compiled.to_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
