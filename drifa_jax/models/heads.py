"""Task heads: every head reads the same fused vector."""

from __future__ import annotations

from flax import nnx

from drifa_jax.models.pointwise import Pointwise
from drifa_jax.typing import Logits, Pooled


class TaskHead(nnx.Module):
    """One linear layer from the fused vector to the logits of one task.

    Source: section 3.1 (MTL). The authors' heads end in a softmax; here the loss and the
    predictor apply it, which is the same and more stable.
    """

    def __init__(self, num_features: int, num_classes: int, *, rngs: nnx.Rngs):
        self.linear = Pointwise(num_features, num_classes, rngs=rngs)

    def __call__(self, pooled: Pooled) -> Logits:
        """`[b, num_features] -> [b, num_classes]`, float32."""
        return self.linear(pooled)
