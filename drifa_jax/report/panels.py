"""The figures of reports, one function each; `canvas` says how they look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.report.canvas import FAINT, INK, MOST_POINTS, PAPER, SERIES, Canvas, Panel


def roc_panel(
    task: str,
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    areas: Sequence[float | None],
    folder: Path,
    *,
    synthetic: bool,
) -> Panel | None:
    """ROC of each class against the rest; None where only one class occurs."""
    from sklearn.metrics import roc_curve

    def curve(truth: np.ndarray, scores: np.ndarray):
        return roc_curve(truth, scores)[:2]

    canvas, drawn = _curves(curve, probabilities, labels, classes, areas)
    if not drawn:
        return None
    canvas.axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    canvas.label("1 - specificity", "sensitivity")
    canvas.legend(loc="lower right", title="area under the curve", title_fontsize=8)
    return canvas.save(
        folder,
        f"roc-{task}",
        alt=f"ROC curves of {task}, each class against the rest. Areas: {', '.join(drawn)}.",
        caption=f"{task}: ROC, each class against the rest",
        synthetic=synthetic,
    )


def precision_recall_panel(
    task: str,
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    precisions: Sequence[float | None],
    folder: Path,
    *,
    synthetic: bool,
) -> Panel | None:
    """Precision over recall of each class; None where only one class occurs."""
    from sklearn.metrics import precision_recall_curve

    def curve(truth: np.ndarray, scores: np.ndarray):
        precision, recall, _ = precision_recall_curve(truth, scores)
        return recall[::-1], precision[::-1]

    canvas, drawn = _curves(curve, probabilities, labels, classes, precisions)
    if not drawn:
        return None
    canvas.label("recall (sensitivity)", "precision")
    canvas.legend(loc="lower left", title="average precision", title_fontsize=8)
    return canvas.save(
        folder,
        f"precision-recall-{task}",
        alt=f"Precision over recall of {task}, each class against the rest. Average precision: "
        f"{', '.join(drawn)}.",
        caption=f"{task}: precision over recall, each class against the rest",
        synthetic=synthetic,
    )


def _curves(curve, probabilities, labels, classes, figures) -> tuple[Canvas, list[str]]:
    """A curve of each class against the rest, and the classes drawn with their figures."""
    canvas, drawn = Canvas(), []
    for k, value in _shown(classes, figures):
        x, y = _thinned(*curve(labels == k, probabilities[:, k]))
        canvas.axes.plot(x, y, color=SERIES[len(drawn) % 10], label=f"{classes[k]} {value:.3f}")
        drawn.append(f"{classes[k]} {value:.3f}")
    canvas.unit_square()
    return canvas, drawn


def confusion_panel(
    task: str,
    confusion: Sequence[Sequence[int]],
    classes: Sequence[str],
    folder: Path,
    *,
    synthetic: bool,
) -> Panel:
    """Counts on shares of each true class."""
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(3.6, 0.62 * len(classes) + 1.6)
    canvas = Canvas(width=side, height=side)
    canvas.axes.grid(False)
    canvas.axes.set_position((0.3, 0.26, 0.66, 0.66))
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("share", [PAPER, SERIES[0]])
    canvas.axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(counts.shape):
        ink = PAPER if shares[i, j] > 0.55 else INK
        canvas.axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=ink)
    places = range(len(classes))
    canvas.axes.set_xticks(places, classes, rotation=35, ha="right")
    canvas.axes.set_yticks(places, classes)
    canvas.label("called", "truth")
    return canvas.save(
        folder,
        f"confusion-{task}",
        alt=f"Confusion matrix of {task}: {int(np.trace(counts))} of {int(counts.sum())} right.",
        caption=f"{task}: confusion matrix",
        synthetic=synthetic,
    )


def reliability_panel(
    task: str,
    curves: Mapping[str, Any],
    errors: Mapping[str, float],
    folder: Path,
    *,
    synthetic: bool,
) -> Panel:
    """Accuracy over confidence; `curves` are `uncertainty.calibration.Reliability` by name."""
    canvas = Canvas()
    canvas.axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    for (name, curve), colour in zip(curves.items(), SERIES, strict=False):
        canvas.axes.plot(
            curve.confidence,
            curve.accuracy,
            color=colour,
            linewidth=1,
            label=f"{name} (ECE {errors[name]:.3f})",
        )
        # The area of a dot says how many records it stands for.
        sizes = 6 + 70 * curve.count / curve.count.max()
        canvas.axes.scatter(curve.confidence, curve.accuracy, s=sizes, color=colour, alpha=0.75)
    canvas.unit_square()
    canvas.label("confidence", "accuracy")
    canvas.legend()
    told = ", ".join(f"{name} {errors[name]:.3f}" for name in curves)
    return canvas.save(
        folder,
        f"reliability-{task}",
        alt=f"Reliability diagram of {task}. Expected calibration error: {told}.",
        caption=f"{task}: accuracy over confidence; larger dots hold more records",
        synthetic=synthetic,
    )


def risk_coverage_panel(
    task: str,
    curves: Mapping[str, Any],
    folder: Path,
    *,
    synthetic: bool,
) -> Panel:
    """Error among the answered; `curves` are `uncertainty.selective.RiskCoverage` by name."""
    canvas = Canvas()
    for (name, curve), colour in zip(curves.items(), SERIES, strict=False):
        line = "-" if name != "oracle" else ":"
        canvas.axes.plot(
            *_thinned(curve.coverage, curve.risk), color=colour, linestyle=line, label=name
        )
    canvas.axes.set(xlim=(0, 1.01), ylim=(-0.005, None))
    canvas.label("share of records answered", "error among the answered")
    canvas.legend()
    first = next(iter(curves.values()))
    half = float(np.interp(0.5, first.coverage, first.risk))
    return canvas.save(
        folder,
        f"risk-coverage-{task}",
        alt=f"Risk-coverage curve of {task}: error {first.risk[-1]:.3f} when all records are "
        f"answered, {half:.3f} when the most certain half is.",
        caption=f"{task}: error among the records that are answered, most certain first",
        synthetic=synthetic,
    )


def uncertainty_panel(
    task: str,
    entropy: np.ndarray,
    wrong: np.ndarray,
    num_classes: int,
    threshold: float | None,
    folder: Path,
    *,
    synthetic: bool,
) -> Panel:
    """Distribution of the predictive entropy of right and wrong records."""
    canvas = Canvas()
    edges = np.linspace(0, np.log(num_classes), 25)
    for name, chosen, colour in (("right", ~wrong, SERIES[0]), ("wrong", wrong, SERIES[1])):
        if chosen.any():
            weights = np.full(chosen.sum(), 1 / chosen.sum())
            canvas.axes.hist(
                entropy[chosen],
                edges,
                weights=weights,
                histtype="stepfilled",
                color=colour,
                alpha=0.55,
                label=f"{name} ({int(chosen.sum())})",
            )
    if threshold is not None and np.isfinite(threshold):
        canvas.axes.axvline(
            threshold, color=INK, linewidth=1, linestyle="--", label="referred beyond"
        )
    canvas.label("predictive entropy (nats)", "share of the records")
    canvas.legend()
    means = [
        f"mean of {name} records {entropy[chosen].mean():.2f}"
        for name, chosen in (("right", ~wrong), ("wrong", wrong))
        if chosen.any()
    ]
    return canvas.save(
        folder,
        f"uncertainty-{task}",
        alt=f"Distribution of the predictive entropy of {task}: {', '.join(means)} nats.",
        caption=f"{task}: uncertainty of right and wrong records",
        synthetic=synthetic,
    )


def forest_panel(
    name: str,
    rows: Sequence[tuple[str, float, float, float]],
    quantity: str,
    folder: Path,
    *,
    synthetic: bool,
    reference: float | None = None,
    title: str = "",
) -> Panel:
    """Values with intervals, one below the other: `(label, value, low, high)`."""
    canvas = Canvas(height=max(1.7, 0.34 * len(rows) + 1.0))
    left = min(0.5, 0.06 + 0.017 * max(len(label) for label, *_ in rows))
    bottom = 0.5 / canvas.figure.get_figheight()
    canvas.axes.set_position((left, bottom, 0.96 - left, 0.92 - bottom))
    places = np.arange(len(rows))[::-1]
    for place, (_, value, low, high) in zip(places, rows, strict=True):
        canvas.axes.plot([low, high], [place, place], color=SERIES[0], linewidth=1.6)
        canvas.axes.plot([value], [place], marker="o", markersize=4.5, color=SERIES[0])
    if reference is not None:
        canvas.axes.axvline(reference, color=FAINT, linewidth=0.9, linestyle=":")
    canvas.axes.set_yticks(places, [label for label, *_ in rows])
    canvas.axes.set_ylim(-0.6, len(rows) - 0.4)
    canvas.axes.tick_params(axis="y", length=0, labelcolor=INK)
    canvas.axes.set_xlabel(quantity)
    told = "; ".join(
        f"{label} {value:.3f} ({low:.3f} to {high:.3f})" for label, value, low, high in rows
    )
    return canvas.save(
        folder,
        name,
        alt=f"{title or quantity} with 95 % intervals: {told}.",
        caption=title or quantity,
        synthetic=synthetic,
    )


def gates_panel(
    rows: Sequence[Mapping[str, Any]], quantity: str, title: str, folder: Path, *, synthetic: bool
) -> Panel:
    """One figure of every gate along the network: rows of `explain.gates.gate_rows`."""
    # MIFA stands at the place of the MFA after a stage.
    stages = {row["place"]: row["stage"] for row in rows}
    places = list(stages)
    canvas, ends = Canvas(), []
    series = list(dict.fromkeys((row["kind"], row["modality"]) for row in rows))
    modalities = list(dict.fromkeys(modality for _, modality in series))
    colours = {m: SERIES[i % len(SERIES)] for i, m in enumerate(modalities)}
    for kind, modality in series:
        own = [row for row in rows if (row["kind"], row["modality"]) == (kind, modality)]
        x, y = [places.index(row["place"]) for row in own], [row[quantity] for row in own]
        canvas.axes.plot(
            x,
            y,
            color=colours[modality],
            linewidth=1.2 if kind == "mfa" else 0,
            marker="o" if kind == "mfa" else "D",
            markersize=3 if kind == "mfa" else 4.5,
            markerfacecolor=colours[modality] if kind == "mfa" else PAPER,
            label=f"{kind.upper()}, {modality}",
        )
        ends.append(f"{kind.upper()} of {modality} {min(y):.3f} to {max(y):.3f}")
    first = {stage: places.index(place) for place, stage in reversed(stages.items())}
    names = ["stem" if stage < 0 else str(stage) for stage in first]
    canvas.axes.set_xticks(list(first.values()), names)
    canvas.axes.margins(y=0.12)
    canvas.axes.set_ylim(bottom=0)
    canvas.label("stage, in the order of the features", title)
    canvas.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2, handlelength=1.4)
    return canvas.save(
        folder,
        f"gates-{quantity.replace('_', '-')}",
        alt=f"Gates from the stem to the last stage, {title}: {'; '.join(ends)}.",
        caption=f"gates: {title}; circles MFA within a modality, diamonds MIFA across them",
        synthetic=synthetic,
    )


def embedding_panel(
    task: str,
    place: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    folder: Path,
    *,
    synthetic: bool,
) -> Panel:
    """Records in a plane, `[n, 2]`, coloured by their class; those without a label are faint."""
    canvas = Canvas()
    shown = [(k, name, SERIES[k % len(SERIES)]) for k, name in enumerate(classes)]
    for k, name, colour in [(-1, "no label", FAINT), *shown]:
        chosen = labels == k
        if chosen.any():
            canvas.axes.scatter(
                *place[chosen].T, s=7, color=colour, alpha=0.7, linewidths=0, label=name
            )
    canvas.axes.set(xticks=[], yticks=[])
    # Below, where there are no ticks: many classes take several rows.
    longest = max(len(name) for name in ("no label", *classes))
    columns = max(1, min(4, 56 // (longest + 4)))
    canvas.legend(loc="upper left", bbox_to_anchor=(-0.02, 0.0), ncols=columns, handletextpad=0.1)
    counts = ", ".join(f"{int(np.sum(labels == k))} {name}" for k, name, _ in shown)
    return canvas.save(
        folder,
        f"embedding-{task}",
        alt=f"t-SNE of the fused features, coloured by {task}: {counts} records.",
        caption=f"{task}: t-SNE of the fused features, by true class",
        synthetic=synthetic,
    )


def _shown(classes: Sequence[str], values: Sequence[float | None]) -> list[tuple[int, float]]:
    """The classes that have a figure; the first ten where there are more."""
    return [(k, value) for k, value in enumerate(values) if value is not None][: len(SERIES)]


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= MOST_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return x[kept], y[kept]
