"""Draws the rooms of the package, with the imports between them: `python docs/figures/house.py`.

Rooms, their sizes and the arrows are read from the code; only where a room stands is chosen here.
"""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "drifa_jax"
PLACES = {
    "config": (0, 0.0),
    "data": (0, 1.0),
    "models": (1, 1.0),
    "interop": (1, 0.0),
    "uncertainty": (2, 0.0),
    "train": (2, 1.0),
    "post_processing": (3, 0.0),
    "predictions": (3, 1.0),
    "predict": (4, 0.5),
    "evaluate": (5, 1.0),
    "explain": (5, 0.0),
    "ablate": (6, 0.0),
    "report": (6, 1.0),
    "benchmark": (7, 0.0),
    "plan": (7, 1.0),
    "serve": (8, 0.0),
    "archive": (8, 1.0),
    "monitor": (8, 0.5),
    "compile_for": (7, 0.5),
    "commands": (9, 0.5),
}
CONFIG = ("network_options", "machine_options", "plain_values", "config_files")
RECORD = ("data", "train", "predictions", "evaluate", "report")
RUN = ("config", "models", "train", "predict", "explain", "report")
COLOURS = {"record": "#2563b8", "run": "#b8500f"}


def room_of(module: str) -> str:
    name = module.split(".")[1] if "." in module else ""
    return "config" if name in CONFIG else name


def measured() -> tuple[Counter, Counter, Counter]:
    """Modules and lines of each room, and how many imports run from one to another."""
    modules, lines, arrows = Counter(), Counter(), Counter()
    for path in PACKAGE.rglob("*.py"):
        parts = ("drifa_jax", *path.relative_to(PACKAGE).with_suffix("").parts)
        room, text = room_of(".".join(parts)), path.read_text()
        if not text:
            continue
        modules[room] += 1
        lines[room] += text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("drifa_jax"):
                other = room_of(f"{node.module}.{node.names[0].name}")
                if other != room:
                    arrows[room, other] += 1
    return modules, lines, arrows


def main() -> None:
    modules, lines, arrows = measured()
    figure = Figure(figsize=(14.5, 4.6))
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.9))
    centre = {room: (1.75 * x, 1.7 * y) for room, (x, y) in PLACES.items()}
    for (user, used), count in arrows.items():
        if user in centre and used in centre:
            arrow(axes, centre[used], centre[user], "#c3c9d1", 0.5 + 0.06 * count, 0.12)
    for route, name, bend in ((RECORD, "record", -0.28), (RUN, "run", 0.3)):
        for first, second in itertools.pairwise(route):
            arrow(axes, centre[first], centre[second], COLOURS[name], 2.4, bend)
    for room, (x, y) in centre.items():
        box = FancyBboxPatch(
            (x - 0.62, y - 0.3), 1.24, 0.6, boxstyle="round,pad=0.04", fc="#fffffe", ec="#1c2127"
        )
        axes.add_patch(box)
        name = room.replace("_", " ")
        axes.text(x, y + 0.12, name, ha="center", va="center", weight="bold", fontsize=9)
        size = f"{modules[room]} modules\n{lines[room]:,} lines"
        axes.text(x, y - 0.13, size, ha="center", va="center", fontsize=7)
    for y, name in ((-0.95, "run"), (-0.72, "record")):
        axes.text(0.0, y, f"the way of a {name}", color=COLOURS[name], weight="bold", fontsize=10)
    axes.text(2.4, -0.83, "grey: imports, from the lower room to who uses it", fontsize=9)
    axes.set(xlim=(-0.9, 16.6), ylim=(-1.15, 2.3))
    axes.axis("off")
    figure.savefig(ROOT / "docs" / "images" / "house.png", dpi=120)


def arrow(axes, start, end, colour, width, bend) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=11,
            color=colour, linewidth=width, shrinkA=34, shrinkB=34, zorder=0,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
