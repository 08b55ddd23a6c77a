"""Plans as JSON text: coefficients are hexadecimal floats, so nothing is rounded; format 1 is read too."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastdiff.errors import PlanError
from fastdiff.maths.draw import Draw
from fastdiff.rows.gram import Gram, Inner, Step, Weighted
from fastdiff.rows.row import Affine, Coefficient, Output, Row, Terms

if TYPE_CHECKING:
    from fastdiff.plans.plan import Plan

FORMAT = 2
READABLE = (1, 2)
NOISE_FORMAT = 1


def to_text(plan: Plan) -> str:
    """The plan as JSON text."""
    content = body(plan)
    return json.dumps(content | {"sha256": digest(content)}, indent=1)


def body(plan: Plan) -> dict[str, Any]:
    """All that is written of a plan, but for its digest."""
    rows = [_written(row) for row in plan.rows]
    fields = {"dtype": plan.dtype, "description": plan.description, "batched": plan.batched}
    head = {"fastdiff_plan": FORMAT, "noise_format": NOISE_FORMAT}
    return head | fields | {"caller_noise": plan.caller_noise, "rows": rows}


def digest(content: dict[str, Any]) -> str:
    """The SHA-256 of everything that determines the result: the description does not."""
    named = {key: value for key, value in content.items() if key != "description"}
    return hashlib.sha256(json.dumps(named, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def fields_from(text: str) -> dict[str, Any]:
    """The arguments of ``Plan`` that a text holds.

    Raises:
        PlanError: not a plan, of another format or noise format, or its digest does not match.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise PlanError(f"this is not a plan: not JSON ({error})") from None
    if not isinstance(content, dict) or "fastdiff_plan" not in content:
        raise PlanError("this is not a plan: it has no field 'fastdiff_plan'; write one with Plan.to_json()")
    for name, ours in (("fastdiff_plan", READABLE), ("noise_format", (NOISE_FORMAT,))):
        if content.get(name) not in ours:
            known = " and ".join(map(str, ours))
            raise PlanError(f"{name} is {content.get(name)!r}; this version reads {known}: compile the plan anew")
    given = content.pop("sha256", None)
    if given != digest(content):
        raise PlanError(f"the plan's sha256 is {given!r}, its content has {digest(content)!r}: the file was changed")
    try:
        rows = content["rows"]
        rows = [_modern(row) for row in rows] if content["fastdiff_plan"] == 1 else rows
        made = {name: content[name] for name in ("dtype", "description", "batched", "caller_noise")}
        read = tuple(_row(row) for row in rows)
        # A field of another type, such as a list for a name, may pass all other checks.
        for k, (row, written) in enumerate(zip(read, rows, strict=True)):
            if _written(row) != written:
                raise ValueError(f"row {k} holds something that no plan writes")
        if any(not isinstance(made[name], bool) for name in ("batched", "caller_noise")):
            raise ValueError("batched and caller_noise are true or false")
        return made | {"rows": read}
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise PlanError(f"the plan is malformed: {error!r}") from None


def _modern(row: dict[str, Any]) -> dict[str, Any]:
    """A row of format 1 in format 2: the derived column becomes the first output, which nobody stores."""
    derived = row.pop("derived")
    outputs = [output | {"bound": None, "scale": None} for output in row["outputs"]]
    if derived is not None:
        for output in outputs:
            output["terms"] = [["w0" if name == "D" else name, c] for name, c in output["terms"]]
        outputs.insert(0, {"base": None, "noise": [], "store": None} | derived)
        row["network"] = None if row["network"] is None else row["network"] + 1
    return row | {"outputs": outputs, "gram": None, "call": None}


def _written(row: Row) -> dict[str, Any]:
    """A row as it stands in a file; its program follows from the rest."""
    return _hex({name: value for name, value in asdict(row).items() if name != "program"})


def _row(content: dict[str, Any]) -> Row:
    scalars = {name: float.fromhex(content[name]) for name in ("c_noise", "sigma")}
    call = content["call"]
    return Row(
        columns=tuple(content["columns"]),
        outputs=tuple(_output(output) for output in content["outputs"]),
        draws=tuple((name, Draw(**draw)) for name, draw in content["draws"]),
        network=content["network"],
        c_in=_coefficient(content["c_in"]),
        copies=content["copies"],
        branches=tuple(content["branches"]),
        gram=None if content["gram"] is None else _gram(content["gram"]),
        call=None if call is None else (call[0], tuple(call[1])),
        **scalars,
    )


def _output(content: dict[str, Any]) -> Output:
    bound, scale = (None if content[n] is None else _coefficient(content[n]) for n in ("bound", "scale"))
    return Output(content["base"], _terms(content["terms"]), _terms(content["noise"]), content["store"], bound, scale)


def _gram(content: dict[str, Any]) -> Gram:
    vectors = tuple(tuple((str(name), float.fromhex(c)) for name, c in vector) for vector in content["vectors"])
    sums = (
        Inner(*pair) if len(pair) == 2 else Weighted(*pair[:3], *map(float.fromhex, pair[3:]))
        for pair in content["sums"]
    )
    steps = (Step(operation, left, right, float.fromhex(number)) for operation, left, right, number in content["steps"])
    return Gram(vectors, tuple(sums), tuple(steps))


def _terms(pairs: Any) -> Terms:
    return tuple((str(name), _coefficient(c)) for name, c in pairs)


def _coefficient(value: Any) -> Coefficient:
    if isinstance(value, str):
        return float.fromhex(value)
    constant, terms = value
    return Affine(float.fromhex(constant), tuple((int(scalar), float.fromhex(factor)) for scalar, factor in terms))


def _hex(value: Any) -> Any:
    """Floats as hexadecimal text, containers walked."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {key: _hex(inner) for key, inner in value.items()}
    return [_hex(inner) for inner in value] if isinstance(value, list | tuple) else value
