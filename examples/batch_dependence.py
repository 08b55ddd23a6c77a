"""Measure how much torch's own operations make the digits network depend on the batch size.

For every batch size the output for the first sample is compared with that of a batch of one; batch sizes are then
grouped by equal bits. What is printed holds for this processor and this version of torch; torch promises neither.
"""

import click
import torch

from fastdiff.app.digits import CLASSES, load_digits
from fastdiff.testing.rows import same_bits


@click.command(context_settings={"show_default": True})
@click.option("--threads", type=click.IntRange(1), default=1, help="Threads of torch.")
@click.option("--largest", type=click.IntRange(1), default=64, help="Largest batch size.")
@torch.no_grad()
def main(threads: int, largest: int) -> None:
    """Print the groups of batch sizes that give the same bits, and the largest difference."""
    torch.set_num_threads(threads)
    net, _ = load_digits()
    z = torch.randn(largest, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.eye(CLASSES)[torch.arange(largest) % CLASSES]
    groups: list[tuple[torch.Tensor, list[int]]] = []
    for size in range(1, largest + 1):
        first = net(z[:size], torch.zeros(size), labels[:size])[0]
        for known, sizes in groups:
            if same_bits(known, first):
                sizes.append(size)
                break
        else:
            groups.append((first, [size]))
    alone = groups[0][0]
    for output, sizes in groups:
        click.echo(f"batch {sizes[0]:>3} … {sizes[-1]:>3}: differs by {(output - alone).abs().max():.2g}")
    click.echo(f"torch {torch.__version__}, {threads} threads; outputs reach {alone.abs().max():.2g}")


if __name__ == "__main__":
    main()
