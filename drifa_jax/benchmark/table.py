"""Figures of a benchmark: means over folds and seeds, and paired differences from the reference."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from drifa_jax.ablate.variants import Variant
from drifa_jax.benchmark.methods import BEST, REFERENCE
from drifa_jax.benchmark.running import COMPLETE, Answers
from drifa_jax.evaluate.metrics import METRICS, measured
from drifa_jax.evaluate.resamples import ScoredRecords
from drifa_jax.evaluate.subgroups import SMALLEST_GROUP, subgroup_values
from drifa_jax.uncertainty.selective import aurc

PRIMARY = "auroc"
FIGURES = {
    "auroc": "AUROC (macro)",
    "balanced_accuracy": "balanced accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "aurc": "AURC",
}
HIGHER_IS_BETTER = {"auroc", "balanced_accuracy"}
LEVEL = 0.95

Document = dict[str, Any]


def figures_of(answers: Answers, condition: str) -> dict[str, np.ndarray]:
    """Figure -> `[s]` of each seed; NaN where the condition leaves nothing to answer by."""
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    wanted = tuple(METRICS[name] for name in FIGURES if name in METRICS)
    for p in answers.probabilities[condition].astype(np.float64):
        known = np.isfinite(p).all(axis=1)
        if not known.any():
            for values in found.values():
                values.append(math.nan)
            continue
        p, labels = p[known], answers.labels[known]
        records = ScoredRecords(p, labels, np.zeros(len(labels), int))
        for name, values in measured(records.everything(), wanted).items():
            found[name].append(float(values[0]))
        found["aurc"].append(aurc(-p.max(1), (p.argmax(1) != labels).astype(float)))
    return {name: np.array(values) for name, values in found.items()}


def subgroups_of(folds: Sequence[Answers]) -> dict[str, list[Document]]:
    """Column -> a row for each of its values, over the complete test records of all folds.

    No figures are given where it has too few groups to say anything.
    """
    groups = np.concatenate([np.asarray(answers.groups, str) for answers in folds])
    found = {}
    for column in folds[0].attributes:
        names = np.array(subgroup_values([v for a in folds for v in a.attributes[column]]))
        rows = []
        for name in sorted(set(names.tolist())):
            chosen, start, parts = names == name, 0, []
            for answers in folds:
                end = start + len(answers.labels)
                parts.append(answers.only(COMPLETE, chosen[start:end]))
                start = end
            row: Document = {"name": name, "num_records": None, "figures": None}
            if len(set(groups[chosen].tolist())) >= SMALLEST_GROUP:
                figures = figures_of(Answers.joined(parts), COMPLETE)
                row["num_records"] = int(chosen.sum())
                row["figures"] = {n: _mean(values) for n, values in figures.items()}
            rows.append(row)
        found[column] = rows
    return found


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if np.isfinite(values).all() else None


def difference(ours: Sequence[float], theirs: Sequence[float], test_per_train: float) -> Document:
    """The mean difference over folds, with the interval of the corrected resampled t test.

    Training sets of folds overlap, so that differences are not independent; the variance is
    raised by the number of test records over that of training records.

    Args:
      ours, theirs: one figure a fold.
      test_per_train: that ratio.

    Source: Nadeau and Bengio, "Inference for the generalization error", 2003.
    """
    gaps = np.asarray(ours, float) - np.asarray(theirs, float)
    mean, count = float(gaps.mean()), len(gaps)
    if count < 2:
        return {"difference": mean, "low": None, "high": None, "p": None, "folds": count}
    error = math.sqrt((1 / count + test_per_train) * gaps.var(ddof=1))
    reach = stats.t.ppf((1 + LEVEL) / 2, count - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, count - 1) if error > 0 else None
    return {
        "difference": mean,
        "low": mean - reach,
        "high": mean + reach,
        "p": None if p is None else float(p),
        "folds": count,
    }


def of_set(
    found: Mapping[str, Sequence[Answers]], variants: Sequence[Variant], num_folds: int
) -> Document:
    """The rows of one set.

    Args:
      found: method -> answers of the folds that are finished, in their order.
      variants: all that were asked for.
      num_folds: that were asked for.
    """
    by_fold = {
        name: {
            condition: [figures_of(answers, condition) for answers in folds]
            for condition in folds[0].probabilities
        }
        for name, folds in found.items()
        if folds
    }
    holes = {v.name: num_folds - len(found.get(v.name, ())) for v in variants}
    holes = {name: count for name, count in holes.items() if count}
    rows = []
    for variant in variants:
        if variant.name not in by_fold:
            continue
        conditions = by_fold[variant.name]
        first = found[variant.name][0]
        row: Document = {
            "method": variant.name,
            "meaning": variant.meaning,
            "num_params": first.facts["num_params"],
            "flops": first.facts["flops"],
            "train_bytes": first.facts["train_bytes"],
            "seconds": float(np.mean([a.facts["seconds"] for a in found[variant.name]])),
            "subgroups": subgroups_of(found[variant.name]),
            "conditions": {
                condition: {name: _summary([f[name] for f in folds]) for name in FIGURES}
                for condition, folds in conditions.items()
            },
        }
        if variant.name != REFERENCE and REFERENCE in by_fold and not holes:
            row["against_reference"] = {
                name: difference(
                    *(
                        [float(np.mean(f[name])) for f in by_fold[m][COMPLETE]]
                        for m in (variant.name, REFERENCE)
                    ),
                    len(first.labels) / first.facts["num_train"],
                )
                for name in FIGURES
            }
        rows.append(row)
    document = {"rows": rows, "holes": holes, "num_folds": num_folds}
    return document | {"verdict": _verdict(document)}


def _summary(of_folds: Sequence[np.ndarray]) -> Document:
    values = np.stack(of_folds)
    if not np.isfinite(values).all():
        return {"mean": None, "deviation": None, "by_fold": None}
    means = values.mean(1)
    return {
        "mean": float(means.mean()),
        "deviation": float(means.std(ddof=1)) if len(means) > 1 else None,
        "by_fold": means.tolist(),
    }


def _verdict(document: Document) -> str:
    if document["holes"]:
        listed = ", ".join(f"{n} ({c} folds)" for n, c in document["holes"].items())
        return f"NOT FINISHED: {listed} missing. No conclusion can be drawn."
    rows = {row["method"]: row for row in document["rows"]}
    if BEST not in rows:
        return f"{BEST!r} was not asked for, so nothing is compared."
    against = rows[BEST]["against_reference"][PRIMARY]
    if against["low"] is None:
        return "One fold: a difference without an interval. No conclusion can be drawn."
    reach = f"{against['difference']:+.3f} AUROC ({against['low']:+.3f} to {against['high']:+.3f})"
    if against["low"] > 0:
        return f"{BEST} is ahead of {REFERENCE}: {reach}."
    if against["high"] < 0:
        return f"{BEST} is BEHIND {REFERENCE}: {reach}."
    return f"{BEST} is not shown to differ from {REFERENCE}: {reach}."


def as_json(document: Document) -> str:
    """The document itself."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def as_csv(document: Document) -> str:
    """One line for each set, method, condition and figure."""
    text = io.StringIO()
    facts = ("num_params", "flops", "train_bytes", "seconds")
    fields = ("set", "method", *facts, "condition", "figure", "mean", "deviation")
    writer = csv.writer(text)
    writer.writerow((*fields, "difference", "low", "high", "p"))
    for name, of_one in document["sets"].items():
        for row in of_one.get("rows", ()):
            for condition, figures in row["conditions"].items():
                for figure, summary in figures.items():
                    against = (
                        row.get("against_reference", {}).get(figure, {})
                        if condition == COMPLETE
                        else {}
                    )
                    cells = [name, row["method"], *(row[fact] for fact in facts), condition]
                    cells += [figure, summary["mean"], summary["deviation"]]
                    cells += [against.get(k, "") for k in ("difference", "low", "high", "p")]
                    writer.writerow(["" if cell is None else cell for cell in cells])
            for column, values in row["subgroups"].items():
                for value in values:
                    for figure, mean in (value["figures"] or {}).items():
                        cells = [name, row["method"], *(row[fact] for fact in facts)]
                        cells += [f"{column}: {value['name']}", figure, mean]
                        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()
