"""Draws the schematic pictures of the how-to pages: `python docs/figures/howto_pictures.py`.

Nothing in them is data: shapes say how records are split and paired, how an answer is read, and
where modalities meet.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

IMAGES = Path(__file__).resolve().parents[1] / "images"
INK, FAINT = "#1c2127", "#5b6370"
TRAIN, VALIDATION, TEST = "#9dbbe8", "#f0c27a", "#b8500f"
MRI, CT, TABLE = "#2563b8", "#2f8f6b", "#8a5fb0"


def drawing(width: float, height: float, right: float, top: float):
    """Axes without a frame, in units of the drawing, with a white ground."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, right), ylim=(0, top))
    axes.axis("off")
    return figure, axes


def saved(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.png", dpi=110)


def box(axes, x, y, width, height, colour, text="", ink=INK, **style) -> None:
    axes.add_patch(Rectangle((x, y), width, height, fc=colour, ec="white", lw=1.5, **style))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=ink, fontsize=9)


def arrow(axes, start, end, colour=FAINT, style="-|>") -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=12, color=colour, lw=1.4)
    )


def folds() -> None:
    """Five folds of patients: each is tested once, by the network that never saw it."""
    figure, axes = drawing(9.2, 3.7, 20, 8.2)
    for fold in range(5):
        y = 5.9 - fold
        axes.text(0.2, y + 0.35, f"network {fold}", va="center", fontsize=10, color=INK)
        for part in range(5):
            x = 2.6 + 2.2 * part
            if part == fold:
                box(axes, x, y, 2.1, 0.75, TEST, "test", "white")
            else:
                held = part == (fold + 1) % 5
                box(axes, x, y, 2.1, 0.75, TRAIN, "" if held else "training")
                if held:
                    box(axes, x, y, 1.0, 0.75, VALIDATION, "valid.")
        arrow(axes, (13.8, y + 0.37), (15.2, 4.3))
    for part in range(5):
        axes.text(3.65 + 2.2 * part, 7.0, f"patients {'ABCDE'[part]}", ha="center", fontsize=10)
    axes.text(3.65 + 4.4, 7.7, "whole patients, each class in its share", ha="center", color=FAINT)
    axes.text(15.5, 4.3, "one report:\nevery record\ntested once", va="center", fontsize=10)
    axes.text(
        0.2,
        0.75,
        "the five networks together are an ensemble for new images; it is calibrated\n"
        "on validation records (orange), which each network answers alone",
        fontsize=9.5,
        color=FAINT,
    )
    saved(figure, "folds")


def pairing() -> None:
    """What a record is under each value of `data.pairing`."""
    figure, axes = drawing(9.2, 3.6, 20, 7.8)
    columns = (
        (0.4, "paired", "one person, two images;\nwhat is missing is absent"),
        (7.2, "by_task", "one image of one person;\nthe other is absent"),
        (14.0, "random", "two strangers, drawn\nanew in every epoch"),
    )
    rows = {
        "paired": (("A", "A"), ("B", "B"), ("C", None)),
        "by_task": (("A", None), ("B", None), (None, "X")),
        "random": (("A", "Y"), ("B", "X"), ("C", "Y")),
    }
    for x, name, meaning in columns:
        axes.text(x + 2.6, 7.2, name, ha="center", fontsize=12, weight="bold", family="monospace")
        axes.text(x + 0.95, 6.3, "MRI", ha="center", color=MRI, fontsize=10)
        axes.text(x + 3.35, 6.3, "CT", ha="center", color=CT, fontsize=10)
        for number, (left, right) in enumerate(rows[name]):
            y = 4.9 - 1.35 * number
            frame = FancyBboxPatch(
                (x, y - 0.05), 4.4, 1.15, boxstyle="round,pad=0.06", fc="none", ec=FAINT
            )
            axes.add_patch(frame)
            for place, person, colour in ((0.1, left, MRI), (2.5, right, CT)):
                if person:
                    box(axes, x + place, y, 1.75, 1.05, colour, person, "white")
                else:
                    box(axes, x + place, y, 1.75, 1.05, "#eceff3", "absent", FAINT, ls="--")
        axes.text(x + 2.2, 0.95, meaning, ha="center", va="center", fontsize=9.5, color=FAINT)
    saved(figure, "pairing")


def answer() -> None:
    """Three answers with their prediction sets, and what each asks of the reader."""
    figure, axes = drawing(9.2, 3.4, 20, 7.4)
    classes = ("glioma", "meningioma", "no tumour")
    cases = (
        ("certain", (0.94, 0.04, 0.02), {0}, "0.12", "one class: read it"),
        (
            "between two",
            (0.52, 0.41, 0.07),
            {0, 1},
            "0.55",
            "the image does not\ndecide between two",
        ),
        ("no idea", (0.38, 0.33, 0.29), {0, 1, 2}, "0.97  REFER", "a human first"),
    )
    for column, (title, shares, inside, uncertainty, meaning) in enumerate(cases):
        x = 3.2 + 5.7 * column
        axes.text(x + 1.9, 6.8, title, ha="center", weight="bold", fontsize=11)
        for place, (name, share) in enumerate(zip(classes, shares, strict=True)):
            y = 5.6 - 0.95 * place
            if column == 0:
                axes.text(x - 0.25, y + 0.3, name, ha="right", va="center", fontsize=10)
            box(axes, x, y, 3.6, 0.62, "#eceff3")
            box(axes, x, y, 3.6 * share, 0.62, MRI if place in inside else "#b9c1cc")
            axes.text(x + 3.75, y + 0.3, f"{share:.2f}", va="center", fontsize=9)
        axes.text(x, 2.85, f"uncertainty {uncertainty}", fontsize=10)
        axes.text(x, 1.7, meaning, fontsize=10, color=FAINT, va="center")
    told = "blue: in the prediction set, which holds the true class in 9 of 10 records like those"
    axes.text(0.3, 0.5, f"{told} it was fitted on", fontsize=9.5, color=FAINT)
    saved(figure, "answer")


def meeting() -> None:
    """Where modalities meet in branches of four stages, by `model.fuse_at`."""
    figure, axes = drawing(9.2, 3.5, 20, 7.6)
    placements = (
        (0.6, "fuse_at=all (default):\nafter every stage", (0, 1, 2, 3)),
        (7.4, "fuse_at=[-2, -1]:\nafter the last two", (2, 3)),
        (14.2, "fuse_at=[-1]:\nafter the last", (3,)),
    )
    for x, title, meets in placements:
        axes.text(x + 2.4, 6.9, title, ha="center", va="center", fontsize=9.5)
        for stage in range(4):
            y = 5.0 - 1.15 * stage
            for place, colour in ((0.0, MRI), (3.3, CT)):
                box(axes, x + place, y, 1.5, 0.8, colour, f"stage {stage + 1}", "white")
                if stage:
                    arrow(axes, (x + place + 0.75, y + 1.2), (x + place + 0.75, y + 0.78))
            if stage in meets:
                arrow(axes, (x + 1.5, y + 0.4), (x + 3.3, y + 0.4), TEST, "<|-|>")
        for place in (0.75, 4.05):
            arrow(axes, (x + place, 1.5), (x + 2.4, 0.95))
        axes.text(x + 2.4, 0.6, "head", ha="center", va="center", fontsize=10, weight="bold")
    told = "red: MIFA gates both maps by what the other shows; blue and green: a branch each"
    axes.text(0.6, 0.1, told, fontsize=9, color=FAINT)
    saved(figure, "meeting")


def main() -> None:
    for draw in (folds, pairing, answer, meeting):
        draw()


if __name__ == "__main__":
    main()
