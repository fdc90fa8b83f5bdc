"""All that a training step reads and writes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from drifa_jax.models.functional import BatchStatistics, Functional, Parameters


@struct.dataclass
class TrainState:
    """One pytree: what a checkpoint holds and a step donates.

    Attributes:
      step: updates made so far, int32.
      params: parameters, float32.
      statistics: moving averages of batch norm, float32.
      optimizer_state: optax's.
      learning_rate_scale: multiplies the schedule; the plateau rule lowers it between epochs.
    """

    step: jax.Array
    params: Any
    statistics: Any
    optimizer_state: Any
    learning_rate_scale: jax.Array


def initial_state(
    params: Parameters, statistics: BatchStatistics, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        statistics=statistics,
        optimizer_state=optimizer.init(params),
        learning_rate_scale=jnp.ones((), jnp.float32),
    )


def abstract_state(network: Functional, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of a state, without computing one."""
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=network.abstract_params,
        statistics=network.abstract_statistics,
        optimizer_state=jax.eval_shape(optimizer.init, network.abstract_params),
        learning_rate_scale=jax.ShapeDtypeStruct((), jnp.float32),
    )
