"""What is evaluated in the place of the weights in training: their moving average, and statistics
of batch norm that fit.

A run without these options evaluates what it trains, and its state has none of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from drifa_jax.config import TrainConfig


@struct.dataclass
class Evaluated:
    """The part of a state that is evaluated and not trained.

    Attributes:
      params: moving averages of the parameters that are trained, with None in the place of the
        others; or None where the parameters themselves are evaluated.
      statistics: of batch norm.
    """

    params: Any
    statistics: Any


@dataclass(frozen=True)
class Evaluation:
    """Which weights are evaluated; without arguments, those in training.

    Attributes:
      average_decay: weight of the old moving average of the parameters at each step; 0 evaluates
        the parameters themselves.
      statistics_batches: training batches over which the statistics of batch norm are estimated
        anew before each validation; 0 evaluates moving averages.
    """

    average_decay: float = 0.0
    statistics_batches: int = 0

    @classmethod
    def of(cls, config: TrainConfig) -> Evaluation:
        """As a configuration asks for."""
        return cls(config.average_decay, config.statistics_batches)

    def at_start(self, trained: Any, statistics: Any) -> Evaluated | None:
        """Before the first step, as arrays of their own, since a state is donated whole.

        Args:
          trained: the part of the parameters that is trained.
          statistics: of batch norm.
        """
        if not (self.average_decay or self.statistics_batches):
            return None
        params = jax.tree.map(_copied, trained) if self.average_decay else None
        return Evaluated(params, jax.tree.map(_copied, statistics))

    def after_step(
        self, evaluated: Evaluated | None, trained: Any, statistics: Any, step: jax.Array
    ) -> Evaluated | None:
        """After an update; moving averages of batch norm are averaged as the parameters are.

        The decay is `min(average_decay, (1 + step) / (10 + step))`, so that the first steps do
        not hold on to the weights before training.

        Args:
          evaluated: before it.
          trained, statistics: after it.
          step: its number, counted from 0.

        Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992;
        the rising decay is that of TensorFlow's ExponentialMovingAverage.
        """
        if not self.average_decay:
            return evaluated
        number = step.astype(jnp.float32)
        share = 1 - jnp.minimum(self.average_decay, (1 + number) / (10 + number))

        def averaged(old, new):
            return jax.tree.map(lambda ours, theirs: ours + share * (theirs - ours), old, new)

        kept = self.statistics_batches > 0
        return Evaluated(
            averaged(evaluated.params, trained),
            evaluated.statistics if kept else averaged(evaluated.statistics, statistics),
        )


IN_TRAINING = Evaluation()
"""The weights in training are evaluated."""


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct | jax.core.Tracer):
        return leaf
    return np.array(leaf)
