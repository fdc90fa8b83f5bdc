"""Two or more evaluated runs on the same records: paired tests, and one page that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.evaluate.comparison import TaskComparison, compare_task, holm
from drifa_jax.evaluate.facts import machine
from drifa_jax.evaluate.folders import (
    FIGURES_FOLDER,
    METRICS_FILE,
    PREDICTIONS,
    REPORT_FILE,
    check_replaceable,
)
from drifa_jax.evaluate.intervals import NUM_RESAMPLES, TaskMetrics, task_metrics
from drifa_jax.evaluate.metrics import SCALARS
from drifa_jax.predictions.files import read_predictions, write_csv
from drifa_jax.predictions.table import Predictions
from drifa_jax.report import panels
from drifa_jax.report.blocks import (
    Block,
    Cell,
    Facts,
    Heading,
    Note,
    Panels,
    Prose,
    Row,
    Section,
    Table,
    figure,
    interval_cell,
)
from drifa_jax.report.evaluation_report import NOTICE, made_line
from drifa_jax.report.html import render, write_report
from drifa_jax.report.sections import TITLES
from drifa_jax.train.run_directory import write_whole
from drifa_jax.whole_files import folder_replaced

SHOWN = tuple(metric.name for metric in SCALARS if metric.in_figure)


@dataclass(frozen=True)
class EvaluatedRun:
    """What an evaluation folder holds, for comparing: its name, itself, and its predictions."""

    name: str
    folder: Path
    predictions: Predictions


def read_evaluation(folder: Path, name: str) -> EvaluatedRun:
    """The predictions of an evaluation folder.

    Raises:
      UserError: where the file is damaged, or its records have no truth or group.
    """
    path = folder / PREDICTIONS[1]
    predictions = read_predictions(path)
    if predictions.group_ids is None or any(t.truth is None for t in predictions.tasks.values()):
        raise UserError(f"{path} holds no truth; delete {folder} and run `drifa evaluate` again.")
    return EvaluatedRun(name, folder, predictions)


def aligned(first: EvaluatedRun, second: EvaluatedRun) -> EvaluatedRun:
    """The second's predictions in the order of the first's records.

    Raises:
      UserError: where they answer other tasks or classes, predict other records, or disagree on
        groups or truth.
    """
    pair = f"{first.folder} and {second.folder}"
    ours, theirs = first.predictions, second.predictions
    if set(ours.tasks) != set(theirs.tasks):
        raise UserError(
            f"{pair} answer different tasks: {sorted(ours.tasks)} against "
            f"{sorted(theirs.tasks)}; only runs of the same tasks can be compared."
        )
    for task, found in ours.tasks.items():
        if found.classes != theirs[task].classes:
            raise UserError(
                f"{pair} know different classes of {task}: {', '.join(found.classes)} against "
                f"{', '.join(theirs[task].classes)}."
            )
    place = {name: i for i, name in enumerate(theirs.record_ids)}
    only_first = [name for name in ours.record_ids if name not in place]
    only_second = sorted(set(place) - set(ours.record_ids))
    if only_first or only_second:
        examples = ", ".join([*only_first[:2], *only_second[:2]])
        raise UserError(
            f"{pair} were tested on different records ({len(only_first)} only in the first, "
            f"{len(only_second)} only in the second, e.g. {examples}). A paired comparison needs "
            "the same test records: train with the same data and split seed, or give both runs "
            "the same data.split_folder."
        )
    moved = theirs.take([place[name] for name in ours.record_ids])
    if any(moved.groups_of(task) != ours.groups_of(task) for task in ours.tasks):
        raise UserError(f"{pair} put the same records into different groups.")
    for task, found in ours.tasks.items():
        if differ := int(np.sum(found.truth != moved[task].truth)):
            raise UserError(f"{pair} disagree on the truth of {differ} records of {task}.")
    return EvaluatedRun(second.name, second.folder, moved)


@dataclass(frozen=True)
class Comparison:
    """Runs against the first of them.

    Attributes:
      runs: aligned; the first is the one that the others are compared with.
      metrics: task -> one for each run.
      pairs: task -> one for each run but the first.
      num_resamples, seed: of the bootstrap.
    """

    runs: tuple[EvaluatedRun, ...]
    metrics: Mapping[str, list[TaskMetrics]]
    pairs: Mapping[str, list[TaskComparison]]
    num_resamples: int
    seed: int

    @property
    def synthetic(self) -> bool:
        return any(run.predictions.provenance.synthetic for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        names = [run.name for run in self.runs]
        return {
            "notice": NOTICE,
            "synthetic": self.synthetic,
            "runs": names,
            "folders": [str(run.folder) for run in self.runs],
            "compared_with": names[0],
            "data": self.runs[0].predictions.provenance.data,
            "num_resamples": self.num_resamples,
            "seed": self.seed,
            "tasks": {
                task: {
                    "runs": {name: of.to_json() for name, of in zip(names, of_task, strict=True)},
                    "differences": {
                        name: of.to_json()
                        for name, of in zip(names[1:], self.pairs[task], strict=True)
                    },
                }
                for task, of_task in self.metrics.items()
            },
            "environment": machine(),
        }


def compare(
    runs: Sequence[EvaluatedRun], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Comparison:
    """All paired tests of each run against the first.

    Raises:
      UserError: where two cannot be compared.

    Test: tests/report/test_comparison_report.py.
    """
    if len(runs) < 2:
        raise UserError("Give at least two runs to compare.")
    together = (runs[0], *(aligned(runs[0], run) for run in runs[1:]))
    options = {"num_resamples": num_resamples, "seed": seed}
    metrics: dict[str, list[TaskMetrics]] = {}
    pairs: dict[str, list[TaskComparison]] = {}
    for task, found in runs[0].predictions.tasks.items():
        labels, groups, classes = found.truth, runs[0].predictions.groups_of(task), found.classes
        if not (labels >= 0).any():
            continue
        of_task = [run.predictions[task].probabilities for run in together]
        metrics[task] = [task_metrics(p, labels, groups, classes, **options) for p in of_task]
        pairs[task] = [
            compare_task(of_task[0], p, labels, groups, classes, **options) for p in of_task[1:]
        ]
    return Comparison(together, metrics, pairs, num_resamples, seed)


def write_comparison(of: Comparison, out: Path) -> None:
    """Writes metrics.json, differences.csv, figures and the report, all or nothing."""
    check_replaceable(out)
    try:
        with folder_replaced(out) as fresh:
            document = json.dumps(of.to_json(), indent=2, allow_nan=False) + "\n"
            write_whole(fresh / METRICS_FILE, document)
            write_csv(_difference_rows(of), fresh / "differences.csv")
            made = [make(of, fresh / FIGURES_FOLDER) for make in SECTIONS]
            page = render(
                " against ".join([of.runs[0].name, ", ".join(run.name for run in of.runs[1:])]),
                f"Paired comparison on {len(of.runs[0].predictions):,} test records: "
                f"{of.runs[0].predictions.provenance.data}",
                made,
                synthetic=of.synthetic,
                made=made_line(),
            )
            write_report(fresh / REPORT_FILE, page)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}).") from error


def headline(of: Comparison, folder: Path) -> Section:
    """One sentence a task and pair: different, or not shown to be."""
    blocks: list[Block] = []
    if of.synthetic:
        blocks.append(
            Note("SYNTHETIC data: the figures are no evidence about patients.", alarm=True)
        )
    blocks.append(
        Prose(
            f"Every run is compared with {of.runs[0].name} on the same records; differences are "
            "the other run minus that one. A difference that is not shown is no proof of equality: "
            "read the interval for what it may be."
        )
    )
    for task, pairs in of.pairs.items():
        adjusted = holm([pair.differences["accuracy"].p_value for pair in pairs])
        for run, pair, p_value in zip(of.runs[1:], pairs, adjusted, strict=True):
            accuracy = pair.differences["accuracy"].interval
            verdict = "no difference in accuracy was shown"
            if p_value is not None and p_value < 0.05:
                better = run.name if accuracy.value > 0 else of.runs[0].name
                verdict = f"{better} is more accurate"
            text = f"{task}: accuracy of {run.name} differs by {_signed(accuracy)}; {verdict}."
            blocks.append(Prose(text))
    blocks.append(
        Facts(
            [
                *((run.name, str(run.folder)) for run in of.runs),
                ("Resamples", f"{of.num_resamples:,}, seed {of.seed}"),
            ]
        )
    )
    return Section("results", "Results in short", blocks)


def values(of: Comparison, folder: Path) -> Section:
    """Each run's metrics side by side."""
    blocks: list[Block] = []
    for task, several in of.metrics.items():
        blocks += [
            Heading(task),
            Table(
                f"Metrics of {task}",
                ("metric", *(run.name for run in of.runs)),
                [
                    (TITLES[name], *(interval_cell(one.scalars[name]) for one in several))
                    for name in TITLES
                ],
                note=f"{several[0].num_records:,} labelled records of "
                f"{several[0].num_groups:,} groups; 95 % intervals.",
            ),
        ]
    return Section("metrics", "Metrics of each run", blocks)


