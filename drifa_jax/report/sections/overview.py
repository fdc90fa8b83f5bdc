"""What a reader takes away who reads nothing else."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.intervals import FEWEST_GROUPS
from drifa_jax.evaluate.metrics import scalars
from drifa_jax.report.blocks import (
    Block,
    Heading,
    Note,
    Numbers,
    Prose,
    Section,
)
from drifa_jax.report.sections.wording import calibrated, described_records, groups, number, several


def headline(evaluated: Evaluated, folder: Path) -> Section:
    """What a reader takes away who reads nothing else."""
    blocks: list[Block] = []
    if evaluated.synthetic:
        blocks.append(
            Note(
                "SYNTHETIC data: every image was drawn by a program. The figures show that the "
                "software works; they are no evidence about patients.",
                alarm=True,
            )
        )
    for task, found in evaluated.tasks.items():
        blocks += [
            Heading(task),
            Prose(
                f"{described_records(evaluated, found)}, {len(found.classes)} classes: "
                f"{', '.join(found.classes)}."
            ),
            Numbers(
                f"Headline numbers of {task}",
                [
                    number(metric.title, found.metrics.scalars[metric.name])
                    for metric in scalars()
                    if metric.headline
                ],
            ),
        ]
    resamples = max((found.metrics.num_resamples for found in evaluated.tasks.values()), default=0)
    blocks.append(
        Prose(
            f"Below each number is its 95 % interval from {resamples:,} bootstrap resamples of "
            f"whole {groups(evaluated)}. "
            f"The answer to each record is the mean of {several(evaluated.num_members, 'network')} "
            f"times {evaluated.num_samples} Monte Carlo dropout samples, {calibrated(evaluated)}."
        )
    )
    if evaluated.folds:
        blocks.append(
            Note(
                f"Out of fold: {len(evaluated.folds)} of {evaluated.config.data.num_folds} folds "
                "of one cross-validation, each record answered by the runs that were tested on it "
                "and never saw it. Explanations are of the first fold."
            )
        )
    for task, found in evaluated.tasks.items():
        if found.metrics.num_groups < FEWEST_GROUPS:
            blocks.append(
                Note(
                    f"{task}: {found.metrics.num_groups} groups are too few for more than rough "
                    f"intervals; their coverage was checked from {FEWEST_GROUPS} groups on."
                )
            )
        notes = dict.fromkeys(note for fitted in found.post_processing for note in fitted.notes)
        blocks += [Note(f"{task}: {note}.") for note in notes]
    lacking = [task for task in evaluated.description.tasks if task not in evaluated.tasks]
    if lacking:
        blocks.append(Note(f"No test record has a label of {' or '.join(lacking)}."))
    return Section("results", "Results in short", blocks)
