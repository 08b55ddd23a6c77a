"""What each PTX instruction does. A modifier that is not listed for an instruction is an error.

Contractible operations (``add.f32`` without ``.rn``), approximations and flushes to zero are refused: a compiler may
round them as it likes, so no bits could be promised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arithmetic import bf16_from_f32, f32_from_bf16, fma_f32, multiply_high, numpy_type
from .errors import PtxError
from .parser import WIDTHS, Instruction, Operand, Vector

if TYPE_CHECKING:
    from .execution import Machine

Meaning = Callable[["Machine", Instruction], None]
MEANINGS: dict[str, Meaning] = {}

WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
CACHE_HINTS = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "relaxed", "gpu")


def _means(*names: str) -> Callable[[Meaning], Meaning]:
    def register(meaning: Meaning) -> Meaning:
        for name in names:
            MEANINGS[name] = meaning
        return meaning

    return register


def _modifiers(i: Instruction, *allowed: str) -> None:
    for modifier in i.modifiers:
        if modifier not in WIDTHS and modifier not in allowed:
            raise PtxError(f"modifier .{modifier} is not supported")


def _is_float(kind: str) -> bool:
    return kind[0] == "f" and kind[1:].isdigit()


def _rounded(i: Instruction) -> None:
    """Floating-point arithmetic must name its rounding: without, the assembler may contract it."""
    if i.type not in ("f32", "f64", "f32x2"):
        raise PtxError(f"arithmetic on .{i.type} is not supported")
    if not i.has("rn"):
        raise PtxError("the assembler may contract this")


def _calculate(m: Machine, i: Instruction, act: Callable[..., NDArray]) -> None:
    """A floating-point operation; packed operands are taken as the two numbers that they hold."""
    target, *sources = i.operands
    if i.type != "f32x2":
        m.write(target, act(*(m.read(source, i.type) for source in sources)))
        return
    packed = [m.read_packed(source, "b64") for source in sources]
    pairs = (np.resize(np.ascontiguousarray(value).view(np.float32), 2 * m.count) for value, _ in packed)
    holes = set().union(*(missing for _, missing in packed))
    m.write_packed(target, act(*pairs).view(np.uint64), holes)


# Arithmetic ------------------------------------------------------------------------------------------------------


@_means("add", "sub", "mul")
def _arithmetic(m: Machine, i: Instruction) -> None:
    target, left, right = i.operands
    act = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[i.name]
    if i.type[0] == "f":
        _modifiers(i, "rn")
        _rounded(i)
        _calculate(m, i, act)
        return
    _modifiers(i, "lo", "hi", "wide")
    a, b = m.read(left, i.type), m.read(right, i.type)
    if i.has("hi"):
        m.write(target, multiply_high(a, b))
    elif i.has("wide"):
        wide = numpy_type(WIDER[i.type])
        m.write(target, a.astype(wide) * b.astype(wide))
    else:
        m.write(target, act(a, b))


@_means("mad")
def _mad(m: Machine, i: Instruction) -> None:
    _modifiers(i, "lo", "hi", "wide")
    target, left, right, addend = i.operands
    a, b = m.read(left, i.type), m.read(right, i.type)
    if i.has("wide"):
        wide = numpy_type(WIDER[i.type])
        m.write(target, a.astype(wide) * b.astype(wide) + m.read(addend, WIDER[i.type]))
    else:
        product = multiply_high(a, b) if i.has("hi") else a * b
        m.write(target, product + m.read(addend, i.type))


@_means("fma")
def _fma(m: Machine, i: Instruction) -> None:
    _modifiers(i, "rn")
    _rounded(i)
    if i.type == "f64":
        raise PtxError("fma is known for f32 only")
    _calculate(m, i, fma_f32)


@_means("div", "rem")
def _divide(m: Machine, i: Instruction) -> None:
    target, left, right = i.operands
    if _is_float(i.type):
        _modifiers(i, "rn")
        _rounded(i)
        m.write(target, m.read(left, i.type) / m.read(right, i.type))
        return
    _modifiers(i)
    a, b = np.broadcast_arrays(m.read(left, i.type), m.read(right, i.type))
    if (np.broadcast_to(b, (m.count,))[m.active] == 0).any():
        raise PtxError("division by zero")
    # Lanes that are not active may hold zeros. C divides towards zero, numpy downwards.
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    inexact = quotient * safe != a
    quotient = quotient + (inexact & ((a < 0) != (safe < 0))).astype(a.dtype)
    m.write(target, quotient if i.name == "div" else a - quotient * safe)


@_means("sqrt")
def _sqrt(m: Machine, i: Instruction) -> None:
    _modifiers(i, "rn")
    _rounded(i)
    m.write(i.operands[0], np.sqrt(m.read(i.operands[1], i.type)))


@_means("min", "max")
def _minmax(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    smaller, larger = (np.fmin, np.fmax) if _is_float(i.type) else (np.minimum, np.maximum)
    a, b = (m.read(source, i.type) for source in i.operands[1:])
    m.write(i.operands[0], (smaller if i.name == "min" else larger)(a, b))


@_means("neg", "abs")
def _sign(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    value = m.read(i.operands[1], i.type)
    m.write(i.operands[0], -value if i.name == "neg" else np.abs(value))


# Bits ------------------------------------------------------------------------------------------------------------


@_means("and", "or", "xor", "not")
def _logic(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    target, *sources = i.operands
    values = [m.read(source, i.type) for source in sources]
    act: dict[str, Callable[..., NDArray]] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    m.write(target, ~values[0] if i.name == "not" else act[i.name](*values))


@_means("lop3")
def _lop3(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    target, *sources, table = i.operands
    a, b, c = (m.read(source, "b32") for source in sources)
    rows = int(m.read(table, "b32")[0])
    found = np.zeros(1, np.uint32)
    for row in range(8):
        if rows >> row & 1:
            terms = ((x if row >> bit & 1 else ~x) for x, bit in ((a, 2), (b, 1), (c, 0)))
            found = found | np.bitwise_and(np.bitwise_and(next(terms), next(terms)), next(terms))
    m.write(target, found)


@_means("shl", "shr")
def _shift(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    value, amount = m.read(i.operands[1], i.type), m.read(i.operands[2], "u32")
    # PTX clamps a shift to the width; C would leave it undefined.
    last = np.minimum(amount, WIDTHS[i.type] - 1).astype(value.dtype)
    moved = value << last if i.name == "shl" else value >> last
    emptied = (amount >= WIDTHS[i.type]) & (value.dtype.kind != "i")
    m.write(i.operands[0], np.where(emptied, value.dtype.type(0), moved))


@_means("shf")
def _funnel(m: Machine, i: Instruction) -> None:
    _modifiers(i, "l", "r", "wrap")
    if not i.has("wrap"):
        raise PtxError("funnel shifts are known with .wrap only")
    low, high = (m.read(source, "b32").astype(np.uint64) for source in i.operands[1:3])
    amount = (m.read(i.operands[3], "u32") & np.uint32(31)).astype(np.uint64)
    both = high << np.uint64(32) | low
    moved = both << amount >> np.uint64(32) if i.has("l") else both >> amount
    m.write(i.operands[0], moved.astype(np.uint32))


@_means("bfe")
def _extract(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    value = m.read(i.operands[1], i.type)
    start, length = (m.read(source, "u32") & np.uint32(255) for source in i.operands[2:])
    bits, kind = WIDTHS[i.type], value.dtype.type
    if (start + length > bits).any() or (length == 0).any():
        raise PtxError("bit fields that are empty or leave the register are not supported")
    # Moving the field to the top and back down extends it by its own sign, or by zeros.
    top = (np.uint32(bits) - start - length).astype(kind)
    m.write(i.operands[0], value << top >> (np.uint32(bits) - length).astype(kind))


@_means("bfi")
def _insert(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    field, value = m.read(i.operands[1], i.type), m.read(i.operands[2], i.type)
    start, length = (m.read(source, "u32") & np.uint32(255) for source in i.operands[3:])
    bits, kind = WIDTHS[i.type], value.dtype.type
    if (start + length > bits).any() or (length == 0).any():
        raise PtxError("bit fields that are empty or leave the register are not supported")
    mask = (kind(2**bits - 1) >> (np.uint32(bits) - length).astype(kind)) << start.astype(kind)
    m.write(i.operands[0], (value & ~mask) | (field << start.astype(kind) & mask))


@_means("prmt")
def _permute(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    low, high, selector = (m.read(source, "b32").astype(np.uint64) for source in i.operands[1:])
    both = high << np.uint64(32) | low
    found = np.zeros(1, np.uint64)
    for place in range(4):
        nibble = selector >> np.uint64(4 * place) & np.uint64(15)
        byte = both >> (np.uint64(8) * (nibble & np.uint64(7))) & np.uint64(255)
        # The top bit of a selector repeats the sign of its byte.
        byte = np.where(nibble & np.uint64(8) != 0, (byte >> np.uint64(7)) * np.uint64(255), byte)
        found = found | byte << np.uint64(8 * place)
    m.write(i.operands[0], found.astype(np.uint32))


# Moving, comparing, converting -----------------------------------------------------------------------------------


@_means("mov")
def _move(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    target, source = i.operands
    if isinstance(source, Vector):
        holes = {place for place, piece in enumerate(source.parts) if not m.is_written(piece)}
        nothing = np.zeros(1, numpy_type(_piece(i, source)))
        pieces = [nothing if k in holes else m.read(p, _piece(i, source)) for k, p in enumerate(source.parts)]
        m.write_packed(target, _pack(pieces, WIDTHS[i.type]), holes)
    elif isinstance(target, Vector):
        value, holes = m.read_packed(source, i.type)
        bits = WIDTHS[_piece(i, target)]
        for place, piece in enumerate(target.parts):
            if place not in holes:
                m.write(piece, (value >> value.dtype.type(bits * place)).astype(numpy_type(_piece(i, target))))
    else:
        m.write(target, m.read(source, i.type))


def _piece(i: Instruction, vector: Vector) -> str:
    return f"b{WIDTHS[i.type] // len(vector.parts)}"


def _pack(pieces: list[NDArray], width: int) -> NDArray:
    wide = numpy_type(f"b{width}").type
    bits = width // len(pieces)
    total = wide(0)
    for place, piece in enumerate(pieces):
        total = total | piece.astype(wide) << wide(bits * place)
    return np.asarray(total)


@_means("cvta")
def _to_generic(m: Machine, i: Instruction) -> None:
    _modifiers(i, "to", "global", "param")
    m.write(i.operands[0], m.read(i.operands[1], "u64"))


@_means("selp")
def _select(m: Machine, i: Instruction) -> None:
    _modifiers(i)
    target, yes, no, chosen = i.operands
    m.write(target, np.where(m.read(chosen, "pred"), m.read(yes, i.type), m.read(no, i.type)))


COMPARISONS: dict[str, Callable[[Any, Any], NDArray]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
UNORDERED = ("equ", "neu", "ltu", "leu", "gtu", "geu")


@_means("setp")
def _compare(m: Machine, i: Instruction) -> None:
    _modifiers(i, *COMPARISONS, *UNORDERED, "nan", "num", "and", "or", "xor")
    a, b = m.read(i.operands[1], i.type), m.read(i.operands[2], i.type)
    how = i.modifiers[0]
    unordered = np.isnan(a) | np.isnan(b) if _is_float(i.type) else np.False_
    if how in ("nan", "num"):
        found = unordered == (how == "nan")
    elif how in UNORDERED:
        found = COMPARISONS[how[:-1]](a, b) | unordered
    else:
        # numpy calls unordered numbers unequal; PTX's ordered .ne does not.
        found = COMPARISONS[how](a, b) & ~unordered
    if len(i.operands) == 4:
        other = m.read(i.operands[3], "pred")
        combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[i.modifiers[1]]
        found = combine(found, other)
    m.write(i.operands[0], found)


@_means("cvt")
def _convert(m: Machine, i: Instruction) -> None:
    _modifiers(i, "rn", "rzi", "rni")
    to, source = (modifier for modifier in i.modifiers if modifier in WIDTHS)
    target, *values = i.operands
    if to in ("bf16x2", "f16x2"):
        high, low = (_narrow(m.read(value, "f32"), to[:-2]) for value in values)
        m.write(target, _pack([low, high], 32))
    elif to in ("bf16", "f16") and source == "f32":
        _require(i, "rn")
        m.write(target, _narrow(m.read(values[0], "f32"), to))
    elif source == "bf16" and to in ("f32", "f64"):
        m.write(target, f32_from_bf16(m.read(values[0], "b16")).astype(numpy_type(to)))
    elif "bf16" in (to, source):
        raise PtxError("this conversion of bf16 is not supported")
    else:
        m.write(target, _cast(i, m.read(values[0], source), to, source))


def _narrow(value: NDArray, kind: str) -> NDArray:
    return bf16_from_f32(value) if kind == "bf16" else value.astype(np.float16).view(np.uint16)


def _cast(i: Instruction, value: NDArray, to: str, source: str) -> NDArray:
    wanted = numpy_type(to)
    if _is_float(source) and not _is_float(to):
        _require(i, "rzi", "rni")
        return (np.trunc(value) if i.has("rzi") else np.rint(value)).astype(wanted)
    if _is_float(to) and (not _is_float(source) or WIDTHS[to] < WIDTHS[source]):
        _require(i, "rn")
    # Integers wrap, and extend by the sign of the source.
    return value.astype(wanted)


def _require(i: Instruction, *modifiers: str) -> None:
    if not any(map(i.has, modifiers)):
        raise PtxError(f"the rounding must be named ({', '.join(modifiers)})")


# Memory ----------------------------------------------------------------------------------------------------------


@_means("ld")
def _load(m: Machine, i: Instruction) -> None:
    space = _space(i)
    target, source = i.operands
    registers = target.parts if isinstance(target, Vector) else (target,)
    size = WIDTHS[i.type] // 8
    found = m.load(space, m.address(source), size * len(registers))
    for place, register in enumerate(registers):
        piece = np.ascontiguousarray(found[:, size * place : size * (place + 1)])
        full = np.zeros(m.count, numpy_type(i.type))
        full[m.active] = piece.view(numpy_type(i.type)).reshape(-1)
        m.write(register, full)


@_means("st")
def _store(m: Machine, i: Instruction) -> None:
    space = _space(i)
    target, source = i.operands
    registers: tuple[Operand, ...] = source.parts if isinstance(source, Vector) else (source,)
    values = [np.broadcast_to(m.read(r, i.type), (m.count,))[m.active] for r in registers]
    m.store(space, m.address(target), np.stack(values, 1).view(np.uint8).reshape(values[0].size, -1))


@_means("stmatrix")
def _store_matrix(m: Machine, i: Instruction) -> None:
    """Matrices of 8 rows of 16 bytes: lane ``8 k + r`` names row r of the k-th, whose bytes are in four lanes each."""
    _modifiers(i, "sync", "aligned", "m8n8", "x1", "x2", "x4", "shared")
    if (m.active.reshape(-1, 32).any(1) != m.active.reshape(-1, 32).all(1)).any():
        raise PtxError("not all lanes of a warp store their matrix")
    target, source = i.operands
    rows, lane = m.address(target).reshape(-1, 32), np.arange(32)
    if (rows % np.uint64(16)).any():
        raise PtxError("a row of a matrix is misaligned")
    for k, register in enumerate(source.parts if isinstance(source, Vector) else (source,)):
        value = np.broadcast_to(m.read(register, "b32"), (m.count,))[m.active]
        place = rows[:, 8 * k + lane // 4] + (4 * (lane % 4)).astype(np.uint64)
        m.store("shared", place.reshape(-1), np.ascontiguousarray(value)[:, None].view(np.uint8))


def _space(i: Instruction) -> str:
    """The state space; generic addresses are taken for global ones, as both are real addresses here."""
    hints = tuple(x for x in i.modifiers if x.startswith(("L1_", "L2_")))
    _modifiers(i, "global", "shared", "shared_cta", "param", "v2", "v4", "v8", *CACHE_HINTS, *hints)
    if i.type == "b128":
        raise PtxError("registers of 128 bits are not supported")
    return "shared" if i.has("shared") or i.has("shared_cta") else "global"


@_means("shfl")
def _shuffle(m: Machine, i: Instruction) -> None:
    _modifiers(i, "sync", "bfly", "down", "up", "idx")
    target, source, amount, clamp, _ = i.operands
    mode = i.modifiers[1]
    if int(m.read(clamp, "u32")[0]) != (0 if mode == "up" else 31):
        raise PtxError("shuffles are known for whole warps only")
    value = np.broadcast_to(m.read(source, "b32"), (m.count,))
    lane, n = np.arange(m.count) % 32, np.broadcast_to(m.read(amount, "u32"), (m.count,)).astype(np.int64)
    other = {"bfly": lane ^ n, "down": lane + n, "up": lane - n, "idx": n % 32}[mode]
    inside = (other >= 0) & (other < 32)
    place = np.arange(m.count) - lane + np.where(inside, other, lane)
    if not m.active[place[m.active]].all():
        raise PtxError("a shuffle reads a lane that does not take part")
    result, *flag = target.parts if isinstance(target, Vector) else (target,)
    m.write(result, value[place])
    for predicate in flag:
        m.write(predicate, inside)