def differences(of: Comparison, folder: Path) -> Section:
    """The paired bootstrap of every metric, as table and figure."""
    blocks: list[Block] = [
        Prose(
            "Resamples draw the same groups for both runs. P-values are two-sided and adjusted by "
            "Holm's method for the number of runs, not for the number of metrics: decide on one "
            "metric before looking."
        )
    ]
    for task, pairs in of.pairs.items():
        blocks.append(Heading(task))
        adjusted = {
            name: holm([pair.differences[name].p_value for pair in pairs]) for name in TITLES
        }
        for number, (run, pair) in enumerate(zip(of.runs[1:], pairs, strict=True)):
            title = f"{task}: {run.name} minus {of.runs[0].name}"
            table = Table(
                title,
                ("metric", "difference", "p (adjusted)"),
                [
                    (
                        TITLES[name],
                        _difference_cell(pair.differences[name].interval),
                        _p_value(adjusted[name][number]),
                    )
                    for name in TITLES
                ],
            )
            rows = [
                (TITLES[name], x.value, x.low, x.high)
                for name in SHOWN
                if (x := pair.differences[name].interval).low is not None
            ]
            if not rows:
                blocks.append(table)
                continue
            drawn = panels.forest_panel(
                f"difference-{task}-{number + 1}",
                rows,
                f"{run.name} minus {of.runs[0].name}",
                folder,
                synthetic=of.synthetic,
                reference=0.0,
                title=title,
            )
            blocks.append(Row([table, Panels([drawn])]))
    return Section("differences", "Differences, paired bootstrap", blocks)


