"""Plans: a sampler compiled to rows of coefficients, immutable, shareable, and the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastdiff.errors import PlanError
from fastdiff.plans import file
from fastdiff.plans.bound import result_bound
from fastdiff.plans.explain import explain
from fastdiff.rows.program import Program
from fastdiff.rows.row import CALLED_PREFIX, GIVEN_PREFIX, NETWORK_PREFIX, NOISE_PREFIX, Bound, Coefficient, Row

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Plan:
    """Rows ready to run: row 0 draws the first noise, and every later row follows a network evaluation or a call.

    Args:
        rows: one per network evaluation or call of the caller's function, and one before the first.
        dtype: the state type, ``"float32"`` or ``"float64"``.
        description: the settings it was made from, for people.
        batched: whether guided evaluations are one network call on inputs stacked ``[cond; uncond]``.
        caller_noise: draws are tensors that the caller passes, not counters.
    """

    rows: tuple[Row, ...]
    dtype: str = "float32"
    description: str = "hand-written"
    batched: bool = True
    caller_noise: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise PlanError(f"dtype is {self.dtype!r}; the state is one of {', '.join(DTYPES)}")
        if not self.rows:
            raise PlanError("a plan needs at least one row")
        for k, row in enumerate(self.rows):
            if (row.network is None and row.call is None) != (k == len(self.rows) - 1):
                raise PlanError(
                    f"row {k} of {len(self.rows)}: all rows but the last feed the network or a call, and only they"
                )
        self._check_columns()
        if all(output.store is None for output in self.rows[-1].outputs):
            raise PlanError("the last row must store the result: the first output that it stores")

    def _check_columns(self) -> None:
        """Every column must be there when it is read."""
        stored: set[str | None] = set()
        fresh: set[str] = set()
        for k, row in enumerate(self.rows):
            for name in row.columns:
                if name.startswith(GIVEN_PREFIX) or (name.startswith(NOISE_PREFIX) and self.caller_noise):
                    continue
                if name not in stored and name not in fresh:
                    raise PlanError(
                        f"row {k} reads {name!r}, which no earlier row has stored and which is no network output; "
                        f"there are {sorted(filter(None, stored))} and {sorted(fresh)}"
                    )
            stored |= {output.store for output in row.outputs}
            fresh = {NETWORK_PREFIX + branch for branch in row.branches} if row.network is not None else set()
            if row.call is not None:
                name, arguments = row.call
                named = (argument for argument in arguments if not argument.startswith(GIVEN_PREFIX))
                if missing := [argument for argument in named if argument not in stored]:
                    raise PlanError(f"row {k} calls {name!r} with {missing}, which no row has stored")
                fresh = {CALLED_PREFIX + name}

    @property
    def evaluations(self) -> int:
        """Number of network evaluations (a guided pair counts once)."""
        return sum(row.network is not None for row in self.rows)

    @cached_property
    def given(self) -> tuple[str, ...]:
        """Names of the tensors that the caller gives to a run."""
        return self._named(GIVEN_PREFIX)

    @cached_property
    def calls(self) -> tuple[str, ...]:
        """Names of the functions that the caller gives to a run."""
        return tuple(dict.fromkeys(row.call[0] for row in self.rows if row.call is not None))

    def _named(self, prefix: str) -> tuple[str, ...]:
        read = (name for row in self.rows for name in (*row.columns, *(row.call[1] if row.call else ())))
        return tuple(dict.fromkeys(name.removeprefix(prefix) for name in read if name.startswith(prefix)))

    @cached_property
    def buffers(self) -> tuple[str, ...]:
        """Names of the state-size tensors that a run owns, beside the network input."""
        stored = (o.store for row in self.rows for o in row.outputs)
        return tuple(dict.fromkeys(name for name in stored if name is not None))

    @cached_property
    def encoded(self) -> list[tuple[Program, list[Coefficient], list[list[int]]]]:
        """Of every row its program, coefficients and draws ``[purpose, tensor, draw, sub_draw]``, as ops take them."""
        return [
            (row.program, row.coefficients, [[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in row.draws])
            for row in self.rows
        ]

    @cached_property
    def structure(self) -> tuple[Any, ...]:
        """All but the numbers: plans of one structure make the same launches, with other coefficients and draws."""
        rows = (
            (
                row.columns,
                row.program,
                tuple(o.store for o in row.outputs),
                row.copies,
                row.branches,
                row.gram,
                row.call,
            )
            for row in self.rows
        )
        return self.dtype, self.batched, self.caller_noise, tuple(rows)

    @cached_property
    def result(self) -> str:
        """The buffer that holds the sample after the last row."""
        return next(output.store for output in self.rows[-1].outputs if output.store is not None)

    def traffic(self, network_bytes: int = 4) -> list[int]:
        """Compulsory bytes per state element of every row: each column read once, each output written once.

        Args:
            network_bytes: size of one element of the network's input and output.
        """
        state = 8 if self.dtype == "float64" else 4
        total = []
        for row in self.rows:
            reads = sum(network_bytes if name.startswith(NETWORK_PREFIX) else state for name in row.columns)
            # The inner products read what they need in a launch of their own.
            again = set() if row.gram is None else set(row.gram.names) & set(row.columns)
            reads += sum(network_bytes if name.startswith(NETWORK_PREFIX) else state for name in again)
            writes = state * sum(o.store is not None for o in row.outputs)
            total.append(reads + writes + (row.copies * network_bytes if row.network is not None else 0))
        return total

    def bound(self, network: float = 1.0) -> Bound:
        """A-priori bounds on the result and on its rounding error, in data units.

        The error is against the same plan in exact arithmetic, coefficients included, given the same network
        outputs: how a network reacts to a perturbed input is its own affair.

        Args:
            network: bound on the absolute value of raw network outputs.
        """
        return result_bound(self.rows, self.result, self.dtype, network)

    def explain(self, limit: int | None = None) -> str:
        """The plan as a table for people: one line per output of each row."""
        return explain(self, limit)

    def to_json(self) -> str:
        """The plan as JSON text; coefficients are hexadecimal floats, so nothing is rounded."""
        return file.to_text(self)

    @property
    def sha256(self) -> str:
        """Digest of everything that determines the result: format, noise format, state type and rows."""
        return file.digest(file.body(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back; plans of format 1 are read too.

        Raises:
            PlanError: not a plan, of another format or noise format, or its digest does not match.
        """
        fields = file.fields_from(text)
        try:
            return cls(**fields)
        except (PlanError, TypeError) as error:
            raise PlanError(f"the plan is malformed: {error!r}") from None
