"""Swin transformer: attention inside windows, which every other block shifts by half of one.

Source: Liu et al., "Swin transformer: hierarchical vision transformer using shifted windows",
ICCV 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drifa_jax.models.backbones.contract import stage_per_resolution
from drifa_jax.models.backbones.layers import Dense, LayerNorm, PatchConvolution, patches
from drifa_jax.models.embedding import Embedding
from drifa_jax.models.initial import glorot_uniform
from drifa_jax.models.pooling import at_least_float32
from drifa_jax.models.stochastic_depth import StochasticDepth, residual
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Images, Present

PATCH = 4
MLP_EXPANSION = 4
EPSILON = 1e-5
"""Of layer norm."""
HIDDEN = -100.0
"""Added to the scores of tokens that the shift brought together from opposite ends of the map."""


@dataclass(frozen=True)
class SwinPlan:
    """Blocks and heads of every resolution, channels of the first, and side of a window."""

    depths: tuple[int, ...]
    heads: tuple[int, ...]
    width: int
    window: int = 7


SWIN_PLANS = {"swin_tiny": SwinPlan((2, 2, 6, 2), (3, 6, 12, 24), 96)}


class WindowAttention(nnx.Module):
    """Multi-head self-attention inside windows, with a bias for each relative position.

    Parameters: query, key, value and output layers, and `positions` `[(2 w - 1)^2, heads]`.
    """

    def __init__(
        self,
        num_channels: int,
        num_heads: int,
        window: int,
        *,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        shared = {"options": options, "rngs": rngs}
        self.num_heads, self.window = num_heads, window
        self.query = Dense(num_channels, num_channels, **shared)
        self.key = Dense(num_channels, num_channels, **shared)
        self.value = Dense(num_channels, num_channels, **shared)
        self.out = Dense(num_channels, num_channels, **shared)
        self.positions = Embedding(
            glorot_uniform(rngs.params(), ((2 * window - 1) ** 2, num_heads))
        )

    def __call__(self, x: jax.Array, hidden: np.ndarray | None) -> jax.Array:
        """`[b, windows, n, c] -> [b, windows, n, c]`; `hidden` `[windows, n, n]` is added."""
        heads = (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)
        query, key, value = (
            layer(x).reshape(heads) for layer in (self.query, self.key, self.value)
        )
        scores = jnp.einsum(
            "bwqhc,bwkhc->bwhqk", query, key, preferred_element_type=at_least_float32(query)
        ) / math.sqrt(heads[-1])
        bias = self.positions[...][relative_positions(self.window)]
        scores = scores + jnp.moveaxis(bias, -1, 0)[None, None].astype(scores.dtype)
        if hidden is not None:
            scores = scores + hidden[None, :, None].astype(scores.dtype)
        weights = jax.nn.softmax(scores).astype(value.dtype)
        return self.out(jnp.einsum("bwhqk,bwkhc->bwqhc", weights, value).reshape(x.shape))


def relative_positions(window: int) -> np.ndarray:
    """`[n, n]`: row of the table of biases for each pair of the `n = window ** 2` tokens."""
    places = np.stack(np.mgrid[:window, :window], -1).reshape(-1, 2)
    rows, columns = np.moveaxis(places[:, None] - places[None] + window - 1, -1, 0)
    return rows * (2 * window - 1) + columns


def hidden_pairs(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """`[windows, n, n]` float32: `HIDDEN` for pairs of a window that were no neighbours before."""

    def parts(size):
        return np.digitize(np.arange(size), (size - window, size - shift))

    origin = 3 * parts(height)[:, None] + parts(width)
    tokens = origin.reshape(height // window, window, width // window, window)
    tokens = tokens.swapaxes(1, 2).reshape(-1, window * window)
    return np.where(tokens[:, :, None] == tokens[:, None], 0.0, HIDDEN).astype(np.float32)


class SwinBlock(nnx.Module):
    """Layer norm and window attention, then layer norm and two dense layers, beside shortcuts.

    The map is filled with zeros to whole windows. One that has no more than a window along an axis
    is not shifted.
    """

    def __init__(
        self,
        num_channels: int,
        num_heads: int,
        window: int,
        shifted: bool,
        *,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        shared = {"options": options, "rngs": rngs}
        num_inside = MLP_EXPANSION * num_channels
        self.window, self.shifted = window, shifted
        self.norm1 = LayerNorm(num_channels, epsilon=EPSILON)
        self.attention = WindowAttention(num_channels, num_heads, window, **shared)
        self.norm2 = LayerNorm(num_channels, epsilon=EPSILON)
        self.expand = Dense(num_channels, num_inside, **shared)
        self.project = Dense(num_inside, num_channels, **shared)

    def __call__(
        self, x: FeatureMap, depth: StochasticDepth | None, number: int, num_blocks: int
    ) -> FeatureMap:
        """`[b, h, w, c] -> [b, h, w, c]`; the block is `number` of `num_blocks`."""
        y = self._attended(self.norm1(x))
        x = x + residual(y, depth, number, num_blocks, "attention")
        y = self.project(jax.nn.gelu(self.expand(self.norm2(x)), approximate=False))
        return x + residual(y, depth, number, num_blocks, "dense")

    def _attended(self, x: FeatureMap) -> FeatureMap:
        (_, height, width, channels), side = x.shape, self.window
        shift = side // 2 if self.shifted and min(height, width) > side else 0
        x = filled(x, side)
        batch, *padded, _ = x.shape
        x = jnp.roll(x, (-shift, -shift), (1, 2)) if shift else x
        rows, columns = (size // side for size in padded)
        windows = x.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
        windows = windows.reshape(batch, rows * columns, side * side, channels)
        windows = self.attention(windows, hidden_pairs(*padded, side, shift) if shift else None)
        x = windows.reshape(batch, rows, columns, side, side, channels).swapaxes(2, 3)
        x = x.reshape(batch, *padded, channels)
        x = jnp.roll(x, (shift, shift), (1, 2)) if shift else x
        return x[:, :height, :width]


class PatchMerging(nnx.Module):
    """Patches of 2x2 pixels, layer norm, and half as many channels again."""

    def __init__(self, num_in: int, num_out: int, *, options: NetworkOptions, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * num_in, epsilon=EPSILON)
        self.reduction = Dense(4 * num_in, num_out, bias=False, options=options, rngs=rngs)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """`[b, h, w, num_in] -> [b, (h + 1) // 2, (w + 1) // 2, num_out]`."""
        by_row = patches(filled(x, 2), 2)
        by_place = by_row.reshape(*by_row.shape[:3], 2, 2, x.shape[-1])
        # Published weights read the pixels of a patch column by column.
        return self.reduction(self.norm(by_place.swapaxes(3, 4).reshape(by_row.shape)))


def filled(x: FeatureMap, side: int) -> FeatureMap:
    """A map with zeros at its far ends, up to multiples of `side`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % side), (0, -x.shape[2] % side), (0, 0)))


