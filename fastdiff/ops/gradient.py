"""The transposed row: the vector-Jacobian product of a row, run as rows.

An output ``w = [base +] sum c_i source_i + sum n_j noise_j`` sends its gradient to each source with that source's
coefficient: columns and outputs change places. An output that later ones read becomes an output of the transposed
row that later ones read, in the reverse order; where it is clamped its gradient must be masked in between, which costs
two more launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.rows.call import Call
from fastdiff.rows.dtypes import NETWORK_TYPES, channels_last
from fastdiff.rows.layout import CHANNELS_LAST, EITHER, layout, samples_overlap
from fastdiff.rows.program import MAX_COEFFICIENTS, MAX_OUTPUTS, Formula, Program


@dataclass(frozen=True)
class Term:
    """A source and its coefficient ``[1 or B]``.

    ``source`` is the number of a tensor, or ``-1 - i`` for node ``i``. ``present`` is int64 ``[1 or B]`` of 0 and 1, or
    None for always.
    """

    source: int
    coefficient: Tensor
    present: Tensor | None = None


@dataclass(frozen=True)
class Node:
    """The gradient of an output that several others or a scale stand behind: a sum of terms, then scaled."""

    terms: list[Term]
    scale: Term | None


@dataclass(frozen=True)
class Incoming:
    """Gradients that arrive at the outputs of a row: for each, the output, the tensor and a factor on it."""

    outputs: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    factors: tuple[Tensor | None, ...]


def column_gradients(call: Call, dtypes: Sequence[torch.dtype | None], incoming: Incoming) -> list[Tensor | None]:
    """Gradients with respect to the columns of a row.

    Args:
        call: what ran forward; its columns are read only where an output is clamped.
        dtypes: for every column its dtype, or None where no gradient is wanted.
        incoming: the gradients of its outputs.

    Returns:
        For every column its gradient, or None where none is wanted or none flows.
    """
    program, tensors = call.program, list(incoming.tensors)
    nodes: list[Node] = []
    # What each column, and behind them each output, receives.
    sums: list[list[Term]] = [[] for _ in range(program.columns + len(program.outputs))]
    for i in reversed(range(len(program.outputs))):
        output, received = program.outputs[i], sums.pop()
        direct = [(k, f) for k, f in enumerate(incoming.factors) if incoming.outputs[k] == i]
        if received or (output.clamp and direct):
            received += [Term(k, _one(call) if f is None else f) for k, f in direct]
            node = Node(received, _term(call, 0, program.scale_at(i)) if output.scale else None)
            if output.clamp:
                (gradient,) = _run(tensors, nodes, [node], [call.coef.dtype])
                tensors.append(_mask_clamped(gradient, call, i))
                direct = [(len(tensors) - 1, None)]
            else:
                nodes.append(node)
                direct = [(-len(nodes), None)]
        elif output.scale:
            scale = _factor(call, program.scale_at(i))
            direct = [(k, scale if f is None else f * scale) for k, f in direct]
        for source, factor in direct:
            if output.base is not None:
                sums[output.base].append(Term(source, _one(call) if factor is None else factor))
            for k, column in enumerate(output.terms, program.terms_at(i)):
                sums[column].append(_term(call, source, k, factor))
            for k, reference in enumerate(output.noise, program.noise_at(i)):
                if reference < 0:
                    sums[-1 - reference].append(_term(call, source, k, factor))
    found: list[Tensor | None] = [None] * len(sums)
    wanted = [i for i, terms in enumerate(sums) if terms and dtypes[i] is not None]
    for chunk in _chunks(wanted, sums, nodes):
        results = _run(tensors, nodes, [Node(sums[i], None) for i in chunk], [dtypes[i] for i in chunk])
        for i, result in zip(chunk, results, strict=True):
            found[i] = result
    return found


def arriving(
    call: Call,
    outputs: Sequence[int],
    gradients: Sequence[Tensor | None],
    z_gradient: Tensor | None,
    copies: int,
    common: str,
) -> Incoming:
    """Gather the gradients of what a row returned, made dense where autograd hands over an expanded tensor."""
    found = [(i, _dense(g, common), None) for i, g in zip(outputs, gradients, strict=True) if g is not None]
    if z_gradient is not None and call.program.network is not None:
        c_in = _factor(call, call.program.c_in_at)
        found += [(call.program.network, copy, c_in) for copy in _dense(z_gradient, common).chunk(copies)]
    indices, tensors, factors = zip(*found, strict=True) if found else ((), (), ())
    return Incoming(indices, tensors, factors)


def _bit(call: Call, k: int) -> Tensor | None:
    """Whether coefficient ``k`` is present, 0 or 1 per sample; None means always."""
    return None if call.present is None else (call.present >> k) & 1


def _term(call: Call, source: int, k: int, factor: Tensor | None = None) -> Term:
    """Coefficient ``k``, times a factor, on a source."""
    value = call.coef[:, k]
    return Term(source, value if factor is None else value * factor, _bit(call, k))


def _factor(call: Call, k: int) -> Tensor:
    """Coefficient ``k`` as a factor: 1 where it is absent."""
    bit = _bit(call, k)
    return call.coef[:, k] if bit is None else torch.where(bit == 1, call.coef[:, k], 1.0)


def _mask_clamped(gradient: Tensor, call: Call, i: int) -> Tensor:
    """The gradient before the clamp: nothing where output i was cut; at the bound and at NaN it passes."""
    program, k = call.program, call.program.bound_at(i)
    bare = replace(program.outputs[i], clamp=False, scale=False)
    alone = Program(program.columns, (*program.outputs[:i], bare), program.draws)
    (w,) = torch.ops.fastdiff.stage_functional(
        call.columns,
        call.coef[:, :k].contiguous(),
        call.present,
        call.seeds,
        call.draws,
        alone.integers,
        [i],
        dtype_codes([call.coef.dtype]),
        None,
        1,
    )
    bound = call.coef[:, k].view(-1, *(1 for _ in w.shape[1:]))
    cut = (w > bound) | (w < -bound)
    bit = _bit(call, k)
    if bit is not None:
        cut = cut & (bit == 1).view(-1, *(1 for _ in w.shape[1:]))
    return torch.where(cut, 0.0, gradient)


def _chunks(wanted: Sequence[int], sums: Sequence[list[Term]], nodes: Sequence[Node]) -> Iterator[list[int]]:
    """Group the columns wanted so that each group fits in one launch, behind all nodes."""
    room = MAX_COEFFICIENTS - sum(len(node.terms) + (node.scale is not None) for node in nodes)
    chunk: list[int] = []
    for i in wanted:
        if len(sums[i]) > room:
            raise InputError(f"column {i} is used {len(sums[i])} times; its gradient takes at most {room} terms")
        if len(chunk) + len(nodes) == MAX_OUTPUTS or sum(len(sums[j]) for j in (*chunk, i)) > room:
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


def _run(
    tensors: Sequence[Tensor], nodes: Sequence[Node], wanted: Sequence[Node], dtypes: Sequence[torch.dtype | None]
) -> list[Tensor]:
    """One launch: the nodes, unstored, then each of those wanted as one output; only the tensors needed are read."""
    together = [*nodes, *wanted]
    terms = [term for node in together for term in (*node.terms, *([] if node.scale is None else [node.scale]))]
    used = sorted({term.source for node in together for term in node.terms if term.source >= 0})
    place = {source: i for i, source in enumerate(used)} | {-1 - i: len(used) + i for i in range(len(nodes))}
    formulas = (
        Formula(terms=tuple(place[term.source] for term in node.terms), scale=node.scale is not None)
        for node in together
    )
    program = Program(len(used), tuple(formulas))
    coef = torch.stack(torch.broadcast_tensors(*(term.coefficient for term in terms)), 1)
    present = None
    if any(term.present is not None for term in terms):
        one = terms[0].coefficient.new_ones(1, dtype=torch.int64)
        bits = [one if t.present is None else t.present for t in terms]
        present = sum(bit << k for k, bit in enumerate(bits))
    read, outputs = [tensors[i] for i in used], list(range(len(nodes), len(together)))
    return torch.ops.fastdiff.stage_functional(
        read, coef, present, None, None, program.integers, outputs, dtype_codes(dtypes), None, 1
    )


def dtype_codes(dtypes: Sequence[torch.dtype | None]) -> list[int]:
    """Storage types as ``stage_functional`` takes them in a list: places in ``NETWORK_TYPES``."""
    return [NETWORK_TYPES.index(dtype) for dtype in dtypes]


def _one(call: Call) -> Tensor:
    return call.coef.new_ones(1)


def _dense(gradient: Tensor, common: str) -> Tensor:
    if layout(gradient) in (common, EITHER) and not samples_overlap(gradient):
        return gradient
    wanted = channels_last(gradient.dim()) if common == CHANNELS_LAST else torch.contiguous_format
    return gradient.contiguous(memory_format=wanted)
