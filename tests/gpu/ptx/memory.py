"""Global memory: regions at real addresses, with checks and byte counters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import PtxError

NOBODY, SEVERAL = -1, -2


@dataclass(eq=False)
class Region:
    """A piece of memory.

    Args:
        name: for messages and counts.
        base: address of its first byte.
        data: its bytes (uint8), changed in place.
    """

    name: str
    base: int
    data: NDArray
    bytes_read: int = 0
    bytes_written: int = 0

    def __post_init__(self) -> None:
        self.written = np.zeros(self.data.size, bool)
        # The block (CTA) that read a byte: what another block does to it is in no defined order.
        self.reader = np.full(self.data.size, NOBODY, np.int32)
        self.accesses: set[tuple[str, int]] = set()

    @property
    def end(self) -> int:
        return self.base + self.data.size

    @property
    def distinct_read(self) -> int:
        """Bytes read at least once."""
        return int((self.reader != NOBODY).sum())


class Memory:
    """The regions that one launch may touch."""

    def __init__(self, regions: list[Region]) -> None:
        self.regions = sorted(regions, key=lambda region: region.base)
        for left, right in zip(self.regions, self.regions[1:], strict=False):
            if left.end > right.base:
                raise PtxError(f"regions {left.name} and {right.name} overlap")

    def named(self, *names: str) -> list[Region]:
        """The regions of tensors with one of these names, or whose name goes on after it with a dot."""
        wanted = [
            region
            for region in self.regions
            for part in region.name.split("=")
            if any(part == name or part.startswith(f"{name}.") for name in names)
        ]
        return list(dict.fromkeys(wanted))

    def load(self, address: NDArray, width: int, block: NDArray) -> NDArray:
        """Bytes ``[lanes, width]`` at uint64 addresses, for threads of these blocks.

        Raises:
            PtxError: out of bounds, misaligned, or bytes that this launch has written.
        """
        found = np.empty((address.size, width), np.uint8)
        for region, lanes, place in self._resolve(address, width, "load"):
            if region.written[place].any():
                raise PtxError(f"{region.name} is read after this launch wrote it")
            seen = region.reader[place]
            mine = block[lanes][:, None]
            region.reader[place] = np.where((seen == NOBODY) | (seen == mine), mine, SEVERAL)
            # Where several blocks of this one access meet, the last one's mark is found by the others.
            crowded = place[(region.reader[place] != mine) & (region.reader[place] != SEVERAL)]
            region.reader[crowded] = SEVERAL
            region.bytes_read += place.size
            region.accesses.add(("load", width))
            found[lanes] = region.data[place]
        return found

    def store(self, address: NDArray, values: NDArray, block: NDArray) -> None:
        """Write bytes ``[lanes, width]``.

        Raises:
            PtxError: out of bounds, misaligned, bytes written twice, or bytes that another block has read.
        """
        width = values.shape[1]
        for region, lanes, place in self._resolve(address, width, "store"):
            if region.written[place].any() or np.unique(place[:, 0]).size != place.shape[0]:
                raise PtxError(f"{region.name} is written twice")
            seen = region.reader[place]
            if ((seen != NOBODY) & (seen != block[lanes][:, None])).any():
                raise PtxError(f"{region.name} is written by one block and read by another")
            region.written[place] = True
            region.bytes_written += place.size
            region.accesses.add(("store", width))
            region.data[place] = values[lanes]

    def _resolve(self, address: NDArray, width: int, what: str) -> list[tuple[Region, NDArray, NDArray]]:
        """The regions hit, the lanes that hit each, and their bytes ``[lanes, width]`` in it."""
        if (address % np.uint64(width)).any():
            raise PtxError(f"misaligned {what} of {width} bytes")
        signed = address.astype(np.int64)
        bases = np.array([region.base for region in self.regions], np.int64)
        which = np.searchsorted(bases, signed, side="right") - 1
        if (which < 0).any():
            raise PtxError(f"{what} out of bounds: address {int(signed.min()):#x} lies before all buffers")
        hits = []
        for index in np.unique(which):
            region, lanes = self.regions[index], np.nonzero(which == index)[0]
            start = signed[lanes] - region.base
            if start.max() + width > region.data.size:
                raise PtxError(
                    f"{what} out of bounds: {width} bytes at offset {int(start.max())}, "
                    f"{region.name} has {region.data.size}"
                )
            place = start[:, None] + np.arange(width)
            hits.append((region, lanes, place))
        return hits
