"""The pure training step: what it changes, what it draws from, what it keeps in float32."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.train.losses import TaskLoss
from drifa_jax.train.optimizer import make_optimizer
from drifa_jax.train.state import initial_state
from drifa_jax.train.step import make_train_step

LOSSES = {"tumour": TaskLoss(weight=0.5), "stroke": TaskLoss(weight=0.5)}
KEY = jax.random.key(3)


def batch_of(size: int = 8) -> dict:
    generator = np.random.default_rng(0)
    images = {
        modality: generator.integers(0, 256, (size, 8, 8, channels), np.uint8)
        for modality, channels in (("mri", 1), ("ct", 3))
    }
    return {
        "images": images,
        "labels": {
            "tumour": generator.integers(0, 4, size).astype(np.int32),
            "stroke": generator.integers(-1, 3, size).astype(np.int32),
        },
        "present": {"mri": np.ones(size, bool), "ct": np.arange(size) % 3 != 0},
        "valid": np.ones(size, bool),
    }


class MeanPixels:
    """A stand-in for the network, which has tests of its own: a linear head on mean pixels.

    Dropout acts on the pixels; batch statistics are the mean of the batch.
    """

    def init(self, key):
        kernel = jax.random.normal(key, (4, 7)) * 0.1
        return {"kernel": kernel}, {"mean": jnp.zeros(4)}

    def apply(self, params, statistics, images, *, train, dropout_key=None, present=None):
        pooled = {m: jnp.mean(x, axis=(1, 2)) for m, x in images.items()}
        if present is not None:
            pooled = {m: jnp.where(present[m][:, None], x, 0.0) for m, x in pooled.items()}
        features = jnp.concatenate([pooled["mri"], pooled["ct"]], axis=-1)
        if train:
            statistics = {"mean": 0.9 * statistics["mean"] + 0.1 * jnp.mean(features, axis=0)}
        if dropout_key is not None:
            kept = jax.random.bernoulli(dropout_key, 0.75, features.shape)
            features = jnp.where(kept, features / 0.75, 0.0)
        logits = features @ params["kernel"]
        return ({"tumour": logits[:, :4], "stroke": logits[:, 4:]}, {}), statistics


def first_step(**options):
    """A jitted step and the state before it."""
    network, optimizer = MeanPixels(), make_optimizer(learning_rate=1e-3)
    step = jax.jit(make_train_step(network, optimizer, LOSSES, **options))
    return step, initial_state(*network.init(jax.random.key(0)), optimizer)


def test_step_counts_moves_every_weight_and_remembers_statistics():
    step, state = first_step()
    after, sums = step(state, batch_of(), KEY)
    assert int(after.step) == 1
    chex.assert_tree_all_finite((after, sums))
    assert np.all(after.params["kernel"] != state.params["kernel"])
    assert np.all(after.statistics["mean"] != state.statistics["mean"])


def test_step_is_a_function_of_state_batch_and_key():
    step, state = first_step()
    once, again = step(state, batch_of(), KEY), step(state, batch_of(), KEY)
    chex.assert_trees_all_equal(once, again)
    _, other = step(state, batch_of(), jax.random.key(4))
    assert float(other["total"]) != float(once[1]["total"])


def test_steps_of_one_batch_shape_share_one_program():
    step, state = first_step()
    for _ in range(3):
        state, _ = step(state, batch_of(), KEY)
    assert step._cache_size() == 1


def test_dropout_differs_from_step_to_step():
    step, state = first_step()
    _, first = step(state, batch_of(), KEY)
    _, later = step(state.replace(step=state.step + 1), batch_of(), KEY)
    assert float(first["total"]) != float(later["total"])


def test_plateau_scale_scales_the_update():
    step, state = first_step()
    full, _ = step(state, batch_of(), KEY)
    tenth, _ = step(state.replace(learning_rate_scale=jnp.float32(0.1)), batch_of(), KEY)
    before, full, tenth = (np.asarray(s.params["kernel"]) for s in (state, full, tenth))
    # A difference of float32 numbers near 0.1 has an error of 1e-8; the update is 1e-3.
    np.testing.assert_allclose(tenth - before, 0.1 * (full - before), atol=2e-8)


def test_sums_count_labelled_records_only():
    step, state = first_step()
    _, sums = step(state, batch_of(), KEY)
    assert float(sums["tumour"]["count"]) == 8
    assert float(sums["stroke"]["count"]) == np.sum(batch_of()["labels"]["stroke"] >= 0)


def test_absent_modality_has_no_influence_on_the_step():
    step, state = first_step(masks_absent=True)
    filled = batch_of()
    filled["images"]["ct"][~filled["present"]["ct"]] = 255
    chex.assert_trees_all_equal(step(state, batch_of(), KEY), step(state, filled, KEY))


def test_mixed_images_and_targets_replace_those_of_the_batch():
    def turned_round(images, labels, key, *, present):
        classes = {"tumour": 4, "stroke": 3}
        targets = {t: jax.nn.one_hot(labels[t][::-1], k) for t, k in classes.items()}
        return {m: x[::-1] for m, x in images.items()}, targets

    step, state = first_step()
    reverse = jax.tree.map(lambda x: x[::-1], batch_of())
    mixing_step, _ = first_step(mix=turned_round)
    _, mixed = mixing_step(state, batch_of(), KEY)
    _, plain = step(state, reverse, KEY)
    # Two programs compiled apart may round sums differently.
    np.testing.assert_allclose(mixed["total"], plain["total"], rtol=1e-6)


@pytest.mark.parametrize(
    ("part", "name", "wrong"),
    (
        ("labels", "tumour", np.zeros(1, np.int32)),
        ("labels", "tumour", np.zeros((8, 1), np.int32)),
        ("labels", "tumour", np.zeros(8, np.float32)),
        ("images", "ct", np.zeros((1, 8, 8, 3), np.uint8)),
    ),
)
def test_what_would_be_broadcast_in_silence_is_refused(part, name, wrong):
    step, state = first_step()
    batch = batch_of()
    batch[part] = batch[part] | {name: wrong}
    with pytest.raises(AssertionError, match=r"[Ss]hape|rank|type"):
        step(state, batch, KEY)
