"""Writes an evaluation as a folder: figures, tables for machines, one page for people."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from drifa_jax.console import RESEARCH_NOTE
from drifa_jax.data.dataset import Dataset
from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.folders import (
    FIGURES_FOLDER,
    METRICS_FILE,
    PREDICTIONS,
    REPORT_FILE,
)
from drifa_jax.evaluate.run_evaluation import Part
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predictions.files import written
from drifa_jax.predictions.table import Predictions
from drifa_jax.report.blocks import Section
from drifa_jax.report.checklists import claim, tripod_ai
from drifa_jax.report.html import render, write_report
from drifa_jax.report.model_card import model_card
from drifa_jax.report.sections import SECTIONS
from drifa_jax.train.run_directory import write_whole

MoreSections = Callable[[Predictor, Dataset, Predictions, Evaluated, Path], Sequence[Section]]


def metrics_document(evaluated: Evaluated) -> dict[str, Any]:
    """What `metrics.json` holds: every figure of the report, for machines."""
    return {
        "notice": RESEARCH_NOTE,
        "synthetic": evaluated.synthetic,
        "runs": [str(run) for run in evaluated.runs],
        "steps": list(evaluated.steps),
        "split": "test",
        "folds": list(evaluated.folds),
        "data": evaluated.data.splits["test"].description,
        "data_notes": list(evaluated.data.notes),
        "num_records": evaluated.num_records,
        "num_members": evaluated.num_members,
        "num_samples": evaluated.num_samples,
        "seed": evaluated.seed,
        "tasks": {task: found.to_json() for task, found in evaluated.tasks.items()},
        "cost": evaluated.cost.to_json(),
        "environment": dict(evaluated.evaluated_by),
        "training_environment": dict(evaluated.trained_by),
    }


def write_evaluation(
    evaluated: Evaluated, predictions: Predictions, folder: Path, *, extra: Sequence[Section] = ()
) -> None:
    """Fills a folder; the report comes last.

    Args:
      of: what was evaluated.
      predictions: of every test record.
      folder: to be filled.
      extra: sections that come before those on subgroups, such as explanations.
    """
    made = [make(evaluated, folder / FIGURES_FOLDER) for make in SECTIONS]
    place = next(i for i, section in enumerate(made) if section.anchor == "subgroups")
    card = [make(evaluated, folder) for make in (model_card, tripod_ai, claim)]
    sections = [*made[:place], *extra, *made[place:], *card]
    write_whole(
        folder / METRICS_FILE,
        json.dumps(metrics_document(evaluated), indent=2, allow_nan=False) + "\n",
    )
    with written([folder / name for name in PREDICTIONS]) as write:
        write(predictions)
    page = render(
        f"Evaluation of {evaluated.name}",
        f"DRIFA-Net on {evaluated.num_records:,} test records: "
        f"{evaluated.data.splits['test'].description}",
        sections,
        synthetic=evaluated.synthetic,
        made=made_line(),
    )
    write_report(folder / REPORT_FILE, page)


def write_all(
    evaluated: Evaluated,
    predictions: Predictions,
    parts: Sequence[Part],
    folder: Path,
    *,
    more_sections: MoreSections | None = None,
) -> None:
    """Fills a folder, with more sections on the first part where they are asked for.

    Args:
      of, predictions, folder: as of `write_evaluation`.
      parts: who answered which records.
      more_sections: such as `explanations.explanation_sections`; its figures go into the last
        argument.
    """
    extra: Sequence[Section] = ()
    if more_sections is not None:
        part, figures = parts[0], folder / FIGURES_FOLDER
        extra = more_sections(part.predictor, part.dataset, part.predictions, evaluated, figures)
    write_evaluation(evaluated, predictions, folder, extra=extra)


def made_line() -> str:
    """When and by what a report was made."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"Made by drifa_jax {importlib.metadata.version('drifa-jax')} on {now}."
