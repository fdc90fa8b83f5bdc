"""The same figures for groups of patients."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.subgroups import SMALLEST_GROUP, shown_metrics
from drifa_jax.report.blocks import (
    Block,
    Note,
    Prose,
    Section,
    Table,
    interval_cell,
)
from drifa_jax.report.sections.wording import groups


def subgroups(evaluated: Evaluated, folder: Path) -> Section:
    """Figures by sex, age, site, source, and whatever was asked for."""
    blocks: list[Block] = []
    for task, found in evaluated.tasks.items():
        for column, rows in found.subgroups.items():
            blocks.append(
                Table(
                    f"{task} by {column.removeprefix(task + '/')}",
                    (
                        column.rpartition("/")[2],
                        "n",
                        "groups",
                        *(metric.title for metric in shown_metrics()),
                    ),
                    [
                        (
                            row.name,
                            f"< {SMALLEST_GROUP} groups: not shown",
                            *[""] * (len(shown_metrics()) + 1),
                        )
                        if row.suppressed
                        else (
                            row.name,
                            f"{row.num_records:,}",
                            f"{row.num_groups:,}",
                            *(
                                interval_cell(row.metrics[metric.name])
                                for metric in shown_metrics()
                            ),
                        )
                        for row in rows
                    ],
                )
            )
    if not blocks:
        return Section(
            "subgroups",
            "Subgroups",
            [
                Note(
                    "The test records carry no sex, age, site or source, so that nothing can be "
                    "said of subgroups. Columns of a manifest become subgroups by themselves; "
                    "others by --subgroups COLUMN."
                )
            ],
        )
    blocks.insert(
        0,
        Prose(
            f"Subgroups of fewer than {SMALLEST_GROUP} {groups(evaluated)} are not shown: their "
            "figures would say little and might identify someone. Overlapping intervals are no "
            "proof of equality, and of many differences some look large by chance; none is "
            "tested here."
        ),
    )
    return Section("subgroups", "Subgroups", blocks)
