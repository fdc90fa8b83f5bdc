"""Volumes slice by slice: a backbone of pictures, and attention that says which slices matter.

The slices of a record go through one backbone of pictures as a batch of their own. Between the
stages its maps are a volume again, so that MFA, MIFA, dropout and Grad-CAM see one. After the last
stage a learned attention weighs the slices of each record; the mean over space that the heads read
is then the attention's mean over slices.

Source: the gated attention of Ilse, Tomczak and Welling, "Attention-based deep multiple instance
learning", ICML 2018, equation 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.backbones.contract import (
    Backbone,
    GatedBackbone,
    LayeredBackbone,
    ScaledGate,
    SkippingBackbone,
    TokenBackbone,
    Tokens,
)
from drifa_jax.models.backbones.layers import Dense
from drifa_jax.models.initial import zeros
from drifa_jax.models.pooling import at_least_float32, average_pool
from drifa_jax.models.stochastic_depth import StochasticDepth
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Images, Present

WIDTH = 128
"""Channels in which slices are compared."""


class SlicePooling(nnx.Module):
    """Weights slices by what they show: `y_s = x_s * S * softmax_s(w (tanh(V h_s) * sigm(U h_s)))`.

    `h_s` is the mean of slice `s` over its plane and `S` the number of slices, so that equal
    weights change nothing and the mean of `y` over space is the weighted mean of the slices.

    Parameters: the kernels and biases of `value` (V) and `gate` (U), and `weight` (w), float32;
    `weight` is zero at first, which weighs all slices alike.
    """

    def __init__(self, num_channels: int, *, options: NetworkOptions, rngs: nnx.Rngs):
        self.value = Dense(num_channels, WIDTH, options=options, rngs=rngs)
        self.gate = Dense(num_channels, WIDTH, options=options, rngs=rngs)
        self.weight = nnx.Param(zeros(WIDTH))

    def attention(self, x: FeatureMap) -> jax.Array:
        """`[b, d, *plane, c] -> [b, d]`, weights that add up to one."""
        planes = x.reshape(-1, *x.shape[2:])
        pooled = average_pool(planes).reshape(x.shape[0], x.shape[1], x.shape[-1])
        inside = jnp.tanh(self.value(pooled)) * jax.nn.sigmoid(self.gate(pooled))
        wide = inside.astype(at_least_float32(inside))
        return jax.nn.softmax(wide @ self.weight[...].astype(wide.dtype), axis=1)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """`[b, d, *plane, c] -> [b, d, *plane, c]`."""
        weights = self.attention(x) * x.shape[1]
        return x * weights.reshape(*weights.shape, *(1,) * (x.ndim - 2)).astype(x.dtype)


class _OverSlices(nnx.Module):
    """What both kinds of backbones of slices have in common.

    A record skips a residual block with all of its slices: stochastic depth draws by sample, and
    the sample is the volume.

    Args:
      backbone: of the slices.
      options: dtype.
      rngs: key of the initial weights.
    """

    def __init__(
        self, backbone: Backbone | TokenBackbone, *, options: NetworkOptions, rngs: nnx.Rngs
    ):
        self.slices = backbone
        self.pooling = SlicePooling(backbone.plan[-1].channels, options=options, rngs=rngs)
        self.plan = backbone.plan
        self.takes_width = getattr(backbone, "takes_width", False)
        if isinstance(backbone, SkippingBackbone):
            self.num_blocks = backbone.num_blocks

    def parts_in_order(self) -> Sequence[Sequence[nnx.Module | nnx.Param]]:
        """The layers of the backbone of slices; the pooling is attention."""
        return self.slices.parts_in_order() if isinstance(self.slices, LayeredBackbone) else ()

    def _weighed(self, number: int, x: FeatureMap) -> FeatureMap:
        return self.pooling(x) if number == len(self.plan) - 1 else x


class SliceAttention(_OverSlices):
    """A backbone of pictures as a `Backbone` of volumes `[b, depth, height, width, c]`."""

    def stem(self, images: Images, *, train: bool, present: Present | None = None) -> FeatureMap:
        """From voxels to the first maps, `[b, depth, *plane, c]`."""
        options = _of_slices(images.shape[1], train, present)
        return _volume(self.slices.stem(_planes(images), **options), images.shape[1])

    def stage(
        self,
        number: int,
        x: FeatureMap,
        *,
        train: bool,
        present: Present | None = None,
        depth: StochasticDepth | None = None,
    ) -> FeatureMap:
        """Maps after stage `number`, counted from 0; those of the last are weighed by slice."""
        options = _of_slices(x.shape[1], train, present, depth)
        planes = self.slices.stage(number, _planes(x), **options)
        return self._weighed(number, _volume(planes, x.shape[1]))

    def attend_stem(
        self, images: Images, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, ScaledGate]]:
        """As `stem`, with the gates inside the backbone, averaged over slices."""
        return self._attend("stem", (), images, train, present)

    def attend_stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, dict[str, ScaledGate]]:
        """As `stage`, with the gates inside the backbone, averaged over slices."""
        x, gates = self._attend("stage", (number,), x, train, present)
        return self._weighed(number, x), gates

    def _attend(self, method, arguments, x, train, present):
        depth, gates = x.shape[1], {}
        options = _of_slices(depth, train, present)
        if isinstance(self.slices, GatedBackbone):
            call = getattr(self.slices, f"attend_{method}")
            planes, found = call(*arguments, _planes(x), **options)
            gates = {
                name: ScaledGate(jnp.mean(_volume(gate.values, depth), 1), gate.scale)
                for name, gate in found.items()
            }
        else:
            planes = getattr(self.slices, method)(*arguments, _planes(x), **options)
        return _volume(planes, depth), gates


class SliceAttentionOfTokens(_OverSlices):
    """The same of a `TokenBackbone`, whose slices have tokens of their own.

    Tokens go from stage to stage as `[b * depth, n, c]`.
    """

    def stem_with_tokens(
        self, images: Images, *, train: bool, present: Present | None = None
    ) -> tuple[FeatureMap, Tokens]:
        """From voxels to the first maps `[b, depth, *plane, c]`, and the tokens."""
        options = _of_slices(images.shape[1], train, present)
        x, tokens = self.slices.stem_with_tokens(_planes(images), **options)
        return _volume(x, images.shape[1]), tokens

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
        """Maps and tokens after stage `number`; the maps of the last are weighed by slice."""
        options = _of_slices(x.shape[1], train, present, depth)
        planes, tokens = self.slices.stage_with_tokens(number, _planes(x), tokens, **options)
        return self._weighed(number, _volume(planes, x.shape[1])), tokens


def over_slices(
    backbone: Backbone | TokenBackbone, *, options: NetworkOptions, rngs: nnx.Rngs
) -> SliceAttention | SliceAttentionOfTokens:
    """A backbone of volumes from one of pictures."""
    tokens = isinstance(backbone, TokenBackbone)
    kind = SliceAttentionOfTokens if tokens else SliceAttention
    return kind(backbone, options=options, rngs=rngs)


def _planes(x: FeatureMap) -> FeatureMap:
    """`[b, d, ...] -> [b * d, ...]`."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _volume(x: jax.Array, depth: int) -> jax.Array:
    """The way back from `_planes`."""
    return x.reshape(x.shape[0] // depth, depth, *x.shape[1:])


def _of_slices(
    num_slices: int, train: bool, present: Present | None, depth: StochasticDepth | None = None
) -> dict[str, Any]:
    """Options of the backbone of slices: each is there where its record is, and skips with it."""
    if present is not None:
        present = jnp.broadcast_to(present[:, None], (present.shape[0], num_slices)).reshape(-1)
    options = {"train": train, "present": present}
    return options if depth is None else options | {"depth": depth.of_slices(num_slices)}
