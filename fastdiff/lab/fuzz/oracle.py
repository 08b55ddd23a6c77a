"""The oracle: EDM's algorithm 2 on a few elements in 160-bit arithmetic, straight from the paper.

It knows nothing of rows, compilers or backends: it takes the recorded network outputs and the counter's normals and
does what Karras et al. 2022 (arXiv:2206.00364, algorithms 2 and 3, equation 4) say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdiff.backends import reference
from fastdiff.maths.guidance import COND, UNCOND
from fastdiff.maths.prediction import Prediction
from fastdiff.maths.real import LOCK, Real, mp
from fastdiff.maths.schedule import Schedule

if TYPE_CHECKING:
    from fastdiff.lab.fuzz.settings import Settings

ALPHA = {"euler": None, "heun": 1, "midpoint": mp.mpf(1) / 2, "ralston": mp.mpf(float(mp.mpf(2) / 3))}
"""Of the solvers that it knows, the place of the second evaluation in a step; None where there is none."""
INIT, STEP = 0, 1


def exact_results(
    settings: Settings,
    schedule: Callable[[str], Schedule],
    prediction: Callable[[str], Prediction],
    outputs: Sequence[Mapping[str, Tensor]],
    places: Sequence[tuple[int, int]],
) -> list[Real]:
    """A few elements of the result.

    Args:
        settings: of the sampler.
        schedule: the schedule of a name.
        prediction: the prediction of a name.
        outputs: of every evaluation, the network's output ``[B, ...]`` by branch.
        places: sample and logical row-major index of each element.
    """
    known, net = schedule(settings.schedule), prediction(settings.prediction)
    path, alpha = known.path, ALPHA[settings.solver]
    remaining = iter(outputs)

    def normals(purpose: int, draw: int) -> list[Real]:
        seeds, counter = torch.tensor(settings.seeds), torch.tensor([[purpose, 0, draw, 0]])
        drawn = reference.normals(max(element for _, element in places) + 1, seeds, counter)
        return [mp.mpf(drawn[place].item()) for place in places]

    def network(sigma: Real) -> list[Real]:
        """The guided output."""
        found = {name: f.reshape(len(f), -1) for name, f in next(remaining).items()}
        guided = settings.interval is None or settings.interval[0] <= float(sigma) <= settings.interval[1]
        weight = mp.mpf(settings.guidance) if guided else mp.one
        weights = {COND: weight, UNCOND: 1 - weight}
        return [sum(weights[name] * mp.mpf(f[place].item()) for name, f in found.items()) for place in places]

    def slope(xs: list[Real], t: Real) -> list[Real]:
        sigma, s = path.sigma(t), path.s(t)
        c_skip, c_out, _, _ = net(sigma)
        denoised = [c_skip * x / s + c_out * f for x, f in zip(xs, network(sigma), strict=True)]
        if settings.clip is not None:
            limit = mp.mpf(settings.clip)
            denoised = [max(-limit, min(limit, d)) for d in denoised]
        ahead, back = path.sigma_deriv(t) / sigma + path.s_deriv(t) / s, path.sigma_deriv(t) * s / sigma
        return [ahead * x - back * d for x, d in zip(xs, denoised, strict=True)]

    def moved(xs: list[Real], h: Real, ds: list[Real]) -> list[Real]:
        return [x + h * d for x, d in zip(xs, ds, strict=True)]

    with LOCK:
        grid = known.grid(settings.steps, net.round_sigma)
        gamma = min(mp.mpf(settings.s_churn) / settings.steps, mp.sqrt(2) - 1)
        xs = [path.s(grid[0]) * path.sigma(grid[0]) * xi for xi in normals(INIT, 0)]
        for i, (t, t_next) in enumerate(pairwise(grid)):
            sigma = path.sigma(t)
            raised = net.round_sigma(sigma * (1 + gamma)) if gamma else sigma
            if raised > sigma:
                t_hat = path.sigma_inv(raised)
                grown = path.s(t_hat) / path.s(t)
                lift = path.s(t_hat) * mp.sqrt(raised**2 - sigma**2) * mp.mpf(settings.s_noise)
                xs, t = moved([grown * x for x in xs], lift, normals(STEP, i)), t_hat
            h, ds = t_next - t, slope(xs, t)
            if alpha is None or path.sigma(t + alpha * h) == 0:
                xs = moved(xs, h, ds)
            else:
                later = slope(moved(xs, alpha * h, ds), t + alpha * h)
                share = 1 / (2 * mp.mpf(alpha))
                xs = moved(moved(xs, h * (1 - share), ds), h * share, later)
        return xs
