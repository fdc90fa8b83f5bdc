"""One switch turns every hand-written gradient and loop into the plain formula."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models import kernels
from drifa_jax.models.building import drifa_net
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions

HELD = {"mri": [True, True, False], "ct": [True, False, True]}


@pytest.fixture(scope="module")
def loss_and_arguments(randomised):
    """A training loss of a whole network in float64, with dropout and absent modalities."""
    with jax.enable_x64(True):
        options = NetworkOptions(width=3, backbone="resnet10", compute_dtype="float64")
        network = Functional(
            lambda rngs: drifa_net({"mri": 1, "ct": 2}, {"tumour": 4}, options=options, rngs=rngs)
        )
        params = randomised(network.abstract_params, dtype=np.float64)
        statistics = randomised(network.abstract_statistics, seed=1, dtype=np.float64)
        draw = np.random.default_rng(2)
        images = {"mri": draw.uniform(size=(3, 16, 16, 1)), "ct": draw.uniform(size=(3, 12, 20, 2))}

    def loss(params, images):
        (logits, _), after = network.apply(
            params,
            statistics,
            images,
            train=True,
            dropout_key=jax.random.key(0),
            present=jax.tree.map(jnp.asarray, HELD, is_leaf=lambda held: isinstance(held, list)),
        )
        weights = jnp.arange(12.0, dtype=jnp.float64).reshape(3, 4)
        return jnp.sum(jnp.sin(logits["tumour"]) * weights), (logits, after)

    return loss, (params, images)


@pytest.fixture
def every_map_is_large(monkeypatch):
    monkeypatch.setattr("drifa_jax.models.kernels.record_by_record.LARGE_MAP", 0)


def test_the_whole_network_agrees_plain_and_hand_written(loss_and_arguments, every_map_is_large):
    loss, arguments = loss_and_arguments

    def outputs_and_gradients():
        return jax.jit(jax.value_and_grad(lambda *a: loss(*a), (0, 1), has_aux=True))(*arguments)

    with jax.enable_x64(True):
        written = outputs_and_gradients()
        with kernels.plain():
            plain = outputs_and_gradients()
    # float64, through some fifty layers of sums in another order; the gradient of a bias before
    # batch norm is nothing but rounding.
    chex.assert_trees_all_close(written, plain, rtol=1e-8, atol=1e-12)
    chex.assert_tree_all_finite(plain)


def test_plain_programs_hold_no_kernel(loss_and_arguments, every_map_is_large):
    loss, arguments = loss_and_arguments
    with jax.enable_x64(True):
        written = str(jax.make_jaxpr(lambda *a: loss(*a))(*arguments))
        with kernels.plain():
            plain = str(jax.make_jaxpr(lambda *a: loss(*a))(*arguments))
        after = str(jax.make_jaxpr(lambda *a: loss(*a))(*arguments))
    for mark in ("custom_vjp", "scan"):
        assert mark in written and mark in after
        assert mark not in plain
