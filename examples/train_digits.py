"""Train the digit network that ships with the package, and measure it.

The loss is that of Karras et al. 2022 (arXiv:2206.00364, eq. 8 and table 1),

    E lambda(sigma) ||D(x0 + n; sigma, y) - x0||^2,   ln sigma ~ N(-1.2, 1.2^2),

with lambda c_out^2 = 1, so it equals E ||F(c_in (x0 + n)) - (x0 - c_skip (x0 + n)) / c_out||^2.
With `--steps` alone the weights depend on the seed only (same torch, same machine, one thread);
`--minutes` ends the schedule early, when the clock says so.
"""

import copy
import datetime
import math
import os
import platform
import tempfile
import time
from pathlib import Path

import click
import evaluate_digits
import safetensors.torch
import sklearn
import torch
from torch import Tensor
from tqdm import tqdm

from fastdiff.app.digits import CLASSES, DigitsNet, load_digits

BATCH, LABEL_DROPOUT = 96, 0.15
RATE, WARM_UP, CLIP, EMA = 2e-3, 100, 1.0, 0.9985
LOSS_SAMPLES = 2000


def edm_loss(net: DigitsNet, x0: Tensor, one_hot: Tensor, sigma_data: float, generator: torch.Generator) -> Tensor:
    """Return the loss of each image, [B] float32, at one random noise level each.

    1 is what a network that returns zero has on average, if the data have mean 0 and standard
    deviation `sigma_data`. `x0` is [B, 1, 8, 8] float32, `one_hot` [B, 10].
    """
    shape = (len(x0), 1, 1, 1)
    sigma = (1.2 * torch.randn(shape, generator=generator) - 1.2).exp()
    x = x0 + sigma * torch.randn(x0.shape, generator=generator)
    total = sigma**2 + sigma_data**2
    target = (x0 - sigma_data**2 / total * x) * total.sqrt() / (sigma * sigma_data)
    f = net(x / total.sqrt(), sigma.flatten().log() / 4, one_hot)
    return (f - target).square().mean(dim=(1, 2, 3))


def pick(images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` images drawn with replacement and their one-hot labels, [B, 10] float32."""
    index = torch.randint(len(images), (count,), generator=generator)
    return images[index], torch.nn.functional.one_hot(labels[index], CLASSES).float()


@torch.no_grad()
def mean_loss(net: DigitsNet, images: Tensor, labels: Tensor, sigma_data: float) -> float:
    """Return the conditional loss of `net`, averaged over `LOSS_SAMPLES` fixed noisy images."""
    generator = torch.Generator().manual_seed(0)
    x0, one_hot = pick(images, labels, LOSS_SAMPLES, generator)
    return edm_loss(net, x0, one_hot, sigma_data, generator).mean().item()


def train(
    images: Tensor, labels: Tensor, sigma_data: float, steps: int, minutes: float | None, seed: int
) -> tuple[DigitsNet, int]:
    """Train by Adam and return the averaged network and the number of steps taken.

    The rate warms up linearly and then falls to zero as half a cosine over the steps, or over the
    minutes where these run out first. The average of the weights has decay
    min(0.9985, (1 + step) / (10 + step)).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = DigitsNet()
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, betas=(0.9, 0.99))
    start = time.monotonic()
    bar = tqdm(range(steps), unit="step", mininterval=1.0)
    for step in bar:
        spent = (time.monotonic() - start) / (60 * minutes) if minutes else 0.0
        if spent >= 1:
            return average, step
        fall = (1 + math.cos(math.pi * max(step / steps, spent))) / 2
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / WARM_UP, 1.0) * fall
        x0, one_hot = pick(images, labels, BATCH, generator)
        keep = torch.rand(BATCH, 1, generator=generator) >= LABEL_DROPOUT
        loss = edm_loss(net, x0, one_hot * keep, sigma_data, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), net.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return average, steps


def save(path: Path, net: DigitsNet, facts: dict[str, str]) -> None:
    """Write `net` and `facts` to `path`, which holds either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(safetensors.torch.save(net.state_dict(), facts))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def describe(net: DigitsNet, sigma_data: float, steps: int, seed: int) -> dict[str, str]:
    """Measure `net` on both parts of the real digits and return what its file should say of it."""
    images, labels, images_held_out, labels_held_out = evaluate_digits.real_digits()
    return {
        "sigma_data": repr(sigma_data),
        "steps": str(steps),
        "batch": str(BATCH),
        "loss": f"{mean_loss(net, images, labels, sigma_data):.4f}",
        "loss_held_out": f"{mean_loss(net, images_held_out, labels_held_out, sigma_data):.4f}",
        "parameters": str(sum(parameter.numel() for parameter in net.parameters())),
        "ema": f"min({EMA}, (1 + step) / (10 + step))",
        "seed": str(seed),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}",
        "data": f"{len(images)} of the 1797 images of sklearn.datasets.load_digits, x / 8 - 1; "
        "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine "
        "Learning Repository, 1998, doi:10.24432/C50P49",
        "data_licence": "CC BY 4.0",
        "command": f"python examples/train_digits.py --steps {steps} --seed {seed}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


@click.command(context_settings={"show_default": True})
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("digits.safetensors"),
    help="Where to write the checkpoint; replaced only when training is complete.",
)
@click.option("--steps", type=click.IntRange(1), default=2000, help="Steps of Adam.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="End the schedule after this time if it comes first; the result depends on the clock.",
)
@click.option("--seed", type=int, default=0, help="Seed of the weights, batches and noise.")
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=1000,
    help="Digits to draw for the evaluation at the end; 0 skips it.",
)
@click.option("--threads", type=click.IntRange(1), default=1, help="Threads of torch.")
def main(out: Path, steps: int, minutes: float | None, seed: int, samples: int, threads: int) -> None:
    """Train the class-conditional 8x8 digit network, write it and measure it.

    The defaults reproduce the shipped checkpoint, in about ten minutes on one CPU core.
    """
    torch.set_num_threads(threads)
    images, labels, *_ = evaluate_digits.real_digits()
    sigma_data = images.double().std().item()
    average, taken = train(images, labels, sigma_data, steps, minutes, seed)
    facts = describe(average, sigma_data, taken, seed)
    save(out, average, facts)
    click.echo("\n".join(f"{name}: {fact}" for name, fact in facts.items()))
    click.echo(f"wrote {out}, {out.stat().st_size:,} bytes")
    if samples:
        net, facts = load_digits(out)
        evaluate_digits.evaluate(net, facts, samples, 18, (1.0, 2.0), seed)


if __name__ == "__main__":
    main()
