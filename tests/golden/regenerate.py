"""Write the golden plans again: ``python tests/golden/regenerate.py``; with ``--print`` only show their digests.

Do this when a change is meant to alter bits, look at the difference in version control, and say so under *Numerics* in
the change log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance
from fastdiff.maths.schedule import Schedule, edm_levels, vp_path
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import Plan

FOLDER = Path(__file__).parent
EDM_CHURN = Churn(40.0, 0.05, 50.0, 1.003)

PLANS: dict[str, Callable[[], Plan]] = {
    "heun": partial(plan, steps=4),
    "heun-float64": partial(plan, steps=4, dtype="float64"),
    "heun-churn-guided": partial(plan, steps=4, guidance=2.0, churn=EDM_CHURN),
    "heun-clip-interval-unbatched": partial(
        plan, steps=4, guidance=Guidance(3.0, (0.1, 20.0)), clip=1.0, batched=False, denoised=True
    ),
    "heun-vp-v": partial(plan, "vp", "v", steps=3),
    "heun-iddpm": partial(plan, "iddpm", "iddpm", steps=3, churn=EDM_CHURN),
    "euler-vp": partial(plan, "vp", "vp", "euler", steps=3),
    "euler-ve-caller-noise": partial(plan, "ve", "ve", "euler", steps=3, churn=EDM_CHURN, noise="caller"),
    "midpoint-flow": partial(plan, "edm", "flow", "midpoint", steps=3),
    "ralston-score-on-mixed-schedule": partial(
        plan, Schedule(edm_levels(0.01, 50.0, 5.0), vp_path(), "edm on vp"), "score", "ralston", steps=3
    ),
    "euler-x0-given-sigmas": partial(plan, [14.6, 2.5, 0.3, 0.0], "x0", "euler"),
}


def main() -> None:
    for name, make in PLANS.items():
        compiled = make()
        print(f"{compiled.sha256}  {name}")
        if "--print" not in sys.argv[1:]:
            (FOLDER / f"{name}.json").write_text(compiled.to_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
