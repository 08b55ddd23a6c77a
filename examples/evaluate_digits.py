"""Draw digits from a checkpoint and let a classifier that never met the network judge them.

The real digits are split in two: the network learns from one part, the classifier (a support
vector machine) from the other, and each part tests what was learnt from the other.
"""

from pathlib import Path

import click
import numpy as np
import sklearn.datasets
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import Tensor

import fastdiff
from fastdiff.app.digits import CLASSES, DigitsNet, load_digits
from fastdiff.maths.prediction import edm

HELD_OUT = 600


def real_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the real digits as (images, labels) of the network, (images, labels) held out.

    Images are [1197, 1, 8, 8] and [600, 1, 8, 8] float32 in [-1, 1], labels [1197] and [600] int64.
    The split is fixed and has the same share of every class on both sides.
    """
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = torch.tensor(images / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    index, index_held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0
    )
    labels = torch.tensor(labels)
    return images[index], labels[index], images[index_held_out], labels[index_held_out]


def accuracy(classifier: SVC, images: Tensor, labels: Tensor) -> float:
    """Return the share of `images` [B, 1, 8, 8] that `classifier` gives `labels` [B]."""
    return float(classifier.score(images.flatten(1).numpy(), labels.numpy()))


def train_classifier() -> tuple[SVC, float]:
    """Train on the held-out digits; return the classifier and its accuracy on the others."""
    images, labels, images_held_out, labels_held_out = real_digits()
    classifier = SVC(C=10).fit(images_held_out.flatten(1).numpy(), labels_held_out.numpy())
    return classifier, accuracy(classifier, images, labels)


def draw(net: DigitsNet, facts: dict[str, str], labels: Tensor, steps: int, guidance: float, seed: int) -> Tensor:
    """Draw one digit for each of `labels` by Heun's method on the probability-flow ODE.

    Args:
        net: The raw network.
        facts: Its metadata, of which "sigma_data" is used.
        labels: Classes, [B] int64.
        steps: Heun steps; the network is evaluated 2 steps - 1 times.
        guidance: gamma in gamma D(x; y) + (1 - gamma) D(x); 1 is conditional, unguided.
        seed: Seed of the first sample; sample i uses seed + i.

    Returns:
        Images, [B, 1, 8, 8] float32, about [-1, 1].
    """
    plan = fastdiff.plan(schedule="edm", prediction=edm(float(facts["sigma_data"])), steps=steps, guidance=guidance)
    one_hot = torch.nn.functional.one_hot(labels, CLASSES)
    return fastdiff.sample(
        net,
        plan,
        (len(labels), 1, 8, 8),
        seed,
        cond={"class_labels": one_hot},
        uncond={"class_labels": torch.zeros_like(one_hot)},
        progress=True,
    )


def save_grid(path: Path, images: Tensor, columns: int = 20, scale: int = 5) -> None:
    """Write the first 200 of `images` [B, 1, 8, 8] in [-1, 1] as one PNG, row by row, enlarged."""
    tiles = torch.nn.functional.pad(images[:200].clamp(-1, 1), (1, 1, 1, 1), value=-0.5)
    tiles = torch.cat([tiles, tiles.new_full((-len(tiles) % columns, 1, 10, 10), -0.5)])
    rows = tiles.view(-1, columns, 10, 10).transpose(1, 2).reshape(-1, columns * 10)
    pixels = ((rows + 1) * 127.5).round().numpy().astype(np.uint8)
    Image.fromarray(np.kron(pixels, np.ones((scale, scale), np.uint8))).save(path)


def evaluate(
    net: DigitsNet,
    facts: dict[str, str],
    samples: int,
    steps: int,
    guidances: tuple[float, ...],
    seed: int,
    grid: Path | None = None,
) -> dict[float, float]:
    """Print and return the accuracy of the classifier on samples, for each guidance.

    `samples` digits are drawn, the classes 0...9 in turn. `grid` names a PNG for the last ones.
    """
    classifier, real = train_classifier()
    click.echo(f"classifier on real digits it was not trained on: {real:.4f}")
    labels = torch.arange(samples) % CLASSES
    accuracies = {}
    for guidance in guidances:
        images = draw(net, facts, labels, steps, guidance, seed)
        accuracies[guidance] = accuracy(classifier, images, labels)
        click.echo(
            f"classifier on {samples} samples, {steps} Heun steps, guidance {guidance:g}: {accuracies[guidance]:.4f}"
        )
        if grid is not None:
            save_grid(grid, images)
    return accuracies


@click.command(context_settings={"show_default": True})
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Safetensors file to judge; without it, the one shipped with the package.",
)
@click.option("--samples", type=click.IntRange(1), default=1000, help="Digits to draw.")
@click.option("--steps", type=click.IntRange(2), default=18, help="Heun steps.")
@click.option(
    "--guidance",
    "guidances",
    type=float,
    multiple=True,
    default=(1.0, 2.0),
    help="Guidance gamma: 0 unconditional, 1 conditional, above 1 guided; may be repeated.",
)
@click.option("--seed", type=int, default=0, help="Seed of the initial noise.")
@click.option(
    "--grid",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the samples of the last guidance as a PNG.",
)
@click.option("--threads", type=click.IntRange(1), default=1, help="Threads of torch.")
def main(
    checkpoint: Path | None,
    samples: int,
    steps: int,
    guidances: tuple[float, ...],
    seed: int,
    grid: Path | None,
    threads: int,
) -> None:
    """Report how often a classifier sees the digit that the network was asked for."""
    torch.set_num_threads(threads)
    net, facts = load_digits(checkpoint)
    evaluate(net, facts, samples, steps, guidances, seed, grid)


if __name__ == "__main__":
    main()
