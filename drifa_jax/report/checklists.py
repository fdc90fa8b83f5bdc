"""Reporting checklists, filled in as far as the run can know, with honest blanks.

An item is filled only with what this program measured or wrote down. Everything about people,
places, ethics and meaning is owed by the authors and says so. Items are named by topic in our
own words; the official texts decide.

Sources: Collins et al., TRIPOD+AI statement, BMJ 2024;385:e078378; Tejani et al., Checklist for
Artificial Intelligence in Medical Imaging (CLAIM): 2024 update, Radiology: AI 2024;6(4):e240300.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drifa_jax.config import Config
from drifa_jax.data.record import TabularSpec
from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.network_options import NetworkOptions
from drifa_jax.report.blocks import Cell, Prose, Section, Table
from drifa_jax.report.model_card import OWED
from drifa_jax.train.pretrained import pretrained_of

TRIPOD_AI: tuple[tuple[str, str, str], ...] = (
    ("1", "Title: a study that develops or evaluates a prediction model", ""),
    ("2", "Abstract by the TRIPOD+AI list for abstracts", ""),
    ("3a", "Health context and reason for the model", ""),
    ("3b", "Target population, place in care, intended users", ""),
    ("3c", "Known health inequalities", ""),
    ("4", "Objectives", ""),
    ("5a", "Sources of data and why they represent the target", "sources"),
    ("5b", "Dates of the data", ""),
    ("6a", "Setting and centres", ""),
    ("6b", "Who was eligible", ""),
    ("6c", "Treatments", ""),
    ("7", "Preparation and quality checks of the data", "preparation"),
    ("8a", "Outcome, its time and its assessment", "outcome"),
    ("8b", "Who assessed the outcome", ""),
    ("8c", "Blinding of that assessment", ""),
    ("9a", "Choice of predictors", "predictors"),
    ("9b", "Definition and measurement of predictors", "predictors"),
    ("9c", "Who assessed predictors", ""),
    ("10", "How the study size was arrived at", "size"),
    ("11", "Missing data", "missing"),
    ("12a", "Use of the data for development and evaluation", "partitions"),
    ("12b", "Handling of predictors in the analysis", "preparation"),
    ("12c", "Type of model, building steps, hyper-parameters, internal validation", "model"),
    ("12d", "Heterogeneity between clusters", "clusters"),
    ("12e", "Measures of performance", "measures"),
    ("12f", "Updating of the model, if any", "updating"),
    ("12g", "How predictions are calculated", "calculation"),
    ("13", "Class imbalance", "imbalance"),
    ("14", "Approaches to fairness", "fairness"),
    ("15", "Output of the model", "output"),
    ("16", "Differences between training and evaluation data", "partitions"),
    ("17", "Ethical approval", ""),
    ("18a", "Funding", ""),
    ("18b", "Conflicts of interest", ""),
    ("18c", "Protocol", ""),
    ("18d", "Registration", ""),
    ("18e", "Sharing of data", ""),
    ("18f", "Sharing of code", "code"),
    ("19", "Involvement of patients and the public", ""),
    ("20a", "Flow of participants", "flow"),
    ("20b", "Characteristics of participants", ""),
    ("20c", "Comparison of development and evaluation data", "flow"),
    ("21", "Numbers of participants and outcomes in each analysis", "flow"),
    ("22", "Specification of the model, so that it can be used", "specification"),
    ("23a", "Performance with intervals, and by subgroup", "performance"),
    ("23b", "Heterogeneity of performance between clusters", "fairness"),
    ("24", "Results of updating", "updating"),
    ("25", "Interpretation, including fairness", ""),
    ("26", "Limitations", "limitations"),
    ("27a", "Poor or missing input at the time of use", "missing"),
    ("27b", "Interaction and expertise of users", ""),
    ("27c", "Next steps and generalisability", ""),
)
"""Number, topic, and which fact fills it ("" where only the authors can)."""

CLAIM: tuple[tuple[str, str, str], ...] = (
    ("1", "Title or abstract names the AI method", ""),
    ("2", "Structured abstract", ""),
    ("3", "Background, intended use and clinical role", ""),
    ("4", "Aims, objectives, hypotheses", ""),
    ("5", "Prospective or retrospective", ""),
    ("6", "Goal of the study", ""),
    ("7", "Sources of data", "sources"),
    ("8", "Inclusion and exclusion", ""),
    ("9", "Preprocessing", "preparation"),
    ("10", "Selection of subsets of the data", "partitions"),
    ("11", "De-identification", ""),
    ("12", "Missing data", "missing"),
    ("13", "Acquisition protocol of the images", ""),
    ("14", "Reference standard: how it was obtained", "outcome"),
    ("15", "Reference standard: why this one", ""),
    ("16", "Annotators and their qualification", ""),
    ("17", "Annotation of the test set", ""),
    ("18", "Agreement between and within annotators", ""),
    ("19", "How data were assigned to partitions", "partitions"),
    ("20", "Level at which partitions are disjoint", "disjoint"),
    ("21", "Intended size of the test set", "size"),
    ("22", "Description of the model", "model"),
    ("23", "Software, libraries, versions", "software"),
    ("24", "Initial parameters", "initial"),
    ("25", "Training: augmentation, hyper-parameters, number of models", "training"),
    ("26", "How the final model was chosen", "selection"),
    ("27", "Ensembling", "ensemble"),
    ("28", "Measures of performance", "measures"),
    ("29", "Statistical significance and uncertainty", "intervals"),
    ("30", "Robustness and sensitivity analysis", "fairness"),
    ("31", "Explainability", ""),
    ("32", "Evaluation on internal data", "performance"),
    ("33", "Testing on external data", ""),
    ("34", "Registration of a trial", ""),
    ("35", "Participants included and excluded", "flow"),
    ("36", "Demographics in each partition", ""),
    ("37", "Performance on all partitions", "performance"),
    ("38", "Estimates of diagnostic performance with precision", "performance"),
    ("39", "Analysis of failures", "failures"),
    ("40", "Limitations", "limitations"),
    ("41", "Implications for practice", ""),
    ("42", "Full protocol", ""),
    ("43", "Where software, model and data can be had", "code"),
    ("44", "Funding and role of funders", ""),
)
"""As `TRIPOD_AI`."""


def tripod_ai(evaluated: Evaluated, folder: Path) -> Section:
    """TRIPOD+AI: reporting of clinical prediction models."""
    return _section(
        "tripod-ai",
        "TRIPOD+AI checklist",
        "Collins et al., BMJ 2024;385:e078378",
        TRIPOD_AI,
        known_facts(evaluated),
    )


def claim(evaluated: Evaluated, folder: Path) -> Section:
    """CLAIM 2024: reporting of AI in medical imaging."""
    return _section(
        "claim",
        "CLAIM checklist (2024 update)",
        "Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300",
        CLAIM,
        known_facts(evaluated),
    )


def known_facts(evaluated: Evaluated) -> dict[str, str]:
    """What the run itself can tell, by name."""
    config, leak = evaluated.config, evaluated.data.leakage
    splits = ", ".join(f"{s} {x.num_records:,}" for s, x in evaluated.data.splits.items())
    tables = [m for m in evaluated.description.modalities if isinstance(m, TabularSpec)]
    images = ", ".join(
        f"{m.name} at {' x '.join(map(str, m.shape[:-1]))} "
        + ("voxels" if len(m.shape) == 4 else "pixels")
        for m in evaluated.description.modalities
        if m not in tables
    )
    columns = ", ".join(
        f"{m.name} ({', '.join(evaluated.description.readings[m.name].columns)})" for m in tables
    )
    augmented = (
        "no augmentation"
        if config.data.augmentation == "none"
        else f"augmentation preset {config.data.augmentation!r} in training"
    )
    prefix = "SYNTHETIC data. " if evaluated.synthetic else ""
    calibrated = {t.answer.calibration for t in evaluated.tasks.values() if t.post_processing}
    commit = evaluated.evaluated_by.get("git_commit")
    facts = {
        "sources": f"{prefix}{evaluated.description.data}. Why they represent the target: open.",
        "preparation": f"Images brought to {images}, scaled to 0..1; {augmented}."
        + (f" Tables standardised by the training records: {columns}." if tables else ""),
        "outcome": "Labels as in the data: "
        + "; ".join(f"{t} ({', '.join(c)})" for t, c in evaluated.description.tasks.items())
        + ". How they were obtained: open.",
        "predictors": f"Images: {images}. Tables, with their columns: {columns}."
        if tables
        else f"Images only: {images}.",
        "size": f"{splits} records, all that there were; no calculation of size was made.",
        "missing": "Records without a label of a task are left out of that task. "
        + (
            "Absent modalities are masked."
            if evaluated.description.may_lack_modalities
            else "Every record holds every modality."
        ),
        "partitions": f"{splits} records; "
        + (
            "drawn by the phantom generator."
            if config.data.source == "phantoms"
            else f"split seed {config.data.split_seed}, or as distributed."
        ),
        "disjoint": "Record; patients are not known."
        if leak.single_groups
        else "Group (patient, lesion or slide), as named by the data; "
        + (f"{leak.shared_groups} groups are shared." if leak.shared_groups else "none is shared."),
        "model": f"DRIFA-Net: {_branches(evaluated)}, {_attention(config.model)}, width "
        f"{config.model.width}, dropout {config.model.dropout_rate:g} (at the "
        f"{config.model.dropout_at}); {evaluated.cost.num_parameters:,} parameters.",
        "clusters": "Intervals resample whole groups." if not leak.single_groups else "",
        "measures": "See Classification, Calibration, Uncertainty and referral.",
        "intervals": f"95 % intervals from "
        f"{max((t.metrics.num_resamples for t in evaluated.tasks.values()), default=0):,} "
        "resamples of whole groups; paired tests by `drifa compare`.",
        "updating": "None.",
        "calculation": f"Mean of {evaluated.num_members} member(s) x {evaluated.num_samples} "
        "dropout samples"
        + (f", then {' and '.join(sorted(calibrated))} calibration." if calibrated else "."),
        "imbalance": f"Class weights: {config.train.class_weights}; focal gamma "
        f"{config.train.focal_gamma:g}; balanced sampling: "
        f"{config.train.balance_sampling_of or 'none'}. Counts: see Data.",
        "fairness": "See Subgroups." if any(t.subgroups for t in evaluated.tasks.values()) else "",
        "output": "Probabilities of the classes, the most probable class, its uncertainty, a "
        "prediction set, and whether to refer.",
        "code": f"drifa_jax, commit {commit}. Public address: open." if commit else "",
        "flow": f"Records: {splits}. See Data. Exclusions before that: open.",
        "specification": "config.json and the checkpoints of the run; `drifa export`.",
        "performance": "See Results in short and Classification.",
        "limitations": "See the model card. The authors' own: open.",
        "software": ", ".join(
            f"{name} {version}"
            for name, version in evaluated.evaluated_by.get("packages", {}).items()
        ),
        "initial": _initial_weights(config),
        "training": f"Up to {config.train.num_epochs} epochs, batch {config.train.batch_size}, "
        f"Adam, learning rate {config.train.learning_rate:g} ({config.train.schedule}); "
        f"{augmented}; {evaluated.num_members} network(s) trained for this report.",
        "selection": f"Lowest validation loss, at step {', '.join(map(str, evaluated.steps))}.",
        "ensemble": f"{evaluated.num_members} members, probabilities averaged."
        if evaluated.num_members > 1
        else "None; dropout samples of one network.",
        "failures": "See Uncertainty and referral; predictions.csv names every wrong record.",
    }
    return facts


def _branches(evaluated: Evaluated) -> str:
    """The backbone of each modality, in words."""
    config = evaluated.config
    own = {
        m: modality.backbone for m, modality in config.data.modalities.items() if modality.backbone
    }
    others = ", ".join(f"{backbone} for {m}" for m, backbone in own.items())
    return f"{config.model.backbone} branch for each modality" + (f" ({others})" if own else "")


def _attention(model: NetworkOptions) -> str:
    """What stands between the stages, in words."""
    identity = model.fusion == "identity_gates"
    if not (model.gate_parts if identity else model.stage_mfa_parts + model.mifa_parts):
        return "no attention between the branches"
    kind = "gates that begin as the identity" if identity else "MFA and MIFA attention"
    return f"{kind} after {_meetings(model.fuse_at)}"


def _meetings(fuse_at: tuple[int | str, ...]) -> str:
    """After which stages modalities meet, in words."""
    words = {("all",): "every stage", ("resolutions",): "every resolution"}
    return words.get(fuse_at, "the stages " + ", ".join(map(str, fuse_at)))


def _section(
    anchor: str,
    title: str,
    source: str,
    items: tuple[tuple[str, str, str], ...],
    facts: Mapping[str, str],
) -> Section:
    rows = []
    filled = 0
    for number, topic, fact in items:
        text = facts[fact] if fact else ""
        filled += bool(text)
        rows.append((number, topic, Cell(text) if text else OWED))
    return Section(
        anchor,
        title,
        [
            Prose(
                f"{filled} of {len(items)} items are filled in from the run, some in part; the "
                f"rest only the authors can write. Topics in our words; the official text "
                f"decides: {source}."
            ),
            Table(title, ("item", "topic", "this study"), rows, wide=True),
        ],
    )


def _initial_weights(config: Config) -> str:
    if config.train.initial_weights:
        return f"Weights from {config.train.initial_weights}."
    drawn = f"Random, seed {config.train.seed}."
    pretrained = [f"{name}: {where}" for name, (where, _) in pretrained_of(config).items()]
    return (
        f"Branches pretrained ({', '.join(pretrained)}). The rest: {drawn}" if pretrained else drawn
    )
