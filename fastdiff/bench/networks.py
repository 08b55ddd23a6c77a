"""Networks to put between the steps: none at all, the digits network, a small U-net, or the user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdiff.bench.workload import FREE, Model, Workload, free_network
from fastdiff.digits import CLASSES, load_digits
from fastdiff.errors import InputError, NetworkError

DIGITS, UNET = "digits", "unet"
SAMPLES = {DIGITS: (1, 8, 8), UNET: (3, 32, 32)}
"""The shape of one sample where a network fixes it."""


class SmallUnet(nn.Module):
    """Two resolutions and 0.1 million random parameters: so small that a step can be seen beside it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.told = nn.Linear(1, width)
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.mix = nn.Conv2d(2 * width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """F for ``x`` [n, 3, H, W] and ``c_noise`` [n]."""
        told = self.told(c_noise[:, None].to(self.told.weight.dtype))[:, :, None, None]
        fine = functional.silu(self.enter(x) + told)
        coarse = functional.silu(self.middle(functional.silu(self.down(fine))))
        risen = functional.silu(self.up(functional.interpolate(coarse, scale_factor=2.0)))
        return self.leave(functional.silu(self.mix(torch.cat([fine, risen], 1))))


def load(workload: Workload) -> Model:
    """The network of a workload, tried once on its shape.

    Raises:
        InputError: there is no such network.
        NetworkError: it fails on this shape, or returns something else than a tensor of the shape of its input.
    """
    name = workload.network
    if name == FREE:
        return free_network(workload)
    if name == DIGITS:
        net: Callable[..., Any] = load_digits(dtype=workload.io)[0]
        labels = functional.one_hot(torch.arange(workload.batch) % CLASSES, CLASSES).to(workload.io)
        model = Model.of(net, {"class_labels": labels}, {"class_labels": torch.zeros_like(labels)})
    elif name == UNET:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            model = Model.of(SmallUnet().to(workload.io).eval(), {}, {})
    else:
        model = Model.of(_imported(name), {}, {})
        _try(name, model, workload)
    return model


def _imported(name: str) -> Callable[..., Any]:
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise InputError(f"network is {name!r}; give {FREE}, {DIGITS}, {UNET} or MODULE:FUNCTION")
    # A console script does not see the folder in which it is called.
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module does when it is imported
        raise InputError(f"network {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise InputError(f"network {name!r} is a {type(found).__name__}; it must be callable as F(z, c_noise)")
    return found


def _try(name: str, model: Model, workload: Workload) -> None:
    """Call a network that others wrote once on what it will see."""
    rows = 2 if workload.guided else 1
    z, c_noise = torch.zeros((rows, *workload.sample), dtype=workload.io), torch.zeros(rows, dtype=workload.io)
    try:
        with torch.no_grad():
            returned = model.both(z, c_noise)
    except Exception as error:  # whatever the user's network does
        shape = list(z.shape)
        raise NetworkError(
            f"network {name!r} failed on z {shape} and c_noise [{rows}]: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(returned, Tensor) or returned.shape != z.shape:
        got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise NetworkError(f"network {name!r} returned {got} for z {list(z.shape)}; it must return the shape of z")
