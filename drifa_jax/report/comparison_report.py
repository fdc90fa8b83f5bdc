"""Two or more evaluated runs on the same records: paired tests, and one page that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.data.record import MISSING_LABEL
from drifa_jax.errors import UserError
from drifa_jax.evaluate.comparison import TaskComparison, compare_task, holm
from drifa_jax.evaluate.facts import machine
from drifa_jax.evaluate.intervals import NUM_RESAMPLES, TaskMetrics, task_metrics
from drifa_jax.evaluate.metrics import SCALARS
from drifa_jax.predictions.files import write_csv
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
from drifa_jax.report.evaluation_report import (
    FIGURES_FOLDER,
    METRICS_FILE,
    NOTICE,
    REPORT_FILE,
    check_replaceable,
    made_line,
)
from drifa_jax.report.html import render, write_report
from drifa_jax.report.run_evaluation import EVALUATION_FOLDER
from drifa_jax.report.sections import TITLES
from drifa_jax.train.run_directory import write_whole
from drifa_jax.whole_files import folder_replaced

PREDICTIONS_FILE = "predictions.parquet"
SHOWN = tuple(metric.name for metric in SCALARS if metric.in_figure)


@dataclass(frozen=True)
class RunPredictions:
    """What an evaluation folder holds, for comparing.

    Attributes:
      name: of the run.
      folder: of its evaluation.
      record_ids, group_ids: of the test records.
      classes: task -> class names.
      labels: task -> `[n]`, negative where missing.
      probabilities: task -> `[n, k]`.
      synthetic: whether the data were drawn.
      data: in words.
      task_groups: task -> groups to resample, where they are not `group_ids`.
    """

    name: str
    folder: Path
    record_ids: tuple[str, ...]
    group_ids: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, np.ndarray]
    probabilities: Mapping[str, np.ndarray]
    synthetic: bool
    data: str
    task_groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def groups_of(self, task: str) -> tuple[str, ...]:
        """Groups `[n]` to resample for a task."""
        return self.task_groups.get(task, self.group_ids)


def find_evaluation(path: Path) -> Path:
    """The evaluation folder that a run directory, or itself, holds.

    Raises:
      UserError: where there is none.
    """
    for folder in (path, path / EVALUATION_FOLDER):
        if (folder / PREDICTIONS_FILE).is_file() and (folder / METRICS_FILE).is_file():
            return folder
    raise UserError(f"{path} has no evaluation; run `drifa evaluate {path}` first.")


def read_predictions(folder: Path, name: str) -> RunPredictions:
    """The predictions of an evaluation folder.

    Raises:
      UserError: where a file is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        document = json.loads((folder / METRICS_FILE).read_text())
        table = parquet.read_table(folder / PREDICTIONS_FILE)
        classes = {task: tuple(of["classes"]) for task, of in document["tasks"].items()}
        labels, probabilities = {}, {}
        for task, names in classes.items():
            place = {c: k for k, c in enumerate(names)} | {None: MISSING_LABEL}
            truth = table[f"{task}/true"].to_pylist()
            labels[task] = np.array([place[one] for one in truth], np.int64)
            probabilities[task] = np.stack(
                [table[f"{task}/p({c})"].to_numpy() for c in names], axis=1
            )
        return RunPredictions(
            name,
            folder,
            tuple(table["record_id"].to_pylist()),
            tuple(table["group_id"].to_pylist()),
            classes,
            labels,
            probabilities,
            bool(document["synthetic"]),
            str(document["data"]),
            {
                task: tuple(table[f"{task}/group_id"].to_pylist())
                for task in classes
                if f"{task}/group_id" in table.column_names
            },
        )
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{folder} is damaged ({error}); delete it and run `drifa evaluate` again."
        ) from error


def aligned(first: RunPredictions, second: RunPredictions) -> RunPredictions:
    """The second's predictions in the order of the first's records.

    Raises:
      UserError: where they answer other tasks or classes, predict other records, or disagree on
        groups or truth.
    """
    pair = f"{first.folder} and {second.folder}"
    if set(first.classes) != set(second.classes):
        raise UserError(
            f"{pair} answer different tasks: {sorted(first.classes)} against "
            f"{sorted(second.classes)}; only runs of the same tasks can be compared."
        )
    for task, classes in first.classes.items():
        if classes != second.classes[task]:
            raise UserError(
                f"{pair} know different classes of {task}: {', '.join(classes)} against "
                f"{', '.join(second.classes[task])}."
            )
    place = {one: i for i, one in enumerate(second.record_ids)}
    only_first = [one for one in first.record_ids if one not in place]
    only_second = sorted(set(place) - set(first.record_ids))
    if only_first or only_second:
        examples = ", ".join([*only_first[:2], *only_second[:2]])
        raise UserError(
            f"{pair} were tested on different records ({len(only_first)} only in the first, "
            f"{len(only_second)} only in the second, e.g. {examples}). A paired comparison needs "
            "the same test records: train with the same data and split seed, or give both runs "
            "the same data.split_folder."
        )
    order = np.array([place[one] for one in first.record_ids])
    moved = RunPredictions(
        second.name,
        second.folder,
        first.record_ids,
        tuple(second.group_ids[i] for i in order),
        second.classes,
        {task: of[order] for task, of in second.labels.items()},
        {task: of[order] for task, of in second.probabilities.items()},
        second.synthetic,
        second.data,
        {task: tuple(of[i] for i in order) for task, of in second.task_groups.items()},
    )
    if any(moved.groups_of(task) != first.groups_of(task) for task in first.classes):
        raise UserError(f"{pair} put the same records into different groups.")
    for task, labels in first.labels.items():
        if differ := int(np.sum(labels != moved.labels[task])):
            raise UserError(f"{pair} disagree on the truth of {differ} records of {task}.")
    return moved


@dataclass(frozen=True)
class Comparison:
    """Runs against the first of them.

    Attributes:
      runs: aligned; the first is the one that the others are compared with.
      metrics: task -> one for each run.
      pairs: task -> one for each run but the first.
      num_resamples, seed: of the bootstrap.
    """

    runs: tuple[RunPredictions, ...]
    metrics: Mapping[str, list[TaskMetrics]]
    pairs: Mapping[str, list[TaskComparison]]
    num_resamples: int
    seed: int

    @property
    def synthetic(self) -> bool:
        return any(run.synthetic for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        names = [run.name for run in self.runs]
        return {
            "notice": NOTICE,
            "synthetic": self.synthetic,
            "runs": names,
            "folders": [str(run.folder) for run in self.runs],
            "compared_with": names[0],
            "data": self.runs[0].data,
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
    runs: Sequence[RunPredictions], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
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
    for task, classes in runs[0].classes.items():
        labels, groups = runs[0].labels[task], list(runs[0].groups_of(task))
        of_task = [run.probabilities[task] for run in together]
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
                f"Paired comparison on {len(of.runs[0].record_ids):,} test records: "
                f"{of.runs[0].data}",
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
