"""What heads read besides the last stage: the features of every resolution of every branch."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from drifa_jax.models.backbones.contract import Stage
from drifa_jax.models.batch_norm import BatchNorm
from drifa_jax.models.pooling import at_least_float32, average_pool
from drifa_jax.network_options import NetworkOptions
from drifa_jax.typing import FeatureMap, Pooled, Present

EPSILON = 1e-6


def mean_and_deviation(x: FeatureMap, kept: float = 1.0) -> Pooled:
    """Mean and standard deviation of each channel over space, `[b, 2 c]`.

    Args:
      x: `[b, *space, c]`; the deviation of features without space, those of a table, is 0.
      kept: share of the elements that dropout left, each divided by it. Zeros among the elements
        scatter them, which is none of the image's doing: a map without dropout would deviate
        less, and a network that learnt under dropout would misread it. The second moment is
        multiplied by `kept`, which makes it that of the map before dropout, in expectation.
    """
    x = x.astype(at_least_float32(x))
    mean = average_pool(x)
    if x.ndim == 2:
        return jnp.concatenate([mean, jnp.zeros_like(mean)], -1)
    variance = jnp.maximum(kept * average_pool(x * x) - mean * mean, 0)
    return jnp.concatenate([mean, jnp.sqrt(variance + EPSILON) - EPSILON**0.5], -1)


def read_stages(plan: tuple[Stage, ...]) -> tuple[int, ...]:
    """The stages of a branch that are read: the last of every resolution."""
    last = len(plan) - 1
    return tuple(k for k, stage in enumerate(plan) if stage.ends_resolution or k == last)


class ResolutionReading(nnx.Module):
    """Mean and deviation of the features of every resolution, each brought to one scale.

    Deep features say what is in an image, earlier ones what its tissue looks like, and the
    deviation over space how uneven that is. A branch that was pretrained on photographs holds
    much in its earlier stages that its last one has thrown away.

    Each number is normalised by a batch norm, so that the few numbers of early stages weigh as
    much in a linear head as the many of the last; an absent modality reads as zeros.

    Source: no part of the paper, whose heads read the mean of the last stage. Its HIFA reads
    several scales within a stage; reading several stages is that of hypercolumns (Hariharan et
    al., CVPR 2015), the deviation that of statistics pooling (Snyder et al., ICASSP 2018).

    Args:
      plans: modality -> stages of its branch.
      options: of the network.
    """

    def __init__(self, plans: Mapping[str, tuple[Stage, ...]], *, options: NetworkOptions):
        self.stages = {m: read_stages(plan) for m, plan in plans.items()}
        self.num_features = {
            m: sum(2 * plans[m][k].channels for k in stages) for m, stages in self.stages.items()
        }
        self.scales = nnx.Dict(
            {
                m: BatchNorm(count, epsilon=EPSILON, momentum=options.batch_norm_momentum)
                for m, count in self.num_features.items()
            }
        )

    def __call__(
        self,
        read: Mapping[str, list[Pooled]],
        *,
        train: bool,
        present: Mapping[str, Present] | None,
    ) -> dict[str, Pooled]:
        """Modality -> `[b, num_features]`.

        Args:
          read: modality -> `mean_and_deviation` of each stage that is read, in order.
          train: whether the batch norms use and remember this batch's statistics.
          present: modality -> `[b]` bool, or None when every record holds every modality.
        """
        found = {}
        for m, parts in read.items():
            held = None if present is None else present[m]
            x = self.scales[m](jnp.concatenate(parts, -1), train=train, present=held)
            found[m] = x if held is None else jnp.where(held[:, None], x, jnp.zeros_like(x))
        return found
