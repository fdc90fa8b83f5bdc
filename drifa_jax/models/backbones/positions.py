"""Positions of patches in a transformer: learned ones on another grid, and rotary ones."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from drifa_jax.models.pooling import at_least_float32

ROTARY_BASE = 100.0
"""DINOv3's; its shortest wave is one side of the image, its longest about this many."""


def resized_grid(
    positions: jax.Array, side: int, grid: tuple[int, int], antialias: bool
) -> jax.Array:
    """Learned positions `[side * side, c]` of a square grid, as `[*grid, c]` of another.

    Bicubic, with the centres and edges of PyTorch's `interpolate`.
    """
    square = positions.reshape(side, side, -1)
    if grid == (side, side):
        return square
    rows, columns = (
        jnp.asarray(cubic_matrix(side, size, antialias), positions.dtype) for size in grid
    )
    return jnp.einsum("hi,wj,ijc->hwc", rows, columns, square, precision="highest")


@functools.lru_cache
def cubic_matrix(num_in: int, num_out: int, antialias: bool) -> np.ndarray:
    """Bicubic resampling of a line as a matrix `[num_out, num_in]`.

    Without smoothing the kernel's parameter is -0.75 and edges are repeated; with it, -0.5, the
    kernel as wide as an output pixel, and weights beyond the edges left out. So PyTorch does.
    """
    scale = num_in / num_out
    centres = (np.arange(num_out) + 0.5) * scale - 0.5
    matrix = np.zeros((num_out, num_in))
    if antialias:
        stretch = max(scale, 1.0)
        distance = (np.arange(num_in)[None] - centres[:, None]) / stretch
        matrix = _cubic(distance, -0.5)
        return matrix / matrix.sum(1, keepdims=True)
    first = np.floor(centres).astype(int)
    for tap in range(-1, 3):
        read = np.clip(first + tap, 0, num_in - 1)
        np.add.at(matrix, (np.arange(num_out), read), _cubic(first + tap - centres, -0.75))
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel, zero beyond a distance of 2."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@functools.lru_cache
def rotary_angles(grid: tuple[int, int], head_width: int) -> np.ndarray:
    """Angles `[h * w, head_width / 2]` of every patch: a quarter of the channels for each axis.

    Centres of patches run from -1 to 1 along each side, whatever its length.

    Source: Su et al., "RoFormer", 2021; in two axes and with these centres, DINOv3.
    """
    frequencies = ROTARY_BASE ** -np.arange(0, 1, 4 / head_width)
    centres = np.stack(
        np.meshgrid(*(2 * (np.arange(n) + 0.5) / n - 1 for n in grid), indexing="ij"), -1
    ).reshape(-1, 2)
    return (2 * math.pi * centres[:, :, None] * frequencies).reshape(len(centres), -1)


def rotated(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Queries or keys `[b, n, heads, c]`, the last of them turned by `angles` `[patches, c / 2]`.

    Channel `i` and channel `i + c / 2` are the two coordinates that turn.
    """
    num_tokens = x.shape[1] - len(angles)
    wide = at_least_float32(x)
    cos, sin = (jnp.asarray(f(angles), wide)[None, :, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x[:, num_tokens:].astype(wide), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return jnp.concatenate([x[:, :num_tokens], turned.astype(x.dtype)], 1)
