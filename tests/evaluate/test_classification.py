"""Classification metrics on cases small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.evaluate.classification import classification_metrics

CLASSES = ("a", "b", "c")
# Called: a, b, b, c, a, (unlabelled)
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2], [1, 0, 0]]
)
LABELS = np.array([0, 1, 0, 2, 2, -1])


def test_metrics_agree_with_counting():
    result = classification_metrics(PROBABILITIES, LABELS, CLASSES)
    assert result["num_records"] == 5
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    # recall of a, b, c: 1/2, 1, 1/2; precision: 1/2, 1/2, 1
    assert result["balanced_accuracy"] == result["recall"] == pytest.approx(2 / 3)
    assert result["precision"] == pytest.approx(2 / 3)
    assert result["f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)


def test_auroc_averages_one_class_against_the_rest():
    result = classification_metrics(PROBABILITIES, LABELS, CLASSES)
    # a: 5 of 6 pairs in order (0.3 below 0.5); b: 4 of 4; c: 6 of 6.
    assert result["auroc"] == pytest.approx((5 / 6 + 1 + 1) / 3)


def test_auroc_of_a_single_class_is_undefined_and_says_why():
    result = classification_metrics(PROBABILITIES[:1], LABELS[:1], CLASSES)
    assert result["auroc"] is None
    assert result["auroc_undefined"] == "only the class 'a' occurs among the labels"


def test_class_without_records_does_not_count_as_a_failure():
    result = classification_metrics(PROBABILITIES[:2], LABELS[:2], CLASSES)
    assert result["balanced_accuracy"] == 1


def test_split_without_labels_is_refused():
    with pytest.raises(ValueError, match="no record has a label"):
        classification_metrics(PROBABILITIES, np.full(6, -1), CLASSES)
