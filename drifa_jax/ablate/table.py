"""The table of an ablation: means, intervals and paired tests, and what they allow to be said."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drifa_jax.ablate.scores import Scores
from drifa_jax.ablate.statistics import (
    METRICS,
    Draws,
    aligned,
    draws,
    interval,
    permutation_p,
)
from drifa_jax.ablate.variants import CONCATENATION, REFERENCE, Variant
from drifa_jax.console import harmless
from drifa_jax.evaluate.comparison import holm
from drifa_jax.evaluate.intervals import NUM_RESAMPLES

COMPARED = "balanced_accuracy"
"""The metric of the tests and of the sentences; one, chosen beforehand."""

FEW_SEEDS = 3
Tested = Mapping[str, Sequence[Mapping[str, Scores]]]
"""Variant -> for each finished seed: task -> scores."""

Document = dict[str, Any]


def document(
    variants: Sequence[Variant],
    tested: Tested,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Document:
    """All numbers of an ablation as plain JSON values, by task.

    Args:
      variants: in the order of the rows.
      tested: of the variants that have finished seeds.
      num_resamples: of the bootstrap.
      seed: of the bootstrap and of the permutation tests.
    """
    names = [v.name for v in variants if tested.get(v.name)]
    tasks = list(dict.fromkeys(task for name in names for task in tested[name][0]))
    return {
        "reference": REFERENCE,
        "compared": COMPARED,
        "num_resamples": num_resamples,
        "tasks": {task: _of_task(task, variants, tested, num_resamples, seed) for task in tasks},
    }


def _of_task(task, variants, tested, num_resamples, seed) -> Document:
    runs = {
        v.name: [by_task[task] for by_task in tested.get(v.name, ()) if task in by_task]
        for v in variants
    }
    runs = {name: seeds for name, seeds in runs.items() if seeds}
    numbers = {v.name: place for place, v in enumerate(variants)}

    def drawn(name: str, ids: np.ndarray) -> Draws:
        return draws(
            [_only(scores, ids) for scores in runs[name]],
            num_resamples=num_resamples,
            seed=seed,
            stream=numbers[name],
        )

    reference = runs.get(REFERENCE)
    rows, p, of_reference = [], {}, {}
    for variant in variants:
        if variant.name not in runs:
            continue
        own = aligned(runs[variant.name])[0]
        of_variant = drawn(variant.name, own.record_ids)
        row: Document = {
            "variant": variant.name,
            "meaning": variant.meaning,
            "num_seeds": len(runs[variant.name]),
            "num_records": len(own.labels),
            "num_groups": len(np.unique(own.groups)),
            "metrics": {metric: _summary(of_variant, metric) for metric in METRICS},
        }
        if reference and variant.name != REFERENCE:
            common = np.intersect1d(own.record_ids, aligned(reference)[0].record_ids)
            if len(common):
                key = common.tobytes()
                if key not in of_reference:
                    of_reference[key] = drawn(REFERENCE, common)
                p[variant.name] = permutation_p(
                    [_only(scores, common) for scores in runs[variant.name]],
                    [_only(scores, common) for scores in reference],
                    seed=seed,
                )
                row["against_reference"] = {
                    "num_records": len(common),
                    "p": p[variant.name],
                    **_differences(drawn(variant.name, common), of_reference[key]),
                }
        rows.append(row)
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    for row in rows:
        if "against_reference" in row:
            row["against_reference"]["p_holm"] = corrected[row["variant"]]
    return {"rows": rows, "verdict": verdict(task, rows)}


def _only(scores: Scores, ids: np.ndarray) -> Scores:
    kept = np.isin(scores.record_ids, ids)
    return Scores(*(getattr(scores, field)[kept] for field in Scores.__dataclass_fields__))


def _summary(draws: Draws, metric: str) -> Document:
    if not np.isfinite(draws.per_seed[metric]).all():
        return {"mean": None, "reason": "undefined: the test records are of one class"}
    low, high = interval(draws.replicates[metric])
    return {
        "mean": draws.mean(metric),
        "low": low,
        "high": high,
        "deviation": draws.deviation(metric),
        "per_seed": draws.per_seed[metric].tolist(),
    }


def _differences(variant: Draws, reference: Draws) -> Document:
    """Variant minus reference, by metric; replicates share their groups."""
    found = {}
    for metric in METRICS:
        if not np.isfinite(variant.per_seed[metric]).all():
            continue
        low, high = interval(variant.replicates[metric] - reference.replicates[metric])
        found[metric] = {
            "difference": variant.mean(metric) - reference.mean(metric),
            "low": low,
            "high": high,
        }
    return found


def verdict(task: str, rows: Sequence[Document]) -> str:
    """Whether the network beats plain concatenation at a task, in a sentence that can say no."""
    by_name = {row["variant"]: row for row in rows}
    if REFERENCE not in by_name:
        return f"{task}: no {REFERENCE} network is finished yet."
    plain = by_name.get(CONCATENATION)
    if plain is None or "against_reference" not in plain:
        return f"{task}: plain concatenation was not tried, so nothing is known about the fusion."
    against = plain["against_reference"]
    gained = against[COMPARED]
    gain, low, high = -gained["difference"], -gained["high"], -gained["low"]
    metric = COMPARED.replace("_", " ")
    numbers = (
        f"{metric} {gain:+.3f} (95% interval {low:+.3f} to {high:+.3f}, permutation "
        f"p = {against['p']:.2g}, {against['num_records']} records)"
    )
    if low > 0:
        said = f"DRIFA-Net beats plain concatenation: {numbers}."
    elif high < 0:
        said = f"DRIFA-Net is worse than plain concatenation: {numbers}."
    else:
        said = (
            f"DRIFA-Net is not shown to beat plain concatenation: {numbers}; the interval holds "
            "zero, so the two are level as far as this study can see."
        )
    num_seeds = min(plain["num_seeds"], by_name[REFERENCE]["num_seeds"])
    if num_seeds < FEW_SEEDS:
        said += (
            f" With {num_seeds} seed{'s' if num_seeds > 1 else ''} the interval leaves out most "
            "of what training varies by."
        )
    return f"{task}: {said}"


def as_markdown(document: Document) -> str:
    """The document as text: a table and a sentence for each task."""
    lines = []
    for task, table in document["tasks"].items():
        first = table["rows"][0]
        lines += [
            f"## {task}",
            "",
            f"{first['num_records']} test records of {first['num_groups']} groups.",
            "",
            "| variant | seeds | balanced accuracy | difference | p (Holm) | AUROC | difference |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in table["rows"]:
            against = row.get("against_reference", {})
            p = f"{against['p']:.2g} ({against['p_holm']:.2g})" if against else ""
            cells = (
                f"`{row['variant']}`: {row['meaning']}",
                str(row["num_seeds"]),
                _mean_cell(row["metrics"]["balanced_accuracy"]),
                _difference_cell(against.get("balanced_accuracy")),
                p,
                _mean_cell(row["metrics"]["auroc"]),
                _difference_cell(against.get("auroc")),
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", table["verdict"], ""]
    lines += [
        "Means over seeds ± standard deviation between them, with 95% bootstrap intervals over "
        "groups and seeds; differences are variant minus reference on the same records; p of the "
        "balanced accuracy by permutation of groups, and corrected for all variants (Holm).",
        "",
    ]
    return "\n".join(lines)


def _mean_cell(document: Document) -> str:
    if document["mean"] is None:
        return "undefined"
    spread = "" if document["deviation"] is None else f" ± {document['deviation']:.3f}"
    return f"{document['mean']:.3f}{spread} ({document['low']:.3f} to {document['high']:.3f})"


def _difference_cell(document: Document | None) -> str:
    if document is None:
        return ""
    return f"{document['difference']:+.3f} ({document['low']:+.3f} to {document['high']:+.3f})"


def as_csv(document: Document) -> str:
    """One line for each task, variant and metric."""
    text = io.StringIO()
    fields = ("task", "variant", "num_seeds", "num_records", "num_params", "metric", "mean")
    fields += ("deviation", "low", "high", "difference", "difference_low", "difference_high")
    writer = csv.DictWriter(text, (*fields, "p", "p_holm"))
    writer.writeheader()
    for task, table in document["tasks"].items():
        for row in table["rows"]:
            against = row.get("against_reference", {})
            for metric, summary in row["metrics"].items():
                line = {"task": task, "metric": metric}
                line |= {name: row.get(name, "") for name in fields[1:5]}
                line |= {n: summary.get(n, "") for n in ("mean", "deviation", "low", "high")}
                if metric in against:
                    line |= {
                        "difference": against[metric]["difference"],
                        "difference_low": against[metric]["low"],
                        "difference_high": against[metric]["high"],
                    }
                if metric == COMPARED and against:
                    line |= {"p": against["p"], "p_holm": against["p_holm"]}
                writer.writerow({name: harmless(cell) for name, cell in line.items()})
    return text.getvalue()


def as_json(document: Document) -> str:
    """The document itself."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
