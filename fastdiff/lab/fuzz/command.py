"""The command ``fastdiff fuzz``: what it was asked, run and shown."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from tqdm import tqdm

from fastdiff.errors import InputError
from fastdiff.lab.fuzz import corpus, report, variants
from fastdiff.lab.fuzz.campaign import Campaign, Failure, Summary, replay
from fastdiff.lab.fuzz.variants import Variant

DEFAULT_SECONDS = 60.0
INTERRUPTED = 130
"""The exit code that shells know: ended by Ctrl-C."""


@dataclass(frozen=True)
class Request:
    """What was asked for; see the command's help."""

    seconds: float | None = None
    cases: int | None = None
    seed: int | None = None
    backends: str | None = None
    plugin: Path | None = None
    until_fail: bool = False
    corpus: Path | None = None
    as_json: bool = False


def choose_variants(request: Request) -> list[Variant]:
    """What is compared with the reference.

    Raises:
        InputError: a name is unknown, or there is nothing but the reference.
    """
    plugins = variants.checkout_plugins()
    if request.plugin is not None:
        plugins |= variants.load_plugins(request.plugin)
    return variants.choose(variants.usable(plugins), request.backends)


def fuzz(request: Request) -> Summary:
    """Run a campaign and print what it finds; failures go into the corpus as they are found.

    Raises:
        InputError, OutputError: something asked for does not exist or cannot be written; nothing has been run.
        click.exceptions.Exit: it was interrupted before it found a difference, and what it did is shown.
    """
    seconds = request.seconds
    if seconds is not None and not seconds > 0:
        raise InputError(f"--time is {seconds:g}; it must be more than 0 seconds")
    chosen = choose_variants(request)
    path = request.corpus or corpus.default_path()
    corpus.prepare(path, made=request.corpus is None)
    first = [corpus.read_line(line) for line in corpus.read(path)]
    console = Console(highlight=False, stderr=request.as_json)
    if seconds is None and request.cases is None:
        seconds = DEFAULT_SECONDS
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    console.print(f"comparing with the reference: {', '.join(variant.label for variant in chosen)}")
    threads = torch.get_num_threads()
    # Small cases only lose by waking other threads.
    torch.set_num_threads(1)
    try:
        with tqdm(unit=" cases", file=sys.stderr, disable=None, dynamic_ncols=True, leave=False) as bar:

            def failed(failure: Failure) -> None:
                bar.clear()
                report.show_failure(failure, console, request.plugin)
                corpus.add(path, failure.line, f"{failure.variant}: {failure.fault.text}")

            def progress(summary: Summary) -> None:
                bar.update(summary.cases.total() - bar.n)
                bar.set_postfix_str(f"{summary.differences} differences", refresh=False)

            limits = {"seconds": seconds, "cases": request.cases, "until_fail": request.until_fail}
            summary = Campaign(chosen, seed, **limits, first=first, failed=failed, progress=progress).run()
    finally:
        torch.set_num_threads(threads)
    if request.as_json:
        print(report.as_json(summary))
    else:
        report.show(summary, console)
        if summary.failures:
            console.print(f"kept in {path}", markup=False)
    if summary.partial and not summary.differences:
        raise click.exceptions.Exit(INTERRUPTED)
    return summary


def show_replay(line: str, request: Request) -> bool:
    """Run the case of one line on everything and print what is wrong; whether nothing is.

    Raises:
        InputError: the line is not one that was printed.
    """
    subject = corpus.read_line(sys.stdin.readline() if line == "-" else line)
    chosen = choose_variants(request)
    faults = replay(subject, chosen)
    console = Console(highlight=False)
    for label, fault in faults:
        console.print(f"{label}: {fault.text}", markup=False)
    if not faults:
        console.print(f"no differences on {', '.join(variant.label for variant in chosen)}")
    return not faults
