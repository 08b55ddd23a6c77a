"""The transposed row: the vector-Jacobian product of a row, run as rows.

An output ``w = [base +] sum c_i col_i + sum n_j noise_j`` sends its gradient to each column with that column's
coefficient: columns and outputs change places. The derived column becomes that of the transposed row; where it is
clamped its gradient must be masked in between, which costs two more launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.rows.dtypes import NETWORK_TYPES
from fastdiff.rows.layout import CHANNELS_LAST, EITHER, layout, samples_overlap
from fastdiff.rows.program import Combination, Program
from fastdiff.rows.row import MAX_COEFFICIENTS, MAX_OUTPUTS

DERIVED = -1


@dataclass(frozen=True)
class Term:
    """A source (an index, or ``DERIVED``) and its coefficient ``[1 or B]``.

    ``present`` is int64 ``[1 or B]`` of 0 and 1, or None for always.
    """

    source: int
    coefficient: Tensor
    present: Tensor | None = None


@dataclass(frozen=True)
class Coefficients:
    """The coefficients ``[1 or B, K]`` of a row, with their presence bits, by place."""

    coef: Tensor
    present: Tensor | None

    def bit(self, k: int) -> Tensor | None:
        """Whether coefficient ``k`` is present, 0 or 1 per sample; None means always."""
        return None if self.present is None else (self.present >> k) & 1

    def term(self, source: int, k: int, factor: Tensor | None = None) -> Term:
        """Coefficient ``k``, times a factor, on a source."""
        value = self.coef[:, k]
        return Term(source, value if factor is None else value * factor, self.bit(k))

    def factor(self, k: int) -> Tensor:
        """Coefficient ``k`` as a factor: 1 where it is absent."""
        bit = self.bit(k)
        return self.coef[:, k] if bit is None else torch.where(bit == 1, self.coef[:, k], 1.0)


@dataclass(frozen=True)
class Incoming:
    """Gradients that arrive at the outputs of a row: for each, the output, the tensor and a factor on it."""

    outputs: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    factors: tuple[Tensor | None, ...]


def column_gradients(
    program: Program,
    coefficients: Coefficients,
    columns: Sequence[Tensor],
    dtypes: Sequence[torch.dtype | None],
    incoming: Incoming,
) -> list[Tensor | None]:
    """Gradients with respect to the columns of a row.

    Args:
        program: the row that ran forward.
        coefficients: its coefficients.
        columns: its columns; they are read only where the derived column is clamped.
        dtypes: for every column its dtype, or None where no gradient is wanted.
        incoming: the gradients of its outputs.

    Returns:
        For every column its gradient, or None where none is wanted or none flows.
    """
    sums, to_derived = _transpose(program, coefficients, incoming)
    sources, derived = list(incoming.tensors), None
    if to_derived:
        scale = coefficients.term(DERIVED, program.scale_at) if program.scale else None
        derived, source = (to_derived, scale), DERIVED
        if program.clamp:
            (gradient,) = _run(sources, [[Term(DERIVED, _one(coefficients))]], [coefficients.coef.dtype], derived)
            derived, source = None, len(sources)
            sources.append(_mask_clamped(gradient, program, coefficients, columns))
        for k, column in enumerate(program.derived or ()):
            sums[column].append(coefficients.term(source, k))
    found: list[Tensor | None] = [None] * len(sums)
    wanted = [i for i, terms in enumerate(sums) if terms and dtypes[i] is not None]
    for chunk in _chunks(wanted, sums, to_derived):
        results = _run(sources, [sums[i] for i in chunk], [dtypes[i] for i in chunk], derived)
        for i, result in zip(chunk, results, strict=True):
            found[i] = result
    return found


def arriving(
    program: Program,
    coefficients: Coefficients,
    outputs: Sequence[int],
    gradients: Sequence[Tensor | None],
    z_gradient: Tensor | None,
    copies: int,
    common: str,
) -> Incoming:
    """Gather the gradients of what a row returned, made dense where autograd hands over an expanded tensor."""
    found = [(i, _dense(g, common), None) for i, g in zip(outputs, gradients, strict=True) if g is not None]
    if z_gradient is not None and program.network is not None:
        c_in = coefficients.factor(program.c_in_at)
        found += [(program.network, copy, c_in) for copy in _dense(z_gradient, common).chunk(copies)]
    indices, tensors, factors = zip(*found, strict=True) if found else ((), (), ())
    return Incoming(indices, tensors, factors)


def _transpose(program: Program, coefficients: Coefficients, incoming: Incoming) -> tuple[list[list[Term]], list[Term]]:
    """What each column, and the derived column, receives directly from the outputs."""
    sums: list[list[Term]] = [[] for _ in range(program.columns + 1)]
    for source, (index, factor) in enumerate(zip(incoming.outputs, incoming.factors, strict=True)):
        output = program.outputs[index]
        if output.base is not None:
            sums[output.base].append(Term(source, _one(coefficients) if factor is None else factor))
        for k, column in enumerate(output.terms, program.terms_at(index)):
            sums[column].append(coefficients.term(source, k, factor))
        for k, reference in enumerate(output.noise, program.noise_at(index)):
            if reference < 0:
                sums[-1 - reference].append(coefficients.term(source, k, factor))
    return sums[:-1], sums[-1]


def _mask_clamped(gradient: Tensor, program: Program, coefficients: Coefficients, columns: Sequence[Tensor]) -> Tensor:
    """The gradient before the clamp: nothing where the derived column was cut; at the bound and at NaN it passes."""
    terms = program.derived or ()
    alone = Program(len(columns), (Combination(terms=terms),))
    (d,) = torch.ops.fastdiff.stage_functional(
        columns,
        coefficients.coef[:, : len(terms)].contiguous(),
        coefficients.present,
        None,
        None,
        alone.integers,
        [0],
        dtype_codes([coefficients.coef.dtype]),
        None,
        1,
    )
    per_sample = (-1, *(1 for _ in d.shape[1:]))
    bound = coefficients.coef[:, program.clamp_at].view(per_sample)
    cut = (d > bound) | (d < -bound)
    bit = coefficients.bit(program.clamp_at)
    if bit is not None:
        cut = cut & (bit == 1).view(per_sample)
    return torch.where(cut, 0.0, gradient)


def _chunks(wanted: Sequence[int], sums: Sequence[list[Term]], derived: Sequence[Term]) -> Iterator[list[int]]:
    """Group the columns wanted so that each group fits in one launch."""
    room = MAX_COEFFICIENTS - len(derived) - 1
    chunk: list[int] = []
    for i in wanted:
        if len(sums[i]) > room:
            raise InputError(f"column {i} is used {len(sums[i])} times; its gradient takes at most {room} terms")
        if len(chunk) == MAX_OUTPUTS or sum(len(sums[j]) for j in (*chunk, i)) > room:
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


def _run(
    sources: Sequence[Tensor],
    sums: Sequence[list[Term]],
    dtypes: Sequence[torch.dtype | None],
    derived: tuple[list[Term], Term | None] | None,
) -> list[Tensor]:
    """One launch: each sum of terms as one output, reading only the sources that it needs."""
    d_terms, scale = derived or ([], None)
    terms = [*d_terms, *([] if scale is None else [scale]), *(term for s in sums for term in s)]
    used = sorted({term.source for term in terms} - {DERIVED})
    place = {source: i for i, source in enumerate(used)} | {DERIVED: len(used)}
    program = Program(
        len(used),
        tuple(Combination(terms=tuple(place[term.source] for term in s)) for s in sums),
        derived=tuple(place[term.source] for term in d_terms) if derived else None,
        scale=scale is not None,
    )
    coef = torch.stack(torch.broadcast_tensors(*(term.coefficient for term in terms)), 1)
    present = None
    if any(term.present is not None for term in terms):
        one = terms[0].coefficient.new_ones(1, dtype=torch.int64)
        bits = [one if t.present is None else t.present for t in terms]
        present = sum(bit << k for k, bit in enumerate(bits))
    read, outputs = [sources[i] for i in used], list(range(len(sums)))
    return torch.ops.fastdiff.stage_functional(
        read, coef, present, None, None, program.integers, outputs, dtype_codes(dtypes), None, 1
    )


def dtype_codes(dtypes: Sequence[torch.dtype | None]) -> list[int]:
    """Storage types as ``stage_functional`` takes them in a list: places in ``NETWORK_TYPES``."""
    return [NETWORK_TYPES.index(dtype) for dtype in dtypes]


def _one(coefficients: Coefficients) -> Tensor:
    return coefficients.coef.new_ones(1)


def _dense(gradient: Tensor, common: str) -> Tensor:
    if layout(gradient) in (common, EITHER) and not samples_overlap(gradient):
        return gradient
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats[gradient.dim()] if common == CHANNELS_LAST else torch.contiguous_format
    return gradient.contiguous(memory_format=wanted)
