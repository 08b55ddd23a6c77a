"""Draw the rooms of the package and the arrows between them, from its imports: ``python docs/draw_rooms.py``.

A box is a room with its modules, on the floor that the import contract of pyproject.toml gives it; an arrow leads from
a room to one that it imports, where no other path leads there too. Arrows go down: ``make check`` refuses others.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import grimp
import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, GAP = 5.8, 1.0, 0.75


def floors() -> list[list[str]]:
    """The rooms of each floor, the highest first, as the import contract has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def arrows(rooms: list[str]) -> set[tuple[str, str]]:
    """Which room imports which, without those that follow from others."""
    graph = grimp.build_graph("fastdiff", include_external_packages=False)
    direct = {
        (a, b)
        for a, b in product(rooms, rooms)
        if a != b
        and graph.find_shortest_chains(f"fastdiff.{a}", f"fastdiff.{b}", as_packages=True)
        and _imports(graph, a, b)
    }
    return {
        (a, b)
        for a, b in direct
        if not any((a, c) in direct and _leads(direct, c, b) for c in rooms if c not in (a, b))
    }


def _imports(graph: grimp.ImportGraph, a: str, b: str) -> bool:
    inside = {f"fastdiff.{a}", *graph.find_descendants(f"fastdiff.{a}")}
    target = {f"fastdiff.{b}", *graph.find_descendants(f"fastdiff.{b}")}
    return any(graph.find_modules_directly_imported_by(module) & target for module in inside)


def _leads(direct: set[tuple[str, str]], a: str, b: str) -> bool:
    return a == b or any(_leads(direct, d, b) for c, d in direct if c == a)


def modules(room: str) -> list[str]:
    """The modules and packages in a room."""
    folder = ROOT / "fastdiff" / room
    found = {path.stem if path.suffix else path.name for path in folder.glob("*") if path.suffix in ("", ".py")}
    return sorted(found - {"__init__", "__pycache__"})


def main() -> None:
    """Write docs/rooms.svg."""
    levels = floors()
    rooms = [room for level in levels for room in level]
    places = {}
    for y, level in enumerate(reversed(levels)):
        for x, room in enumerate(level):
            places[room] = ((x - (len(level) - 1) / 2) * (WIDTH + 0.6), y * (HEIGHT + GAP))
    plt.rcParams.update({"svg.hashsalt": "rooms", "font.size": 8})
    figure, axes = plt.subplots(figsize=(10, 0.85 * len(levels) + 0.4))
    for room, (x, y) in places.items():
        box = plt.Rectangle((x - WIDTH / 2, y), WIDTH, HEIGHT, facecolor="#eef3f8", edgecolor="#35566f")
        axes.add_patch(box)
        axes.text(x, y + 0.68, room, ha="center", va="center", weight="bold")
        axes.text(x, y + 0.28, " ".join(modules(room)), ha="center", va="center", color="#444444", size=6.2)
    for a, b in sorted(arrows(rooms)):
        (xa, ya), (xb, yb) = places[a], places[b]
        style = {"arrowstyle": "->", "color": "#35566f", "shrinkA": 0, "shrinkB": 0}
        if yb + HEIGHT < ya - GAP:
            # Past the rooms in between, on the right.
            style["connectionstyle"] = "arc3,rad=-0.35"
            start, end = (xa + WIDTH / 2, ya + HEIGHT / 2), (xb + WIDTH / 2, yb + HEIGHT * (0.5 if xa == xb else 1))
        else:
            start, end = (xa, ya), (xb, yb + HEIGHT)
        axes.annotate("", end, start, arrowprops=style)
    axes.autoscale_view()
    axes.set_aspect("auto")
    axes.margins(0.02)
    axes.axis("off")
    figure.savefig(ROOT / "docs" / "rooms.svg", metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main()
