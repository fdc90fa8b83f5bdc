"""What a readout offers: logits of one task from the pooled features of all modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from drifa_jax.typing import Logits, Pooled, Present


class Readout(Protocol):
    """A registry entry is a function `(num_features, num_classes, *, options, rngs) -> Readout`.

    `num_features` gives those of each modality's pooled vector; `options` are the network's. A
    statistic `log_prior` `[num_classes]`, where it has one, is set to the logarithm of the
    training records' class frequencies before the first step.
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


@dataclass(frozen=True)
class Opinions:
    """What the experts of one task say, `[b, num_classes]` each.

    Attributes:
      logits: the answer, as the readout returns it.
      experts: expert -> its own logits; one with the name of a modality reads that alone, and
        what it says of records without it means nothing.
      evidence: expert -> its term of `logits`, zero where its modality is absent.
      tempered: `logits` in value, whose gradient reaches the temperatures alone.
    """

    logits: Logits
    experts: dict[str, Logits]
    evidence: dict[str, Logits]
    tempered: Logits


@runtime_checkable
class ExpertReadout(Protocol):
    """A readout that combines experts; training gives each a loss of its own.

    Its parameters hold `log_temperatures`, expert -> scalar, which name the experts.
    """

    def opinions(
        self, pooled: Mapping[str, Pooled], present: Mapping[str, Present] | None
    ) -> Opinions:
        """What each says, and the answer."""
        ...
