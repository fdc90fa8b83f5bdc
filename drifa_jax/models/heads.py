"""Task heads: every head reads the same fused vector, or each modality has a head of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.pointwise import Pointwise
from drifa_jax.typing import Logits, Pooled, Present

ABSENT = -1e30
"""Log probability of an absent modality's opinion: nothing, yet finite in the gradient."""


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


class AveragedHeads(nnx.Module):
    """A linear layer per modality; the class probabilities are averaged (late fusion).

    Each modality gives its own opinion, and the mean of the opinions of those present is the
    answer. Nothing that one modality shows changes how another is read, which makes it the
    plainest fusion to measure any other against.

    Args:
      modalities: names.
      num_features: of each modality's pooled vector.
      num_classes: of the task.
      rngs: key of the initial weights.

    Source: none in the paper; an ablation.
    """

    def __init__(
        self, modalities: Sequence[str], num_features: int, num_classes: int, *, rngs: nnx.Rngs
    ):
        self.linear = nnx.Dict(
            {m: Pointwise(num_features, num_classes, rngs=rngs) for m in modalities}
        )

    def __call__(
        self, pooled: Mapping[str, Pooled], present: Mapping[str, Present] | None = None
    ) -> Logits:
        """The logarithm of the mean probabilities, `[b, num_classes]` float32: as good as logits.

        Args:
          pooled: modality -> `[b, num_features]`.
          present: modality -> `[b]` bool, or None when every record holds every modality.
        """
        opinions = []
        for m, head in self.linear.items():
            of_modality = jax.nn.log_softmax(head(pooled[m]))
            if present is not None:
                absent = jnp.asarray(ABSENT, of_modality.dtype)
                of_modality = jnp.where(present[m][:, None], of_modality, absent)
            opinions.append(of_modality)
        # Normalised, so that the number of modalities present leaves no trace.
        return jax.nn.log_softmax(jax.nn.logsumexp(jnp.stack(opinions), axis=0))
