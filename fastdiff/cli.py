"""The command ``fastdiff``: draw digits, look at plans, and see what works on this machine.

It is long because options are declarations; what commands do is in ``fastdiff.app`` and ``fastdiff.lab``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

import fastdiff
from fastdiff.app import comparison
from fastdiff.app.digits_job import WATCHED, Job, Network, Partial, read_same
from fastdiff.app.io import encode_samples, read_plan, write
from fastdiff.app.options import EXISTING_FILE, Classes, Finite, OutputFile, Seeds, refuse_existing
from fastdiff.app.settings import Settings, settings_options
from fastdiff.backends import registry
from fastdiff.errors import BackendError, FastdiffError, NetworkError, OutputError

NETWORK_DTYPES = ("float32", "bfloat16", "float64")

SAMPLE_EXAMPLES = """\b
Examples:
  fastdiff sample
  fastdiff sample --seeds 0-99 --guidance 3 --trajectory strip.png
  fastdiff sample --class 4 --solver euler --s-churn 10 --out fours.png
  fastdiff sample --seeds 0-9999 --batch 256 --out set.safetensors --resume
"""
PLAN_EXAMPLES = """\b
Examples:
  fastdiff plan --steps 5
  fastdiff plan --solver euler --steps 40 --export euler.json
  fastdiff plan --plan euler.json --rows 4
  fastdiff plan compare euler.json heun.json
"""

COMPARE_EXAMPLES = """\b
Examples:
  fastdiff plan --solver heun --export heun.json
  fastdiff plan --solver ralston --export ralston.json
  fastdiff plan compare heun.json ralston.json
"""
DOCTOR_EXAMPLES = """\b
Examples:
  fastdiff doctor
  fastdiff doctor --json
"""
DEMO_EXAMPLES = """\b
Examples:
  fastdiff demo
  fastdiff demo --out pictures --repeats 9
"""
FUZZ_EXAMPLES = """\b
Examples:
  fastdiff fuzz
  fastdiff fuzz --time 600 --backends cpu
  fastdiff fuzz --cases 1000 --seed 7 --json
  fastdiff fuzz --replay 'LINE'
"""
NOISE_EXAMPLES = """\b
Examples:
  fastdiff noise
  fastdiff noise --draws 16777216 --html noise.html
  fastdiff noise --backend reference --json
