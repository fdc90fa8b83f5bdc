"""The paper's readout: one linear layer over the features of all modalities."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.pointwise import Pointwise
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import Logits, Pooled, Present


class ConcatenatedHead(nnx.Module):
    """One linear layer from the concatenated vectors to the logits of one task.

    Source: section 3.1 (MTL). The authors' heads end in a softmax; here the loss and the
    predictor apply it, which is the same and more stable.
    """

    def __init__(
        self,
        num_features: Mapping[str, int],
        num_classes: int,
        *,
        options: NetworkOptions | None = None,
        rngs: nnx.Rngs,
    ):
        self.linear = Pointwise(sum(num_features.values()), num_classes, rngs=rngs)

    def __call__(
        self, pooled: Mapping[str, Pooled], present: Mapping[str, Present] | None = None
    ) -> Logits:
        """Modality -> `[b, num_features]` to `[b, num_classes]`, float32."""
        return self.linear(jnp.concatenate(list(pooled.values()), -1))
