"""Figures of the noise report: histogram, quantiles, tails, correlations. Drawn by matplotlib, without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdiff.errors import InputError
from fastdiff.lab.noise.draws import Draws
from fastdiff.lab.noise.hypotheses import THRESHOLDS, Verdict

INK, OURS, RIGHT = "#333333", "#2563ab", "#d9822b"
BINS = 120
EDGE = 6.0
QUANTILES = 400


def draw(draws: Draws, verdicts: Sequence[Verdict], title: str) -> Any:
    """A matplotlib figure with four panels.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("pictures need matplotlib: pip install 'fastdiff-sampler[plot]'") from None
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    figure.suptitle(title, color=INK)
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 0.62))
    flat = draws.x.ravel()
    _histogram(figure.add_subplot(grid[0, 0]), flat)
    _quantiles(figure.add_subplot(grid[0, 1]), flat)
    _tails(figure.add_subplot(grid[1, 0]), flat)
    _moments(figure.add_subplot(grid[1, 1]), verdicts)
    _correlations(figure, figure.add_subplot(grid[2, :]), verdicts)
    return figure


def encode(figure: Any, kind: str) -> bytes:
    """The figure as ``"png"`` or ``"svg"``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120)
    return buffer.getvalue()


def _density(at: np.ndarray) -> np.ndarray:
    return np.exp(-at * at / 2) / math.sqrt(2 * math.pi)


def _histogram(axes: Any, flat: np.ndarray) -> None:
    edges = np.linspace(-EDGE, EDGE, BINS + 1)
    axes.hist(flat, edges, density=True, color=OURS, alpha=0.6, label=f"{flat.size:,} draws")
    axes.plot(edges, _density(edges), color=RIGHT, label="normal density")
    axes.set_yscale("log")
    axes.set_ylim(0.2 / flat.size, 1)
    axes.set(title="histogram, logarithmic", xlabel="x", ylabel="density")
    axes.legend(fontsize=8)


def _quantiles(axes: Any, flat: np.ndarray) -> None:
    from scipy import special

    ordered = np.sort(flat)
    at = np.unique(np.round(special.ndtr(np.linspace(-5.5, 5.5, QUANTILES)) * (flat.size - 1)).astype(np.int64))
    level = (at + 0.5) / flat.size
    right = special.ndtri(level)
    # A sample quantile has standard error sqrt(p (1 - p) / n) / density.
    error = 2 * np.sqrt(level * (1 - level) / flat.size) / _density(right)
    axes.fill_between(right, -error, error, color=RIGHT, alpha=0.3, label="±2 standard errors")
    axes.plot(right, ordered[at] - right, ".", color=OURS, markersize=3)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set(title="quantiles: found minus normal", xlabel="normal quantile", ylabel="difference")
    axes.legend(fontsize=8)


def _tails(axes: Any, flat: np.ndarray) -> None:
    from scipy import stats

    at = np.linspace(1, 6.8, 59)
    ordered = np.sort(np.abs(flat))
    found = flat.size - np.searchsorted(ordered, at, side="right")
    expected = 2 * stats.norm.sf(at) * flat.size
    error = 2 * np.sqrt(expected)
    axes.fill_between(
        at, np.maximum(expected - error, 0.1), expected + error, color=RIGHT, alpha=0.3, label="expected ±2 errors"
    )
    axes.plot(at[found > 0], found[found > 0], ".", color=OURS, label="found")
    axes.set_yscale("log")
    axes.set_ylim(0.3, None)
    axes.set_xticks([1, *THRESHOLDS, 6])
    axes.set(title="how many lie beyond", xlabel="|x| >", ylabel="count")
    axes.legend(fontsize=8)


def _moments(axes: Any, verdicts: Sequence[Verdict]) -> None:
    chosen = [v for v in verdicts if v.group == "moments"]
    places = np.arange(len(chosen))
    axes.axvspan(-4, 4, color=RIGHT, alpha=0.2, label="4 standard errors")
    axes.barh(places, [v.z for v in chosen], color=OURS)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_yticks(places, [v.name for v in chosen])
    axes.invert_yaxis()
    axes.set(title="moments: standard errors off", xlabel="z")
    axes.legend(fontsize=8)


def _correlations(figure: Any, axes: Any, verdicts: Sequence[Verdict]) -> None:
    groups = ("correlation", "correlation of squares")
    table = [[v for v in verdicts if v.group == group] for group in groups]
    image = axes.imshow(
        [[v.z for v in row] for row in table], cmap="RdBu", vmin=-6, vmax=6, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(2), ["x", "x²"])
    axes.set_xticks(range(len(table[0])), [v.name for v in table[0]], rotation=45, ha="right", fontsize=8)
    for r, row in enumerate(table):
        for c, verdict in enumerate(row):
            axes.text(c, r, f"{verdict.z:.1f}", ha="center", va="center", fontsize=7, color=INK)
    axes.set_title("correlation with neighbours: standard errors from 0")
    figure.colorbar(image, ax=axes, pad=0.01, label="z")
