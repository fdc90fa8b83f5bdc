"""Control charts: a statistic over the periods, its limits, and the alarms."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from drifa_jax.monitor.monitoring import Labelled, Monitoring
from drifa_jax.report.canvas import ALARM, FAINT, GRID, INK, PAPER, SERIES, Canvas, Panel

MOST_TICKS = 7
"""Names of periods below a chart."""


def control_chart(found: Monitoring, series: int, statistic: int, folder: Path) -> Panel:
    """One statistic of one series.

    Args:
      found: the page.
      series, statistic: their numbers.
      folder: for the files.
    """
    judged, measure = found.family.series[series], found.statistics[statistic]
    place, periods = found.places[series], found.monitored.periods
    mean, reach = judged.mean[:, statistic], judged.reach[:, statistic]
    known, alarm = judged.reference[statistic], judged.alarm[:, statistic]
    low, high = known - reach, known + reach
    unjudged = ~np.isfinite(judged.z[:, statistic])
    low[unjudged] = high[unjudged] = np.nan
    if measure.is_share:
        low, high = np.maximum(low, 0), np.minimum(high, 1)
    x, scale = np.arange(len(periods)), 100 if measure.is_share else 1
    canvas = Canvas()
    axes = canvas.axes
    # Each limit is of its period alone.
    steps = [np.repeat(values, 2) * scale for values in (low, high)]
    edges = np.repeat(np.arange(len(periods) + 1) - 0.5, 2)[1:-1]
    axes.fill_between(edges, *steps, color=GRID, linewidth=0, label="limits")
    axes.axhline(known * scale, color=FAINT, linestyle="--", linewidth=1.2, label="validation")
    axes.plot(x, mean * scale, color=SERIES[0], linewidth=1.3, zorder=3)
    judged_here = np.isfinite(judged.z[:, statistic])
    within, small = judged_here & ~alarm, ~judged_here & np.isfinite(mean)
    axes.plot(x[within], mean[within] * scale, "o", color=SERIES[0], markersize=5, zorder=4)
    hollow = {"markerfacecolor": PAPER, "markeredgecolor": SERIES[0], "linestyle": ""}
    if small.any():
        axes.plot(x[small], mean[small] * scale, "o", **hollow, zorder=4, label="not judged")
    axes.plot(
        x[alarm], mean[alarm] * scale, "X", color=ALARM, markersize=10, zorder=5, label="alarm"
    )
    _axis(canvas, periods)
    canvas.label("", "percent of records" if measure.is_share else _unit(measure.kind))
    span = np.array([low, high, mean])[:, np.isfinite(mean)] * scale
    _limit(axes, span, known * scale)
    _legend(canvas)
    whose = "" if series == 0 else f" of {place.name}"
    last = f"{int(alarm.sum())} alarms" if alarm.any() else "no alarm"
    values = ", ".join(
        f"{name} {value * scale:.3g}" for name, value in zip(periods, mean, strict=True)
    )
    return canvas.save(
        folder,
        _name("chart", place.name, measure.key),
        alt=f"{measure.title}{whose} by period: {values}; validation {known * scale:.3g}; {last}.",
        caption=f"{measure.title}{whose}: {measure.what}.",
        synthetic=found.reference.predictions.provenance.synthetic,
    )


def label_charts(found: Monitoring, task: str, labelled: Labelled, folder: Path) -> list[Panel]:
    """Accuracy, calibration error and coverage with their intervals, as far as there are any."""
    drawn = [
        ("accuracy", labelled.accuracy, labelled.of_validation[0], None),
        ("calibration error", labelled.calibration_error, labelled.of_validation[1], None),
        ("coverage", labelled.coverage, labelled.of_validation[2], labelled.promised),
    ]
    return [
        _label_chart(found, task, title, values, known, promised, folder)
        for title, values, known, promised in drawn
        if np.isfinite(values).any()
    ]


def _label_chart(
    found: Monitoring,
    task: str,
    title: str,
    values: np.ndarray,
    known: float,
    promised: float | None,
    folder: Path,
) -> Panel:
    periods = found.monitored.periods
    x = np.arange(len(periods))
    held = np.isfinite(values[:, 0])
    value, low, high = values[held].T * 100
    canvas = Canvas()
    axes = canvas.axes
    axes.axhline(known * 100, color=FAINT, linestyle="--", linewidth=1.2, label="validation")
    if promised is not None:
        axes.axhline(promised * 100, color=SERIES[1], linewidth=1.2, label="promised")
    axes.vlines(x[held], low, high, color=SERIES[0], linewidth=2.2)
    axes.plot(x[held], value, "o", color=SERIES[0], markersize=6, label="period, 95 % interval")
    _axis(canvas, periods)
    canvas.label("", "percent")
    _limit(axes, np.array([low, high]), known * 100)
    _legend(canvas)
    words = ", ".join(
        f"{periods[t]} {v:.1f} ({a:.1f} to {b:.1f})"
        for t, v, a, b in zip(x[held], value, low, high, strict=True)
    )
    return canvas.save(
        folder,
        _name("labels", task, title),
        alt=f"{task}: {title} by period in percent: {words}; validation {known * 100:.1f}.",
        caption=f"{task}: {title} of the labelled records of each period.",
        synthetic=found.reference.predictions.provenance.synthetic,
    )


def _axis(canvas: Canvas, periods: tuple[str, ...]) -> None:
    """Names of some periods below the axes."""
    places = np.arange(0, len(periods), -(-len(periods) // MOST_TICKS))
    names = [periods[k] if len(periods[k]) <= 14 else f"{periods[k][:12]}..." for k in places]
    long = max(map(len, names)) * len(names) > 48
    canvas.axes.set_xticks(
        places, names, rotation=30 if long else 0, ha="right" if long else "center"
    )
    canvas.axes.set_xlim(-0.5, len(periods) - 0.5)
    canvas.axes.tick_params(axis="x", colors=INK, length=0)
    if long:
        canvas.axes.set_position((0.15, 0.2, 0.81, 0.685))


def _legend(canvas: Canvas) -> None:
    """Above the axes, in one row."""
    where = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "ncols": 4}
    canvas.legend(**where, handlelength=1.2, columnspacing=1.0)


def _limit(axes, values: np.ndarray, known: float) -> None:
    """The vertical range: all that is drawn, with some room."""
    drawn = np.append(values[np.isfinite(values)], known)
    low, high = drawn.min(), drawn.max()
    room = 0.08 * (high - low) or 0.05 * max(abs(high), 1e-3)
    axes.set_ylim(low - room if low > 1e-9 else -0.02 * max(high, 1e-3) - 0.0, high + room)


def _unit(kind: str) -> str:
    return {
        "p_value": "mean p-value",
        "entropy": "share of the largest entropy",
        "mutual_information": "nats",
        "set_size": "classes in a set",
        "overconfidence": "confidence minus accuracy",
    }.get(kind, kind)


def _name(*parts: str) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-") for part in parts).lower()
