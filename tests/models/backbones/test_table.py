"""A table joins the fusion like any branch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.models.backbones.contract import Stage
from drifa_jax.models.backbones.table import TabularBranch
from drifa_jax.models.building import drifa_net
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions

WIDTH = 2
PLAN = (Stage("first", 2, 4, True), Stage("second", 2, 8, False))


@pytest.fixture(scope="module")
def network():
    """A photograph and a table that meet twice, with fresh parameters."""

    functional = Functional(
        lambda rngs: drifa_net(
            {"photo": 1},
            {"skin": 2},
            options=NetworkOptions(width=WIDTH, backbone="resnet10", fuse_at=(0, -1)),
            tables={"patient": 3},
            rngs=rngs,
        )
    )
    params, statistics = functional.init(jax.random.key(0))
    apply = jax.jit(functional.apply, static_argnames=("train",))
    return lambda images, present=None: apply(
        params, statistics, images, train=False, present=present
    )[0][0]["skin"]


def inputs(filler=0.0):
    photo = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1))
    table = jnp.array([[0.5, 1.0, 0.0], [filler] * 3], jnp.float32)
    return {"photo": photo, "patient": table}


def test_table_changes_the_answer_of_its_own_record_alone(network):
    before = network(inputs(0.0))
    after = network(inputs(3.0))
    np.testing.assert_array_equal(before[0], after[0])
    assert abs(before[1] - after[1]).max() > 1e-6


def test_absent_table_has_no_effect_whatever_fills_it(network):
    present = {"photo": jnp.array([True, True]), "patient": jnp.array([True, False])}
    zeros, nans = network(inputs(0.0), present), network(inputs(jnp.nan), present)
    assert jnp.isfinite(nans).all()
    np.testing.assert_array_equal(zeros, nans)


def test_absent_photo_leaves_predictions_from_the_table(network):
    present = {"photo": jnp.array([False, True]), "patient": jnp.array([True, True])}
    images = inputs(1.0)
    images["photo"] = images["photo"].at[0].set(jnp.nan)
    assert jnp.isfinite(network(images, present)).all()


def test_wrong_tables_are_named():
    branch = TabularBranch(3, PLAN, rngs=nnx.Rngs(params=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"reads \[b, 3\] but got \(2, 4\)"):
        branch.stem(jnp.ones([2, 4]), train=False, present=None)
    with pytest.raises(ValueError, match="at least one"):
        TabularBranch(0, PLAN, rngs=nnx.Rngs(params=jax.random.key(0)))
