"""Leaves of equal shape treated as one array by the optimiser."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import optax

from drifa_jax.train.stacking import is_stack_of_small, stack, stacked

SHAPES = {"scale": (), "first": {"bias": (3,), "kernel": (3, 3)}, "second": {"bias": (3,)}}

LARGE = jax.random.normal(jax.random.key(0), (512, 512))


def tree(seed):
    shapes, treedef = jax.tree.flatten(SHAPES, is_leaf=lambda shape: isinstance(shape, tuple))
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return treedef.unflatten(map(jax.random.normal, keys, shapes))


def after_steps(optimizer, steps=3):
    params, state, update = tree(0), optimizer.init(tree(0)), jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(tree(step + 1), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_leaves_of_a_shape_share_one_array():
    shapes = {kind: values.shape for kind, values in stack(tree(0)).items()}
    assert shapes == {"float32[]": (1,), "float32[3]": (2, 3), "float32[3,3]": (1, 3, 3)}


def test_large_leaves_stay_alone():
    large = {"first": LARGE, "second": LARGE}
    shapes = {kind: values.shape for kind, values in stack(large).items()}
    assert shapes == {
        "float32[512,512] 1": (1, 512, 512),
        "float32[512,512] 2": (1, 512, 512),
    }


def test_stacks_of_small_leaves_are_told_from_large_leaves_and_parameters():
    state = stacked(optax.adam(1e-2)).init({"first": LARGE, "bias": LARGE[0]})
    found = jax.tree_util.tree_leaves_with_path({"params": {"first": LARGE}, "state": state})
    stacks = {leaf.shape for path, leaf in found if is_stack_of_small(path)}
    assert stacks == {(1, 512)}


def test_large_leaves_are_updated_as_adam_does_leaf_by_leaf():
    inner, params = optax.adam(1e-2), {"first": LARGE, "bias": LARGE[0], "second": 2 * LARGE}
    updates = [
        jax.jit(optimizer.update)(params, optimizer.init(params))[0]
        for optimizer in (stacked(inner), inner)
    ]
    chex.assert_trees_all_equal(*updates)


def test_stacked_adam_with_clipping_and_decay_updates_as_adam_leaf_by_leaf():
    inner = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(1e-2),
    )
    # The global norm adds its terms in another order, which moves its last bits.
    chex.assert_trees_all_close(after_steps(stacked(inner)), after_steps(inner), rtol=1e-5)


def test_members_of_an_ensemble_are_updated_each_by_itself():
    optimizer = stacked(optax.adam(1e-2))

    def one_step(params, gradients):
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    members = jax.tree.map(lambda *leaves: jnp.stack(leaves), tree(1), tree(2))
    gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), tree(3), tree(4))
    together = jax.jit(jax.vmap(one_step))(members, gradients)
    alone = jax.jit(one_step)(tree(2), tree(4))
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[1], together), alone)