"""


FAILURES = (BackendError, NetworkError, OutputError)
"""What is not bad input: exit code 1."""


class Failure(click.ClickException):
    """A message for stderr and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class Commands(click.Group):
    """Commands whose errors are one message on stderr: exit code 2 for bad input, 1 for what failed here."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, `bench` among them, which is imported only when it is asked for."""
        return sorted([*super().list_commands(ctx), "bench"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name."""
        if cmd_name == "bench":
            from fastdiff.lab.bench.command import bench

            return bench
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and turn the errors it should explain into messages."""
        try:
            return super().invoke(ctx)
        except FastdiffError as error:
            raise Failure(str(error), 1 if isinstance(error, FAILURES) else 2) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Failure(f"{error.filename or 'a file'}: {error.strerror or error}", 1) from error


def checkpoint_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The network, for commands that need its data or its units."""
    return click.option(
        "--checkpoint",
        type=EXISTING_FILE,
        help="Digits network (.safetensors).  [default: the one shipped]",
    )(command)


@click.group(
    cls=Commands,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Exit codes: 0 done; 2 bad input, nothing was written; 1 anything else.",
)
@click.version_option(fastdiff.__version__, prog_name="fastdiff")
def main() -> None:
    """Diffusion sampling with one fused launch per network evaluation.

    The same seed gives the same bits whatever the batch, threads or backend.
    """


@main.command(epilog=SAMPLE_EXAMPLES)
@click.option("--seeds", type=Seeds(), default="0-49", help="One sample each: 7, 0-63, or 0-9,42; none twice.")
@click.option(
    "--class",
    "classes",
    type=Classes(),
    default="all",
    help="3, or 1,4,7, or all. With n classes a sample gets number (seed mod n).",
)
@settings_options
@click.option("--batch", type=click.IntRange(min=1), default=64, help="Samples drawn together.")
@click.option("--exact", is_flag=True, help="Same bits whatever --batch is (slower network calls).")
@click.option(
    "--network-dtype",
    type=click.Choice(NETWORK_DTYPES),
    default="float32",
    help="Type the network computes in.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", *(backend.name for backend in registry.BACKENDS)]),
    default="auto",
    help="What runs the launches; no choice changes a bit.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: torch's choice]")
@checkpoint_option
@click.option(
    "--out",
    type=OutputFile(".png", ".safetensors"),
    default="digits.png",
    help="A picture, or the tensor 'samples' [N, 1, 8, 8].",
)
@click.option(
    "--trajectory",
    type=OutputFile(".png"),
    help=f"Also a strip of denoised images of the first {WATCHED} seeds.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted .safetensors run.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def sample(
    seeds: tuple[int, ...],
    classes: tuple[int, ...],
    settings: Settings,
    batch: int,
    exact: bool,
    network_dtype: str,
    backend: str,
    threads: int | None,
    checkpoint: Path | None,
    out: Path,
    trajectory: Path | None,
    resume: bool,
    force: bool,
) -> None:
    """Draw digits from the trained network that comes with fastdiff.

    A sample depends on its seed alone: the digit too, so that seed 17 is the
    same image in every run. A run that writes .safetensors keeps what it has
    finished in NAME.partial; after a crash, repeat the command with --resume.
    """
    _check_outputs(out, trajectory, resume, force)
    if network_dtype == "float64" and settings.dtype == "float32" and settings.saved is None:
        raise click.UsageError("--network-dtype float64 needs --dtype float64")
    if threads is not None:
        torch.set_num_threads(threads)
    network = Network.load(checkpoint, getattr(torch, network_dtype))
    job = Job(network, settings.compile(network.sigma_data), seeds, classes, batch, exact)
    with contextlib.nullcontext() if backend == "auto" else fastdiff.use_backend(backend):
        if force:
            Partial(out, {}).discard()
        _draw_and_write(job, out, resume)
        if trajectory is not None:
            write(trajectory, job.strip(settings.compile(network.sigma_data, denoised=True)))
            click.echo(f"wrote {trajectory}: the first {min(WATCHED, len(seeds))} on the way, denoised")


def _check_outputs(out: Path, trajectory: Path | None, resume: bool, force: bool) -> None:
    """Refuse, before any work, what would overwrite something or cannot be resumed."""
    if resume and force:
        raise click.UsageError("--resume keeps what is there and --force discards it; give one of them")
    if resume and out.suffix.lower() != ".safetensors":
        raise click.UsageError(f"--resume works for .safetensors; {out} is drawn in one go")
    if trajectory is not None and trajectory.resolve() == out.resolve():
        raise click.UsageError(f"--out and --trajectory are both {out}; give two names")
    if force:
        return
    if not resume:
        partial = Partial(out, {}).path
        refuse_existing([out], "give --force to overwrite it, or another name with --out")
        refuse_existing([partial], "it is what an interrupted run finished: --resume continues it, --force discards it")
    refuse_existing([trajectory] if trajectory else [], "give --force to overwrite it, or another name")


def _draw_and_write(job: Job, out: Path, resume: bool) -> None:
    """Draw the set, or the rest of it, and write it."""
    facts = job.facts
    if out.suffix.lower() == ".png":
        samples = job.draw_all()
        write(out, job.grid(samples))
    else:
        partial = Partial(out, facts)
        if resume and out.exists():
            read_same(out, facts)
            click.echo(f"{out} is complete")
            return
        start = partial.take() if resume else None
        if start is not None:
            click.echo(f"{len(start)} of {len(job.seeds)} samples are there already", err=True)
        with _told_how_to_resume(partial):
            samples = job.draw_all(kept=partial, start=start)
        write(out, encode_samples(samples, facts))
        partial.discard()
    used = registry.choose("cpu", [samples.dtype, job.network.dtype], "row-major").name
    click.echo(
        f"wrote {out}: {len(samples)} digits, {job.plan.evaluations} network evaluations each, "
        f"backend {used}, plan {job.plan.sha256[:12]}"
    )


@contextlib.contextmanager
def _told_how_to_resume(partial: Partial) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if partial.path.exists():
            click.echo(f"\ninterrupted; {partial.path} keeps what is done: repeat with --resume", err=True)
        raise


@main.group(epilog=PLAN_EXAMPLES, invoke_without_command=True)
@settings_options
@checkpoint_option
@click.option("--rows", type=click.IntRange(min=0), help="Show only the first rows.  [default: all]")
@click.option("--export", type=OutputFile(".json"), help="Write the plan to this file instead.")
@click.option("--denoised", is_flag=True, help="Also store the denoised image, for --trajectory.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.pass_context
def plan(
    ctx: click.Context,
    settings: Settings,
    checkpoint: Path | None,
    rows: int | None,
    export: Path | None,
    denoised: bool,
    force: bool,
) -> None:
    """Show what a sampler computes: one line for each launch.

    A plan is the whole sampler as numbers. Exported, it is read back by
    --plan, bit for bit, on every machine.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_settings(ctx)
        return
    if denoised and settings.saved is not None:
        raise click.UsageError("--plan is complete and --denoised would change it; leave --denoised out")
    sigma_data = 1.0 if settings.saved is not None else Network.load(checkpoint, torch.float32).sigma_data
    compiled = settings.compile(sigma_data, denoised=denoised)
    if export is None:
        click.echo(comparison.explain(compiled, rows))
        return
    refuse_existing([] if force else [export], "give --force to overwrite it, or another name")
    write(export, compiled.to_json().encode())
    click.echo(f"wrote {export}: {len(compiled.rows)} rows, sha256 {compiled.sha256[:12]}")


def _refuse_settings(ctx: click.Context) -> None:
    for name in ctx.params:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"options must follow the command {ctx.invoked_subcommand!r}, which has none")


@plan.command(epilog=COMPARE_EXAMPLES)
@click.argument("left", type=EXISTING_FILE)
@click.argument("right", type=EXISTING_FILE)
def compare(left: Path, right: Path) -> None:
    """Compare two exported plans, bit for bit.

    Exits with 0 if they compute the same, and with 1 if they differ.
    """
    plans = read_plan(left), read_plan(right)
    comparison.show(str(left), plans[0], str(right), plans[1])
    if plans[0].sha256 != plans[1].sha256:
        click.get_current_context().exit(1)


@main.command(epilog=DOCTOR_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what works on this machine, what does not, and why.

    Exits with 1 if something fails that should work: a backend that gives
    other bits than the reference, a noise generator with wrong answers, a
    checkpoint that cannot be read.
    """
    from fastdiff.app import doctor as examination

    found = examination.examine()
    examination.show(found, as_json)
    if not found.healthy:
        click.get_current_context().exit(1)


@main.command(epilog=DEMO_EXAMPLES)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="out",
    help="Folder for the pictures; made if it does not exist.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Timed runs of each sampler.")
def demo(out: Path, repeats: int) -> None:
    """Draw guided digits and a trajectory, and show what they cost.

    Overwrites digits.png and trajectory.png in the folder. Takes under a
    minute.
    """
    from fastdiff.app import demo as demonstration

    demonstration.run(out, repeats)


@main.command(epilog=FUZZ_EXAMPLES)
@click.option("--time", "seconds", type=Finite(), help="Seconds to run.  [default: 60, or no limit with --cases]")
@click.option("--cases", type=click.IntRange(min=1), help="Cases to draw.  [default: no limit]")
@click.option("--seed", type=click.IntRange(min=0), help="Which cases are drawn.  [default: new ones each time]")
@click.option("--backends", help="Such as cpu,emulated-cuda.  [default: all that run here]")
@click.option("--plugin", type=EXISTING_FILE, help="A Python file with more implementations to compare.")
@click.option("--until-fail", is_flag=True, help="Stop at the first difference.")
@click.option("--replay", help="Run one line that this command printed; - reads it from standard input.")
@click.option(
    "--corpus",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Failures are kept here and tried first.  [default: tests/corpus in a checkout, else the cache folder]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fuzz(replay: str | None, **asked: Any) -> None:
    """Compare all backends with the reference on random cases, bit for bit.

    A case is a random launch, or a random sampler that is also compared with
    160-bit arithmetic. What fails is made small and printed as a line that
    shows it again. Exits with 1 if anything differs; Ctrl-C shows what was
    done until then.
    """
    from fastdiff.lab.fuzz import command

    request = command.Request(**asked)
    failed = command.fuzz(request).differences if replay is None else not command.show_replay(replay, request)
    if failed:
        click.get_current_context().exit(1)


@main.command(epilog=NOISE_EXAMPLES)
@click.option("--draws", type=click.IntRange(2**16, 2**26), default=2**22, help="Normals to draw.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The first seed; 63 others follow it.")
@click.option(
    "--backend",
    type=click.Choice([backend.name for backend in registry.BACKENDS]),
    help="Whose noise.  [default: the fastest that runs here]",
)
@click.option("--png", type=OutputFile(".png"), help="Also write a picture.")
@click.option("--html", type=OutputFile(".html"), help="Also write a page with the picture and all tests.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def noise(png: Path | None, html: Path | None, force: bool, **asked: Any) -> None:
    """Test the noise: moments, shape, tails, correlations, known answers.

    Exits with 1 if a test fails; noise without a fault fails for at most one
    seed in a million.
    """
    from fastdiff.lab.noise import command

    existing = [path for path in (png, html) if path is not None]
    refuse_existing([] if force else existing, "give --force to overwrite it, or another name")
    if not command.noise(png=png, html=html, **asked):
        click.get_current_context().exit(1)
