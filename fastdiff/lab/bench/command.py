"""The command ``fastdiff bench``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from fastdiff.app.io import write
from fastdiff.app.options import EXISTING_FILE, Finite, OutputFile, refuse_existing
from fastdiff.backends.registry import BACKENDS, use_backend
from fastdiff.lab.bench import chart, gate, record, table, timing
from fastdiff.lab.bench.choices import Names, Shape, Sizes
from fastdiff.lab.bench.device import CPU, DEVICES, Device
from fastdiff.lab.bench.measure import Effort, measure
from fastdiff.lab.bench.noise import normal_rates
from fastdiff.lab.bench.record import Record
from fastdiff.lab.bench.rivals import RIVALS
from fastdiff.lab.bench.tasks import Task, check_memory, choose_device, extra_tasks, shapes, tasks
from fastdiff.lab.bench.workload import ALPHA, FREE, PREDICTIONS, Workload
from fastdiff.plans.plan import DTYPES

SIZES = (2**12, 2**16, 2**20, 2**24)
QUICK_SIZES = (2**12, 2**16, 2**24)
QUICK = Effort(budget=2.0, fewest=5, most=21)
CHURNS = {"both": (0.0, 40.0), "on": (40.0,), "off": (0.0,)}

EXAMPLES = """\b
Examples:
  fastdiff bench --quick
  fastdiff bench --json now.json --html now.html
  fastdiff bench --sizes 64Ki --rivals textbook,rows-compiled --churn off
  fastdiff bench --network mymodels:unet --shape 4,64,64 --batch 8
  fastdiff bench --quick --compare now.json
  fastdiff bench --device cuda --network-dtype bfloat16
