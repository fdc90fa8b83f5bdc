"""How long a plan trains, and what it does without so that it ends in the time there is."""

from __future__ import annotations

from dataclasses import dataclass

HOURS = {"cpu": 1.0, "gpu": 8.0, "tpu": 8.0}
"""For all networks together, where nothing else is said."""
FORWARD, FORWARD_OF_FROZEN = 1 / 3, 0.9
"""Of a training step, for an answer without gradients; of frozen branches none are computed."""
TRAINED, VALIDATED, TESTED = 0.65, 0.15, 0.2
"""Shares of the records."""
FEWEST_EPOCHS, FEWEST_STEPS = 8, 300
"""Before a plan takes fewer of either, it takes smaller images or a single split."""
SMALLER_SIDES = (128, 96, 64)
SMALLEST_OF_FOLDS = 96
"""Below it, one network of larger images is better than several."""
COMPILING = 90.0
"""Seconds of a network on two cores, for the programs of training, validation and answers."""


@dataclass(frozen=True)
class Length:
    """How a plan trains.

    Attributes:
      epochs: of each network.
      networks: one, or one a fold.
      side: pixels, of the largest images.
      seconds: that all of it takes.
    """

    epochs: int
    networks: int
    side: int
    seconds: float


def length_within(
    seconds: float,
    *,
    wished: Length,
    by_record: float,
    forward: float,
    records: int,
    batch: int,
    samples: int,
) -> Length:
    """The longest training that ends in time, and else the shortest.

    Epochs are given up first, then pixels, then folds; a network that is hardly trained would
    make the rest worthless.

    Args:
      seconds: that there are.
      wished: what the records deserve.
      by_record: seconds of a training step over its records, at the wished side.
      forward: share of them for an answer.
      records: of the set.
      batch: records of a step.
      samples: of Monte Carlo dropout that each take an answer; 1 where they share it.
    """
    sides = (wished.side, *(side for side in SMALLER_SIDES if side < wished.side))
    choices = [
        (networks, side)
        for networks in dict.fromkeys((wished.networks, 1))
        for side in sides
        if networks == 1 or side >= SMALLEST_OF_FOLDS or side == wished.side
    ]
    steps = max(1, int(TRAINED * records) // batch)
    fewest = min(wished.epochs, max(FEWEST_EPOCHS, -(-FEWEST_STEPS // steps)))
    for networks, side in choices:
        each = by_record * records * (side / wished.side) ** 2
        epoch = each * (TRAINED + VALIDATED * forward)
        once = each * (TESTED + VALIDATED) * samples * forward + COMPILING
        fit = int((seconds / networks - once) / epoch)
        epochs = min(wished.epochs, max(fit, fewest))
        length = Length(epochs, networks, side, networks * (once + epochs * epoch))
        if fit >= fewest:
            break
    return length


def in_words(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 90:
        return "about a minute"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
