"""Heads that read every resolution: what they are given, and that nothing else notices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drifa_jax.models.backbones.resnet import ResNet
from drifa_jax.models.drifa_net import DRIFANet
from drifa_jax.models.dropout import monte_carlo_dropout
from drifa_jax.models.functional import Functional
from drifa_jax.models.reading import mean_and_deviation
from drifa_jax.network_options import NetworkOptions

OPTIONS = NetworkOptions(
    width=3, mfa_parts=(), stage_mfa_parts=(), mifa_parts=(), read_stages="resolutions"
)
PRESENT = {"mri": jnp.array([True, True, False]), "ct": jnp.array([True, False, True])}
# Means and deviations of a few hundred float32 numbers.
TOLERANCE = 1e-5


def module(rngs, options=OPTIONS):
    branches = {
        "mri": ResNet(1, plan=(1, 2), options=options, rngs=rngs),
        "ct": ResNet(2, plan=(1, 1), options=options, rngs=rngs),
    }
    return DRIFANet(branches, {"tumour": 2}, options=options, rngs=rngs)


@pytest.fixture(scope="module")
def network():
    return Functional(module)


def answer(network, params, statistics, images, stage=None, **options):
    """What `Functional.apply` gives, compiled."""

    @jax.jit
    def compiled(params, statistics, images):
        number = () if stage is None else (stage,)
        return network.apply(params, statistics, *number, images, **options)

    return compiled(params, statistics, images)


def declared(options=OPTIONS):
    """The module without its arrays."""
    return nnx.eval_shape(lambda: module(nnx.Rngs(params=jax.random.key(0)), options))


@pytest.fixture(scope="module")
def state(network):
    params, statistics = network.init(jax.random.key(0))
    draw = np.random.default_rng(0)
    images = {
        "mri": draw.uniform(size=(3, 16, 16, 1)).astype(np.float32),
        "ct": draw.uniform(size=(3, 12, 20, 2)).astype(np.float32),
    }
    return params, statistics, images


def test_a_map_is_read_by_mean_and_deviation_over_space():
    x = np.random.default_rng(1).normal(2, 3, (2, 5, 7, 4)).astype(np.float32)
    read = np.asarray(mean_and_deviation(jnp.asarray(x)))
    np.testing.assert_allclose(read[:, :4], x.mean((1, 2)), rtol=TOLERANCE)
    np.testing.assert_allclose(read[:, 4:], x.std((1, 2)), rtol=2e-3)  # the epsilon of the root


def test_dropout_does_not_move_what_is_read():
    x = np.random.default_rng(1).gamma(2, 1, (2, 64, 64, 4)).astype(np.float32)
    dropped = monte_carlo_dropout(jnp.asarray(x), 0.25, jax.random.key(2))
    clean, read = mean_and_deviation(jnp.asarray(x)), mean_and_deviation(dropped, kept=0.75)
    # 4096 places a channel: means and deviations scatter by about 1 %.
    np.testing.assert_allclose(read, clean, rtol=0.05)
    assert np.all(mean_and_deviation(dropped)[:, 4:] > 1.1 * clean[:, 4:])


def test_a_network_reads_under_dropout_what_it_reads_without(network, state):
    """Of the first stage, before anything bends: three means and three deviations."""
    params, statistics, images = state
    frozen = {"train": {"mri": False, "ct": False}}

    @jax.jit
    def mean(key):
        _, seen = network.apply(params, statistics, images, dropout_key=key, **frozen)
        return seen["reading"]["scales"]["mri"]["mean"]

    means = [mean(jax.random.key(k)) for k in range(30)]
    _, without = answer(network, params, statistics, images, **frozen)
    expected = np.asarray(without["reading"]["scales"]["mri"]["mean"])[:6]
    # 64 places a channel and 30 draws; without the correction deviations are a third too large.
    np.testing.assert_allclose(np.mean(means, 0)[:6], expected, rtol=0.15)


@pytest.mark.parametrize("read_stages", ["last", "resolutions"])
def test_dropout_at_the_heads_leaves_everything_before_them_to_all_samples(read_stages, state):
    options = dataclasses.replace(OPTIONS, read_stages=read_stages, dropout_at="heads")
    network = Functional(lambda rngs: module(rngs, options))
    params, statistics = network.init(jax.random.key(0))
    key = jax.random.key(3)

    @jax.jit
    def answers(images):
        given = (params, statistics)
        (whole, seen), _ = network.apply(*given, images, train=False, dropout_key=key)
        (clean, unseen), _ = network.apply(*given, images, train=False)
        shared, _ = network.apply(*given, images, train=False, method="before_dropout")
        (halves, _), _ = network.apply(
            *given, shared, train=False, dropout_key=key, method="from_dropout"
        )
        return whole, seen, clean, unseen, shared, halves

    whole, seen, clean, unseen, shared, halves = answers(state[2])
    assert {m: x.shape for m, x in shared.items()} == {
        m: (3, n) for m, n in declared(options).num_features.items()
    }
    jax.tree.map(np.testing.assert_array_equal, whole, halves)
    jax.tree.map(np.testing.assert_array_equal, seen, unseen)
    assert all(np.any(whole[task] != clean[task]) for task in whole)


def test_a_table_deviates_by_nothing_and_has_a_gradient():
    x = jnp.ones((2, 3))
    assert np.array_equal(mean_and_deviation(x)[:, 3:], np.zeros((2, 3)))
    assert np.isfinite(
        jax.grad(lambda x: mean_and_deviation(x * 0).sum())(jnp.ones((2, 4, 3)))
    ).all()


def test_the_last_stage_of_every_resolution_is_read():
    reading = declared().reading
    assert reading.stages == {"mri": (0, 2), "ct": (0, 1)}
    assert reading.num_features == {"mri": 2 * (3 + 6), "ct": 2 * (3 + 6)}


def test_the_head_reads_every_resolution_at_one_scale(network, state):
    params, statistics, images = state
    maps, _ = answer(network, params, statistics, images, train=False, method="features")
    read = {
        m: np.concatenate([mean_and_deviation(maps[k][m]) for k in stages], -1)
        for m, stages in {"mri": (0, 2), "ct": (1, 2)}.items()
    }
    # The statistics of a network that was not trained are 0 and 1.
    pooled = np.concatenate([read["mri"], read["ct"]], -1) / np.sqrt(1 + 1e-6)
    linear = params["heads"]["tumour"]["linear"]
    expected = pooled @ np.asarray(linear["kernel"]) + np.asarray(linear["bias"])
    (logits, _), _ = answer(network, params, statistics, images, train=False)
    np.testing.assert_allclose(logits["tumour"], expected, atol=TOLERANCE)


def test_what_an_absent_modality_holds_changes_nothing(network, state):
    params, statistics, images = state
    other = {m: jnp.where(PRESENT[m][:, None, None, None], x, 7.0) for m, x in images.items()}
    found = [
        answer(network, params, statistics, x, train=True, present=PRESENT) for x in (images, other)
    ]
    jax.tree.map(np.testing.assert_array_equal, found[0][0][0], found[1][0][0])
    jax.tree.map(np.testing.assert_array_equal, found[0][1], found[1][1])


def test_what_remains_after_any_stage_gives_the_same_answer(network, state):
    params, statistics, images = state
    (logits, _), _ = answer(network, params, statistics, images, train=False)
    for number in range(3):
        at = {"stage": number, "train": False}
        held, _ = answer(network, params, statistics, images, method="until_stage", **at)
        again, _ = answer(network, params, statistics, held, method="from_stage", **at)
        np.testing.assert_allclose(again["tumour"], logits["tumour"], atol=TOLERANCE)


def test_an_explanation_of_a_stage_counts_what_the_head_reads_there(network, state):
    params, statistics, images = state
    held, _ = answer(
        network, params, statistics, images, stage=0, train=False, method="until_stage"
    )
    # With everything after it cut off, the first stage still speaks to the head.
    deaf = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if "stages_1" in jax.tree_util.keystr(path) else x, params
    )

    def evidence(features):
        logits, _ = network.apply(deaf, statistics, 0, features, train=False, method="from_stage")
        return logits["tumour"][:, 0].sum()

    assert np.abs(jax.jit(jax.grad(evidence))(held)["mri"]).max() > 0


def test_frozen_branches_still_learn_the_scale_of_what_is_read(network, state):
    params, statistics, images = state
    _, after = answer(
        network, params, statistics, images, train={"mri": False, "ct": False},
        dropout_key=jax.random.key(1),
    )  # fmt: skip
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), statistics, after)
    assert all(jax.tree.leaves(changed["reading"]))
    assert not any(jax.tree.leaves(changed["branches"]))


def test_paper_networks_have_no_reading():
    assert declared(NetworkOptions(width=3)).reading is None
