"""PTX text to instructions with decoded operands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import PtxError

WIDTHS = {"pred": 1, "b128": 128} | {f"{kind}{bits}": bits for kind in "busf" for bits in (8, 16, 32, 64)}
WIDTHS |= {"bf16": 16, "f16x2": 32, "bf16x2": 32, "f32x2": 64}


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant by its bits: sign-extended integers, or the bits of a float."""

    bits: int


@dataclass(frozen=True)
class Symbol:
    """The name of a parameter, a shared variable or a special register."""

    name: str


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    parts: tuple[Register | Immediate | Symbol, ...]


Operand = Register | Immediate | Symbol | Address | Vector


@dataclass(frozen=True)
class Instruction:
    """One instruction, as ``@[!]guard name.modifiers.type operands``; ``type`` is the last modifier that is a type.

    ``text`` and ``where`` (the line of source that it was made from, where the compiler said) are for messages.
    """

    name: str
    modifiers: tuple[str, ...]
    type: str
    operands: tuple[Operand, ...]
    guard: Register | None
    negated: bool
    text: str
    where: str

    def has(self, modifier: str) -> bool:
        return modifier in self.modifiers

    def complain(self, problem: str) -> PtxError:
        return PtxError(f"{problem}: {self.text!r} (from {self.where})")


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter: its offset and size in the block of parameters, in bytes."""

    name: str
    offset: int
    size: int


@dataclass
class Kernel:
    """An entry function: instructions in order, and where each label points."""

    name: str
    parameters: list[Parameter]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    register_widths: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    shared_size: int = 0

    def declare_shared(self, name: str, align: int, size: int) -> None:
        self.shared[name] = -(-self.shared_size // align) * align
        self.shared_size = self.shared[name] + size

    def width(self, register: Register) -> int:
        """Width of a register in bits; 1 for a predicate."""
        found = self.register_widths.get(register.name)
        if found is None:
            found = self.register_widths.get(register.name.rstrip("0123456789"))
        if found is None:
            raise PtxError(f"register {register.name} is not declared")
        return found


def parse(text: str, name: str | None = None) -> Kernel:
    """The entry function of this name, or the only one.

    Raises:
        PtxError: there is no such entry, several without a name, or a line is not understood.
    """
    entries = list(re.finditer(r"\.entry\s+(\w+)\s*\(", text))
    chosen = [entry for entry in entries if name in (None, entry.group(1))]
    if len(chosen) != 1:
        raise PtxError(f"want one entry named {name}; there are {[entry.group(1) for entry in entries]}")
    start = chosen[0]
    close = text.index(")", start.end())
    kernel = Kernel(start.group(1), _parameters(text[start.end() : close]))
    for align, symbol, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d*)\]", text):
        kernel.declare_shared(symbol, int(align), int(size or 0))
    _parse_body(kernel, text[text.index("{", close) + 1 :])
    return kernel


def _parameters(text: str) -> list[Parameter]:
    found, offset = [], 0
    for declaration in filter(None, (part.strip() for part in re.sub(r"//[^\n]*", "", text).split(","))):
        match = re.match(r"\.param\s+(.*?)\s*\.(\w+)\s+(?:\.ptr.*\s)?(\w+)(?:\[(\d+)\])?$", declaration, re.S)
        if not match:
            match = re.match(r"\.param()\s+\.(\w+)\s+(?:\.ptr.*\s)?(\w+)(?:\[(\d+)\])?$", declaration, re.S)
        if not match or match.group(2) not in WIDTHS:
            raise PtxError(f"cannot parse parameter {declaration!r}")
        before, kind, name, count = match.groups()
        element = WIDTHS[kind] // 8
        explicit = re.search(r"\.align\s+(\d+)", before)
        align = int(explicit.group(1)) if explicit else element
        offset = -(-offset // align) * align
        size = element * int(count or 1)
        found.append(Parameter(name, offset, size))
        offset += size
    return found


def _parse_body(kernel: Kernel, text: str) -> None:
    depth, where = 1, "?"
    for raw in text.split("\n"):
        source = re.search(r"//\s*(\S+:\d+:\d+)", raw)
        line = _named_by_width(re.sub(r"//.*", "", raw).strip())
        if re.match(r"\.loc\s", line):
            where = source.group(1) if source else line
            continue
        # Braces around scopes lead a line or follow a semicolon; those around vectors never do.
        while line[:1] in ("{", "}"):
            depth += 1 if line[0] == "{" else -1
            line = line[1:].strip()
        while re.search(r";\s*\}$", line):
            depth, line = depth - 1, line[:-1].strip()
        if depth == 0:
            return
        _parse_line(kernel, line, where)
    raise PtxError("the body of the entry does not end")


def _named_by_width(line: str) -> str:
    """A scope of one line, ``{ .reg .b16 tmp; ... }``, with names that other such scopes may give another width."""
    declared = re.match(r"\{\s*\.reg\s+\.(\w+)\s+(\w+);.*\}$", line)
    return re.sub(rf"\b{declared.group(2)}\b", f"{declared.group(2)}_{declared.group(1)}", line) if declared else line


def _parse_line(kernel: Kernel, line: str, where: str) -> None:
    label = re.match(r"([$\w]+):\s*(.*)$", line)
    if label:
        targets = re.match(r"\.branchtargets\s+(.*);", label.group(2))
        if targets:
            kernel.tables[label.group(1)] = tuple(t.strip() for t in targets.group(1).split(","))
            return
        kernel.labels[label.group(1)] = len(kernel.instructions)
        line = label.group(2)
    for statement in filter(None, (part.strip() for part in line.split(";"))):
        if statement.startswith(".reg"):
            _declare_registers(kernel, statement)
        elif statement.startswith(".local"):
            raise PtxError(f"the kernel uses local memory: {statement}")
        elif not statement.startswith("."):
            kernel.instructions.append(_instruction(kernel, statement, where))


def _declare_registers(kernel: Kernel, statement: str) -> None:
    match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement)
    if not match or match.group(1) not in WIDTHS:
        raise PtxError(f"cannot parse register declaration {statement!r}")
    for name in match.group(2).split(","):
        # "%r<36>" declares %r0 .. %r35; a bare name declares itself.
        plain = re.sub(r"<\d+>$", "", name.strip())
        width = WIDTHS[match.group(1)]
        if kernel.register_widths.setdefault(plain, width) != width:
            raise PtxError(f"register {plain} is declared with two widths")


def _instruction(kernel: Kernel, statement: str, where: str) -> Instruction:
    match = re.match(r"(?:@(!?)([%\w$]+)\s+)?([a-z]\w*(?:(?:\.|::)\w+)*)\s*(.*)$", statement, re.S)
    if not match:
        raise PtxError(f"cannot parse {statement!r}")
    negated, guard, opcode, operands = match.groups()
    name, *modifiers = opcode.replace("::", "_").split(".")
    types = [m for m in modifiers if m in WIDTHS]
    tokens = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,\s]*(?:\|[^,\s]+)?", operands)
    return Instruction(
        name=name,
        modifiers=tuple(modifiers),
        type=types[-1] if types else "",
        operands=tuple(_operand(kernel, token) for token in tokens),
        guard=Register(guard) if guard else None,
        negated=negated == "!",
        text=" ".join(statement.split()),
        where=where,
    )


def _operand(kernel: Kernel, token: str) -> Operand:
    token = token.strip()
    if token.startswith("{") or "|" in token:
        # "%r1|%p1" is a result and a predicate.
        parts = (_operand(kernel, part) for part in re.split(r"[,|]", token.strip("{}")))
        return Vector(tuple(parts))  # type: ignore[arg-type]
    if token.startswith("["):
        match = re.match(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\w+))?\s*\]$", token)
        if not match:
            raise PtxError(f"cannot parse address {token!r}")
        base, offset = match.groups()
        return Address(_operand(kernel, base), int(offset or "0", 0))  # type: ignore[arg-type]
    if re.match(r"0[fF][0-9a-fA-F]{8}$|0[dD][0-9a-fA-F]{16}$", token):
        return Immediate(int(token[2:], 16))
    if re.match(r"-?\d", token):
        return Immediate(int(token.rstrip("U"), 0))
    special = "." in token or token in ("%laneid", "%warpid")
    if token in kernel.register_widths or (token.startswith("%") and not special):
        return Register(token)
    return Symbol(token)
