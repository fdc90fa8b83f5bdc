"""What a readout offers: logits of one task from the pooled features of all modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from drifa_jax.typing import Logits, Pooled, Present


class Readout(Protocol):
    """A registry entry is a function `(num_features, num_classes, *, options, rngs) -> Readout`.

    `num_features` gives those of each modality's pooled vector; `options` are the network's.
    """

    def __call__(
        self, pooled: Mapping[str, Pooled], present: Mapping[str, Present] | None
    ) -> Logits:
        """`[b, num_classes]` float32.

        Args:
          pooled: modality -> `[b, num_features]`, zero where absent.
          present: modality -> `[b]` bool, or None when every record holds every modality.
        """
        ...
