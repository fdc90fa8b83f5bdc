"""The page of a deployment: verdict, each statistic over time with its limits, labels, sites."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from drifa_jax.errors import UserError
from drifa_jax.evaluate.folders import FIGURES_FOLDER, check_replaceable
from drifa_jax.monitor.charts import control_chart, label_charts
from drifa_jax.monitor.monitoring import Monitoring
from drifa_jax.monitor.statistics import LABELLED, Statistic
from drifa_jax.report.blocks import (
    Block,
    Cell,
    Facts,
    Heading,
    Note,
    Panels,
    Prose,
    Section,
    Table,
)
from drifa_jax.report.evaluation_report import made_line
from drifa_jax.report.html import render, write_report
from drifa_jax.train.run_directory import write_whole
from drifa_jax.whole_files import folder_replaced

PAGE_FILE, JSON_FILE = "monitoring.html", "monitoring.json"
MOST_ALARMS = 25
"""Rows of the table of alarms; the rest is in the JSON."""

MOST_CHARTS = 12
"""Charts of figures that alarm, by each column of sites."""

ADVICE = {
    "unlike": "Look at the images themselves: another scanner, protocol, window, organ or export.",
    "p_value": "All images moved a little, before single ones are flagged: protocol, window.",
    "missing": "A source of that modality has dried up, or files are named otherwise.",
    "entropy": "Cases became harder, or images other; look at likeness beside it.",
    "mutual_information": "The network knows these cases less: images or cases of a new kind.",
    "class": "Other patients are sent, or images changed so that one class is called more often.",
    "set_size": "Answers became vaguer; the sets grow with the uncertainty.",
    "referred": "More or fewer cases go to a human than the threshold was made for.",
    "accuracy": "The network is right less (or more) often than on its validation records.",
    "overconfidence": "Probabilities no longer mean what they say; calibrate again.",
    "coverage": "Prediction sets hold the truth less (or more) often; fit them on new records.",
}


def write_monitoring(found: Monitoring, out: Path) -> None:
    """Writes the page, its figures and the JSON, all or nothing.

    Raises:
      UserError: when the folder holds something else, or cannot be written.

    Test: tests/monitor/test_page.py.
    """
    check_replaceable(out, JSON_FILE)
    predictions = found.monitored.predictions
    try:
        with folder_replaced(out) as fresh:
            text = json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n"
            write_whole(fresh / JSON_FILE, text)
            figures = fresh / FIGURES_FOLDER
            page = render(
                f"{found.reference.run} over time",
                f"{len(predictions):,} records in {len(found.monitored.periods)} periods, "
                f"{found.monitored.periods[0]} to {found.monitored.periods[-1]}, against "
                f"{len(found.reference.predictions):,} validation records",
                [
                    _verdict(found),
                    _over_time(found, figures),
                    _labels(found, figures),
                    _sites(found, figures),
                    _method(found),
                ],
                synthetic=found.reference.predictions.provenance.synthetic,
                made=made_line(),
            )
            write_report(fresh / PAGE_FILE, page)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}).") from error


def verdict(found: Monitoring) -> str:
    """One sentence."""
    if not found.alarms:
        return (
            f"No alarm: {found.family.num_cells:,} figures are within limits that all hold on "
            f"{1 - found.family.rate:.0%} of pages where nothing changed."
        )
    periods = sorted({t for _, t, _ in found.alarms})
    named = ", ".join(found.monitored.periods[t] for t in periods[:4])
    more = f" and {len(periods) - 4} more" * (len(periods) > 4)
    return (
        f"ALARM: {len(found.alarms)} of {found.family.num_cells:,} figures are beyond their "
        f"limits, in {named}{more}."
    )


def _verdict(found: Monitoring) -> Section:
    blocks: list[Block] = [Note(verdict(found), alarm=bool(found.alarms))]
    if found.alarms:
        blocks.append(_alarm_table(found))
        kinds = dict.fromkeys(_kind(found.statistics[s]) for _, _, s in found.alarms)
        advised = [(_kind_title(kind), ADVICE[kind]) for kind in kinds]
        blocks += [Heading("Where to look"), Facts(advised, wide=True)]
        blocks.append(
            Prose(
                "An alarm says that records differ from the validation records by more than chance "
                "explains, not that the network is wrong, nor why."
            )
        )
    else:
        blocks.append(
            Prose(
                "No alarm is no proof that nothing changed: a small change, or one in few records, "
                "stays within the limits."
            )
        )
    blocks += [Note(note) for note in found.notes]
    return Section("verdict", "Verdict", blocks)


def _alarm_table(found: Monitoring) -> Table:
    rows = []
    for series, period, statistic in found.alarms[:MOST_ALARMS]:
        judged, measure = found.family.series[series], found.statistics[statistic]
        known, reach = judged.reference[statistic], judged.reach[period, statistic]
        low, high = known - reach, known + reach
        if measure.is_share:
            low, high = max(low, 0.0), min(high, 1.0)
        beyond = abs(judged.z[period, statistic]) / found.family.threshold
        rows.append(
            (
                Cell(
                    measure.title, f"{found.monitored.periods[period]}, {found.places[series].name}"
                ),
                shown(measure, judged.mean[period, statistic]),
                shown(measure, known),
                f"{shown(measure, low).removesuffix(' %')} to {shown(measure, high)}",
                f"{beyond:.2f} x",
            )
        )
    left = len(found.alarms) - len(rows)
    return Table(
        "Alarms, the furthest first",
        ("figure", "is", "validation", "limits", "of the limit"),
        rows,
        note=f"{left} more are in {JSON_FILE}." if left > 0 else "",
    )


def _over_time(found: Monitoring, folder: Path) -> Section:
    """A chart of each statistic of all records."""
    blocks: list[Block] = [
        Prose(
            "Each point is the mean of a period. Between the ends of the band the difference from "
            "the validation records (dashed) may be chance; a cross is an alarm, a hollow point a "
            "period too small to be judged."
        )
    ]
    unlabelled = [k for k, s in enumerate(found.statistics) if s.kind not in LABELLED]
    parts = dict.fromkeys(_part(found.statistics[k]) for k in unlabelled)
    for part in parts:
        panels = [
            control_chart(found, 0, k, folder)
            for k in unlabelled
            if _part(found.statistics[k]) == part
        ]
        blocks += [Heading(part), Panels(panels)]
    return Section("over-time", "Over time", blocks)


def _labels(found: Monitoring, folder: Path) -> Section:
    """What the labels that came later say."""
    blocks: list[Block] = []
    for task, labelled in found.labelled.items():
        blocks += [Heading(task), Panels(label_charts(found, task, labelled, folder))]
        kinds = [k for k, s in enumerate(found.statistics) if s.key.startswith(f"{task}/")]
        charts = [
            control_chart(found, 0, k, folder)
            for k in kinds
            if found.statistics[k].kind in LABELLED
        ]
        blocks += [Panels(charts)]
    if blocks:
        blocks.insert(
            0,
            Prose(
                "First with 95 % intervals of each period alone, then against the limits of the "
                "page. Validation records chose the network's best step and fitted its "
                "calibration, so that their own accuracy is a little too good. The calibration "
                "error of few records is large by chance; its interval starts above zero."
            ),
        )
    return Section("labels", "With labels", blocks)


def _sites(found: Monitoring, folder: Path) -> Section:
    """Each site or scanner against the validation records."""
    blocks: list[Block] = []
    columns = dict.fromkeys(place.column for place in found.places if place.column)
    for column in columns:
        rows, alarmed = [], []
        for k, place in enumerate(found.places):
            if place.column != column:
                continue
            judged = found.family.series[k]
            alarms = [(t, s) for series, t, s in found.alarms if series == k]
            z = np.abs(np.nan_to_num(judged.z))
            t, s = np.unravel_index(z.argmax(), z.shape)
            rows.append(
                (
                    place.value,
                    f"{place.counts.sum():,}",
                    f"ALARM, {len(alarms)}" if alarms else "none",
                    f"{z[t, s] / found.family.threshold:.1f} x",
                    Cell(found.statistics[s].title, found.monitored.periods[t]),
                    place.held_against,
                )
            )
            alarmed += [(k, s) for s in dict.fromkeys(s for _, s in alarms)]
        header = (column, "records", "alarms", "of the limit", "furthest", "held against")
        blocks += [Heading(f"By {column}"), Table(f"Each {column}", header, rows)]
        charts = [control_chart(found, k, s, folder) for k, s in alarmed[:MOST_CHARTS]]
        if charts:
            blocks.append(Panels(charts))
        if (left := len(alarmed) - len(charts)) > 0:
            blocks.append(Prose(f"{left} more figures with an alarm are in {JSON_FILE}."))
    return Section("sites", "Sites and scanners", blocks)


def _method(found: Monitoring) -> Section:
    provenance = found.reference.predictions.provenance
    groups = found.reference.predictions.group_ids or found.reference.predictions.record_ids
    facts = [
        ("False alarms", f"{found.family.rate:.0%} of pages on which nothing changed"),
        ("Figures judged at once", f"{found.family.num_cells:,}"),
        ("Threshold", f"{found.family.threshold:.2f} standard errors"),
        ("Histories drawn", f"{found.num_histories:,}, seed {found.seed}"),
        (
            "Validation records",
            f"{len(found.reference.predictions):,} of {len(set(groups)):,} groups",
        ),
        ("Weights", provenance.identity),
        ("Samples", f"{provenance.num_members} member(s) x {provenance.num_samples}"),
    ]
    counts = np.bincount(found.monitored.period, minlength=len(found.monitored.periods))
    sizes = [
        (name, f"{count:,}") for name, count in zip(found.monitored.periods, counts, strict=True)
    ]
    return Section(
        "method",
        "How the limits are held",
        [
            Prose(
                "Each figure's distance from that of the validation records is divided by its "
                "standard error. One threshold holds for the whole page: on a page without any "
                "change the largest of all distances stays below it with the promised "
                "probability, as found by drawing histories from groups of validation records, "
                "validation records of their own included. The network is asked nothing new."
            ),
            Facts(facts),
            Table("Records", ("period", "records"), sizes),
        ],
    )


def shown(statistic: Statistic, value: float) -> str:
    """A mean of a statistic in words."""
    if not np.isfinite(value):
        return "-"
    return f"{100 * value:.1f} %" if statistic.is_share else f"{value:.3g}"


def _kind(statistic: Statistic) -> str:
    return statistic.kind.split(" ")[0]


def _kind_title(kind: str) -> str:
    titles = {
        "unlike": "unlike records",
        "p_value": "likeness",
        "missing": "missing modality",
        "entropy": "uncertainty",
        "mutual_information": "uncertainty of the model",
        "class": "class mix",
        "set_size": "set size",
        "overconfidence": "calibration",
    }
    return titles.get(kind, kind)


def _part(statistic: Statistic) -> str:
    """The heading below which a statistic stands."""
    task, slash, _ = statistic.key.rpartition("/")
    return task if slash else "images"
