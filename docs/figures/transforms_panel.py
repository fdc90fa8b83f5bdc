"""Draw the panel of transforms: one SYNTHETIC head, each change drawn once.

Run: python docs/figures/transforms_panel.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.data.transforms import PAPER, PRESETS, Augment, Augmentation

ROWS = {
    "as drawn": Augmentation(),
    "rotation, 20 degrees": Augmentation(rotation_degrees=20.0),
    "shift, 5 pixels": Augmentation(shift_pixels=5.0),
    "zoom, 0.2": Augmentation(zoom=0.2),
    "mirror": Augmentation(flip_left_right=1.0),
    "paper preset": PAPER,
    "brightness, contrast": Augmentation(brightness=0.15, contrast=0.4),
    "bias field, 0.4": Augmentation(bias_field=0.4),
    "Rician noise, 0.1": Augmentation(noise=0.1, rician=True),
    "mri preset": PRESETS["mri"],
}


def draw(path: Path, image_size: int, seed: int) -> None:
    """Write the panel to `path`; MRI above CT, which share geometry."""
    record = PhantomSource("train", 40, 0, image_size)[11]
    figure, axes = plt.subplots(2, len(ROWS), figsize=(1.5 * len(ROWS), 3.6), layout="constrained")
    for column, (name, settings) in enumerate(ROWS.items()):
        transform = Augment({"mri": settings, "ct": settings}, shared_geometry=True)
        changed = transform(record, np.random.Generator(np.random.Philox(seed)))
        for row, modality in enumerate(("mri", "ct")):
            axes[row, column].imshow(
                changed.images[modality][..., 0], cmap="gray", vmin=0, vmax=255
            )
            axes[row, column].set_axis_off()
        axes[0, column].set_title(name, fontsize=8)
    figure.suptitle("SYNTHETIC phantom, MRI-like above CT-like; both share one geometry")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument(
        "--path", type=Path, default=Path(__file__).parents[1] / "images" / "transforms.png"
    )
    arguments = parser.parse_args()
    draw(arguments.path, arguments.image_size, arguments.seed)
