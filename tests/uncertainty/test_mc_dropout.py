"""Claims about Monte Carlo dropout: what is random, what is shared, and what nothing depends on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.models.pixels import scale_pixels
from drifa_jax.uncertainty.mc_dropout import (
    Moments,
    choose_samples_per_pass,
    make_sampler,
    record_words,
    sample_key,
    sampling_mesh,
)

pytestmark = pytest.mark.usefixtures("every_device")

NUM_SAMPLES = 4
ROUNDING = 2e-6
"""Probabilities in float32; XLA orders a convolution's sums by the batch size."""


def member(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


@pytest.fixture(scope="module")
def full_pass(ensemble):
    """One whole pass of one member: `(member, words, images, sample) -> (logits, statistics)`."""
    e = ensemble

    @jax.jit
    def one(params, statistics, images, key):
        (logits, _), after = e.network.apply(
            params, statistics, scale_pixels(images), train=False, dropout_key=key
        )
        return jax.tree.map(jax.nn.softmax, logits), after

    def call(number, sample):
        key = sample_key(e.key, jnp.int32(number), e.words, jnp.int32(sample))
        return one(member(e.params, number), member(e.statistics, number), e.images, key)

    return call


def test_samples_have_axes_member_sample_record_class(samples):
    assert {task: p.shape for task, p in samples.items()} == {
        "tumour": (2, 4, 3, 3),
        "stroke": (2, 4, 3, 2),
    }


def test_samples_are_probabilities(samples):
    for p in samples.values():
        assert (p > 0).all()
        np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-6)


def test_shared_features_give_what_whole_passes_give(samples, full_pass):
    for number, sample in ((0, 0), (0, 3), (1, 2)):
        expected, _ = full_pass(number, sample)
        for task, p in samples.items():
            np.testing.assert_allclose(p[number, sample], expected[task], atol=ROUNDING)


def test_samples_and_members_differ(samples):
    p = samples["tumour"]
    rows = p.reshape(8, -1)
    assert len(np.unique(rows.round(6), axis=0)) == 8


def test_equal_keys_give_equal_samples_and_other_keys_others(ensemble, sampler, samples):
    e = ensemble
    again = sampler(e.params, e.statistics, e.images, e.key, e.words)
    other = sampler(e.params, e.statistics, e.images, jax.random.key(8), e.words)
    for task in samples:
        np.testing.assert_array_equal(again[task], samples[task])
        assert np.abs(other[task] - samples[task]).max() > 1e-4


def test_batch_statistics_are_read_and_never_written(ensemble, full_pass, samples):
    _, after = full_pass(0, 0)
    jax.tree.map(np.testing.assert_array_equal, after, member(ensemble.statistics, 0))


def test_without_dropout_every_sample_is_the_deterministic_answer(ensemble):
    """All layers but dropout are deterministic: at rate 0 samples agree to the last bit."""
    e = ensemble
    drawn = make_sampler(e.without_dropout, num_samples=3, samples_per_pass=1)(
        e.params, e.statistics, e.images, e.key, e.words
    )
    for p in drawn.values():
        np.testing.assert_array_equal(p, np.broadcast_to(p[:, :1], p.shape))


def test_a_record_does_not_depend_on_its_place_or_its_batch_mates(ensemble, sampler, samples):
    e = ensemble
    order = np.array([2, 0, 1])
    images = {m: x[order] for m, x in e.images.items()}
    images["mri"][1:] = 255 - images["mri"][1:]
    moved = sampler(e.params, e.statistics, images, e.key, e.words[order])
    for task, p in samples.items():
        np.testing.assert_allclose(moved[task][:, :, 0], p[:, :, 2], atol=ROUNDING)
        assert np.abs(moved[task][:, :, 1] - p[:, :, 0]).max() > 1e-4


def test_a_record_does_not_depend_on_the_size_of_its_batch(ensemble, sampler, samples):
    e = ensemble
    images = {m: x[1:2] for m, x in e.images.items()}
    alone = sampler(e.params, e.statistics, images, e.key, e.words[1:2])
    for task, p in samples.items():
        np.testing.assert_allclose(alone[task][:, :, 0], p[:, :, 1], atol=ROUNDING)


def test_a_member_alone_answers_as_in_its_ensemble(ensemble, sampler, samples):
    e = ensemble
    alone = sampler(
        jax.tree.map(lambda leaf: leaf[1:], e.params),
        jax.tree.map(lambda leaf: leaf[1:], e.statistics),
        e.images,
        e.key,
        e.words,
        jnp.array([1], jnp.int32),
    )
    for task, p in samples.items():
        np.testing.assert_allclose(alone[task][0], p[1], atol=ROUNDING)


