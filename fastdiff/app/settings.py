"""Settings: the options that make a plan, shared by the commands that need one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fastdiff.app.io import read_plan
from fastdiff.app.options import EXISTING_FILE, Finite, Interval
from fastdiff.maths.churn import Churn
from fastdiff.maths.guidance import Guidance
from fastdiff.maths.prediction import edm
from fastdiff.maths.schedule import SCHEDULES
from fastdiff.plans.compose import plan
from fastdiff.plans.plan import DTYPES, Plan
from fastdiff.solvers.solver import SOLVERS


@dataclass(frozen=True)
class Settings:
    """A sampler as the command line describes it; the prediction is EDM's, as the digits network was trained.

    Args:
        saved: a plan that was exported; then the rest is ignored.
    """

    solver: str
    schedule: str
    steps: int
    guidance: float
    interval: tuple[float, float] | None
    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float
    clip: float | None
    dtype: str
    saved: Path | None

    def compile(self, sigma_data: float, *, denoised: bool = False) -> Plan:
        """The plan, for a network whose data have standard deviation ``sigma_data``.

        Raises:
            PlanError: a setting is not valid, or the saved plan is not one.
        """
        if self.saved is not None:
            return read_plan(self.saved)
        return plan(
            schedule=self.schedule,
            prediction=edm(sigma_data),
            solver=self.solver,
            steps=self.steps,
            guidance=Guidance(self.guidance, self.interval),
            churn=Churn(self.s_churn, self.s_tmin, self.s_tmax, self.s_noise),
            clip=self.clip,
            dtype=self.dtype,
            denoised=denoised,
        )


def _choice(option: str, names: Iterable[str], default: str, what: str) -> Callable[[Any], Any]:
    """An option whose values are names of a registry, listed in its help."""
    listed = list(names)
    return click.option(
        option, type=click.Choice(listed), default=default, metavar="NAME", help=f"{what}: {', '.join(listed)}."
    )


OPTIONS = (
    _choice("--solver", SOLVERS, "heun", "Sampler"),
    _choice("--schedule", SCHEDULES, "edm", "Noise levels and path"),
    click.option("--steps", type=click.IntRange(min=1), default=18, help="Number of noise levels."),
    click.option(
        "--guidance",
        type=Finite(),
        default=2.0,
        help="Guidance γ: 0 unconditional, 1 conditional, above 1 guided.",
    ),
    click.option(
        "--interval",
        type=Interval(),
        help="Guide only where LOW <= σ <= HIGH (data units).  [default: all σ]",
    ),
    click.option("--s-churn", type=Finite(), default=0.0, help="Stochasticity of EDM; 0 is deterministic."),
    click.option("--s-tmin", type=Finite(), default=0.0, help="Churn only from this σ (data units) ..."),
    click.option("--s-tmax", type=float, default=float("inf"), help="... up to this one."),
    click.option("--s-noise", type=Finite(), default=1.0, help="Scale of the churn's noise."),
    click.option("--clip", type=Finite(), help="Clamp the denoised image to ± this (data units)."),
    click.option("--dtype", type=click.Choice(DTYPES), default="float32", help="Type of the state."),
    click.option("--plan", "saved", type=EXISTING_FILE, help="Use this exported plan; fixes all settings above."),
)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options above and the argument ``settings``."""
    names = [field.name for field in fields(Settings)]

    @functools.wraps(command)
    def with_settings(**arguments: Any) -> Any:
        context = click.get_current_context()
        chosen = {name: arguments.pop(name) for name in names}
        if chosen["saved"] is not None:
            _refuse_others(context, names)
        return command(settings=Settings(**chosen), **arguments)

    for option in reversed(OPTIONS):
        with_settings = option(with_settings)
    return with_settings


def _refuse_others(context: click.Context, names: list[str]) -> None:
    """A saved plan is complete: an option that would change it must not be silently ignored."""
    for name in names:
        given = context.get_parameter_source(name) not in (
            ParameterSource.DEFAULT,
            ParameterSource.DEFAULT_MAP,
        )
        if name != "saved" and given:
            option = "--" + name.replace("_", "-")
            raise click.UsageError(f"--plan is complete and {option} would change it; leave {option} out")