class Swin(nnx.Module):
    """Swin as a `Backbone`: a stem of patches and one stage a resolution, the last with the norm.

    Images of any size pass: they and their maps are filled with zeros to whole patches.

    Args:
      num_channels: channels of the modality's images.
      plan: for example `SWIN_PLANS["swin_tiny"]`.
      options: dtype.
      rngs: key of the initial weights, which are Glorot's, as everywhere here.
    """

    def __init__(
        self, num_channels: int, plan: SwinPlan, *, options: NetworkOptions, rngs: nnx.Rngs
    ):
        shared = {"options": options, "rngs": rngs}
        widths = [plan.width * 2**k for k in range(len(plan.depths))]
        self.patches = PatchConvolution(num_channels, plan.width, PATCH, **shared)
        self.patch_norm = LayerNorm(plan.width, epsilon=EPSILON)
        self.mergings = nnx.Dict(
            {
                f"merging_{k}": PatchMerging(*widths[k : k + 2], **shared)
                for k in range(len(widths) - 1)
            }
        )
        self.blocks = nnx.Dict(
            {
                f"resolution_{k}": nnx.Dict(
                    {
                        f"block_{n}": SwinBlock(width, heads, plan.window, n % 2 == 1, **shared)
                        for n in range(depth)
                    }
                )
                for k, (depth, heads, width) in enumerate(
                    zip(plan.depths, plan.heads, widths, strict=True)
                )
            }
        )
        self.norm = LayerNorm(widths[-1], epsilon=EPSILON)
        self.depths = plan.depths
        self.num_blocks = sum(plan.depths)
        self.plan = stage_per_resolution(widths, PATCH)

    def parts_in_order(self) -> list[tuple[nnx.Module, ...]]:
        """The stem, and each resolution with the merging before it, the last with the norm."""
        found: list[tuple[nnx.Module, ...]] = [(self.patches, self.patch_norm)]
        for k in range(len(self.depths)):
            merging = (self.mergings[f"merging_{k - 1}"],) if k else ()
            found.append((self.blocks[f"resolution_{k}"], *merging))
        return [*found[:-1], (*found[-1], self.norm)]

    def stem(self, images: Images, *, train: bool, present: Present | None = None) -> FeatureMap:
        """`[b, h, w, num_channels] -> [b, ceil(h / 4), ceil(w / 4), width]`."""
        return self.patch_norm(self.patches(filled(images, PATCH)))

    def stage(
        self,
        number: int,
        x: FeatureMap,
        *,
        train: bool,
        present: Present | None = None,
        depth: StochasticDepth | None = None,
    ) -> FeatureMap:
        """Features after resolution `number`, counted from 0."""
        if number:
            x = self.mergings[f"merging_{number - 1}"](x)
        before = sum(self.depths[:number])
        for k in range(self.depths[number]):
            block = self.blocks[f"resolution_{number}"][f"block_{k}"]
            x = block(x, depth, before + k, self.num_blocks)
        return self.norm(x) if number == len(self.plan) - 1 else x
