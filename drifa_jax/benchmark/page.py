"""A benchmark as one HTML page."""

from __future__ import annotations

from typing import Any

from drifa_jax.benchmark.running import COMPLETE
from drifa_jax.benchmark.table import FIGURES, LEVEL, PRIMARY
from drifa_jax.report.blocks import Note, Prose, Section, Table
from drifa_jax.report.html import render

Document = dict[str, Any]


def page(document: Document) -> str:
    """The whole page."""
    sections = [_overview(document)]
    for name, of_set in document["sets"].items():
        sections.append(_section(name, of_set))
    return render(
        f"Benchmark {document['suite']}",
        f"Ways to fuse, on frozen features, {len(document['seeds'])} seeds a fold.",
        sections,
        synthetic=False,
        made=document["made"],
    )


def _overview(document: Document) -> Section:
    lines = [f"{name}: {of_set['verdict']}" for name, of_set in document["sets"].items()]
    finished = not document["not_finished"]
    blocks: list[Any] = []
    if not finished:
        blocks.append(
            Note("NOT FINISHED: " + "; ".join(document["not_finished"]) + ".", alarm=True)
        )
    blocks += [Prose(line) for line in lines]
    blocks.append(
        Prose(
            f"Differences are paired over folds, with the {LEVEL:.0%} interval of the corrected "
            "resampled t test (Nadeau and Bengio, 2003). Branches are frozen; only fusion, heads "
            "and the branches of tables are trained, under the same options for every method."
        )
    )
    return Section("overview", "Overview", blocks)


def _section(name: str, of_set: Document) -> Section:
    if not of_set.get("rows"):
        return Section(name, name, [Note(of_set["verdict"], alarm=True)])
    rows = []
    for row in of_set["rows"]:
        against = row.get("against_reference", {}).get(PRIMARY)
        rows.append(
            [
                row["method"],
                *(_value(row["conditions"][COMPLETE][figure]) for figure in FIGURES),
                "" if against is None else _difference(against),
                f"{row['num_params']:,}",
                f"{row['seconds']:.1f}",
            ]
        )
    conditions = list(
        dict.fromkeys(c for row in of_set["rows"] for c in row["conditions"] if c != COMPLETE)
    )
    harmed = [
        [row["method"], *(_value(row["conditions"].get(c, {}).get(PRIMARY)) for c in conditions)]
        for row in of_set["rows"]
    ]
    note = "; ".join(f"{row['method']}: {row['meaning']}" for row in of_set["rows"])
    return Section(
        name,
        name,
        [
            Note(of_set["verdict"], alarm=bool(of_set["holes"])),
            Table(
                "Complete records: mean and deviation over folds",
                ("", *FIGURES.values(), "AUROC against the reference", "parameters", "seconds"),
                rows,
                note=note,
            ),
            Table("AUROC with a modality missing or damaged", ("", *conditions), harmed),
        ],
    )


def _value(summary: Document | None) -> str:
    if not summary or summary["mean"] is None:
        return ""
    spread = "" if summary["deviation"] is None else f" ± {summary['deviation']:.3f}"
    return f"{summary['mean']:.3f}{spread}"


def _difference(against: Document) -> str:
    reach = "" if against["low"] is None else f" ({against['low']:+.3f} to {against['high']:+.3f})"
    return f"{against['difference']:+.3f}{reach}"
