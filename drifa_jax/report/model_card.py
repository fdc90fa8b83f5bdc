"""The model card of a run: what it is for, what it is made of, and what it is not.

What only the authors can know is left open and marked, never guessed.

Source of the headings: Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

from pathlib import Path

from drifa_jax.console import RESEARCH_NOTE
from drifa_jax.data.record import Spec, TabularSpec
from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.report.blocks import Cell, Note, Section, Table

OWED = Cell("to be written by the authors", blank=True)


def model_card(evaluated: Evaluated, folder: Path) -> Section:
    """The card."""
    config = evaluated.config
    reads = ", ".join(map(_reads, evaluated.description.modalities))
    answers = "; ".join(
        f"{task}: {', '.join(classes)}" for task, classes in evaluated.description.tasks.items()
    )
    absent = (
        "Records may lack a modality."
        if evaluated.description.may_lack_modalities
        else "Every record needs all modalities."
    )
    limits = [
        "Measured on one test split of one data set; nothing is known of other hospitals, "
        "scanners or populations.",
        "An image of anything else than the classes above is still called one of them.",
    ]
    if evaluated.synthetic:
        limits.insert(0, "Trained and tested on SYNTHETIC images: it knows nothing of patients.")
    if evaluated.data.leakage.single_groups and not evaluated.synthetic:
        limits.append("Which images belong to one patient is not known; leakage is possible.")
    if config.data.source == "files" and config.data.pairing in ("index", "random"):
        limits.append(
            "Images of different people were put side by side; it cannot have learnt how the "
            "modalities of one patient complement each other."
        )
    rows = [
        ("Intended use", "Research on fusing medical imaging modalities and on uncertainty."),
        (
            "Out of scope",
            "Any diagnosis, triage or treatment of a person; any use without a qualified human "
            "who decides.",
        ),
        (
            "Network",
            f"DRIFA-Net ({config.model.backbone}, width {config.model.width}), "
            f"{evaluated.cost.num_parameters:,} parameters, number of networks: "
            f"{evaluated.num_members}, dropout {config.model.dropout_rate:g} with "
            f"{evaluated.num_samples} Monte Carlo samples.",
        ),
        ("Reads", f"{reads}. {absent}"),
        ("Answers", answers),
        ("Data and provenance", evaluated.description.data),
        (
            "Licence and consent of the data",
            OWED if not evaluated.synthetic else "SYNTHETIC: no person",
        ),
        (
            "Training",
            f"{evaluated.data.splits['train'].num_records:,} records, up to "
            f"{config.train.num_epochs} epochs, batch {config.train.batch_size}, learning rate "
            f"{config.train.learning_rate:g} ({config.train.schedule}), seed {config.train.seed}.",
        ),
        (
            "Evaluation",
            f"{evaluated.num_records:,} test records, looked at once; intervals from resampled "
            "groups.",
        ),
        ("Subgroups", "see the section Subgroups" if _has_subgroups(evaluated) else OWED),
        ("Limits", " ".join(limits)),
        ("Risks and harms considered", OWED),
        ("Responsible persons and contact", OWED),
    ]
    return Section(
        "model-card",
        "Model card",
        [
            Note(RESEARCH_NOTE, alarm=True),
            Table("Model card", ("topic", "what is known"), rows, wide=True),
        ],
    )


def _reads(modality: Spec) -> str:
    if isinstance(modality, TabularSpec):
        return f"{modality.name} (a table, {modality.num_features} numbers a record)"
    colour = "colour" if modality.channels == 3 else "grey"
    return f"{modality.name} ({' x '.join(map(str, modality.shape[:-1]))}, {colour})"


def _has_subgroups(evaluated: Evaluated) -> bool:
    return any(found.subgroups for found in evaluated.tasks.values())
