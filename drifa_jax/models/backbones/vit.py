"""Vision transformer (pre-norm), whose options cover ViT, DeiT, DINOv2 and DINOv3.

Tokens of patches are a grid `[b, h, w, c]` wherever modalities meet. Tokens without a place
(class, distillation, registers) pass through beside it, `[b, n, c]`; see `TokenBackbone`.

Sources: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; Touvron et al., "Training
data-efficient image transformers", ICML 2021; Oquab et al., "DINOv2", 2023; Darcet et al., "Vision
transformers need registers", ICLR 2024; Siméoni et al., "DINOv3", 2025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drifa_jax.models.backbones.contract import Stage, Tokens
from drifa_jax.models.backbones.layers import Dense, LayerNorm, PatchConvolution, per_channel
from drifa_jax.models.backbones.positions import resized_grid, rotary_angles, rotated
from drifa_jax.models.embedding import Embedding
from drifa_jax.models.initial import glorot_uniform, ones
from drifa_jax.models.pooling import at_least_float32
from drifa_jax.models.stochastic_depth import StochasticDepth, residual
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Images, Present

NUM_STAGES = 4
MLP_EXPANSION = 4


@dataclass(frozen=True)
class ViTPlan:
    """What shapes a vision transformer.

    Attributes:
      width: channels of a token.
      depth: blocks.
      num_heads: of attention.
      patch: side of a patch, in pixels.
      grid: patches along each side of the learned positions; 0 has rotary positions instead.
      antialias: whether learned positions are smoothed where the grid is smaller than theirs.
      distillation: whether a distillation token follows the class token.
      num_registers: tokens without a place besides.
      layer_scale: initial factor of each branch of a block; 0 has none.
      key_bias: whether keys have a bias.
      epsilon: of layer norm.
    """

    width: int
    depth: int
    num_heads: int
    patch: int = 16
    grid: int = 14
    antialias: bool = False
    distillation: bool = False
    num_registers: int = 0
    layer_scale: float = 0.0
    key_bias: bool = True
    epsilon: float = 1e-6

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(f"width is {self.width}; {self.num_heads} heads do not divide it.")
        if self.grid == 0 and self.width // self.num_heads % 4:
            raise ValueError("Rotary positions need a multiple of 4 channels in every head.")


_TINY, _SMALL, _BASE, _LARGE = (192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16)
_DINOV2 = {"patch": 14, "grid": 37, "layer_scale": 1.0}
_DINOV3 = {
    "grid": 0,
    "num_registers": 4,
    "layer_scale": 1.0,
    "key_bias": False,
    "epsilon": 1e-5,
}

VIT_PLANS: dict[str, ViTPlan] = {
    "vit_tiny": ViTPlan(*_TINY),
    "vit_small": ViTPlan(*_SMALL),
    "vit_base": ViTPlan(*_BASE),
    "deit_tiny": ViTPlan(*_TINY, distillation=True),
    "deit_small": ViTPlan(*_SMALL, distillation=True),
    "deit_base": ViTPlan(*_BASE, distillation=True),
    "dinov2_small": ViTPlan(*_SMALL, **_DINOV2),
    "dinov2_base": ViTPlan(*_BASE, **_DINOV2),
    "dinov2_large": ViTPlan(*_LARGE, **_DINOV2),
    "dinov3_small": ViTPlan(*_SMALL, **_DINOV3),
    "dinov3_base": ViTPlan(*_BASE, **_DINOV3),
    "dinov3_large": ViTPlan(*_LARGE, **_DINOV3),
}
VIT_PLANS |= {
    name.replace("dinov2", "dinov2_registers"): replace(plan, num_registers=4, antialias=True)
    for name, plan in VIT_PLANS.items()
    if name.startswith("dinov2")
}
"""By name. A DeiT trained without distillation is a `vit`."""


class Attention(nnx.Module):
    """Multi-head self-attention; rotary positions turn queries and keys of patches."""

    def __init__(self, plan: ViTPlan, *, options: NetworkOptions, rngs: nnx.Rngs):
        shared = {"options": options, "rngs": rngs}
        self.num_heads = plan.num_heads
        self.query = Dense(plan.width, plan.width, **shared)
        self.key = Dense(plan.width, plan.width, bias=plan.key_bias, **shared)
        self.value = Dense(plan.width, plan.width, **shared)
        self.out = Dense(plan.width, plan.width, **shared)

    def __call__(self, x: Tokens, angles: np.ndarray | None) -> Tokens:
        """`[b, n, c] -> [b, n, c]`; `angles` `[patches, c / heads / 2]` or none."""
        heads = (*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads)
        query, key, value = (
            layer(x).reshape(heads) for layer in (self.query, self.key, self.value)
        )
        if angles is not None:
            query, key = rotated(query, angles), rotated(key, angles)
        return self.out(attended(query, key, value).reshape(x.shape))


def attended(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Softmax attention `[b, n, heads, c]`, its weights in at least float32."""
    scores = jnp.einsum(
        "bqhc,bkhc->bhqk", query, key, preferred_element_type=at_least_float32(query)
    )
    weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1]))
    return jnp.einsum("bhqk,bkhc->bqhc", weights.astype(value.dtype), value)


