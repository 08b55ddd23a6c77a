"""Draws: the normals under test, their neighbours in every part of the counter, and the known answers.

A generator fills a tensor like ``fastdiff.ops.fill_noise``; tests plant faulty ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.backends import registry
from fastdiff.backends.registry import use_backend
from fastdiff.rows.seeds import draw_table

SEEDS = 64
NEIGHBOURS = 16
"""Samples that are drawn again with one word of the counter changed."""

Fill = Callable[[Tensor, list[int], Tensor], None]
"""``fill(out, seeds, draws)``: out ``[B, numel]``, B seeds, draws ``[1, 4]``."""


class Answer(NamedTuple):
    """A normal that the format fixes: its place, and its float32 as an integer."""

    seed: int
    words: tuple[int, int, int, int]
    element: int
    bits: int


def _eight(seed: int, words: tuple[int, int, int, int], bits: str) -> list[Answer]:
    return [Answer(seed, words, element, int(word, 16)) for element, word in enumerate(bits.split())]


ANSWERS = (
    *_eight(0, (1, 0, 0, 0), "3f5c8396 3fb64a34 bed3159e 3dfad329 3f5be77c be3f9cc6 c0266592 bf8b7f23"),
    *_eight(1, (0, 0, 0, 0), "bf6e3480 be94114d 3f96cc2e be157f0c bf50951e 3f59222e 3e46d913 3f88e6bb"),
    *_eight(
        2**63 - 1,
        (255, 65535, 4294967295, 16777215),
        "bf3652bb 3f19fa66 be3626e4 bf55bae8 bfc162cd 3f39b287 3f02174e 3f148552",
    ),
    *_eight(20240229, (4, 0, 7, 3), "bee3f2c5 bfb2355e be8d49f7 3e6bf9e4 3dd5c3b6 be53a1a3 bdc472dc 3f29be91"),
    *_eight(2**32, (2, 1, 1, 0), "be11744f bf5311e9 be22e837 3fb96d29 bfab747f 3ff2cd65 3f47c8df 3e620311"),
)
"""Of ``tests/kat/normals.txt``: every word of the counter and both halves of the seed are in use."""

FAR = (
    Answer(215, (4, 0, 88, 0), 9558, 0x40CF06EA),
    Answer(151, (4, 0, 223, 0), 12163, 0x40C6DC39),
    Answer(117, (4, 0, 396, 0), 9267, 0x40C02444),
    Answer(87, (4, 0, 433, 0), 13310, 0x40C11EA2),
)
"""6.47, 6.21, 6.00 and 6.03: found among 2.5e9 normals, out of reach of generators with fewer bits in the radius."""


@dataclass(frozen=True)
class Draws:
    """What is tested.

    Args:
        x: float64 ``[SEEDS, numel]``, consecutive seeds.
        neighbours: by what changed, float64 ``[NEIGHBOURS, numel]``, to be held against the first rows of x.
        wrong_answers: known answers that did not come out.
        wrong_far: the same far out in the tails.
    """

    x: np.ndarray
    neighbours: dict[str, np.ndarray]
    wrong_answers: int
    wrong_far: int


def fill_on(backend: str) -> Fill:
    """``fastdiff.ops.fill_noise`` on a backend.

    Raises:
        BackendError: it is unknown, or cannot run here.
    """
    with use_backend(backend):
        device = next((b.devices or ("cpu",))[0] for b in registry.BACKENDS if b.name == backend)

    def fill(out: Tensor, seeds: list[int], draws: Tensor) -> None:
        purpose, tensor, draw, sub_draw = draws[0].tolist()
        made = torch.empty(out.shape, dtype=out.dtype, device=device)
        with use_backend(backend):
            ops.fill_noise(made, seeds, purpose, draw, sub_draw, tensor)
        out.copy_(made)

    return fill


def draw_all(fill: Fill, count: int, seed: int) -> Draws:
    """Draw what the battery looks at.

    Args:
        fill: the generator.
        count: how many normals; rounded up to a whole number of blocks.
        seed: the first one.
    """
    numel = -(-count // (4 * SEEDS)) * 4
    seeds = [seed + i for i in range(SEEDS)]

    def drawn(some: list[int], **words: int) -> np.ndarray:
        out = torch.empty(len(some), numel)
        base = {"purpose": 4, "tensor": 0, "draw": 0, "sub_draw": 0}
        fill(out, some, draw_table(base | words, len(some), torch.device("cpu")))  # type: ignore[arg-type]
        return out.double().numpy()

    few = seeds[:NEIGHBOURS]
    neighbours = {
        "seed + 1": drawn([s + 1 for s in few]),
        "seed + 2^32": drawn([s + 2**32 for s in few]),
        "draw + 1": drawn(few, draw=1),
        "draw + 2^16": drawn(few, draw=2**16),
        "sub_draw + 1": drawn(few, sub_draw=1),
        "purpose - 1": drawn(few, purpose=3),
        "tensor + 1": drawn(few, tensor=1),
    }
    return Draws(drawn(seeds), neighbours, _wrong(fill, ANSWERS), _wrong(fill, FAR))


def _wrong(fill: Fill, answers: tuple[Answer, ...]) -> int:
    wrong = 0
    for answer in answers:
        out = torch.empty(1, answer.element + 1)
        fill(out, [answer.seed], torch.tensor([answer.words]))
        wrong += int(out[0, answer.element].view(torch.int32)) & 0xFFFFFFFF != answer.bits
    return wrong
