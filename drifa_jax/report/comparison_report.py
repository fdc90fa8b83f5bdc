"""The page that shows two or more runs on the same records, and the paired tests between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drifa_jax.errors import UserError
from drifa_jax.evaluate.compared_runs import Comparison
from drifa_jax.evaluate.comparison import holm
from drifa_jax.evaluate.folders import (
    FIGURES_FOLDER,
    METRICS_FILE,
    REPORT_FILE,
    check_replaceable,
)
from drifa_jax.evaluate.metrics import scalars
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
from drifa_jax.report.evaluation_report import made_line
from drifa_jax.report.html import render, write_report
from drifa_jax.train.run_directory import write_whole
from drifa_jax.whole_files import folder_replaced


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Writes metrics.json, differences.csv, figures and the report, all or nothing."""
    check_replaceable(out)
    try:
        with folder_replaced(out) as fresh:
            document = json.dumps(comparison.to_json(), indent=2, allow_nan=False) + "\n"
            write_whole(fresh / METRICS_FILE, document)
            write_csv(_difference_rows(comparison), fresh / "differences.csv")
            made = [make(comparison, fresh / FIGURES_FOLDER) for make in SECTIONS]
            page = render(
                " against ".join(
                    [comparison.runs[0].name, ", ".join(run.name for run in comparison.runs[1:])]
                ),
                f"Paired comparison on {len(comparison.runs[0].predictions):,} test records: "
                f"{comparison.runs[0].predictions.provenance.data}",
                made,
                synthetic=comparison.synthetic,
                made=made_line(),
            )
            write_report(fresh / REPORT_FILE, page)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}).") from error


def headline(comparison: Comparison, folder: Path) -> Section:
    """One sentence a task and pair: different, or not shown to be."""
    blocks: list[Block] = []
    if comparison.synthetic:
        blocks.append(
            Note("SYNTHETIC data: the figures are no evidence about patients.", alarm=True)
        )
    blocks.append(
        Prose(
            f"Every run is compared with {comparison.runs[0].name} on the same records; "
            "differences are the other run minus that one. A difference that is not shown is no "
            "proof of equality: read the interval for what it may be."
        )
    )
    for task, pairs in comparison.pairs.items():
        adjusted = holm([pair.differences["accuracy"].p_value for pair in pairs])
        for run, pair, p_value in zip(comparison.runs[1:], pairs, adjusted, strict=True):
            accuracy = pair.differences["accuracy"].interval
            verdict = "no difference in accuracy was shown"
            if p_value is not None and p_value < 0.05:
                better = run.name if accuracy.value > 0 else comparison.runs[0].name
                verdict = f"{better} is more accurate"
            text = f"{task}: accuracy of {run.name} differs by {_signed(accuracy)}; {verdict}."
            blocks.append(Prose(text))
    blocks.append(
        Facts(
            [
                *((run.name, str(run.folder)) for run in comparison.runs),
                ("Resamples", f"{comparison.num_resamples:,}, seed {comparison.seed}"),
            ]
        )
    )
    return Section("results", "Results in short", blocks)


def values(comparison: Comparison, folder: Path) -> Section:
    """Each run's metrics side by side."""
    blocks: list[Block] = []
    for task, several in comparison.metrics.items():
        blocks += [
            Heading(task),
            Table(
                f"Metrics of {task}",
                ("metric", *(run.name for run in comparison.runs)),
                [
                    (
                        metric.title,
                        *(interval_cell(metrics.scalars[metric.name]) for metrics in several),
                    )
                    for metric in scalars()
                ],
                note=f"{several[0].num_records:,} labelled records of "
                f"{several[0].num_groups:,} groups; 95 % intervals.",
            ),
        ]
    return Section("metrics", "Metrics of each run", blocks)


def differences(comparison: Comparison, folder: Path) -> Section:
    """The paired bootstrap of every metric, as table and figure."""
    blocks: list[Block] = [
        Prose(
            "Resamples draw the same groups for both runs. P-values are two-sided and adjusted by "
            "Holm's method for the number of runs, not for the number of metrics: decide on one "
            "metric before looking."
        )
    ]
    for task, pairs in comparison.pairs.items():
        blocks.append(Heading(task))
        adjusted = {
            metric.name: holm([pair.differences[metric.name].p_value for pair in pairs])
            for metric in scalars()
        }
        for number, (run, pair) in enumerate(zip(comparison.runs[1:], pairs, strict=True)):
            title = f"{task}: {run.name} minus {comparison.runs[0].name}"
            table = Table(
                title,
                ("metric", "difference", "p (adjusted)"),
                [
                    (
                        metric.title,
                        _difference_cell(pair.differences[metric.name].interval),
                        _p_value(adjusted[metric.name][number]),
                    )
                    for metric in scalars()
                ],
            )
            rows = [
                (metric.title, x.value, x.low, x.high)
                for metric in scalars()
                if metric.in_figure
                and (x := pair.differences[metric.name].interval).low is not None
            ]
            if not rows:
                blocks.append(table)
                continue
            drawn = panels.forest_panel(
                f"difference-{task}-{number + 1}",
                rows,
                f"{run.name} minus {comparison.runs[0].name}",
                folder,
                synthetic=comparison.synthetic,
                reference=0.0,
                title=title,
            )
            blocks.append(Row([table, Panels([drawn])]))
    return Section("differences", "Differences, paired bootstrap", blocks)


def tests(comparison: Comparison, folder: Path) -> Section:
    """DeLong's and McNemar's tests."""
    blocks: list[Block] = []
    for task, pairs in comparison.pairs.items():
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
                    for run, pair in zip(comparison.runs[1:], pairs, strict=True)
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
                    for run, pair in zip(comparison.runs[1:], pairs, strict=True)
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


def _difference_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "run": run.name,
            "compared_with": comparison.runs[0].name,
            "metric": name,
            "difference": found.interval.value,
            "low": found.interval.low,
            "high": found.interval.high,
            "p_value": found.p_value,
        }
        for task, pairs in comparison.pairs.items()
        for run, pair in zip(comparison.runs[1:], pairs, strict=True)
        for name, found in pair.differences.items()
    ]


def _signed(difference) -> str:
    if difference.value is None:
        return "undefined"
    reach = "" if difference.low is None else f" ({difference.low:+.3f} to {difference.high:+.3f})"
    return f"{difference.value:+.3f}{reach}"


def _difference_cell(difference) -> Cell:
    if difference.value is None:
        return Cell("-", difference.reason)
    detail = (
        difference.reason
        if difference.low is None
        else f"{difference.low:+.3f} to {difference.high:+.3f}"
    )
    return Cell(f"{difference.value:+.3f}", detail)


def _p_value(p_value: float | None) -> str:
    if p_value is None:
        return "-"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
