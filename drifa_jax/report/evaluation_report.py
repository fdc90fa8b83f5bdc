"""Writes an evaluation as a folder: figures, tables for machines, one page for people."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drifa_jax.errors import UserError
from drifa_jax.predictions.files import written
from drifa_jax.predictions.table import Predictions
from drifa_jax.report.blocks import Section
from drifa_jax.report.checklists import claim, tripod_ai
from drifa_jax.report.evaluated import Evaluated
from drifa_jax.report.html import render, write_report
from drifa_jax.report.model_card import model_card
from drifa_jax.report.sections import SECTIONS
from drifa_jax.train.run_directory import write_whole

METRICS_FILE, REPORT_FILE, FIGURES_FOLDER = "metrics.json", "report.html", "figures"
PREDICTIONS = ("predictions.csv", "predictions.parquet")
NOTICE = "Research use only. Not a medical device."


def metrics_document(of: Evaluated) -> dict[str, Any]:
    """What `metrics.json` holds: every figure of the report, for machines."""
    return {
        "notice": NOTICE,
        "synthetic": of.synthetic,
        "runs": [str(run) for run in of.runs],
        "steps": list(of.steps),
        "split": "test",
        "data": of.data.splits["test"].description,
        "num_records": of.num_records,
        "num_members": of.num_members,
        "num_samples": of.num_samples,
        "seed": of.seed,
        "tasks": {task: found.to_json() for task, found in of.tasks.items()},
        "cost": of.cost.to_json(),
        "environment": dict(of.evaluated_by),
        "training_environment": dict(of.trained_by),
    }


def write_evaluation(
    of: Evaluated, predictions: Predictions, folder: Path, *, extra: Sequence[Section] = ()
) -> None:
    """Fills a folder; the report comes last.

    Args:
      of: what was evaluated.
      predictions: of every test record.
      folder: to be filled.
      extra: sections that come before those on subgroups, such as explanations.
    """
    made = [make(of, folder / FIGURES_FOLDER) for make in SECTIONS]
    place = next(i for i, section in enumerate(made) if section.anchor == "subgroups")
    card = [make(of, folder) for make in (model_card, tripod_ai, claim)]
    sections = [*made[:place], *extra, *made[place:], *card]
    write_whole(
        folder / METRICS_FILE, json.dumps(metrics_document(of), indent=2, allow_nan=False) + "\n"
    )
    with written([folder / name for name in PREDICTIONS]) as write:
        write(predictions)
    page = render(
        f"Evaluation of {of.name}",
        f"DRIFA-Net on {of.num_records:,} test records: {of.data.splits['test'].description}",
        sections,
        synthetic=of.synthetic,
        made=made_line(),
    )
    write_report(folder / REPORT_FILE, page)


def made_line() -> str:
    """When and by what a report was made."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"Made by drifa_jax {importlib.metadata.version('drifa-jax')} on {now}."


def check_replaceable(folder: Path) -> None:
    """Refuses a folder that is no earlier evaluation or comparison.

    Raises:
      UserError: naming it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / REPORT_FILE).is_file():
        raise UserError(
            f"--out {folder} holds files but no {REPORT_FILE}; choose an empty or a new folder."
        )
