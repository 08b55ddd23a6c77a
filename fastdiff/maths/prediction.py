"""What a network predicts, as a preconditioning: ``D(xhat; sigma) = c_skip xhat + c_out F(c_in xhat; c_noise)``.

``xhat = x / s(t)`` carries noise of standard deviation sigma; D predicts x_0; F is the raw network output (EDM,
equation 7 and table 1). The epsilon-, x0-, v-, score- and flow-predicting networks of the literature are of the
same form: only the four scalars differ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from fastdiff.errors import PlanError
from fastdiff.maths.real import LOCK, Real, mp, positive
from fastdiff.maths.registry import Registry
from fastdiff.maths.schedule import Function, iddpm_sigmas, vp_path


class Scalars(NamedTuple):
    """The four numbers of a preconditioning at one noise level."""

    c_skip: Real
    c_out: Real
    c_in: Real
    c_noise: Real


@dataclass(frozen=True)
class Prediction:
    """A preconditioning; call it with sigma (data units) to get its ``Scalars``.

    ``round_sigma`` moves a noise level to the nearest one that the network was trained on.
    """

    name: str
    scalars: Callable[[Real], Scalars]
    round_sigma: Function = lambda sigma: sigma

    def __call__(self, sigma: Real) -> Scalars:
        """``(c_skip, c_out, c_in, c_noise)`` at sigma."""
        with LOCK:
            return self.scalars(sigma)


def edm(sigma_data: float = 0.5) -> Prediction:
    """EDM preconditioning (EDM, table 1, last column)."""
    d = positive(sigma_data, "sigma_data")

    def scalars(sigma: Real) -> Scalars:
        total = sigma**2 + d**2
        root = mp.sqrt(total)
        return Scalars(d**2 / total, sigma * d / root, 1 / root, mp.log(sigma) / 4)

    return Prediction("edm", scalars)


def vp(beta_d: float = 19.9, beta_min: float = 0.1, m: int = 1000) -> Prediction:
    """VP preconditioning (EDM, table 1): an epsilon network conditioned on ``(M - 1) t``."""
    t_of = vp_path(beta_d, beta_min).sigma_inv

    def scalars(sigma: Real) -> Scalars:
        return Scalars(mp.one, -sigma, 1 / mp.sqrt(sigma**2 + 1), (m - 1) * t_of(sigma))

    return Prediction("vp", scalars)


def ve() -> Prediction:
    """VE preconditioning (EDM, table 1)."""
    return Prediction("ve", lambda sigma: Scalars(mp.one, sigma, mp.one, mp.log(sigma / 2)))


def iddpm(m: int = 1000, c_1: float = 1e-3, c_2: float = 8e-3) -> Prediction:
    """Preconditioning of iDDPM (EDM, table 1): an epsilon network conditioned on ``M - 1 - j`` of the nearest u_j."""
    u = iddpm_sigmas(m, c_1, c_2)
    # The network was trained at j = 0 .. M - 1; u_M = 0 is where sampling ends.
    rising = u[m - 1 :: -1]

    def nearest(sigma: Real) -> int:
        above = min(bisect_left(rising, sigma), m - 1)
        below = max(above - 1, 0)
        k = below if sigma - rising[below] <= rising[above] - sigma else above
        return m - 1 - k

    def scalars(sigma: Real) -> Scalars:
        return Scalars(mp.one, -sigma, 1 / mp.sqrt(sigma**2 + 1), mp.mpf(m - 1 - nearest(sigma)))

    return Prediction("iddpm", scalars, round_sigma=lambda sigma: u[nearest(sigma)])


def epsilon(c_noise: str = "vp") -> Prediction:
    """F predicts the noise of a variance-preserving input: ``D = xhat - sigma F``."""
    noise = _c_noise(c_noise)
    return Prediction("epsilon", lambda s: Scalars(mp.one, -s, 1 / mp.sqrt(1 + s**2), noise(s)))


def x0(c_noise: str = "vp") -> Prediction:
    """F predicts the clean sample from a variance-preserving input: ``D = F``."""
    noise = _c_noise(c_noise)
    return Prediction("x0", lambda s: Scalars(mp.zero, mp.one, 1 / mp.sqrt(1 + s**2), noise(s)))


def v(c_noise: str = "vp") -> Prediction:
    """F predicts ``v = alpha eps - sigma_vp x0`` (Salimans and Ho, *Progressive Distillation*, 2022)."""
    noise = _c_noise(c_noise)

    def scalars(sigma: Real) -> Scalars:
        root = mp.sqrt(1 + sigma**2)
        return Scalars(1 / root**2, -sigma / root, 1 / root, noise(sigma))

    return Prediction("v", scalars)


def score(space: str = "vp", c_noise: str = "vp") -> Prediction:
    """F predicts the score of its own input: ``D = xhat + sigma^2 c_in F`` (Tweedie).

    With ``space="vp"`` the network sees ``x = xhat / sqrt(1 + sigma^2)`` and predicts ``grad log p`` there; with
    ``"ve"`` it sees xhat itself.
    """
    noise = _c_noise(c_noise)
    if space not in ("vp", "ve"):
        raise PlanError(f"space is {space!r}; it must be 'vp' or 've'")

    def scalars(sigma: Real) -> Scalars:
        c_in = 1 / mp.sqrt(1 + sigma**2) if space == "vp" else mp.one
        return Scalars(mp.one, sigma**2 * c_in, c_in, noise(sigma))

    return Prediction("score", scalars)


def flow(c_noise: str = "flow") -> Prediction:
    """F predicts the velocity ``eps - x0`` of ``x_t = (1 - t) x0 + t eps`` (rectified flow), sigma = t / (1 - t)."""
    noise = _c_noise(c_noise)
    return Prediction("flow", lambda s: Scalars(1 / (1 + s), -s / (1 + s), 1 / (1 + s), noise(s)))


def named_prediction(name: str) -> Prediction:
    """A prediction with its default settings, by name."""
    return PREDICTIONS.named(name)()


PREDICTIONS: Registry[Callable[[], Prediction]] = Registry("prediction")
for _make in (edm, vp, ve, iddpm, epsilon, x0, v, score, flow):
    PREDICTIONS.add(_make.__name__, _make)


def conversion(source: Prediction, target: Prediction, sigma: Real) -> tuple[Real, Real]:
    """``(a, b)`` with ``F_target = a xhat + b F_source``: both then give the same D.

    Raises:
        PlanError: the target cannot express D at this noise level (its c_out is 0).
    """
    with LOCK:
        p, q = source(sigma), target(sigma)
        if q.c_out == 0:
            raise PlanError(f"prediction {target.name!r} has c_out = 0 at sigma = {mp.nstr(sigma, 6)}: not invertible")
        return (p.c_skip - q.c_skip) / q.c_out, p.c_out / q.c_out


def _c_noise(name: str) -> Function:
    """How a network is told the noise level."""
    choices: dict[str, Function] = {
        "vp": lambda sigma: 999 * vp_path().sigma_inv(sigma),
        "log": lambda sigma: mp.log(sigma) / 4,
        "sigma": lambda sigma: sigma,
        "flow": lambda sigma: sigma / (1 + sigma),
    }
    if name not in choices:
        raise PlanError(f"c_noise is {name!r}; it must be one of {', '.join(choices)}")
    return choices[name]
