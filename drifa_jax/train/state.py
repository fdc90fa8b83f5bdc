"""All that a training step reads and writes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from drifa_jax.models.functional import BatchStatistics, Functional, Parameters
from drifa_jax.train.evaluated import IN_TRAINING, Evaluated, Evaluation
from drifa_jax.train.parameter_groups import ALL_ALIKE, ParameterGroups, completed


@struct.dataclass
class TrainState:
    """One pytree: what a checkpoint holds and a step donates.

    In an ensemble every leaf has a leading axis `e`.

    Attributes:
      step: updates made so far, int32.
      params: parameters, float32.
      statistics: moving averages of batch norm, float32.
      optimizer_state: optax's, of the parameters that are trained.
      learning_rate_scale: multiplies the schedule; the plateau rule lowers it between epochs.
      evaluated: what is evaluated where that is not `params` and `statistics`, or None.
    """

    step: jax.Array
    params: Any
    statistics: Any
    optimizer_state: Any
    learning_rate_scale: jax.Array
    evaluated: Evaluated | None = None

    def weights(self) -> tuple[Any, Any]:
        """Parameters and statistics that are evaluated and saved as the model."""
        if self.evaluated is None:
            return self.params, self.statistics
        return completed(self.evaluated.params, self.params), self.evaluated.statistics


@struct.dataclass
class Model:
    """What predicts: the part of a state that outlives training.

    Attributes:
      step: of each member's checkpoint.
      params, statistics: as in `TrainState`.
      identity: digest of these weights and of the description; two models share it only when
        they are the same.
      description: of the network and its data, as plain JSON values; None where a checkpoint of
        an earlier release holds none.
    """

    step: Any
    params: Any
    statistics: Any
    identity: str = struct.field(pytree_node=False, default="")
    description: Any = struct.field(pytree_node=False, default=None)

    def weights(self) -> tuple[Any, Any]:
        """Parameters and statistics."""
        return self.params, self.statistics


def initial_state(
    params: Parameters,
    statistics: BatchStatistics,
    optimizer: optax.GradientTransformation,
    num_members: int = 1,
    groups: ParameterGroups = ALL_ALIKE,
    evaluation: Evaluation = IN_TRAINING,
) -> TrainState:
    """The state before the first step; of an ensemble when there are several members."""
    trained = groups.trained(params)
    if num_members > 1:
        optimizer_state = jax.vmap(optimizer.init)(trained)
    else:
        optimizer_state = optimizer.init(trained)
    lead = (num_members,) * (num_members > 1)
    return TrainState(
        step=jnp.zeros(lead, jnp.int32),
        params=params,
        statistics=statistics,
        optimizer_state=optimizer_state,
        learning_rate_scale=jnp.ones(lead, jnp.float32),
        evaluated=evaluation.at_start(trained, statistics),
    )


def abstract_state(
    network: Functional,
    optimizer: optax.GradientTransformation,
    num_members: int = 1,
    groups: ParameterGroups = ALL_ALIKE,
    evaluation: Evaluation = IN_TRAINING,
) -> TrainState:
    """Shapes and dtypes of a state, without computing one."""
    trained = groups.trained(network.abstract_params)
    of_member = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=network.abstract_params,
        statistics=network.abstract_statistics,
        optimizer_state=jax.eval_shape(optimizer.init, trained),
        learning_rate_scale=jax.ShapeDtypeStruct((), jnp.float32),
        evaluated=evaluation.at_start(trained, network.abstract_statistics),
    )
    if num_members == 1:
        return of_member
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((num_members, *leaf.shape), leaf.dtype), of_member
    )


def steps_done(state: TrainState) -> int:
    """Updates made so far; equal in all members of a state in training."""
    step = state.step
    if isinstance(step, jax.Array):
        # Members of other processes cannot be read here.
        step = step.addressable_data(0)
    return int(np.asarray(step).reshape(-1)[0])
