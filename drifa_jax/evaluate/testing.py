"""The test of a run: metrics of each task and one line per record, with its uncertainty."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax, xlogy

from drifa_jax.data.pairing import labelled_parts
from drifa_jax.evaluate.intervals import task_metrics
from drifa_jax.processes import is_first
from drifa_jax.train.experiment import Experiment
from drifa_jax.train.prediction import SplitPredictor
from drifa_jax.train.run_directory import RESULTS_FILE, write_whole
from drifa_jax.train.state import TrainState

PREDICTIONS_FILE = "predictions.csv"
IN_SUMMARY = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "f1_macro": "F1",
    "auroc": "AUROC",
}


def test(
    experiment: Experiment, predict: SplitPredictor, state: TrainState, workdir: Path
) -> dict[str, Any]:
    """Predicts the test records and writes `metrics.json` and `predictions.csv`.

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
    probabilities = {
        task: np.exp(log_softmax(logits, axis=-1)) for task, logits in split.logits.items()
    }
    results = {
        "synthetic": source.synthetic,
        "data": source.description,
        "split": "test",
        "num_records": len(split.index),
        "best_step": np.asarray(state.step).tolist(),
        "tasks": {
            task.name: task_metrics(
                probabilities[task.name],
                split.labels[task.name],
                np.asarray(labelled_parts(source, task.name)[1])[split.index],
                task.classes,
            ).to_json()
            for task in source.tasks
        },
    }
    if is_first():
        rows = _rows(source, split, probabilities)
        write_whole(workdir / PREDICTIONS_FILE, _as_csv(rows))
        write_whole(workdir / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    return results


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


def _rows(source, split, probabilities) -> Iterator[dict[str, Any]]:
    """Truth, call, probabilities and predictive entropy (nats) of each record."""
    for row, index in enumerate(split.index.tolist()):
        line: dict[str, Any] = {"record_id": source.record_id(index)}
        for task in source.tasks:
            p = probabilities[task.name][row]
            label = int(split.labels[task.name][row])
            line[f"{task.name}/true"] = task.classes[label] if label >= 0 else ""
            line[f"{task.name}/predicted"] = task.classes[int(p.argmax())]
            line |= {
                f"{task.name}/p({name})": f"{value:.6f}"
                for name, value in zip(task.classes, p, strict=True)
            }
            line[f"{task.name}/predictive_entropy"] = f"{-xlogy(p, p).sum():.6f}"
        yield line


def _as_csv(rows: Iterator[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, fieldnames=list(row))
            writer.writeheader()
        writer.writerow(row)
    return text.getvalue()
