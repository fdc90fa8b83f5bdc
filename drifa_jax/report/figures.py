"""Figures of a run. Those of SYNTHETIC data say so in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drifa_jax.whole_files import written_whole

TRAINED, VALIDATED = "#4c72b0", "#c44e52"


def learning_curves(lines: Sequence[dict[str, Any]], path: Path, *, synthetic: bool) -> None:
    """Loss and accuracy of each task over epochs, training beside validation.

    Args:
      lines: of `metrics.jsonl`; those of the splits "train" and "validation" are drawn.
      path: the PNG to write, whole or not at all.
      synthetic: stamps the figure.
    """
    # Imported here: pyplot is slow to load. The object interface needs no display.
    from matplotlib.figure import Figure

    epochs = {
        split: [line for line in lines if line["split"] == split]
        for split in ("train", "validation")
    }
    tasks = [k.removesuffix("/loss") for k in epochs["validation"][0] if k.endswith("/loss")]
    figure = Figure(figsize=(9, 3.2 * len(tasks)), layout="constrained")
    axes = figure.subplots(len(tasks), 2, squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        for ax, quantity, unit in zip(row, ("loss", "accuracy"), (" (nats)", ""), strict=True):
            for split, colour in (("train", TRAINED), ("validation", VALIDATED)):
                ax.plot(
                    [line["epoch"] for line in epochs[split]],
                    [line[f"{task}/{quantity}"] for line in epochs[split]],
                    color=colour,
                    marker="o" if len(epochs[split]) < 30 else None,
                    markersize=3,
                    label=split,
                )
            ax.set(xlabel="epoch", ylabel=quantity + unit, title=f"{task}: {quantity}")
            ax.grid(alpha=0.3)
            ax.xaxis.get_major_locator().set_params(integer=True)
        row[0].legend()
    if synthetic:
        figure.suptitle("SYNTHETIC data: no evidence about patients", color=VALIDATED)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a figure, whole or not at all."""
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:])
