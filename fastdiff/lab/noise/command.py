"""The command ``fastdiff noise``: draw, test, show, write."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console

import fastdiff
from fastdiff.app.io import write
from fastdiff.backends import registry
from fastdiff.errors import InputError
from fastdiff.lab.noise import figures, hypotheses, report
from fastdiff.lab.noise.draws import SEEDS, draw_all, fill_on
from fastdiff.rows.seeds import MAX_SEED

DEFAULT_DRAWS = 2**22


def noise(
    *,
    draws: int = DEFAULT_DRAWS,
    seed: int = 0,
    backend: str | None = None,
    png: Path | None = None,
    html: Path | None = None,
    as_json: bool = False,
) -> bool:
    """Test the noise of a backend, print what was found and write the pictures asked for.

    Args:
        draws: how many normals.
        seed: the first of them; others follow it.
        backend: its name; None is the fastest that runs here.
        png: where a picture goes.
        html: where a page goes.
        as_json: print JSON instead of a table.

    Returns:
        Whether every test passed.

    Raises:
        InputError, BackendError: something asked for is not possible; nothing was drawn.
        OutputError: a file cannot be written.
        click.exceptions.Exit: it was interrupted; the tests have one level together, so half of them say nothing.
    """
    for package, extra in (("scipy", "test"), *((("matplotlib", "plot"),) if png or html else ())):
        if find_spec(package) is None:
            raise InputError(f"fastdiff noise needs {package}: pip install 'fastdiff-sampler[{extra}]'")
    if seed + 2**32 + SEEDS > MAX_SEED:
        raise InputError(f"--seed is {seed}; its neighbours must be seeds too, so at most {MAX_SEED - 2**32 - SEEDS}")
    name = backend or next(found.name for found in registry.list_backends() if found.usable)
    try:
        drawn = draw_all(fill_on(name), draws, seed)
        verdicts = hypotheses.run(drawn)
    except KeyboardInterrupt:
        click.echo("interrupted; nothing was written", err=True)
        raise click.exceptions.Exit(130) from None
    facts = report.Facts(name, drawn.x.size, seed, fastdiff.__version__)
    console = Console(highlight=False, stderr=as_json)
    if as_json:
        print(report.as_json(facts, verdicts))
    else:
        report.show(facts, verdicts, console)
    if png is not None or html is not None:
        picture = figures.encode(figures.draw(drawn, verdicts, facts.title), "png")
        if png is not None:
            write(png, picture)
        if html is not None:
            write(html, report.as_html(facts, verdicts, picture).encode())
        console.print(f"wrote {', '.join(str(path) for path in (png, html) if path)}", markup=False, soft_wrap=True)
    return not hypotheses.failed(verdicts)