@pytest.mark.parametrize("moments", [False, True], ids=["samples", "moments"])
def test_the_number_of_devices_changes_nothing(ensemble, samples, moments):
    e = ensemble
    mesh = sampling_mesh(2, jax.devices()[:6])
    assert mesh.shape == {"ensemble": 2, "data": 3}
    spread = make_sampler(e.network, num_samples=NUM_SAMPLES, mesh=mesh, moments=moments)
    drawn = spread(e.params, e.statistics, e.images, e.key, e.words)
    expected = {t: as_moments(p) for t, p in samples.items()} if moments else samples
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=NUM_SAMPLES * ROUNDING), drawn, expected
    )


def as_moments(p) -> Moments:
    votes = np.eye(p.shape[-1])[p.argmax(-1)].sum(1)
    entropy = -(p * np.log(p)).sum(-1).sum(1)
    return Moments(np.full(p.shape[0], p.shape[1]), p.sum(1), (p**2).sum(1), entropy, votes)


def test_moments_are_those_of_the_samples(ensemble, samples):
    e = ensemble
    running = make_sampler(e.network, num_samples=NUM_SAMPLES, moments=True, samples_per_pass=3)(
        e.params, e.statistics, e.images, e.key, e.words
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=NUM_SAMPLES * ROUNDING),
        running,
        {task: as_moments(p) for task, p in samples.items()},
    )


def test_the_image_of_an_absent_modality_has_no_effect(ensemble, sampler):
    e = ensemble
    present = {"mri": np.array([True, False, True]), "ct": np.ones(3, bool)}
    drawn = [
        sampler(e.params, e.statistics, e.images | {"mri": mri}, e.key, e.words, None, present)
        for mri in (e.images["mri"], 255 - e.images["mri"])
    ]
    for task in drawn[0]:
        first, second = drawn[0][task], drawn[1][task]
        np.testing.assert_array_equal(first[:, :, 1], second[:, :, 1])
        assert np.abs(first[:, :, 0] - second[:, :, 0]).max() > 1e-5


def test_keys_name_member_record_and_sample(ensemble):
    words = record_words([f"patient {n}" for n in range(20)])
    keys = {
        tuple(jax.random.key_data(key).tolist())
        for m in range(3)
        for s in range(4)
        for key in sample_key(ensemble.key, jnp.int32(m), words, jnp.int32(s))
    }
    assert len(keys) == 3 * 4 * 20


def test_record_words_are_the_same_everywhere():
    """Pinned: a change would move every published sample."""
    assert record_words(["patient 7"]).tolist() == [[1836244809, 2212069892]]


def test_passes_fit_the_memory_given():
    features = {"mri": jnp.zeros((4, 8, 8, 16)), "ct": jnp.zeros((4, 8, 8, 16))}
    one = 8 * 2 * 4 * 8 * 8 * 16 * 4
    assert choose_samples_per_pass(30, features, 3 * one) == 3
    assert choose_samples_per_pass(30, features, 1) == 1
    assert choose_samples_per_pass(30, features, 100 * one) == 30


def test_sampling_mesh_spreads_members_first():
    assert sampling_mesh(4, jax.devices()).shape == {"ensemble": 4, "data": 2}
    assert sampling_mesh(3, jax.devices()).shape == {"ensemble": 1, "data": 8}
    assert sampling_mesh(3, jax.devices()[:1]) is None


@pytest.mark.parametrize("field", ["num_samples", "samples_per_pass"])
def test_zero_samples_are_refused(ensemble, field):
    with pytest.raises(ValueError, match=f"{field} is 0"):
        make_sampler(ensemble.network, **({"num_samples": 3} | {field: 0}))


def test_an_empty_ensemble_is_refused(ensemble, sampler):
    e = ensemble
    empty = jax.tree.map(lambda leaf: leaf[:0], (e.params, e.statistics))
    with pytest.raises(ValueError, match="no ensemble member"):
        sampler(*empty, e.images, e.key, e.words)


def test_members_that_the_mesh_does_not_divide_are_refused(ensemble):
    e = ensemble
    sampler = make_sampler(e.network, num_samples=1, mesh=sampling_mesh(4, jax.devices()))
    with pytest.raises(ValueError, match="2 members do not divide"):
        sampler(e.params, e.statistics, e.images, e.key, e.words)


def test_a_mesh_with_other_axes_is_refused(ensemble):
    with pytest.raises(ValueError, match="sampling_mesh"):
        make_sampler(ensemble.network, num_samples=1, mesh=jax.make_mesh((8,), ("data",)))


def test_names_of_other_records_are_refused(ensemble, sampler):
    e = ensemble
    with pytest.raises(ValueError, match="record_words names 2"):
        sampler(e.params, e.statistics, e.images, e.key, e.words[:2])


def test_a_key_whose_draws_depend_on_batch_mates_is_refused(ensemble, sampler):
    e = ensemble
    with pytest.raises(ValueError, match="threefry"):
        sampler(e.params, e.statistics, e.images, jax.random.key(0, impl="rbg"), e.words)
