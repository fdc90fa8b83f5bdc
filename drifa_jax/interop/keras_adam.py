"""Adam as Keras computes it, whose epsilon is not bias-corrected."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class KerasAdamState(NamedTuple):
    """Step count and the two moments."""

    count: jax.Array
    first: optax.Updates
    second: optax.Updates


def keras_adam(
    learning_rate: float, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-7
) -> optax.GradientTransformation:
    """`w -= rate * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon)`.

    The usual form corrects both moments first and adds epsilon to the corrected root. At step 1
    Keras' epsilon of 1e-7 then acts like 3.2e-6 in the usual form, which matters to gradients
    below about 1e-5. Needed only to repeat a training of Keras number by number.
    """

    def init(params):
        return KerasAdamState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(jnp.zeros_like, params),
        )

    def update(gradients, state, params=None):
        del params
        count = state.count + 1
        first = optax.tree.update_moment(gradients, state.first, b1, 1)
        second = optax.tree.update_moment(gradients, state.second, b2, 2)
        step = count.astype(jnp.float32)
        rate = learning_rate * jnp.sqrt(1 - b2**step) / (1 - b1**step)
        updates = jax.tree.map(
            lambda m, v: -rate.astype(m.dtype) * m / (jnp.sqrt(v) + epsilon), first, second
        )
        return updates, KerasAdamState(count, first, second)

    return optax.GradientTransformation(init, update)
