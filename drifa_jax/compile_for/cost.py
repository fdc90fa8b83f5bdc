"""What a training run takes at least on a slice, in hours and in money."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from drifa_jax.compile_for.estimate import Estimate
from drifa_jax.compile_for.slices import Slices
from drifa_jax.data.pipeline import steps_per_epoch
from drifa_jax.errors import UserError


@dataclass(frozen=True)
class Cost:
    """The least that the steps of a run take, as if each were as short as its longest bound.

    Attributes:
      num_steps: of all epochs.
      step_seconds: the longest bound of a step.
      num_chips: that are paid for.
      price: of a chip for an hour.
    """

    num_steps: int
    step_seconds: float
    num_chips: int
    price: float

    @property
    def hours(self) -> float:
        """That the slice is held for the steps alone."""
        return self.num_steps * self.step_seconds / 3600

    @property
    def money(self) -> float:
        """In the currency of the price."""
        return self.hours * self.num_chips * self.price

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "steps": self.num_steps,
            "step_seconds_at_least": self.step_seconds,
            "hours_at_least": self.hours,
            "chips": self.num_chips,
            "price_of_a_chip_hour": self.price,
            "cost_at_least": self.money,
        }

    def in_words(self) -> str:
        """One line."""
        return (
            f"{self.num_steps} steps take at least {_time(self.hours)} on {self.num_chips} "
            f"chips, which cost at least {_round(self.money)} at {self.price:g} a chip-hour; "
            "starting, compiling, validation and waiting for data come on top"
        )


def cost(
    step: Estimate, slices: Slices, num_records: int, num_epochs: int, price: float
) -> Cost | None:
    """The cost of a run; None where its step does not fit.

    Args:
      step: of training.
      slices: that it was compiled for.
      num_records: of the training split.
      num_epochs: of the run.
      price: of a chip for an hour, in any currency.

    Raises:
      UserError: when there are fewer records than a batch holds, or the price is below 0.
    """
    if price < 0 or not math.isfinite(price):
        raise UserError(f"--price {price:g}: what a chip costs in an hour is no such number.")
    if num_records < step.num_records:
        raise UserError(
            f"--price: {num_records} training records are less than a batch of {step.num_records}; "
            "say by --records how many there are."
        )
    if not step.bounds:
        return None
    chips = math.prod(slices.shape) * slices.count
    num_steps = steps_per_epoch(num_records, step.num_records) * num_epochs
    return Cost(num_steps, max(step.bounds.values()), chips, price)


def _time(hours: float) -> str:
    for per_hour, unit in ((1, "h"), (60, "min")):
        if hours * per_hour >= 1:
            return f"{_round(hours * per_hour)} {unit}"
    return f"{_round(hours * 3600)} s"


def _round(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
