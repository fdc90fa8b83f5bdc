"""What the host remembers of each member between steps, besides the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from drifa_jax.config import TrainConfig
from drifa_jax.train.optimizer import Plateau


@dataclasses.dataclass
class MemberProgress:
    """One member's; a run of one network has one. Saved with each checkpoint.

    Attributes:
      plateau: the rule that watches the validation loss.
      sums: of the running epoch, by metric.
      stopped: whether early stopping ended its training. In an ensemble it is carried along
        until all have stopped, but none of its later epochs counts.
    """

    plateau: Plateau
    sums: dict[str, float]
    stopped: bool = False

    @classmethod
    def at_start(cls, config: TrainConfig) -> MemberProgress:
        follows_plateau = config.schedule == "plateau"
        return cls(
            Plateau(
                factor=config.plateau.factor if follows_plateau else 1.0,
                patience=config.plateau.patience,
                min_scale=config.plateau.min_scale,
            ),
            {},
        )

    def add(self, sums: Mapping[str, Any], tasks: Iterable[str]) -> None:
        """Adds the sums of one step."""
        for task in tasks:
            for name in ("loss", "correct", "count"):
                key = f"{task}/{name}"
                self.sums[key] = self.sums.get(key, 0.0) + float(sums[task][name])

    def means(self, tasks: Iterable[str]) -> dict[str, float]:
        """Loss and accuracy over the epoch's records, which are then forgotten."""
        means = {}
        for task in tasks:
            count = max(self.sums[f"{task}/count"], 1.0)
            means[f"{task}/loss"] = self.sums[f"{task}/loss"] / count
            means[f"{task}/accuracy"] = self.sums[f"{task}/correct"] / count
        self.sums = {}
        return means

    def after_epoch(self, validation_loss: float, early_stopping_patience: int) -> float:
        """Adjusts the learning rate; the loss by which the epoch competes to be the best."""
        if self.stopped:
            return float("inf")
        self.plateau = self.plateau.after_epoch(validation_loss)
        self.stopped = 0 < early_stopping_patience <= self.plateau.since_best
        return validation_loss


def to_json(members: Sequence[MemberProgress]) -> dict[str, Any]:
    """Plain values for a checkpoint."""
    return {"members": [dataclasses.asdict(member) for member in members]}


def from_json(values: Mapping[str, Any]) -> list[MemberProgress]:
    """What `to_json` made."""
    return [
        MemberProgress(Plateau(**member["plateau"]), dict(member["sums"]), member["stopped"])
        for member in values["members"]
    ]


def of_member(sums: Mapping[str, Any], member: int) -> dict[str, Any]:
    """The sums of one member of `[e]` or, of a run of one network, `[]`."""
    return {
        key: of_member(value, member)
        if isinstance(value, Mapping)
        else np.asarray(value).reshape(-1)[member]
        for key, value in sums.items()
    }


def averaged(of_members: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The mean over members, and with several members each one's values under "members"."""
    names = list(dict.fromkeys(name for known in of_members for name in known))
    values = {n: [known[n] for known in of_members if n in known] for n in names}
    means: dict[str, Any] = {name: sum(known) / len(known) for name, known in values.items()}
    if len(of_members) > 1:
        means["members"] = [dict(known) for known in of_members]
    return means
