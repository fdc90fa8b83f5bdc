"""Classification metrics of one task, from probabilities and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Accuracy and its kin, over the records that have a label.

    Macro figures average over the classes that occur among the labels, so that a class absent
    from a small split does not count as a failure. AUROC is one-vs-rest, macro; it is None, with
    the reason beside it, where it is undefined.

    Args:
      probabilities: `[n, num_classes]`, rows adding up to 1.
      labels: `[n]` int, negative where missing.
      classes: names, in the order of the columns.

    Returns:
      Plain JSON values; `confusion_matrix[i][j]` counts records of class i called class j.

    Raises:
      ValueError: when no record has a label, or shapes do not fit.
    """
    if probabilities.shape != (len(labels), len(classes)):
        raise ValueError(
            f"probabilities of shape {probabilities.shape} do not fit {len(labels)} labels of "
            f"{len(classes)} classes"
        )
    labelled = labels >= 0
    if not labelled.any():
        raise ValueError("no record has a label for this task")
    truth, probabilities = labels[labelled], probabilities[labelled]
    called = probabilities.argmax(axis=1)
    occurring = np.unique(truth)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        truth, called, labels=occurring, average="macro", zero_division=0
    )
    area, reason = _auroc(probabilities, truth, occurring, classes)
    matrix = metrics.confusion_matrix(truth, called, labels=np.arange(len(classes)))
    return {
        "num_records": int(labelled.sum()),
        "accuracy": float((truth == called).mean()),
        "balanced_accuracy": float(recall),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auroc": area,
        **({"auroc_undefined": reason} if reason else {}),
        "classes": list(classes),
        "confusion_matrix": matrix.tolist(),
    }


def _auroc(probabilities, truth, occurring, classes) -> tuple[float | None, str]:
    if len(occurring) < 2:
        return None, f"only the class {classes[occurring[0]]!r} occurs among the labels"
    areas = [metrics.roc_auc_score(truth == k, probabilities[:, k]) for k in occurring]
    return float(np.mean(areas)), ""
