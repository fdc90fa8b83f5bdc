"""Training on frozen features: what fills up a split counts for nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from drifa_jax.benchmark.features import blurred, noisy
from drifa_jax.benchmark.frozen import Split, train_seeds
from drifa_jax.config import from_mapping, modality

SIZES = {"train": 64, "validation": 24, "test": 24}


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def drawn(count, seed=0):
    """Two modalities of three features; the first tells the class."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    inputs = {m: draw.normal(size=(count, 3)).astype(np.float32) for m in ("a", "b")}
    inputs["a"][:, 0] += 2 * labels
    return Split(inputs, {m: np.ones(count, bool) for m in inputs}, labels)


def config():
    return from_mapping(
        {
            "data": {"modalities": {"a": modality()}},
            "model": {"readout": "experts", "stage_mfa_parts": (), "mifa_parts": ()},
            "train": {"num_epochs": 4, "batch_size": 64, "learning_rate": 0.03},
        }
    )


def test_records_that_fill_up_a_split_hold_nothing():
    filled = drawn(5).filled(8)
    assert filled.labels.tolist() == [0, 1, 0, 1, 0, -1, -1, -1]
    assert not filled.present["a"][5:].any() and filled.inputs["b"].shape == (8, 3)


def test_they_teach_nothing_whatever_they_hold():
    train, validation = drawn(40), drawn(20, seed=1)
    odd = train.filled(64)
    odd = dataclasses.replace(odd, inputs={m: np.where(odd.present[m][:, None], x, 99)
                                           for m, x in odd.inputs.items()})  # fmt: skip
    one, other = (
        train_seeds(config(), {"train": t, "validation": validation}, frozenset(), 2, (0,), SIZES)
        for t in (train, odd)
    )
    # The prior counts labels, of which the fillers have none.
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    p = one.probabilities(validation)
    assert p.shape == (1, 20, 2)
    # Two deviations apart, 84 % can be told; twenty records lie within 14 % of that.
    assert (p[0].argmax(1) == validation.labels).mean() >= 0.7


@pytest.mark.parametrize("readout", ["concatenate", "average", "auxiliary", "experts"])
def test_before_training_every_readout_says_the_prior(readout):
    start = dataclasses.replace(
        config(),
        model=dataclasses.replace(config().model, readout=readout),
        train=dataclasses.replace(config().train, learning_rate=1e-12),
    )
    train = drawn(40)
    train = dataclasses.replace(train, labels=(np.arange(40, dtype=np.int32) % 4 == 0).astype("i4"))
    trained = train_seeds(
        start, {"train": train, "validation": drawn(20, seed=1)}, frozenset(), 2, (0,), SIZES
    )
    # 30 and 10 of 40, and one more of each class.
    np.testing.assert_allclose(
        trained.probabilities(drawn(9))[0], [[31 / 42, 11 / 42]] * 9, atol=1e-5
    )


def test_a_seed_is_trained_alike_alone_and_among_others():
    splits = {"train": drawn(40), "validation": drawn(20, seed=1)}
    alone = train_seeds(config(), splits, frozenset(), 2, (3,), SIZES).probabilities(drawn(9))
    among = train_seeds(config(), splits, frozenset(), 2, (0, 3), SIZES).probabilities(drawn(9))
    # Batched products round otherwise.
    np.testing.assert_allclose(alone[0], among[1], atol=1e-4)


def test_damage_is_the_same_every_time_and_keeps_the_picture_recognisable():
    image = np.zeros((40, 40, 1), np.uint8)
    image[10:30, 10:30] = 200
    for damage in (noisy, blurred):
        found = damage(image, "one")
        np.testing.assert_array_equal(found, damage(image, "one"))
        assert found.dtype == np.uint8 and np.any(found != image)
        assert np.corrcoef(found.ravel(), image.ravel())[0, 1] > 0.8
    assert np.any(noisy(image, "one") != noisy(image, "two"))
