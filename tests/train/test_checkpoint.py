"""Checkpoints hold a state exactly, and refuse another network's."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax import sharding
from drifa_jax.errors import UserError
from drifa_jax.train.checkpoint import Checkpoints, best_steps, packed, unpacked
from drifa_jax.train.state import TrainState


def state_of(step: int, width: int = 3) -> TrainState:
    """A state with small arrays of two dtypes and one that is stored on its own."""
    generator = np.random.default_rng(step)
    large = generator.normal(size=(sharding.LARGE // 256, 256)).astype(np.float32)
    return TrainState(
        step=jnp.int32(step),
        params={"head": {"bias": jnp.arange(width, dtype=jnp.float32)}, "kernel": jnp.array(large)},
        statistics={"mean": jnp.float32(generator.normal())},
        optimizer_state=(jnp.int32(step), {"mu": jnp.ones((2, width))}),
        learning_rate_scale=jnp.float32(0.2),
    )


def test_packing_keeps_every_bit():
    state = state_of(7)
    stored = packed(state)
    assert set(stored["large"]) == {"params/kernel"}
    assert set(stored["small"]) == {"float32", "int32"}
    chex.assert_trees_all_equal(unpacked(stored, state), state)


def test_newest_and_best_are_found_again_with_their_progress(tmp_path):
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 4: 0.6, 5: 0.7}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(state_of(step), {"epoch": step}, loss)
        checkpoints.save(state_of(6), {"epoch": 5})
    template = jax.eval_shape(lambda: state_of(0))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        newest, progress = checkpoints.newest(template)
        best, _ = checkpoints.best(template)
    chex.assert_trees_all_equal(newest, state_of(6))
    chex.assert_trees_all_equal(best, state_of(2))
    assert progress == {"epoch": 5}
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]


def test_state_may_be_overwritten_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = state_of(3)
        checkpoints.save(state, {}, 1.0)
        jax.block_until_ready(overwrite(state))
        restored, _ = checkpoints.newest(jax.eval_shape(lambda: state_of(0)))
    chex.assert_trees_all_equal(restored, state_of(3))


def test_checkpoint_of_another_network_is_refused_with_the_difference(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state_of(1), {}, 1.0)
        with pytest.raises(
            UserError, match=r"- params/head/bias \[3\](.|\n)*\+ params/head/bias \[4\]"
        ):
            checkpoints.best(jax.eval_shape(lambda: state_of(0, width=4)))


def test_directory_without_an_epoch_has_no_best(tmp_path):
    with (
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
        pytest.raises(UserError, match="no checkpoint of a completed epoch"),
    ):
        checkpoints.best(jax.eval_shape(lambda: state_of(0)))


def stacked(*states: TrainState) -> TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def test_best_epoch_is_kept_for_each_member(tmp_path):
    losses = {1: (0.9, 0.2), 2: (0.3, 0.5), 3: (0.4, 0.6), 4: (0.5, float("inf")), 5: (0.6, 0.7)}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, of_members in losses.items():
            checkpoints.save(stacked(state_of(step), state_of(step)), {}, of_members)
    template = jax.eval_shape(lambda: stacked(state_of(0), state_of(0)))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        best, _ = checkpoints.best(template)
    assert best.step.tolist() == [2, 1]
    chex.assert_trees_all_equal(best, stacked(state_of(2), state_of(1)))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "4", "5"]


def test_first_of_equal_losses_is_the_best():
    metrics = {3: {"validation_loss": [0.5]}, 1: {"validation_loss": 0.5}, 2: None}
    assert best_steps(metrics) == [1]
    assert best_steps({2: None}) == []
