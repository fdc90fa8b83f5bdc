"""From stored pixels to what a network reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.typing import Images


def scale_pixels(images: Mapping[str, jax.Array]) -> dict[str, Images]:
    """Images by modality as float32: uint8 in 0..255 becomes 0..1, floats are taken as they are.

    Done on the device, because a byte travels to it four times faster than a float.
    """
    return {modality: _scaled(pixels) for modality, pixels in images.items()}


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel over the pictures that weights were trained on.

    Of pixels in 0..1; without values the pixels stay as they are.

    Raises:
      ValueError: for other lengths than one value a channel, or deviations that are not above 0.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}; give both, one value "
                "a channel."
            )
        if not np.isfinite((*self.mean, *self.std)).all() or any(s <= 0 for s in self.std):
            raise ValueError(
                f"mean is {self.mean} and std {self.std}; give finite means and deviations above 0."
            )

    def __call__(self, images: jax.Array) -> jax.Array:
        """`[b, *space, c]` in 0..1, float32, to mean 0 and deviation 1 on those pictures."""
        if not self.mean:
            return images
        ones = (1,) * (images.ndim - 1)
        mean, std = (
            jnp.asarray(values, images.dtype).reshape(*ones, -1) for values in (self.mean, self.std)
        )
        return (images - mean) / std


def _scaled(pixels: jax.Array) -> Images:
    if pixels.dtype == jnp.uint8:
        return pixels.astype(jnp.float32) / 255.0
    return pixels
