"""From stored pixels to what a network reads."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from drifa_jax.typing import Images


def scale_pixels(images: Mapping[str, jax.Array]) -> dict[str, Images]:
    """Images by modality as float32: uint8 in 0..255 becomes 0..1, floats are taken as they are.

    Done on the device, because a byte travels to it four times faster than a float.
    """
    return {modality: _scaled(pixels) for modality, pixels in images.items()}


def _scaled(pixels: jax.Array) -> Images:
    if pixels.dtype == jnp.uint8:
        return pixels.astype(jnp.float32) / 255.0
    return pixels
