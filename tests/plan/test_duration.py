"""What a plan does without so that its run ends in the time there is."""

from __future__ import annotations

import pytest

from drifa_jax.plan.duration import FEWEST_EPOCHS, FORWARD, Length, in_words, length_within

HOUR = 3600.0


def within(by_record, records=2000, folds=5):
    wished = Length(epochs=30, networks=folds, side=128, seconds=0.0)
    return length_within(
        HOUR,
        wished=wished,
        by_record=by_record,
        forward=FORWARD,
        records=records,
        batch=32,
        samples=20,
    )


def test_where_there_is_time_nothing_is_given_up():
    found = within(1e-3)
    assert (found.epochs, found.networks, found.side) == (30, 5, 128)
    assert found.seconds < HOUR


@pytest.mark.parametrize(
    ("by_record", "networks", "side"), ((0.03, 5, 128), (0.05, 5, 96), (0.1, 1, 128), (0.5, 1, 64))
)
def test_epochs_are_given_up_first_then_pixels_then_folds(by_record, networks, side):
    found = within(by_record)
    assert (found.networks, found.side) == (networks, side)
    assert FEWEST_EPOCHS <= found.epochs < 30 and found.seconds <= HOUR


def test_the_shortest_is_told_where_nothing_fits():
    found = within(3.0)
    assert (found.epochs, found.networks, found.side) == (FEWEST_EPOCHS, 1, 64)
    assert found.seconds > HOUR


def test_time_is_said_in_words():
    assert [in_words(s) for s in (20, 600, 9000)] == ["about a minute", "10 min", "2.5 h"]
