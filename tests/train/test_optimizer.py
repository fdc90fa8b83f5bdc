"""The optimizer's schedules and the plateau rule."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.train.optimizer import Plateau, make_optimizer

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}


def updates(optimizer, gradients, steps=1):
    state, result = optimizer.init(PARAMS), None
    for _ in range(steps):
        result, state = optimizer.update(gradients, state, PARAMS)
    return result


def test_first_adam_step_moves_every_weight_by_the_learning_rate():
    result = updates(
        make_optimizer(learning_rate=1e-3),
        {"kernel": jnp.full((2, 2), 5.0), "bias": -PARAMS["bias"]},
    )
    # Adam divides the gradient by its own size; float32 rounds the quotient.
    np.testing.assert_allclose(result["kernel"], -1e-3, rtol=1e-5)
    np.testing.assert_allclose(result["bias"], 1e-3, rtol=1e-5)


def test_cosine_ends_at_zero_and_warmup_starts_there():
    options = dict(learning_rate=1e-3, schedule="cosine", num_steps=10, warmup_steps=2)
    for steps, expected in ((1, 0.0), (11, 0.0)):
        result = updates(make_optimizer(**options), PARAMS, steps)
        np.testing.assert_allclose(result["bias"], expected, atol=1e-9)
    assert np.all(np.asarray(updates(make_optimizer(**options), PARAMS, 3)["bias"]) < -9e-4)


def test_weight_decay_pulls_kernels_and_leaves_biases():
    zero = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros((2,))}
    result = updates(make_optimizer(learning_rate=1e-3, weight_decay=0.1), zero)
    np.testing.assert_allclose(result["kernel"], -1e-4, rtol=1e-5)
    np.testing.assert_array_equal(result["bias"], 0)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"schedule is 'linear'; choose one of"):
        make_optimizer(learning_rate=1.0, schedule="linear")


def test_plateau_lowers_the_rate_after_patience_epochs_and_not_below_its_floor():
    rule = Plateau(factor=0.2, patience=2, min_scale=0.01)
    scales = []
    for loss in (1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4):
        rule = rule.after_epoch(loss)
        scales.append(rule.scale)
    np.testing.assert_allclose(scales, [1, 1, 1, 0.2, 0.2, 0.04, 0.04, 0.01, 0.01])
    assert rule.since_best == 0


def test_plateau_counts_epochs_since_the_best_for_early_stopping():
    rule = Plateau(patience=2)
    for loss in (1.0, 1.1, 1.2, 1.3):
        rule = rule.after_epoch(loss)
    assert rule.since_best == 3
