"""A benchmark as one HTML page."""

from __future__ import annotations

from typing import Any

from drifa_jax.benchmark.running import COMPLETE
from drifa_jax.benchmark.table import FIGURES, LEVEL, PRIMARY
from drifa_jax.evaluate.subgroups import SMALLEST_GROUP
from drifa_jax.report.blocks import Note, Prose, Section, Table
from drifa_jax.report.html import render

Document = dict[str, Any]
COSTS = ("parameters", "kFLOP a record", "MiB in training", "seconds")
"""Of one network without its branches."""


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
                f"{row['flops'] / 1e3:,.0f}",
                f"{row['train_bytes'] / 2**20:,.0f}",
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
                ("", *FIGURES.values(), "AUROC against the reference", *COSTS),
                rows,
                note=note,
            ),
            Table("AUROC with a modality missing or damaged", ("", *conditions), harmed),
            *_subgroups(of_set["rows"]),
        ],
    )


def _subgroups(rows: list[Document]) -> list[Table]:
    tables = []
    for column, values in rows[0]["subgroups"].items():
        shown = [k for k, value in enumerate(values) if value["figures"] is not None]
        if len(shown) < 2:
            continue
        heads = [f"{values[k]['name']} ({values[k]['num_records']})" for k in shown]
        cells = [
            [row["method"], *(_plain(row["subgroups"][column][k]) for k in shown)] for row in rows
        ]
        tables.append(
            Table(
                f"AUROC by {column} (records)",
                ("", *heads),
                cells,
                note="Complete test records of all folds, mean over seeds; differences between "
                f"subgroups are not tested. Below {SMALLEST_GROUP} patients or lesions nothing is "
                "shown.",
            )
        )
    return tables


def _plain(subgroup: Document) -> str:
    mean = subgroup["figures"][PRIMARY]
    return "" if mean is None else f"{mean:.3f}"


def _value(summary: Document | None) -> str:
    if not summary or summary["mean"] is None:
        return ""
    spread = "" if summary["deviation"] is None else f" ± {summary['deviation']:.3f}"
    return f"{summary['mean']:.3f}{spread}"


def _difference(against: Document) -> str:
    reach = "" if against["low"] is None else f" ({against['low']:+.3f} to {against['high']:+.3f})"
    return f"{against['difference']:+.3f}{reach}"
