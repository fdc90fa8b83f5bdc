"""The test of a run: metrics of each task and one line per record, with its uncertainty."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from drifa_jax.data.record import Source
from drifa_jax.evaluate.intervals import task_metrics
from drifa_jax.evaluate.records import with_source
from drifa_jax.predictions.files import written
from drifa_jax.predictions.table import Predictions, Provenance, from_member_probabilities
from drifa_jax.processes import is_first
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.prediction import SplitLogits, SplitPredictor
from drifa_jax.train.run_directory import RESULTS_FILE, write_whole
from drifa_jax.train.state import TrainState

PREDICTIONS_FILES = ("predictions.csv", "predictions.parquet")
IN_SUMMARY = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "f1_macro": "F1",
    "auroc": "AUROC",
}


def test(
    experiment: Experiment, predict: SplitPredictor, state: TrainState, workdir: Path
) -> dict[str, Any]:
    """Predicts the test records and writes `metrics.json` and the predictions.

    Args:
      experiment: whose test records are predicted.
      predict: the compiled evaluation.
      state: the best of the run.
      workdir: where the results go.

    Returns:
      What `metrics.json` holds.
    """
    source = experiment.dataset.test
    split = predict.split(state.params, state.statistics, source, experiment.config.eval.batch_size)
    steps = tuple(np.atleast_1d(np.asarray(state.step)).tolist())
    predictions = tested(source, split, steps=steps)
    results = {
        "synthetic": source.synthetic,
        "data": source.description,
        "split": "test",
        "num_records": len(predictions),
        "best_step": np.asarray(state.step).tolist(),
        "tasks": {
            task: task_metrics(
                found.probabilities, found.truth, predictions.groups_of(task), found.classes
            ).to_json()
            for task, found in predictions.tasks.items()
        },
    }
    if is_first():
        with written([workdir / name for name in PREDICTIONS_FILES]) as write:
            write(predictions)
        write_whole(workdir / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    return results


def tested(source: Source, split: SplitLogits, *, steps: tuple[int, ...] = ()) -> Predictions:
    """The answers of a network, without dropout, to every record of a source."""
    tasks = {}
    for task in source.tasks:
        members = softmax(np.asarray(split.member_logits[task.name], np.float64), axis=-1)
        found = from_member_probabilities(task.classes, members)
        tasks[task.name] = dataclasses.replace(found, truth=split.labels[task.name])
    num_members = len(next(iter(split.member_logits.values())))
    return with_source(
        Predictions(
            tuple(source.record_id(index) for index in split.index.tolist()),
            tasks,
            Provenance(steps=steps, num_members=num_members),
        ),
        source,
    )


def summary(results: dict[str, Any]) -> Iterator[str]:
    """One line per task."""
    for task, found in results["tasks"].items():
        figures = "  ".join(
            f"{short} {_figure(found['metrics'][name])}" for name, short in IN_SUMMARY.items()
        )
        yield f"test {task}: {figures}  ({found['num_records']} records)"


def _figure(interval: dict[str, Any]) -> str:
    if interval["value"] is None:
        return "undefined"
    reach = "" if interval["low"] is None else f" ({interval['low']:.3f} to {interval['high']:.3f})"
    return f"{interval['value']:.3f}{reach}"
