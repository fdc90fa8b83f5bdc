"""Learning curves: loss and accuracy by epoch, of the report and of the run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drifa_jax.report.canvas import (
    ALARM,
    SERIES,
    STYLE,
    SYNTHETIC_STAMP,
    Canvas,
    Panel,
    plain_text,
)
from drifa_jax.whole_files import written_whole

QUANTITIES = (("loss", " (nats)"), ("accuracy", ""))
"""What learning curves show of a task, with its unit."""


def draw_learning(axes: Any, lines: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Draws one quantity by epoch, training beside validation; says where each ends.

    Args:
      axes: of matplotlib.
      lines: of `metrics.jsonl`.
      key: `task/quantity`.
    """
    ends = []
    for split, colour in zip(("train", "validation"), SERIES, strict=False):
        drawn = [line for line in lines if line["split"] == split and key in line]
        points = [(line["epoch"], line[key]) for line in drawn]
        if points:
            x, y = zip(*points, strict=True)
            dots = "o" if len(points) < 30 else None
            axes.plot(x, y, color=colour, marker=dots, markersize=3, label=split)
            ends.append(f"{split} ends at {y[-1]:.3f}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return ends


def learning_panels(
    lines: Sequence[Mapping[str, Any]], tasks: Sequence[str], folder: Path, *, synthetic: bool
) -> list[Panel]:
    """Loss and accuracy of each task over epochs."""
    panels = []
    for task in tasks:
        for quantity, unit in QUANTITIES:
            canvas = Canvas()
            ends = draw_learning(canvas.axes, lines, f"{task}/{quantity}")
            if not ends:
                continue
            canvas.label("epoch", quantity + unit)
            canvas.legend()
            panels.append(
                canvas.save(
                    folder,
                    f"learning-{task}-{quantity}",
                    alt=f"Learning curve of {task}, {quantity} by epoch: {', '.join(ends)}.",
                    caption=f"{task}: {quantity} by epoch",
                    synthetic=synthetic,
                )
            )
    return panels


def learning_curves(lines: Sequence[dict[str, Any]], path: Path, *, synthetic: bool) -> None:
    """Loss and accuracy of each task over epochs, training beside validation.

    Args:
      lines: of `metrics.jsonl`; those of the splits "train" and "validation" are drawn.
      path: the PNG to write, whole or not at all.
      synthetic: stamps the figure.
    """
    import matplotlib

    # The object interface needs no display.
    from matplotlib.figure import Figure

    validated = next(line for line in lines if line["split"] == "validation")
    tasks = [key.removesuffix("/loss") for key in validated if key.endswith("/loss")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2 * len(tasks)), layout="constrained")
        rows = figure.subplots(len(tasks), 2, squeeze=False)
        for row, task in zip(rows, tasks, strict=True):
            for axes, (quantity, unit) in zip(row, QUANTITIES, strict=True):
                draw_learning(axes, lines, f"{task}/{quantity}")
                axes.set(xlabel="epoch", ylabel=quantity + unit, title=f"{task}: {quantity}")
            row[0].legend()
        if synthetic:
            figure.suptitle(f"{SYNTHETIC_STAMP}: no evidence about patients", color=ALARM)
        plain_text(figure)
        with written_whole(path) as partial:
            figure.savefig(partial, dpi=150, format=path.suffix[1:])
