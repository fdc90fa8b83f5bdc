"""How training went, and how well classes are told apart."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.evaluation import TaskEvaluation
from drifa_jax.evaluate.metrics import METRICS
from drifa_jax.report import panels
from drifa_jax.report.blocks import (
    Block,
    Cell,
    Heading,
    Note,
    Panels,
    Prose,
    Section,
    Table,
    figure,
    interval_cell,
    interval_text,
)
from drifa_jax.report.learning import learning_panels
from drifa_jax.report.sections.wording import bar


def learning(evaluated: Evaluated, folder: Path) -> Section:
    """Learning curves of the first run."""
    drawn = learning_panels(
        evaluated.learning, list(evaluated.description.tasks), folder, synthetic=evaluated.synthetic
    )
    if not drawn:
        return Section("learning", "Learning curves")
    several = (
        f" of the first of {evaluated.num_members} members" if evaluated.num_members > 1 else ""
    )
    text = (
        f"Training and validation{several}. The weights evaluated here are those of step "
        f"{evaluated.steps[0]:,}, where the validation loss was lowest."
    )
    return Section("learning", "Learning curves", [Prose(text), Panels(drawn)])


def classification(evaluated: Evaluated, folder: Path) -> Section:
    """All metrics, by class, and the confusion matrix."""
    blocks: list[Block] = []
    for task, found in evaluated.tasks.items():
        metrics = found.metrics
        blocks.append(Heading(task))
        alone = [c for c, n in zip(found.classes, metrics.support, strict=True) if n]
        if len(alone) == 1:
            blocks.append(
                Note(
                    f"Only the class {alone[0]!r} occurs among the test labels: AUROC, average "
                    "precision, kappa and Matthews correlation are undefined.",
                    alarm=True,
                )
            )
        blocks += [
            _confusion_table(task, found),
            Table(
                f"All metrics of {task}",
                ("metric", "value", "95 % interval"),
                [
                    (
                        METRICS[name].title,
                        Cell(figure(metrics.scalars[name].value), bar=bar(metrics.scalars[name])),
                        interval_text(metrics.scalars[name]),
                    )
                    for name in found.metrics.scalars
                ],
                note="Macro figures average over the classes that occur; weighted ones weigh "
                "classes by their records. Quadratic kappa means something only where classes are "
                "ordered. Brier score, likelihood and calibration error: lower is better.",
            ),
            Table(
                f"By class, {task}",
                ("class", "n", "sensitivity", "specificity", "precision", "F1", "AUROC", "AP"),
                [
                    (
                        c,
                        f"{metrics.support[k]:,}",
                        *(interval_cell(of_class[k]) for of_class in metrics.per_class.values()),
                    )
                    for k, c in enumerate(found.classes)
                ],
                note="n: labelled test records. AP: average precision. A class against the rest. "
                "Where no error was seen, the interval is the exact binomial one, marked so.",
            ),
        ]
        panels.confusion_panel(
            task, metrics.confusion, found.classes, folder, synthetic=evaluated.synthetic
        )
    return Section("classification", "Classification", blocks)


def curves(evaluated: Evaluated, folder: Path) -> Section:
    """ROC and precision-recall curves."""
    drawn, missing = [], []
    for task, found in evaluated.tasks.items():
        for draw, name in (
            (panels.roc_panel, "auroc_of_class"),
            (panels.precision_recall_panel, "average_precision_of_class"),
        ):
            values = [found_value.value for found_value in found.metrics.per_class[name]]
            panel = draw(
                task,
                found.probabilities,
                found.labels,
                found.classes,
                values,
                folder,
                synthetic=evaluated.synthetic,
            )
            drawn += [panel] if panel else []
            missing += [] if panel or task in missing else [task]
    blocks: list[Block] = [Panels(drawn)] if drawn else []
    blocks += [
        Note(f"{task}: only one class occurs among the labels, so that there is no curve.")
        for task in missing
    ]
    return Section("curves", "ROC and precision-recall", blocks)


def _confusion_table(task: str, found: TaskEvaluation) -> Table:
    rows = []
    for c, counts in zip(found.classes, found.metrics.confusion, strict=True):
        total = max(sum(counts), 1)
        cells = [Cell(f"{n:,}", f"{n / total:.0%}", share=n / total) for n in counts]
        rows.append((c, *cells))
    return Table(
        f"Confusion matrix of {task}",
        ("truth", *found.classes),
        rows,
        note="A row for each true class, a column for each called class; counts, and below them "
        "shares of the true class.",
    )