def tests(of: Comparison, folder: Path) -> Section:
    """DeLong's and McNemar's tests."""
    blocks: list[Block] = []
    for task, pairs in of.pairs.items():
        blocks += [
            Heading(task),
            Table(
                f"DeLong's test of the area under the ROC curve, {task}",
                ("run", "AUROC, first", "AUROC, this run", "difference", "p"),
                [
                    (
                        run.name,
                        figure(pair.delong.first),
                        figure(pair.delong.second),
                        Cell(
                            "-"
                            if pair.delong.difference is None
                            else f"{pair.delong.difference:+.3f}",
                            pair.delong.reason
                            or f"{pair.delong.low:+.3f} to {pair.delong.high:+.3f}",
                        ),
                        _p_value(pair.delong.p_value),
                    )
                    for run, pair in zip(of.runs[1:], pairs, strict=True)
                ],
                note="One class against the rest, macro. Influences are summed within groups.",
            ),
            Table(
                f"McNemar's exact test of the errors, {task}",
                ("run", "only the first right", "only this run right", "p"),
                [
                    (
                        run.name,
                        f"{pair.mcnemar.only_first:,}",
                        f"{pair.mcnemar.only_second:,}",
                        _p_value(pair.mcnemar.p_value),
                    )
                    for run, pair in zip(of.runs[1:], pairs, strict=True)
                ],
                note=""
                if pairs[0].num_groups == pairs[0].num_records
                else "McNemar's test takes records as independent, which those of one group are "
                "not: trust the paired bootstrap.",
            ),
        ]
    return Section("tests", "DeLong and McNemar", blocks)


SECTIONS: tuple[Callable[[Comparison, Path], Section], ...] = (
    headline,
    differences,
    values,
    tests,
)


def _difference_rows(of: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "run": run.name,
            "compared_with": of.runs[0].name,
            "metric": name,
            "difference": found.interval.value,
            "low": found.interval.low,
            "high": found.interval.high,
            "p_value": found.p_value,
        }
        for task, pairs in of.pairs.items()
        for run, pair in zip(of.runs[1:], pairs, strict=True)
        for name, found in pair.differences.items()
    ]


def _signed(of) -> str:
    if of.value is None:
        return "undefined"
    reach = "" if of.low is None else f" ({of.low:+.3f} to {of.high:+.3f})"
    return f"{of.value:+.3f}{reach}"


def _difference_cell(of) -> Cell:
    if of.value is None:
        return Cell("-", of.reason)
    detail = of.reason if of.low is None else f"{of.low:+.3f} to {of.high:+.3f}"
    return Cell(f"{of.value:+.3f}", detail)


def _p_value(p_value: float | None) -> str:
    if p_value is None:
        return "-"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
