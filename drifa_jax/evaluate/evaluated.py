"""A finished evaluation: everything that a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drifa_jax.config import Config
from drifa_jax.evaluate.evaluation import TaskEvaluation
from drifa_jax.evaluate.facts import Cost, DataSummary
from drifa_jax.predict.described import Description


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and everything a reader should know of it.

    Attributes:
      runs: directories; a run may hold several members.
      num_members: networks whose answers are averaged.
      config: of the (first) run.
      description: of what the network reads and answers.
      steps: training step of each run's weights.
      num_samples, seed: of the Monte Carlo samples; the seed is the bootstrap's too.
      num_records: test records.
      tasks: task -> its evaluation; tasks without a labelled record are absent.
      data: the splits and how well they are kept apart.
      cost: of the network.
      learning: lines of `metrics.jsonl` of the (first) run.
      trained_by, evaluated_by: command, code, versions and devices.
      folds: of the cross-validation whose runs these are, each record answered by the runs that
        were tested on it; empty where there is one split.
    """

    runs: tuple[Path, ...]
    num_members: int
    config: Config
    description: Description
    steps: tuple[int, ...]
    num_samples: int
    seed: int
    num_records: int
    tasks: Mapping[str, TaskEvaluation]
    data: DataSummary
    cost: Cost
    learning: Sequence[Mapping[str, Any]]
    trained_by: Mapping[str, Any]
    evaluated_by: Mapping[str, Any]
    folds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return " + ".join(run.resolve().name for run in self.runs)

    @property
    def synthetic(self) -> bool:
        return self.description.synthetic or self.data.synthetic
