"""Schedules the threads of a launch: all threads of a chunk of blocks at once, one lane each.

Threads that diverge run lowest instruction first, so those behind catch up before those ahead go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arithmetic import SIGNED, UNSIGNED, numpy_type
from .errors import PtxError
from .instructions import MEANINGS
from .memory import Memory, Region
from .parser import WIDTHS, Address, Immediate, Instruction, Kernel, Operand, Register, Symbol

PARAMETERS_AT = 0x10000
CHUNK_THREADS = 1 << 17
MAX_STEPS = 1_000_000


@dataclass
class Statistics:
    """What a launch did: instructions by ``name.modifiers``, counted once per thread that ran them."""

    threads: int = 0
    instructions: Counter[str] = field(default_factory=Counter)


Size = int | tuple[int, int]


def execute(
    kernel: Kernel, grid: Size, threads: Size, arguments: Sequence[bytes], memory: Memory, dynamic_shared: int = 0
) -> Statistics:
    """Run a launch.

    Args:
        kernel: what to run.
        grid: number of blocks, in one dimension or two.
        threads: threads in a block, in one dimension or two.
        arguments: the bytes of each parameter; those left out at the end are zero.
        memory: what it may touch; changed in place.
        dynamic_shared: bytes of shared memory beside what the kernel declares.

    Raises:
        PtxError: an instruction is unknown or an access is wrong; the message has the instruction and its source.
    """
    block_of_parameters = _parameter_block(kernel, arguments)
    space = Memory([*memory.regions, Region("parameters", PARAMETERS_AT, block_of_parameters)])
    shape = Shape(*_two(grid), *_two(threads))
    statistics = Statistics(threads=shape.blocks * shape.threads)
    step = max(1, CHUNK_THREADS // shape.threads)
    for first in range(0, shape.blocks, step):
        blocks = np.arange(first, min(shape.blocks, first + step), dtype=np.uint32)
        with np.errstate(all="ignore"):
            Machine(kernel, blocks, shape, space, statistics, dynamic_shared).run()
    return statistics


class Shape(NamedTuple):
    """The sizes of grid and block along x and y."""

    grid_x: int
    grid_y: int
    block_x: int
    block_y: int

    @property
    def blocks(self) -> int:
        return self.grid_x * self.grid_y

    @property
    def threads(self) -> int:
        return self.block_x * self.block_y


def _two(size: Size) -> tuple[int, int]:
    return (size, 1) if isinstance(size, int) else size


def _parameter_block(kernel: Kernel, arguments: Sequence[bytes]) -> NDArray:
    if len(arguments) > len(kernel.parameters):
        raise PtxError(f"{len(arguments)} arguments for {len(kernel.parameters)} parameters")
    size = max((p.offset + p.size for p in kernel.parameters), default=0)
    block = np.zeros(size, np.uint8)
    for parameter, value in zip(kernel.parameters, arguments, strict=False):
        if len(value) != parameter.size:
            raise PtxError(f"parameter {parameter.name} has {parameter.size} bytes; {len(value)} were given")
        block[parameter.offset : parameter.offset + parameter.size] = np.frombuffer(value, np.uint8)
    return block


class Machine:
    """The registers and shared memory of a chunk of blocks, and where each thread is."""

    def __init__(
        self,
        kernel: Kernel,
        blocks: NDArray,
        shape: Shape,
        memory: Memory,
        statistics: Statistics,
        dynamic_shared: int,
    ) -> None:
        self.kernel, self.memory, self.statistics = kernel, memory, statistics
        threads = shape.threads
        self.count = blocks.size * threads
        self.thread = np.tile(np.arange(threads, dtype=np.uint32), blocks.size)
        self.block = np.repeat(blocks.astype(np.int64), threads)
        # Row of each thread's block in the shared memory of this chunk.
        self.block_row = np.repeat(np.arange(blocks.size), threads)
        self.shared = np.zeros((blocks.size, kernel.shared_size + dynamic_shared), np.uint8)
        # Which warp wrote a shared byte since the last barrier: no other may read it before the next one.
        self.shared_writer = np.full(self.shared.shape, -1, np.int32)
        number = np.repeat(blocks, threads)
        sizes = {"ntid": (shape.block_x, shape.block_y, 1), "nctaid": (shape.grid_x, shape.grid_y, 1)}
        self.special = {
            "%tid.x": self.thread % np.uint32(shape.block_x),
            "%tid.y": self.thread // np.uint32(shape.block_x),
            "%ctaid.x": number % np.uint32(shape.grid_x),
            "%ctaid.y": number // np.uint32(shape.grid_x),
            "%laneid": self.thread % 32,
            "%warpid": self.thread // 32,
        } | {f"%{name}.z": np.zeros(self.count, np.uint32) for name in ("tid", "ctaid")}
        for name, values in sizes.items():
            for axis, size in zip("xyz", values, strict=True):
                self.special[f"%{name}.{axis}"] = np.full(self.count, size, np.uint32)
        self.symbols = {p.name: PARAMETERS_AT + p.offset for p in kernel.parameters} | kernel.shared
        self.registers: dict[str, NDArray] = {}
        # Lanes in which a register holds a value; a register that all lanes wrote is not listed.
        self.partly: dict[str, NDArray] = {}
        # Parts of packed registers that hold nothing: compilers pack "undefined" beside a value that they want alone.
        self.holes: dict[str, set[int]] = {}
        self.active = np.ones(self.count, bool)
        self.everyone = True

    # Reading and writing registers -------------------------------------------------------------------------------

    def read(self, operand: Operand, kind: str) -> NDArray:
        """The value of an operand as an array of a PTX type: one entry for each thread, or one for all."""
        dtype = numpy_type(kind)
        if isinstance(operand, Register):
            if operand.name in self.holes:
                raise PtxError(f"part of register {operand.name} is read before it is written")
            return self._read_register(operand, dtype)
        if isinstance(operand, Immediate):
            bits = WIDTHS[kind]
            return np.array([operand.bits & ((1 << bits) - 1)], UNSIGNED[bits]).view(dtype)
        if isinstance(operand, Symbol) and operand.name in self.special:
            return self.special[operand.name].astype(UNSIGNED[dtype.itemsize * 8]).view(dtype)
        if isinstance(operand, Symbol) and operand.name in self.symbols:
            return np.array([self.symbols[operand.name]], UNSIGNED[dtype.itemsize * 8]).view(dtype)
        raise PtxError(f"cannot read {operand}")

    def is_written(self, operand: Operand) -> bool:
        """Whether all active lanes of a register have a value; anything else than a register has."""
        if not isinstance(operand, Register):
            return True
        lanes = self.partly.get(operand.name)
        return operand.name in self.registers and (lanes is None or not (self.active & ~lanes).any())

    def read_packed(self, operand: Operand, kind: str) -> tuple[NDArray, set[int]]:
        """The value of a packed register, and which of its parts hold nothing."""
        if isinstance(operand, Register) and operand.name in self.holes:
            return self._read_register(operand, numpy_type(kind)), self.holes[operand.name]
        return self.read(operand, kind), set()

    def write_packed(self, register: Operand, value: NDArray, holes: set[int]) -> None:
        """Write a packed register of which some parts hold nothing."""
        self.write(register, value)
        if holes and isinstance(register, Register):
            self.holes[register.name] = holes

    def _read_register(self, register: Register, dtype: np.dtype) -> NDArray:
        if not self.is_written(register):
            raise PtxError(f"register {register.name} is read before it is written")
        value = self.registers[register.name]
        if "b" in (value.dtype.kind, dtype.kind):
            if value.dtype != dtype:
                raise PtxError(f"register {register.name} mixes predicate and number")
            return value
        if value.itemsize < dtype.itemsize:
            raise PtxError(f"register {register.name} is narrower than {dtype}")
        if value.itemsize > dtype.itemsize:
            value = value.astype(UNSIGNED[dtype.itemsize * 8])
        return value.view(dtype)

    def write(self, register: Operand, value: NDArray) -> None:
        """Write active lanes of a register; a narrower value is extended by its sign if it has one."""
        if isinstance(register, Symbol) and register.name == "_":
            return
        if not isinstance(register, Register):
            raise PtxError(f"cannot write {register}")
        width = self.kernel.width(register)
        if width > 1:
            bits = value.dtype.itemsize * 8
            if bits < width:
                value = value.astype(SIGNED[width] if value.dtype.kind == "i" else UNSIGNED[width])
            elif bits > width:
                raise PtxError(f"{bits} bits do not fit register {register.name}")
            value = value.view(UNSIGNED[width])
        value = np.broadcast_to(value, (self.count,))
        old, name = self.registers.get(register.name), register.name
        self.holes.pop(name, None)
        if self.everyone:
            self.registers[name] = value
            self.partly.pop(name, None)
        elif old is None:
            self.registers[name], self.partly[name] = value, self.active.copy()
        else:
            self.registers[name] = np.where(self.active, value, old)
            if name in self.partly:
                self.partly[name] = self.partly[name] | self.active

    # Memory ------------------------------------------------------------------------------------------------------

    def address(self, operand: Operand) -> NDArray:
        """Addresses (uint64) of the active lanes."""
        if not isinstance(operand, Address):
            raise PtxError(f"{operand} is no address")
        narrow = isinstance(operand.base, Register) and self.kernel.width(operand.base) == 32
        base = self.read(operand.base, "u32" if narrow else "u64").astype(np.uint64)
        return np.broadcast_to(base + np.uint64(operand.offset % 2**64), (self.count,))[self.active]

    def load(self, space: str, address: NDArray, width: int) -> NDArray:
        """Bytes ``[active lanes, width]`` of global or shared memory."""
        if space != "shared":
            return self.memory.load(address, width, self.block[self.active])
        row, place = self._shared_place(address, width)
        writer = self.shared_writer[row, place]
        if ((writer >= 0) & (writer != (self.thread[self.active] // 32)[:, None])).any():
            raise PtxError("shared memory is read before a barrier ends another warp's write")
        return self.shared[row, place]

    def store(self, space: str, address: NDArray, values: NDArray) -> None:
        """Write bytes ``[active lanes, width]`` to global or shared memory."""
        if space != "shared":
            self.memory.store(address, values, self.block[self.active])
            return
        row, place = self._shared_place(address, values.shape[1])
        self.shared[row, place] = values
        self.shared_writer[row, place] = (self.thread[self.active] // 32)[:, None]

    def _shared_place(self, address: NDArray, width: int) -> tuple[NDArray, NDArray]:
        place = address.astype(np.int64)[:, None] + np.arange(width)
        if address.size and (place.max() >= self.shared.shape[1] or (place[:, 0] % width).any()):
            raise PtxError(f"shared access of {width} bytes out of bounds or misaligned")
        return self.block_row[self.active][:, None], place

    # Threads -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run every thread to its end."""
        at = np.zeros(self.count, np.int64)
        alive, waiting = np.ones(self.count, bool), np.zeros(self.count, bool)
        targets = set(self.kernel.labels.values())
        steps = 0
        while alive.any():
            ready = alive & ~waiting
            if not ready.any():
                self._pass_barrier(at, alive)
                at[alive] += 1
                waiting[:] = False
                continue
            current = int(at[ready].min())
            group = ready & (at == current)
            while True:
                steps += 1
                if steps > MAX_STEPS:
                    raise PtxError("the kernel does not end")
                instruction = self.kernel.instructions[current]
                taken = self._enter(instruction, group)
                if instruction.name in ("bra", "brx", "ret", "exit", "bar", "barrier"):
                    break
                self._perform(instruction)
                current += 1
                if current in targets:
                    break
            if instruction.name == "bra":
                at[group] = current + 1
                at[taken] = self._target(instruction)
            elif instruction.name == "brx":
                at[taken] = self._table_targets(instruction)
            elif instruction.name in ("ret", "exit"):
                alive &= ~taken
                at[group] = current + 1
            elif instruction.name in ("bar", "barrier"):
                waiting |= taken
                at[group] = current
            else:
                at[group] = current

    def _enter(self, instruction: Instruction, group: NDArray) -> NDArray:
        """Make the lanes active that run this instruction; returns them."""
        self.active, self.everyone = group, bool(group.all())
        if instruction.guard is not None:
            wanted = self.read(instruction.guard, "pred") != instruction.negated
            self.active = group & wanted
            self.everyone = bool(self.active.all())
        return self.active

    def _perform(self, instruction: Instruction) -> None:
        count = self.count if self.everyone else int(self.active.sum())
        key = ".".join((instruction.name, *instruction.modifiers))
        self.statistics.instructions[key] += count
        meaning = MEANINGS.get(instruction.name)
        if meaning is None:
            raise instruction.complain("unknown instruction")
        if count == 0:
            return
        try:
            meaning(self, instruction)
        except PtxError as error:
            raise instruction.complain(str(error)) from error

    def _pass_barrier(self, at: NDArray, alive: NDArray) -> None:
        for row in range(self.shared.shape[0]):
            mine = alive & (self.block_row == row)
            if np.unique(at[mine]).size > 1:
                raise PtxError("threads of one block wait at different barriers")
        self.shared_writer[:] = -1

    def _target(self, instruction: Instruction) -> int:
        (label,) = instruction.operands
        if not isinstance(label, Symbol) or label.name not in self.kernel.labels:
            raise instruction.complain("no such label")
        return self.kernel.labels[label.name]

    def _table_targets(self, instruction: Instruction) -> NDArray:
        index, table = instruction.operands
        if not isinstance(table, Symbol) or table.name not in self.kernel.tables:
            raise instruction.complain("no such table of targets")
        places = np.array([self.kernel.labels[name] for name in self.kernel.tables[table.name]])
        return places[np.broadcast_to(self.read(index, "u32"), (self.count,))[self.active]]
