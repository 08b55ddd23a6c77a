"""Rows as subjects: random ones from the space of ``fastdiff.testing.rows``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from fastdiff.lab.fuzz.row_line import dtype_name, encode
from fastdiff.lab.fuzz.row_shrink import is_output, smaller_rows
from fastdiff.lab.fuzz.subject import Fault, Features, Subject, dump
from fastdiff.lab.fuzz.variants import Variant
from fastdiff.rows.layout import CHANNELS_LAST, ROW_MAJOR
from fastdiff.rows.row import Output
from fastdiff.testing.rows import Case, random_case

SIZES = ((0.9, 129), (0.99, 1025), (0.9995, 4097), (1.0, 2**20 + 1))
"""Below the first probability that exceeds a random number: the largest sample."""


class RowSubject(Subject):
    """A row with everything that one launch of it needs."""

    kind = "row"

    def __init__(self, case: Case) -> None:
        self.case = case

    def run(self, variant: Variant) -> dict[str, Tensor]:
        """What a variant writes."""
        return variant.run(self.case)

    def line(self) -> str:
        """One line of JSON."""
        return dump("row", encode(self.case))

    def smaller(self, fault: Fault) -> Iterator[Subject]:
        """See ``fastdiff.lab.fuzz.row_shrink``."""
        return (RowSubject(case) for case in smaller_rows(self.case, fault))

    def features(self) -> Features:
        """Dimensions, size, dtypes, layout and what the row uses."""
        case, row = self.case, self.case.row
        yield "dims", str(len(case.shape) - 1)
        yield "elements", str(case.shape[1:].numel())
        yield "batch", str(case.shape[0])
        yield "columns", str(len(row.columns))
        yield "outputs", str(len(row.outputs))
        yield "draws", str(len(row.draws))
        yield "state", dtype_name(case.coef.dtype)
        stores = [store[0] for store in (*case.stores, case.z) if isinstance(store, tuple)]
        for dtype in dict.fromkeys([*(values.dtype for values, _ in case.columns), *stores]):
            yield "storage", dtype_name(dtype)
        places = [p for _, p in case.columns] + [s[1] for s in (*case.stores, case.z) if isinstance(s, tuple)]
        yield "layout", CHANNELS_LAST if any(p.layout == CHANNELS_LAST for p in places) else ROW_MAJOR
        flags = {
            "earlier output": any(map(_reads_outputs, row.outputs)),
            "clamp": any(output.bound is not None for output in row.outputs),
            "scale": any(output.scale is not None for output in row.outputs),
            "base": any(output.base is not None for output in row.outputs),
            "caller noise": any(name in row.columns for output in row.outputs for name, _ in output.noise),
            "network input": case.z is not None,
            "copies": row.copies > 1,
            "in place": any(isinstance(store, str) for store in (*case.stores, case.z)),
            "presence": case.present is not None,
            "coef per sample": case.coef.shape[0] > 1,
            "misaligned": any(p.offset % 2 for p in places),
            "gaps": any(p.gap for p in places),
            "special values": any(not bool(values.isfinite().all()) for values, _ in case.columns),
        }
        for name, on in flags.items():
            if on:
                yield "features", name


def _reads_outputs(output: Output) -> bool:
    """Whether an output reads one before it."""
    return any(is_output(name) for name in (output.base, *(name for name, _ in output.terms)))


def random_row_subject(rng: np.random.Generator) -> RowSubject:
    """A row from the whole space, most of them small."""
    die = rng.random()
    largest = next(size for probability, size in SIZES if die <= probability)
    return RowSubject(random_case(rng, max_elements=largest))
