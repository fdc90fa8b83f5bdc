"""The branch of a tabular modality: dense blocks that meet MIFA like any backbone.

A row of numbers is a map without spatial axes, `[b, c]`. Global pools over no axes are the
features themselves, so MIFA fuses a table and a scan through the same pooled vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.backbones.contract import Stage
from drifa_jax.typing import FeatureMap, Images, Present


class TabularBranch(nnx.Module):
    """Dense residual blocks with the channels of its partners' stages; a `Backbone`.

    Args:
      num_features: numbers a record.
      plan: the stages of an image branch, whose channels and dropout it shares.
      dtype: of the arithmetic; parameters are float32 always.
      rngs: key of the initial weights.

    No batch norm: rows are normalised by training statistics when they are read, and layer norm
    does not mix the patients of a batch, so a record's answer never depends on its neighbours.

        >>> import jax
        >>> plan = [Stage(f"stage_{i}", c, 1, True) for i, c in enumerate((4, 4, 8))]
        >>> branch = TabularBranch(5, plan, rngs=nnx.Rngs(params=jax.random.key(0)))
        >>> x = branch.stem(jax.numpy.ones([2, 5]), train=False, present=None)
        >>> branch.stage(2, branch.stage(1, x, train=False), train=False).shape
        (2, 8)
    """

    def __init__(
        self,
        num_features: int,
        plan: Sequence[Stage],
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_features < 1:
            raise ValueError(f"num_features is {num_features}; a table needs at least one.")
        self.num_features = num_features
        self.plan = tuple(dataclasses.replace(stage, reduction=1) for stage in plan)
        num_in = self.plan[0].channels
        self.embed = nnx.Linear(num_features, num_in, dtype=dtype, rngs=rngs)
        self.stages = nnx.Dict()
        for number, stage in enumerate(self.plan):
            self.stages[f"stage_{number}"] = _DenseBlock(num_in, stage.channels, dtype, rngs)
            num_in = stage.channels

    def parts_in_order(self) -> list[tuple[nnx.Module, ...]]:
        """The first matrix, and each block."""
        blocks = (self.stages[f"stage_{number}"] for number in range(len(self.plan)))
        return [(self.embed,), *((block,) for block in blocks)]

    def stem(self, images: Images, *, train: bool, present: Present | None = None) -> FeatureMap:
        """`[b, num_features] -> [b, plan[0].channels]`."""
        if images.ndim != 2 or images.shape[1] != self.num_features:
            raise ValueError(
                f"The tabular branch reads [b, {self.num_features}] but got {images.shape}."
            )
        return self.embed(images)

    def stage(
        self, number: int, x: FeatureMap, *, train: bool, present: Present | None = None
    ) -> FeatureMap:
        """Features after block `number`, counted from 0."""
        return self.stages[f"stage_{number}"](x)


class _DenseBlock(nnx.Module):
    """Layer norm, dense, ReLU, dense, plus a shortcut (projected where the width changes)."""

    def __init__(self, num_in: int, num_out: int, dtype: Any, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(num_in, dtype=dtype, rngs=rngs)
        self.first = nnx.Linear(num_in, num_out, dtype=dtype, rngs=rngs)
        self.second = nnx.Linear(num_out, num_out, dtype=dtype, rngs=rngs)
        self.shortcut = (
            nnx.Linear(num_in, num_out, dtype=dtype, rngs=rngs) if num_in != num_out else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        kept = x if self.shortcut is None else self.shortcut(x)
        return kept + self.second(jax.nn.relu(self.first(self.norm(x))))
