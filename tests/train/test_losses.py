"""Losses: masks, weights and the focal term, against formulas written out in numpy."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from drifa_jax.train.losses import (
    TaskLoss,
    balanced_class_weights,
    class_prior,
    record_losses,
    total_loss,
)

LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 3
LABELS = np.array([0, 3, 1, -1, 2, 0], np.int32)
TARGETS = np.eye(4, dtype=np.float32)[LABELS] * (LABELS >= 0)[:, None]
# Six additions and an exponential in float32.
TOLERANCE = 1e-6


def true_log_probabilities() -> np.ndarray:
    return log_softmax(LOGITS.astype(np.float64), axis=1)[np.arange(6), LABELS]


def test_cross_entropy_is_minus_the_log_probability_of_the_label():
    losses, labelled = record_losses(LOGITS, TARGETS, TaskLoss())
    expected = np.where(LABELS >= 0, -true_log_probabilities(), 0)
    np.testing.assert_allclose(losses, expected, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(labelled, LABELS >= 0)


def test_focal_loss_lowers_the_weight_of_easy_records():
    losses, _ = record_losses(LOGITS, TARGETS, TaskLoss(focal_gamma=2.0))
    p = np.exp(true_log_probabilities())
    expected = np.where(LABELS >= 0, -np.log(p) * (1 - p) ** 2, 0)
    np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=TOLERANCE)


def test_class_weights_multiply_the_loss_of_their_class():
    plain, _ = record_losses(LOGITS, TARGETS, TaskLoss())
    weighted, _ = record_losses(LOGITS, TARGETS, TaskLoss(class_weights=(2.0, 1.0, 0.5, 3.0)))
    factor = np.array([2.0, 3.0, 1.0, 0.0, 0.5, 2.0])
    np.testing.assert_allclose(weighted, plain * factor, rtol=TOLERANCE)


def test_mixed_targets_are_charged_in_their_proportions():
    mixed = np.zeros_like(TARGETS)
    mixed[0] = [0.7, 0.3, 0, 0]
    losses, labelled = record_losses(LOGITS, mixed, TaskLoss(class_weights=(2.0, 4.0, 1.0, 1.0)))
    log_p = log_softmax(LOGITS[0].astype(np.float64))
    expected = -(0.7 * log_p[0] + 0.3 * log_p[1]) * (0.7 * 2 + 0.3 * 4)
    np.testing.assert_allclose(losses[0], expected, rtol=TOLERANCE)
    np.testing.assert_array_equal(labelled, [True] + [False] * 5)


def test_record_without_a_label_gets_no_gradient():
    gradient = jax.grad(lambda x: record_losses(x, TARGETS, TaskLoss(focal_gamma=1.5))[0].sum())(
        jnp.asarray(LOGITS)
    )
    assert not np.any(gradient[3])
    chex.assert_tree_all_finite(gradient)


def test_total_weighs_tasks_and_averages_over_labelled_records():
    other = np.array([1, -1, -1, -1, -1, 0], np.int32)
    total, sums = total_loss(
        {"a": LOGITS, "b": LOGITS},
        {"a": LABELS, "b": other},
        {"a": TaskLoss(weight=0.25), "b": TaskLoss(weight=0.75)},
    )
    assert (float(sums["a"]["count"]), float(sums["b"]["count"])) == (5, 2)
    expected = 0.25 * sums["a"]["loss"] / 5 + 0.75 * sums["b"]["loss"] / 2
    np.testing.assert_allclose(total, expected, rtol=TOLERANCE)


def test_task_without_any_label_contributes_nothing():
    total, sums = total_loss({"a": LOGITS}, {"a": np.full(6, -1, np.int32)}, {"a": TaskLoss()})
    assert float(total) == 0
    assert float(sums["a"]["count"]) == 0


def test_correct_counts_the_labelled_records_called_right():
    called = LOGITS.argmax(axis=1)
    _, sums = total_loss({"a": LOGITS}, {"a": LABELS}, {"a": TaskLoss()})
    assert float(sums["a"]["correct"]) == np.sum(called == LABELS)


def test_balanced_weights_have_mean_one_over_the_records():
    labels = np.array([0] * 58 + [1] * 1 + [2] * 11 + [-1] * 7)
    weights = np.array(balanced_class_weights(labels, 4))
    assert weights[labels[labels >= 0]].mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(58)
    assert weights[3] == 0


def test_experts_are_charged_apart_and_only_for_records_with_their_modality():
    present = {"mri": np.array([True, True, False, True, False, True])}
    seen = {"experts/a/mri": LOGITS, "experts/a/fused": 2 * LOGITS, "tempered/a": 3 * LOGITS}
    loss = TaskLoss(expert_weights=(("mri", 0.75), ("fused", 0.25)), product_weight=0.5)
    total, sums = total_loss(
        {"a": 4 * LOGITS}, {"a": LABELS}, {"a": loss}, seen=seen, present=present
    )
    labelled = LABELS >= 0

    def mean(scale, counted):
        own = log_softmax(scale * LOGITS.astype(np.float64), axis=1)[np.arange(6), LABELS]
        return -own[counted].mean()

    expected = (
        0.5 * mean(4, labelled)
        + mean(3, labelled)
        + 0.75 * mean(1, labelled & present["mri"])
        + 0.25 * mean(2, labelled)
    )
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    # What is reported and validated is the answer's own loss.
    np.testing.assert_allclose(sums["a"]["loss"] / 5, mean(4, labelled), rtol=1e-5)


def test_a_prior_is_what_a_network_learns_from_the_records_that_it_is_shown():
    labels = np.array([0, 0, 0, 1, -1])
    np.testing.assert_allclose(class_prior(labels, 3), np.array([4, 2, 1]) / 7)
    weights = balanced_class_weights(labels, 3)
    np.testing.assert_allclose(
        class_prior(labels, 3, weights),
        np.array([4 * weights[0], 2 * weights[1], 1]) / (4 * weights[0] + 2 * weights[1] + 1),
    )
    drawn = np.array([1.0, 1.0, 1.0, 3.0, 0.0])  # each class equally often
    np.testing.assert_allclose(class_prior(labels, 3, (), drawn), np.array([3.5, 3.5, 1]) / 8)
