"""What labels must be for training and testing to mean something; verify and train share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from drifa_jax.data.problems import Problems
from drifa_jax.data.record import Source, TaskSpec
from drifa_jax.data.splits import class_counts

OK, WARNING, ERROR = "ok", "warning", "error"
IMBALANCE = 20
"""Ratio of the largest to the smallest class from which on a warning is given."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with the labels of a task: a warning, or an error that training refuses."""

    task: str
    status: str
    text: str


def label_findings(splits: Mapping[str, Source]) -> list[Finding]:
    """Everything wrong with the labels of splits, errors first; none where they are sound.

    Errors: a task of one class, a split to train or to choose by that holds no label at all, a
    class that is held out and never trained on. Warnings: a task without labels in one split, a
    class without records in one, much imbalance.

    Args:
      splits: split -> records; of "train", "validation" and "test" those that there are.

    Test: tests/data/test_label_checks.py.
    """
    tasks = next(iter(splits.values())).tasks
    counts = {t.name: {s: class_counts(part, t.name) for s, part in splits.items()} for t in tasks}
    found = [finding for task in tasks for finding in _of_task(task, counts[task.name])]
    for split in ("train", "validation"):
        if (
            split in splits
            and tasks
            and not any(by_split[split].sum() for by_split in counts.values())
        ):
            names = ", ".join(task.name for task in tasks)
            what = f"{split} holds no label" + (
                ", so no state of the network could be chosen" if split == "validation" else ""
            )
            found.append(Finding(names, ERROR, what))
    return sorted(found, key=lambda finding: finding.status != ERROR)


def refuse_labels(splits: Mapping[str, Source], roots: str = "") -> None:
    """An error where labels cannot be trained on.

    Args:
      splits: split -> records.
      roots: where the data lie, for the message.

    Raises:
      UserError: naming each task and what is wrong with it.
    """
    problems = Problems(f"the labels of {roots or next(iter(splits.values())).description}")
    for finding in label_findings(splits):
        if finding.status == ERROR:
            problems.add(finding.task, finding.text)
    problems.raise_any("`drifa data verify` tells more. Correct the labels, folders or splits.")


def _of_task(task: TaskSpec, counts: Mapping[str, np.ndarray]) -> list[Finding]:
    found = []

    def add(status: str, text: str) -> None:
        found.append(Finding(task.name, status, text))

    if task.num_classes < 2:
        add(
            ERROR,
            f"has one class only ({', '.join(task.classes)}), so there is nothing to tell apart; "
            "do the folders of its classes lie further down?",
        )
    trained = counts.get("train", np.zeros(task.num_classes, int))
    if task.num_classes > 1 and (trained > 0).sum() == 1:
        only = task.classes[int(trained.argmax())]
        add(ERROR, f"train holds one class only ({only}), so there is nothing to tell apart")
    for split, held in counts.items():
        if not held.sum():
            add(WARNING, f"{split} holds no label of it")
            continue
        strange = [c for c, n, t in zip(task.classes, held, trained, strict=True) if n and not t]
        if strange and "train" in counts:
            add(ERROR, f"{split} holds {_named(strange)}, which training does not")
        lacking = [c for c, n in zip(task.classes, held, strict=True) if not n]
        if lacking:
            add(WARNING, f"{split} lacks {_named(lacking)}, of which nothing can be said then")
    held = trained[trained > 0]
    if len(held) and held.max() / held.min() >= IMBALANCE:
        add(WARNING, f"is imbalanced {held.max() / held.min():.0f}:1 in training")
    return found


def _named(classes: list[str], most: int = 5) -> str:
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    return f"the class{'es' * (len(classes) > 1)} {', '.join(classes[:most])}{more}"
