"""Draw the contact sheet of the brain phantoms: classes down, examples across, MRI above CT.

Only lesions that show in both modalities are drawn, so that each class can be recognised.

Run: python docs/figures/phantom_contact_sheet.py --image-size 128
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from drifa_jax.data.sources import phantoms

CLASSES = [(name, kind) for name, task in phantoms.TASKS.items() for kind in task.spec.classes]


def examples(
    source: phantoms.PhantomSource, name: str, kind: str, number: int, used: set[int]
) -> list[int]:
    """The first unused records of one class with the other task healthy and the lesion shown."""
    chosen = np.ones(len(source), bool)
    for other, task in phantoms.TASKS.items():
        wanted = kind if other == name else task.healthy
        chosen &= source.labels(other) == task.spec.classes.index(wanted)
    both = phantoms.EVIDENCE_KINDS.index(("mri", "ct"))
    if kind != phantoms.TASKS[name].healthy:
        chosen &= source.evidence(name) == both
    return [index for index in np.flatnonzero(chosen).tolist() if index not in used][:number]


def contact_sheet(image_size: int, columns: int, path: Path) -> None:
    """Write the figure to `path`."""
    source = phantoms.PhantomSource("train", num_records=2000, seed=0, image_size=image_size)
    rows, used = [], set()
    for name, kind in CLASSES:
        indices = examples(source, name, kind, columns, used)
        used.update(indices)
        records = [source[index] for index in indices]
        for modality in ("mri", "ct"):
            rows.append(np.concatenate([item.images[modality][..., 0] for item in records], axis=1))
    gap = np.full((max(2, image_size // 12), rows[0].shape[1]), 255, np.uint8)
    stack, ticks, height = [], [], 0
    for index, (name, kind) in enumerate(CLASSES):
        stack += [rows[2 * index], rows[2 * index + 1], gap]
        ticks.append((height + image_size, f"{name}:\n{kind}"))
        height += 2 * image_size + len(gap)
    sheet = np.concatenate(stack[:-1], axis=0)
    width = 1.05 * columns + 1.2
    figure, axes = plt.subplots(
        figsize=(width, (width - 1.2) * sheet.shape[0] / sheet.shape[1] + 0.6),
        layout="constrained",
    )
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_yticks([position for position, _ in ticks], [text for _, text in ticks])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"SYNTHETIC brain phantoms, {image_size} px, MRI-like above CT-like")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument(
        "--path", type=Path, default=Path(__file__).parents[1] / "images" / "phantoms.png"
    )
    arguments = parser.parse_args()
    contact_sheet(arguments.image_size, arguments.columns, arguments.path)