"""


@click.command(epilog=EXAMPLES)
@click.option("--quick", is_flag=True, help="Fewer sizes and turns: under two minutes.")
@click.option("--sizes", type=Sizes(), help="Elements of the state.  [default: 4Ki,64Ki,1Mi,16Mi]")
@click.option("--batch", type=click.IntRange(min=1), help="Samples drawn together.  [default: of 4Ki elements each]")
@click.option("--shape", type=Shape(), help="Shape of one sample, instead of --sizes.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", help="Type of the state.")
@click.option(
    "--network-dtype",
    type=click.Choice(["float64", "float32", "bfloat16", "float16"]),
    help="Type of the network's input and output.  [default: the state's]",
)
@click.option("--solver", type=click.Choice(list(ALPHA)), default="heun", help="Numerical method.")
@click.option("--prediction", type=click.Choice(list(PREDICTIONS)), default="edm", help="What the network predicts.")
@click.option("--guidance", type=Finite(), default=2.0, help="Guidance γ; 1 is unguided.")
@click.option("--churn", type=click.Choice(list(CHURNS)), default="both", help="Noise in every step.")
@click.option("--network", default=FREE, help="none, digits, unet, or your own as MODULE:FUNCTION.")
@click.option(
    "--backend",
    "backends",
    type=click.Choice([backend.name for backend in BACKENDS]),
    multiple=True,
    help="Of fastdiff; may be repeated.  [default: all of the device]",
)
@click.option(
    "--device",
    "device_name",
    type=click.Choice(list(DEVICES)),
    help="What is timed.  [default: that of the backend, or cpu]",
)
@click.option("--rivals", type=Names(tuple(RIVALS)), default=",".join(RIVALS), help="Whom to compare with, or none.")
@click.option("--budget", type=click.FloatRange(min=0), help="Seconds of turns for one case.  [default: 15]")
@click.option("--json", "json_file", type=OutputFile(".json"), help="Write all figures.")
@click.option("--csv", "csv_file", type=OutputFile(".csv"), help="Write a line for each case and contestant.")
@click.option("--png", "png_file", type=OutputFile(".png"), help="Draw ratios, roofline and cost.")
@click.option("--html", "html_file", type=OutputFile(".html"), help="Write one page with tables and plots.")
@click.option("--compare", "old_file", type=EXISTING_FILE, help="An earlier --json: exit code 1 on a regression.")
@click.option("--tolerance", type=click.FloatRange(0, 1), default=0.2, help="Slow-down that --compare forgives.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def bench(
    quick: bool,
    sizes: tuple[int, ...] | None,
    batch: int | None,
    shape: tuple[int, ...] | None,
    churn: str,
    network: str,
    backends: tuple[str, ...],
    device_name: str | None,
    rivals: tuple[str, ...],
    budget: float | None,
    json_file: Path | None,
    csv_file: Path | None,
    png_file: Path | None,
    html_file: Path | None,
    old_file: Path | None,
    tolerance: float,
    force: bool,
    **settings: Any,
) -> None:
    """Measure what a step costs, beside what people use today.

    First a gate: the backend must give the reference's bits and the
    textbook's trajectories, or no figure is shown. Then one thread, thread
    time, all contestants in turns, with the roofline in the same turns; on a
    GPU by events on its stream.
    """
    outputs: dict[Path, Callable[[dict[str, Any]], bytes]] = {
        path: encode
        for path, encode in (
            (json_file, record.encode_json),
            (csv_file, record.encode_csv),
            (png_file, chart.encode_png),
            (html_file, chart.encode_html),
        )
        if path is not None
    }
    if not force:
        refuse_existing(outputs, "give --force to overwrite it, or another name")
    if png_file or html_file:
        chart.check_matplotlib()
    old = None if old_file is None else record.read(old_file)
    effort = QUICK if quick else Effort()
    effort = effort if budget is None else replace(effort, budget=budget)
    device, backends = choose_device(device_name, backends)
    asked = _asked(quick, sizes, batch, shape, churn, network, rivals, settings | {"device": device})
    check_memory(asked)
    if old is not None:
        record.check_common(old, [task.workload.name for task in asked], backends, device)
    found = _run(asked, backends, device, effort)
    document = found.to_dict()
    if found.cases:
        _report(document)
        for path, encode in outputs.items():
            write(path, encode(document))
            click.echo(f"wrote {path}")
    if found.partial:
        what = f"these are partial results: {len(found.cases)} of {len(asked) * len(backends)} cases"
        click.echo(f"interrupted; {what if found.cases else 'nothing was measured'}", err=True)
        raise click.exceptions.Exit(130)
    if old is not None and not _compared(old, document, tolerance):
        raise click.exceptions.Exit(1)


def _asked(
    quick: bool,
    sizes: tuple[int, ...] | None,
    batch: int | None,
    shape: tuple[int, ...] | None,
    churn: str,
    network: str,
    rivals: tuple[str, ...],
    settings: dict[str, Any],
) -> list[Task]:
    """The cases of a command line."""
    settings["network_dtype"] = settings["network_dtype"] or settings["dtype"]
    if settings["network_dtype"] == "float64" and settings["dtype"] == "float32":
        raise click.UsageError("--network-dtype float64 needs --dtype float64")
    chosen = shapes(sizes or (QUICK_SIZES if quick else SIZES), batch, shape, network, sizes is not None)
    template = Workload(1, (1,), network=network, **settings)
    asked = list(tasks(template, chosen, CHURNS[churn], rivals, quick=quick))
    return asked if network != FREE or shape else [*asked, *extra_tasks(template, chosen, rivals, quick=quick)]


def _run(asked: Sequence[Task], backends: Sequence[str], device: Device, effort: Effort) -> Record:
    """Pass the gate, then measure; an interruption keeps what is done."""
    found = Record(_command(), device)
    workloads = [task.workload for task in asked]
    with (
        timing.one_thread(),
        torch.random.fork_rng(devices=device.generators()),
        tqdm(total=len(asked) * len(backends) + 1, disable=None, unit="case", file=sys.stderr, leave=False) as bar,
    ):
        try:
            bar.set_description("gate")
            passed = []
            for name in backends:
                with use_backend(name):
                    passed.append(f"{name}: {gate.check(name, workloads).describe()}")
            found.gate = "; ".join(passed)
            bar.update()
            for name in backends:
                for task in asked:
                    bar.set_description(task.workload.name[:30])
                    found.cases.append(measure(task.workload, name, task.rivals, effort, bar.set_postfix_str))
                    bar.update()
            found.normals = normal_rates(backends[0], effort.budget / 2, device=device)
        except KeyboardInterrupt:
            found.partial = True
    return found


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _report(document: dict[str, Any]) -> None:
    console = table.console()
    for case in document["cases"]:
        console.print(table.case_table(case))
        console.print()
    for part in (*table.summary(document), table.shares(document)):
        if part is not None:
            console.print(part)
            console.print()
    machine = document["machine"]
    console.print(f"gate: {document['gate']}", markup=False)
    console.print(
        f"{machine['processor']}, {machine['instruction_set']}, torch {machine['torch']}, malloc of "
        f"{machine['allocator']}; {document['runs_on']}, {document['clock']}, medians",
        markup=False,
    )
    if document["device"] != CPU.name:
        console.print(f"GPU: {document['device']}", markup=False)


def _compared(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> bool:
    """Print what changed; whether nothing got worse."""
    changes = record.compare(old, new, tolerance)
    table.console().print(table.changes_table(changes))
    return not any(change.regressed for change in changes)
