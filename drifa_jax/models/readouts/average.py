"""Late fusion: each modality has a head of its own, and their probabilities are averaged."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.pointwise import Pointwise
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import Logits, Pooled, Present

ABSENT = -1e30
"""Log probability of an absent modality's opinion: nothing, yet finite in the gradient."""


class AveragedHeads(nnx.Module):
    """A linear layer per modality; the class probabilities are averaged (late fusion).

    Each modality gives its own opinion, and the mean of the opinions of those present is the
    answer. Nothing that one modality shows changes how another is read, which makes it the
    plainest fusion to measure any other against.

    Source: none in the paper; an ablation.
    """

    def __init__(
        self,
        num_features: Mapping[str, int],
        num_classes: int,
        *,
        options: NetworkOptions | None = None,
        rngs: nnx.Rngs,
    ):
        self.linear = nnx.Dict(
            {m: Pointwise(count, num_classes, rngs=rngs) for m, count in num_features.items()}
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
            opinion = jax.nn.log_softmax(head(pooled[m]))
            if present is not None:
                absent = jnp.asarray(ABSENT, opinion.dtype)
                opinion = jnp.where(present[m][:, None], opinion, absent)
            opinions.append(opinion)
        # Normalised, so that the number of modalities present leaves no trace.
        return jax.nn.log_softmax(jax.nn.logsumexp(jnp.stack(opinions), axis=0))
