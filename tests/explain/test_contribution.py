import numpy as np
import pytest

from drifa_jax.explain.contribution import contributions


@pytest.fixture(scope="module")
def shares(restored, records):
    pixels, labels = records
    return contributions(restored, pixels, "lesion", labels)


def test_shapley_values_add_up_to_what_was_learnt_from_the_images(shares):
    total = shares.shapley["mri"] + shares.shapley["ct"]
    np.testing.assert_allclose(total, shares.everything - shares.nothing[None], atol=1e-6)
    np.testing.assert_allclose(shares.nothing, 0.5)


def test_the_modality_that_shows_the_object_contributes_most(shares):
    assert shares.shapley["mri"].mean() > 0.2
    assert abs(shares.shapley["ct"].mean()) < 0.1
    assert shares.leave_one_out["mri"].mean() > abs(shares.leave_one_out["ct"].mean())


def test_of_two_modalities_shapley_is_the_mean_of_both_orders(restored, records, shares):
    """Joining first and joining last, weighed equally; each from an answer of its own."""
    pixels, labels = records
    no = np.zeros(16, bool)
    mri_alone = contributions(
        restored, pixels, "lesion", labels, present={"mri": ~no, "ct": no}
    ).everything
    last = shares.leave_one_out["ct"]
    np.testing.assert_allclose(last, shares.everything - mri_alone, atol=1e-6)
    ct_alone = contributions(
        restored, pixels, "lesion", labels, present={"mri": no, "ct": ~no}
    ).everything
    first = ct_alone - shares.nothing[None]
    np.testing.assert_allclose(shares.shapley["ct"], (first + last) / 2, atol=1e-6)


def test_an_absent_modality_contributes_nothing(restored, records):
    pixels, labels = records
    present = {"mri": np.ones(16, bool), "ct": np.arange(16) % 2 == 0}
    of = contributions(restored, pixels, "lesion", labels, present=present)
    np.testing.assert_allclose(of.shapley["ct"][:, 1::2], 0, atol=1e-6)
    np.testing.assert_allclose(of.leave_one_out["ct"][:, 1::2], 0, atol=1e-6)
    assert np.abs(of.shapley["ct"][:, ::2]).max() > 0


def test_the_prior_is_where_the_counting_starts(restored, records):
    pixels, labels = records
    of = contributions(restored, pixels, "lesion", labels, prior=(0.9, 0.1))
    np.testing.assert_allclose(of.nothing, np.where(labels == 1, 0.1, 0.9))
    with pytest.raises(ValueError, match="2 probabilities that add up to 1"):
        contributions(restored, pixels, "lesion", labels, prior=(0.9, 0.9))


def test_it_is_said_whether_the_network_was_trained_for_it(shares, restore, trained_members):
    assert shares.trained_for_it
    assert not restore(trained_members, trained_for_it=False).description.may_lack_modalities
