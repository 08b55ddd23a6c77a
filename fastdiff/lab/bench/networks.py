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

from fastdiff.app.digits import CLASSES, load_digits
from fastdiff.errors import InputError, NetworkError
from fastdiff.lab.bench.device import Device
from fastdiff.lab.bench.workload import FREE, Model, Workload, free_network
from fastdiff.testing.rows import same_bits

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


class Clock:
    """A network that knows how much of the device's time was spent in it."""

    def __init__(self, model: Model, device: Device) -> None:
        self._device, self._marks = device, []
        self.model = Model(*(self._clocked(net) for net in (model.both, model.cond, model.uncond)))

    @property
    def seconds(self) -> float:
        """Since ``restart()``."""
        return sum(self._device.between(start, end) for start, end in self._marks)

    def restart(self) -> None:
        """Forget what was."""
        self._marks.clear()

    def _clocked(self, net: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def clocked(z: Tensor, c_noise: Tensor) -> Tensor:
            start = self._device.mark()
            output = net(z, c_noise)
            self._marks.append((start, self._device.mark()))
            return output

        return clocked


def load(workload: Workload) -> Model:
    """The network of a workload, tried once on its shape.

    Raises:
        InputError: there is no such network.
        NetworkError: it fails on this shape, returns something else than a tensor of the shape and dtype of its
            input, writes into its input, or answers differently when it is asked again.
    """
    name, place = workload.network, workload.device.place
    if name == FREE:
        return free_network(workload)
    if name == DIGITS:
        net: Callable[..., Any] = load_digits(device=place, dtype=workload.io)[0]
        labels = functional.one_hot(torch.arange(workload.batch) % CLASSES, CLASSES).to(place, workload.io)
        model = Model.of(net, {"class_labels": labels}, {"class_labels": torch.zeros_like(labels)})
    elif name == UNET:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            model = Model.of(SmallUnet().to(place, workload.io).eval(), {}, {})
    else:
        net = _checked(name, _imported(name))
        model = Model.of(net, {}, {})
        _try(name, net, workload)
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


def _checked(name: str, net: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """A network that others wrote, which says what is wrong with it whenever that shows."""

    def checked(z: Tensor, c_noise: Tensor) -> Tensor:
        given = f"z {list(z.shape)} and c_noise {list(c_noise.shape)}"
        try:
            returned = net(z, c_noise)
        except Exception as error:  # whatever the user's network does
            raise NetworkError(f"network {name!r} failed on {given}: {type(error).__name__}: {error}") from error
        if not isinstance(returned, Tensor):
            raise NetworkError(f"network {name!r} returned {type(returned).__name__} for {given}; it must be a tensor")
        if returned.shape != z.shape or returned.dtype != z.dtype:
            raise NetworkError(
                f"network {name!r} returned {returned.dtype} {list(returned.shape)} for {z.dtype} {given}; it must "
                "return the shape and the dtype of z (--network-dtype chooses it)"
            )
        return returned

    return checked


def _try(name: str, net: Callable[[Tensor, Tensor], Tensor], workload: Workload) -> None:
    """Call a network that others wrote twice on what it will see: the gate compares runs bit for bit."""
    rows = 2 if workload.guided else 1
    generator = torch.Generator().manual_seed(6)
    z = torch.randn((rows, *workload.sample), generator=generator, dtype=torch.float64)
    z = z.to(workload.device.place, workload.io)
    c_noise = torch.zeros(rows, dtype=workload.io, device=z.device)
    given = z.clone()
    with torch.no_grad():
        first, second = net(given, c_noise), net(z.clone(), c_noise)
    if first.untyped_storage().data_ptr() == given.untyped_storage().data_ptr() or not same_bits(given, z):
        raise NetworkError(f"network {name!r} writes into its input or returns it; it must return a tensor of its own")
    if not same_bits(first, second):
        raise NetworkError(
            f"network {name!r} returned two results for one input, so nothing can be compared; switch dropout and "
            "other randomness off (eval())"
        )
