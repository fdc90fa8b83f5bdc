"""The records, the splits, and what keeps them apart."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.report.blocks import (
    Block,
    Facts,
    Note,
    Row,
    Section,
    Table,
)


def data(evaluated: Evaluated, folder: Path) -> Section:
    """Where the records came from, how they were split, and what could leak."""
    leak = evaluated.data.leakage
    splits = Table(
        "Splits",
        ("split", "records", "groups"),
        [
            (name, f"{split.num_records:,}", f"{split.num_groups:,}")
            for name, split in evaluated.data.splits.items()
        ],
        note="A group is a patient, lesion or slide, as the data name them; "
        "all records of a group are in one split.",
    )
    parts = [
        Table(
            f"Records of {name}, before pairing",
            ("split", "records", "groups"),
            [
                (split, f"{part.num_records:,}", f"{part.num_groups:,}")
                for split, part in of_part.items()
            ],
            note="Intervals resample these groups, not pairs of strangers."
            if evaluated.config.data.pairing in ("index", "random")
            else "",
        )
        for name, of_part in evaluated.data.parts.items()
    ]
    counts = [
        Table(
            f"Labelled records of {task}",
            ("class", *evaluated.data.splits),
            [
                (
                    c,
                    *(
                        f"{split.class_counts[task].get(c, 0):,}"
                        for split in evaluated.data.splits.values()
                    ),
                )
                for c in classes
            ],
        )
        for task, classes in evaluated.description.tasks.items()
    ]
    facts = [
        ("Training data", evaluated.data.splits["train"].description),
        ("Test data", evaluated.data.splits["test"].description),
        ("Pairing", _pairing(evaluated)),
        ("Split seed", str(evaluated.config.data.split_seed)),
        ("Record ids in several splits", _count_or_none(leak.shared_records)),
        ("Groups in several splits", _count_or_none(leak.shared_groups)),
        ("Duplicate images across splits", _duplicates(evaluated)),
    ]
    blocks: list[Block] = [Facts(facts)]
    if leak.shared_records or leak.shared_groups:
        blocks.append(
            Note(
                "Training and test share records or groups: the scores are too good by an unknown "
                "amount.",
                alarm=True,
            )
        )
    if leak.single_groups and not evaluated.synthetic:
        blocks.append(
            Note(
                "Every record is its own group: nothing is known of which images belong to one "
                "patient. If patients have several, they may be in training and test at once, and "
                "the intervals are too narrow.",
                alarm=True,
            )
        )
    if not evaluated.synthetic and leak.duplicates is None and not leak.duplicates_share_a_split:
        blocks.append(Note("Duplicate images were not looked for; they may leak."))
    blocks.append(Row([splits, *parts, *counts]))
    if evaluated.data.notes:
        noticed = [(str(k), note) for k, note in enumerate(evaluated.data.notes, start=1)]
        blocks.append(
            Table("Noticed, left out or guessed in the data", ("", "what"), noticed, wide=True)
        )
    return Section("data", "Data, splits and leakage", blocks)


def _pairing(evaluated: Evaluated) -> str:
    if evaluated.config.data.source == "phantoms":
        return "the modalities of a record show the same synthetic head"
    if len(evaluated.config.data.modalities) == 1:
        return "none: one place holds whole records"
    meaning = {
        "paired": "the same record id in every modality",
        "index": "strangers side by side, by their place in the lists",
        "random": "strangers side by side, drawn anew in every epoch",
        "by_task": "none: a record has one modality",
    }
    return f"{evaluated.config.data.pairing}: {meaning.get(evaluated.config.data.pairing, '')}"


def _duplicates(evaluated: Evaluated) -> str:
    leak = evaluated.data.leakage
    if evaluated.synthetic:
        return "none: every image is drawn anew"
    if leak.duplicates_share_a_split:
        return "near duplicates share a split (data.duplicates=group)"
    if leak.duplicates is not None:
        return f"{leak.duplicates:,} found and removed from training"
    if evaluated.config.data.split_folder:
        return "as in the splits that were read (data.split_folder)"
    return "kept as distributed (data.duplicates=keep)"


def _count_or_none(count: int) -> str:
    return f"{count:,}" if count else "none"
