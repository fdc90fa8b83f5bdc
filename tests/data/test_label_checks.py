"""What labels must be for training; verify and train use the same words."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.data.label_checks import label_findings, refuse_labels
from drifa_jax.data.record import MISSING_LABEL, ModalitySpec, TaskSpec
from drifa_jax.data.records import make_records
from drifa_jax.errors import UserError


def splits(classes="ab", **labels):
    return {
        split: make_records(
            ModalitySpec("ct", 16, 16, 1),
            TaskSpec("dx", tuple(classes)),
            ids=[f"{split}{k}" for k in range(len(own))],
            places=np.arange(len(own)),
            labels=own,
            reader=lambda place: np.zeros((16, 16, 1), np.uint8),
            description=split,
        )
        for split, own in labels.items()
    }


def told(found):
    return [(f.status, f.text) for f in label_findings(found)]


def test_sound_labels_have_no_findings():
    assert told(splits(train=[0, 1, 1], validation=[0, 1], test=[1, 0])) == []


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (splits("a", train=[0], validation=[0], test=[0]), "has one class only (a)"),
        (splits(train=[0, 0], validation=[0], test=[0]), "train holds one class only (a)"),
        (splits(train=[0, 1], validation=[MISSING_LABEL], test=[0, 1]), "validation holds no"),
        (splits(train=[MISSING_LABEL], validation=[0, 1], test=[0, 1]), "train holds no label"),
        (splits("abc", train=[0, 1], validation=[0], test=[2]), "test holds the class c, which"),
    ],
)
def test_what_training_cannot_use_is_an_error(labels, words):
    assert any(status == "error" and words in text for status, text in told(labels))
    with pytest.raises(UserError, match="dx: "):
        refuse_labels(labels)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (splits(train=[0, 1], validation=[0], test=[0, 1]), "validation lacks the class b"),
        (splits(train=[0, 1], validation=[0, 1], test=[-1]), "test holds no label of it"),
        (splits(train=[0] * 20 + [1], validation=[0, 1], test=[0, 1]), "imbalanced 20:1"),
    ],
)
def test_what_says_less_than_it_seems_is_a_warning(labels, words):
    assert [(status, words in text) for status, text in told(labels)] == [("warning", True)]
    refuse_labels(labels)
