"""Draw the network: two branches, refined by MFA, fused by MIFA after every stage.

Run: python docs/figures/architecture.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

BRANCH, MFA, MIFA, HEAD = "#dbe7f5", "#cfe8d5", "#f6dcc4", "#e6dcf2"
ROWS = {"MRI": 2.0, "CT": 0.0}


def box(ax, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    patch = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0.02,rounding_size=0.12",
        facecolor=colour,
        edgecolor="#444444",
        linewidth=1.0,
    )
    ax.add_patch(patch)
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color="#111111")


def arrow(ax, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color="#444444", lw=1.0)
    )


def draw(path: Path) -> None:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-0.8, 12.4), ylim=(-1.15, 3.3))
    ax.axis("off")
    for name, y in ROWS.items():
        ax.text(-0.7, y, name, ha="left", va="center", fontsize=11, weight="bold")
        box(ax, 1.2, y, 1.5, 0.9, "stem\nconv · MFA", BRANCH)
        box(ax, 3.4, y, 1.5, 0.9, "RRA block\n(MFA inside)", BRANCH)
        box(ax, 5.4, y, 1.2, 0.9, "dropout", BRANCH)
        box(ax, 7.2, y, 1.2, 0.9, "MFA", MFA)
        arrow(ax, (0.1, y), (0.42, y))
        arrow(ax, (1.98, y), (2.62, y))
        arrow(ax, (4.18, y), (4.77, y))
        arrow(ax, (6.03, y), (6.57, y))
        arrow(ax, (7.83, y), (8.37, y))
        arrow(ax, (9.63, y), (10.37, 1.0 + 0.3 * (y - 1.0)))
    box(ax, 9.0, 1.0, 1.2, 2.9, "MIFA\nacross\nmodalities", MIFA)
    box(ax, 11.2, 1.0, 1.6, 1.7, "pool · concat\none head\na task", HEAD)
    ax.plot([2.45, 2.45, 9.85, 9.85, 2.45], [-0.7, 2.75, 2.75, -0.7, -0.7], "--", color="#888888")
    ax.text(6.1, 2.98, "once for each of 8 stages", ha="center", fontsize=9, color="#444444")
    ax.text(
        6.1, -1.02,
        "MFA = HIFA + CLIA refines one modality     MIFA = MGIFA + MLIFA fuses all of them",
        ha="center", fontsize=9, color="#444444",
    )  # fmt: skip
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[1] / "images" / "architecture.png")
