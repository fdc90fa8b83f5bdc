"""Activations computed again: the same numbers as kept ones, and less kept."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax import with_drifa
from drifa_jax.models.building import drifa_net
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions
from tests.models.test_own_network import SHAPE, STAGES, Foreign

# The compiler fuses other instructions, which round otherwise: float32, a dozen layers.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
KEY = jax.random.key(5)


def answers(network, statistics, images, present, rematerialise, params):
    """A loss that every logit enters, and the batch statistics after it."""
    (logits, _), after = network.apply(
        params,
        statistics,
        images,
        train=True,
        dropout_key=KEY,
        present=present,
        rematerialise=rematerialise,
    )
    return sum(jnp.sum(jnp.sin(x)) for x in logits.values()), after


def bytes_between_passes(function, *arguments):
    """Of all that the backward pass reads, weights included."""
    kept = jax.eval_shape(lambda *a: jax.vjp(function, *a, has_aux=True)[1], *arguments)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


@pytest.fixture(scope="module")
def both_ways(small_network, small_state):
    """Loss, statistics after it and gradients; kept and computed again."""
    params, statistics, images = small_state
    present = {"mri": np.array([True, False, True]), "ct": np.array([True, True, False])}

    @functools.partial(jax.jit, static_argnums=0)
    def step(rematerialise, params):
        function = functools.partial(
            answers, small_network, statistics, images, present, rematerialise
        )
        return jax.value_and_grad(function, has_aux=True)(params)

    return step(False, params), step(True, params)


def test_losses_and_gradients_are_those_of_kept_activations(both_ways):
    """With dropout, which is drawn again, and records that lack a modality."""
    (kept, _), gradients = both_ways[0]
    (again, _), gradients_again = both_ways[1]
    np.testing.assert_allclose(again, kept, **TOLERANCE)
    chex.assert_trees_all_close(gradients_again, gradients, **TOLERANCE)


def test_moving_averages_move_once(both_ways, small_state):
    before = small_state[1]
    ((_, kept), _), ((_, again), _) = both_ways
    chex.assert_trees_all_close(again, kept, **TOLERANCE)
    moved = jax.tree.map(lambda new, old: np.any(new != old), again, before)
    assert all(jax.tree.leaves(moved))


def test_less_than_half_is_kept_between_the_passes():
    options = NetworkOptions(width=4, backbone="resnet10", compute_dtype="bfloat16")
    network = Functional(
        lambda rngs: drifa_net({"mri": 1, "ct": 1}, {"tumour": 4}, options=options, rngs=rngs)
    )
    params, statistics = network.abstract_params, network.abstract_statistics
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    images = {m: jax.ShapeDtypeStruct((16, 64, 64, 1), jnp.float32) for m in ("mri", "ct")}

    def kept(rematerialise):
        def function(params, statistics, images):
            return answers(network, statistics, images, None, rematerialise, params)

        return bytes_between_passes(function, params, statistics, images) - weights

    assert kept(True) < 0.5 * kept(False)


def test_network_of_ones_own_trains_the_same():
    images = {"mri": np.random.default_rng(1).normal(size=(4, *SHAPE)).astype(np.float32)}

    def trained(rematerialise):
        network = with_drifa(
            {"mri": Foreign(1, rngs=nnx.Rngs(0))},
            tasks={"tumour": 4},
            stages=STAGES,
            shapes={"mri": SHAPE},
        )

        @nnx.jit
        @functools.partial(nnx.value_and_grad, has_aux=True)
        def step(network):
            logits, _ = network(images, train=True, dropout_key=KEY, rematerialise=rematerialise)
            return jnp.sum(jnp.sin(logits["tumour"])), logits

        (loss, _), gradients = step(network)
        return (
            loss,
            # A module in Flax's coming default, a state today.
            jax.tree.leaves(gradients),
            nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)),
        )

    chex.assert_trees_all_close(trained(True), trained(False), **TOLERANCE)