class Block(nnx.Module):
    """Layer norm and attention, then layer norm and two dense layers, each beside a shortcut."""

    def __init__(self, plan: ViTPlan, *, options: NetworkOptions, rngs: nnx.Rngs):
        shared = {"options": options, "rngs": rngs}
        num_inside = MLP_EXPANSION * plan.width
        scale = plan.layer_scale
        self.norm1 = LayerNorm(plan.width, epsilon=plan.epsilon)
        self.attention = Attention(plan, **shared)
        self.scale1 = nnx.Param(scale * ones(plan.width)) if scale else None
        self.norm2 = LayerNorm(plan.width, epsilon=plan.epsilon)
        self.expand = Dense(plan.width, num_inside, **shared)
        self.project = Dense(num_inside, plan.width, **shared)
        self.scale2 = nnx.Param(scale * ones(plan.width)) if scale else None

    def __call__(
        self,
        x: Tokens,
        angles: np.ndarray | None,
        depth: StochasticDepth | None = None,
        number: int = 0,
        num_blocks: int = 1,
    ) -> Tokens:
        """`[b, n, c] -> [b, n, c]`; the block is `number` of `num_blocks`."""
        y = self.attention(self.norm1(x), angles)
        y = y if self.scale1 is None else y * per_channel(self.scale1, y)
        x = x + residual(y, depth, number, num_blocks, "attention")
        y = self.project(jax.nn.gelu(self.expand(self.norm2(x)), approximate=False))
        y = y if self.scale2 is None else y * per_channel(self.scale2, y)
        return x + residual(y, depth, number, num_blocks, "dense")


class ViT(nnx.Module):
    """A vision transformer as a `TokenBackbone`: four stages of as equal numbers of blocks.

    The last stage ends with the final layer norm. Learned positions are interpolated to the grid
    of the images (bicubic, as PyTorch does), so images of any size pass.

    Args:
      num_channels: channels of the modality's images.
      plan: for example `VIT_PLANS["dinov2_small"]`.
      options: dtype.
      rngs: key of the initial weights.
    """

    def __init__(
        self,
        num_channels: int,
        plan: ViTPlan,
        *,
        options: NetworkOptions,
        rngs: nnx.Rngs,
    ):
        def vectors(number):
            return Embedding(glorot_uniform(rngs.params(), (number, plan.width)))

        self.shape = plan
        self.num_blocks = plan.depth
        self.dtype = options.dtype
        self.patches = PatchConvolution(
            num_channels, plan.width, plan.patch, options=options, rngs=rngs
        )
        self.num_placed = 1 + plan.distillation
        self.class_token = vectors(1)
        self.distillation_token = vectors(1) if plan.distillation else None
        self.registers = vectors(plan.num_registers) if plan.num_registers else None
        self.positions = vectors(self.num_placed + plan.grid**2) if plan.grid else None
        self.blocks = nnx.Dict(
            {f"block_{k}": Block(plan, options=options, rngs=rngs) for k in range(plan.depth)}
        )
        self.norm = LayerNorm(plan.width, epsilon=plan.epsilon)
        self.plan = tuple(
            Stage(f"stage_{k}", plan.width, plan.patch, dropout=k < NUM_STAGES - 1)
            for k in range(NUM_STAGES)
        )

    def parts_in_order(self) -> list[tuple[nnx.Module | nnx.Param, ...]]:
        """Patches, tokens and positions, and each block, the last with the final norm."""
        embeddings = (self.class_token, self.distillation_token, self.registers, self.positions)
        blocks = [(self.blocks[f"block_{k}"],) for k in range(self.shape.depth)]
        first = (self.patches, *(embedding for embedding in embeddings if embedding is not None))
        return [first, *blocks[:-1], (*blocks[-1], self.norm)]

    def fitted_positions(self, positions: np.ndarray) -> np.ndarray:
        """Positions `[n, width]` of a square grid, interpolated to the side of this one.

        Those of class and distillation token stand first and stay.
        """
        placed = positions[self.num_placed :]
        side = math.isqrt(len(placed))
        if not side or side**2 != len(placed):
            raise ValueError(f"{len(placed)} places of patches make no square.")
        grid = (self.shape.grid,) * 2
        fitted = resized_grid(jnp.asarray(placed), side, grid, self.shape.antialias)
        fitted = np.asarray(fitted).reshape(-1, self.shape.width)
        return np.concatenate([positions[: self.num_placed], fitted])

    def stem_with_tokens(
        self, images: Images, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, Tokens]:
        """Patches `[b, h / patch, w / patch, width]` and the tokens without a place."""
        x = self.patches(images)
        tokens = [self.class_token]
        if self.distillation_token is not None:
            tokens.append(self.distillation_token)
        prefix = jnp.concatenate([token[...] for token in tokens])
        if self.positions is not None:
            positions = self.positions[...]
            prefix = prefix + positions[: len(tokens)]
            placed = resized_grid(
                positions[len(tokens) :], self.shape.grid, x.shape[1:3], self.shape.antialias
            )
            x = x + placed[None].astype(x.dtype)
        if self.registers is not None:
            prefix = jnp.concatenate([prefix, self.registers[...]])
        prefix = jnp.broadcast_to(prefix[None], (x.shape[0], *prefix.shape))
        return x, prefix.astype(x.dtype)

    def stage_with_tokens(
        self,
        number: int,
        x: FeatureMap,
        tokens: Tokens,
        *,
        train: bool,
        present: Present | None = None,
        depth: StochasticDepth | None = None,
    ) -> tuple[FeatureMap, Tokens]:
        """Patches and other tokens after group `number` of blocks, counted from 0."""
        grid, num_tokens = x.shape[1:3], tokens.shape[1]
        angles = None
        if self.positions is None:
            angles = rotary_angles(grid, self.shape.width // self.shape.num_heads)
        y = jnp.concatenate([tokens, x.reshape(x.shape[0], math.prod(grid), -1)], 1)
        first, after = (self.shape.depth * k // NUM_STAGES for k in (number, number + 1))
        for k in range(first, after):
            y = self.blocks[f"block_{k}"](y, angles, depth, k, self.num_blocks)
        if number == NUM_STAGES - 1:
            y = self.norm(y)
        return y[:, num_tokens:].reshape(x.shape), y[:, :num_tokens]
