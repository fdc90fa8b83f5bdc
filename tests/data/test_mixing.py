"""MixUp and CutMix blend images and labels by the same share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifa_jax.data.mixing import cutmix, mixup

CLASSES = {"tumour": 8}
KEY = jax.random.key(0)


def batch(size=8):
    """Record i is a flat picture of the value i, with the label i."""
    value = jnp.arange(size, dtype=jnp.float32)
    images = {
        "mri": jnp.broadcast_to(value[:, None, None, None], (size, 16, 16, 1)),
        "ct": jnp.broadcast_to(value[:, None, None, None], (size, 8, 8, 1)),
        "patient": value[:, None],
    }
    return images, {"tumour": jnp.arange(size, dtype=jnp.int32)}


def mix(function, images, labels, key=KEY, present=None, **options):
    """As a step does it, compiled."""

    @jax.jit
    def compiled(images, labels, key, present):
        return function(images, labels, CLASSES, key, present=present, **options)

    return compiled(images, labels, key, present)


def expected_value(probabilities):
    """What the images must show on average, from the labels alone."""
    return np.asarray(probabilities) @ np.arange(probabilities.shape[1])


def test_mixup_blends_images_and_labels_alike():
    images, labels = batch()
    mixed, probabilities = mix(mixup, images, labels, alpha=1.0)
    np.testing.assert_allclose(probabilities["tumour"].sum(1), 1, rtol=1e-6)
    for modality in images:
        shown = np.asarray(mixed[modality]).reshape(8, -1).mean(1)
        np.testing.assert_allclose(shown, expected_value(probabilities["tumour"]), atol=1e-5)
    assert (np.asarray(probabilities["tumour"]).max(1) < 1).sum() >= 4


def test_cutmix_pastes_a_rectangle_and_mixes_labels_by_its_area():
    images, labels = batch()
    mixed, probabilities = mix(cutmix, images, labels)
    np.testing.assert_allclose(probabilities["tumour"].sum(1), 1, rtol=1e-6)
    for modality in ("mri", "ct"):
        for row in range(8):
            values = np.unique(mixed[modality][row])
            assert len(values) <= 2
            assert set(values) <= set(np.flatnonzero(probabilities["tumour"][row] > 0))
        shown = np.asarray(mixed[modality]).reshape(8, -1).mean(1)
        # The area is rounded to pixels: at most one row and one column either way.
        wanted = expected_value(probabilities["tumour"])
        assert (abs(shown - wanted) <= 7 * 2.5 / images[modality].shape[1]).all()
    np.testing.assert_array_equal(mixed["patient"], images["patient"])


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_records_that_lack_a_label_or_modality_do_not_mix_with_those_that_have_it(function):
    images, _ = batch()
    labels = {"tumour": jnp.array([0, 1, -1, -1, 4, 5, 6, 7], jnp.int32)}
    present = {"mri": jnp.array([True] * 6 + [False] * 2)}
    mixed, probabilities = mix(function, images, labels, present=present)
    assert (probabilities["tumour"][2:4] == 0).all()
    assert (probabilities["tumour"][6:, :6] == 0).all()
    assert (probabilities["tumour"][:6, 6:] == 0).all()
    assert np.asarray(mixed["mri"])[6:].min() >= 6
    assert np.asarray(mixed["mri"])[[0, 1, 4, 5]].max() <= 5


def test_equal_keys_mix_equally_and_wrong_alpha_is_named():
    images, labels = batch()
    first, again = (mix(mixup, images, labels)[0]["mri"] for _ in range(2))
    other = mix(mixup, images, labels, jax.random.key(1))[0]["mri"]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    with pytest.raises(ValueError, match="alpha is 0"):
        mixup(images, labels, CLASSES, KEY, alpha=0)
