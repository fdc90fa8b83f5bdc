"""Grad-CAM as a picture that lies on the picture that was sent, as the network's fit placed it."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from drifa_jax.serve.reading_case import montage, png, shown_slices

LARGEST_SIDE = 4096
STRONGEST = 0.9
"""Opacity of the warmest place."""


def picture_size(picture: bytes) -> tuple[int, int]:
    """Height and width of a PNG, from its head.

    Raises:
      ValueError: where it is none, or larger than any that is shown.
    """
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    if picture[:4] != b"\x89PNG" or not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise ValueError("the picture is no PNG")
    return height, width


def overlay(heat: np.ndarray, size: tuple[int, int], fit: str) -> bytes:
    """A map as PNG with transparency, at the size of the picture that it lies on.

    Args:
      heat: `[h, w]` in 0..1 at the network's size, of volumes `[d, h, w]`.
      size: height and width of the picture.
      fit: how the picture was fitted, a key of `data.decode.FITS`.
    """
    if heat.ndim == 3:
        heat, fit = montage(heat[shown_slices(len(heat))]), "stretch"
    placed = np.clip(_placed(heat.astype(np.float32), size, fit), 0.0, 1.0)
    colours = _colours()[(placed * 255).astype(np.uint8)]
    opacity = (placed * STRONGEST * 255).astype(np.uint8)
    return png(np.dstack([colours, opacity]))


def _placed(heat: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """The map where it belongs: what was added to fit is cut off, what was cut off stays cold."""
    (rows, columns), (height, width) = size, heat.shape
    if fit == "pad":
        scale = min(height / rows, width / columns)
        inner_height = min(height, max(1, round(rows * scale)))
        inner_width = min(width, max(1, round(columns * scale)))
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        heat = heat[top : top + inner_height, left : left + inner_width]
    if fit == "crop":
        scale = min(rows / height, columns / width)
        inner_height = min(rows, max(1, round(height * scale)))
        inner_width = min(columns, max(1, round(width * scale)))
        top, left = (rows - inner_height) // 2, (columns - inner_width) // 2
        placed = np.zeros(size, np.float32)
        placed[top : top + inner_height, left : left + inner_width] = _resized(
            heat, inner_height, inner_width
        )
        return placed
    return _resized(heat, rows, columns)


def _resized(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(heat, (width, height), interpolation=cv2.INTER_CUBIC)


@functools.cache
def _colours() -> np.ndarray:
    import matplotlib

    return (matplotlib.colormaps["inferno"](np.linspace(0.3, 0.88, 256))[:, :3] * 255).astype(
        np.uint8
    )
