"""The sections of an evaluation report, each a function of what was evaluated.

`SECTIONS` is their order. A function that has nothing to say returns a section without blocks,
which is left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.evaluation import TaskEvaluation
from drifa_jax.evaluate.facts import TrainingCost
from drifa_jax.evaluate.intervals import FEWEST_GROUPS, Interval
from drifa_jax.evaluate.metrics import SCALARS
from drifa_jax.evaluate.subgroups import SHOWN, SMALLEST_GROUP
from drifa_jax.report import panels
from drifa_jax.report.blocks import (
    Block,
    Cell,
    Facts,
    Heading,
    Note,
    Number,
    Numbers,
    Panels,
    Prose,
    Row,
    Section,
    Table,
    figure,
    interval_cell,
    interval_text,
)
from drifa_jax.uncertainty.calibration import reliability
from drifa_jax.uncertainty.selective import Referral, risk_coverage

TITLES = {metric.name: metric.title for metric in SCALARS}
HEADLINES = tuple(metric.name for metric in SCALARS if metric.headline)


def headline(of: Evaluated, folder: Path) -> Section:
    """What a reader takes away who reads nothing else."""
    blocks: list[Block] = []
    if of.synthetic:
        blocks.append(
            Note(
                "SYNTHETIC data: every image was drawn by a program. The figures show that the "
                "software works; they are no evidence about patients.",
                alarm=True,
            )
        )
    for task, found in of.tasks.items():
        blocks += [
            Heading(task),
            Prose(
                f"{_test_records(of, found)}, {len(found.classes)} classes: "
                f"{', '.join(found.classes)}."
            ),
            Numbers(
                f"Headline numbers of {task}",
                [_number(TITLES[name], found.metrics.scalars[name]) for name in HEADLINES],
            ),
        ]
    resamples = max((found.metrics.num_resamples for found in of.tasks.values()), default=0)
    blocks.append(
        Prose(
            f"Below each number is its 95 % interval from {resamples:,} bootstrap resamples of "
            f"whole {_groups(of)}. "
            f"The answer to each record is the mean of {_several(of.num_members, 'network')} times "
            f"{of.num_samples} Monte Carlo dropout samples, {_calibrated(of)}."
        )
    )
    if of.folds:
        blocks.append(
            Note(
                f"Out of fold: {len(of.folds)} of {of.config.data.num_folds} folds of one "
                "cross-validation, each record answered by the runs that were tested on it and "
                "never saw it. Explanations are of the first fold."
            )
        )
    for task, found in of.tasks.items():
        if found.metrics.num_groups < FEWEST_GROUPS:
            blocks.append(
                Note(
                    f"{task}: {found.metrics.num_groups} groups are too few for more than rough "
                    f"intervals; their coverage was checked from {FEWEST_GROUPS} groups on."
                )
            )
        notes = dict.fromkeys(note for fitted in found.post_processing for note in fitted.notes)
        blocks += [Note(f"{task}: {note}.") for note in notes]
    lacking = [task for task in of.description.tasks if task not in of.tasks]
    if lacking:
        blocks.append(Note(f"No test record has a label of {' or '.join(lacking)}."))
    return Section("results", "Results in short", blocks)


def data(of: Evaluated, folder: Path) -> Section:
    """Where the records came from, how they were split, and what could leak."""
    leak = of.data.leakage
    splits = Table(
        "Splits",
        ("split", "records", "groups"),
        [
            (name, f"{split.num_records:,}", f"{split.num_groups:,}")
            for name, split in of.data.splits.items()
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
            if of.config.data.pairing in ("index", "random")
            else "",
        )
        for name, of_part in of.data.parts.items()
    ]
    counts = [
        Table(
            f"Labelled records of {task}",
            ("class", *of.data.splits),
            [
                (
                    c,
                    *(
                        f"{split.class_counts[task].get(c, 0):,}"
                        for split in of.data.splits.values()
                    ),
                )
                for c in classes
            ],
        )
        for task, classes in of.description.tasks.items()
    ]
    facts = [
        ("Training data", of.data.splits["train"].description),
        ("Test data", of.data.splits["test"].description),
        ("Pairing", _pairing(of)),
        ("Split seed", str(of.config.data.split_seed)),
        ("Record ids in several splits", _count_or_none(leak.shared_records)),
        ("Groups in several splits", _count_or_none(leak.shared_groups)),
        ("Duplicate images across splits", _duplicates(of)),
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
    if leak.single_groups and not of.synthetic:
        blocks.append(
            Note(
                "Every record is its own group: nothing is known of which images belong to one "
                "patient. If patients have several, they may be in training and test at once, and "
                "the intervals are too narrow.",
                alarm=True,
            )
        )
    if not of.synthetic and leak.duplicates is None and not leak.duplicates_share_a_split:
        blocks.append(Note("Duplicate images were not looked for; they may leak."))
    return Section("data", "Data, splits and leakage", [*blocks, Row([splits, *parts, *counts])])


def learning(of: Evaluated, folder: Path) -> Section:
    """Learning curves of the first run."""
    drawn = panels.learning_panels(
        of.learning, list(of.description.tasks), folder, synthetic=of.synthetic
    )
    if not drawn:
        return Section("learning", "Learning curves")
    several = f" of the first of {of.num_members} members" if of.num_members > 1 else ""
    text = (
        f"Training and validation{several}. The weights evaluated here are those of step "
        f"{of.steps[0]:,}, where the validation loss was lowest."
    )
    return Section("learning", "Learning curves", [Prose(text), Panels(drawn)])


def classification(of: Evaluated, folder: Path) -> Section:
    """All metrics, by class, and the confusion matrix."""
    blocks: list[Block] = []
    for task, found in of.tasks.items():
        metrics = found.metrics
        blocks.append(Heading(task))
        alone = [c for c, n in zip(found.classes, metrics.support, strict=True) if n]
        if len(alone) == 1:
            blocks.append(
                Note(
                    f"Only the class {alone[0]!r} occurs among the test labels: AUROC, average "
                    "precision, kappa and Matthews correlation are undefined.",
                    alarm=True,
                )
            )
        blocks += [
            _confusion_table(task, found),
            Table(
                f"All metrics of {task}",
                ("metric", "value", "95 % interval"),
                [
                    (
                        TITLES[name],
                        Cell(figure(metrics.scalars[name].value), bar=_bar(metrics.scalars[name])),
                        interval_text(metrics.scalars[name]),
                    )
                    for name in TITLES
                ],
                note="Macro figures average over the classes that occur; weighted ones weigh "
                "classes by their records. Quadratic kappa means something only where classes are "
                "ordered. Brier score, likelihood and calibration error: lower is better.",
            ),
            Table(
                f"By class, {task}",
                ("class", "n", "sensitivity", "specificity", "precision", "F1", "AUROC", "AP"),
                [
                    (
                        c,
                        f"{metrics.support[k]:,}",
                        *(interval_cell(of_class[k]) for of_class in metrics.per_class.values()),
                    )
                    for k, c in enumerate(found.classes)
                ],
                note="n: labelled test records. AP: average precision. A class against the rest. "
                "Where no error was seen, the interval is the exact binomial one, marked so.",
            ),
        ]
        panels.confusion_panel(
            task, metrics.confusion, found.classes, folder, synthetic=of.synthetic
        )
    return Section("classification", "Classification", blocks)


def curves(of: Evaluated, folder: Path) -> Section:
    """ROC and precision-recall curves."""
    drawn, missing = [], []
    for task, found in of.tasks.items():
        for draw, name in (
            (panels.roc_panel, "auroc_of_class"),
            (panels.precision_recall_panel, "average_precision_of_class"),
        ):
            values = [one.value for one in found.metrics.per_class[name]]
            panel = draw(
                task,
                found.probabilities,
                found.labels,
                found.classes,
                values,
                folder,
                synthetic=of.synthetic,
            )
            drawn += [panel] if panel else []
            missing += [] if panel or task in missing else [task]
    blocks: list[Block] = [Panels(drawn)] if drawn else []
    blocks += [
        Note(f"{task}: only one class occurs among the labels, so that there is no curve.")
        for task in missing
    ]
    return Section("curves", "ROC and precision-recall", blocks)


def calibration(of: Evaluated, folder: Path) -> Section:
    """Whether a probability of 0.8 comes true eight times in ten."""
    names = {
        "ece": "ECE, 15 bins of equal width",
        "ece_equal_mass": "ECE, 15 bins of equal size",
        "ece_classwise": "ECE by class",
        "brier": "Brier score",
        "nll": "negative log-likelihood",
    }
    drawn, tables = [], []
    for task, found in of.tasks.items():
        method = found.answer.calibration
        curves_, errors = {"uncalibrated": reliability(found.raw, found.labels)}, {}
        errors["uncalibrated"] = found.calibration["raw"]["ece"]
        if method != "none":
            curves_[method] = reliability(found.probabilities, found.labels)
            errors[method] = found.calibration["shown"]["ece"]
        drawn.append(
            panels.reliability_panel(task, curves_, errors, folder, synthetic=of.synthetic)
        )
        columns = ["raw"] + ["shown"] * (method != "none")
        tables.append(
            Table(
                f"Calibration of {task}",
                ("metric", *errors),
                [
                    (title, *(figure(found.calibration[column][key], 4) for column in columns))
                    for key, title in names.items()
                ],
            )
        )
    fitted = [
        " and ".join(f"{fitted.num_validation:,}" for fitted in found.post_processing)
        + f" ({task})" * (len(of.tasks) > 1)
        for task, found in of.tasks.items()
        if found.post_processing
    ]
    text = (
        f"The calibration map was fitted on {' and '.join(fitted)} validation records and frozen; "
        "all other figures of this report are of the calibrated probabilities. "
        if fitted
        else "No calibration map was fitted. "
    )
    text += "The gap to the diagonal is the error; lower is better throughout."
    return Section(
        "calibration", "Calibration", [Prose(text), Panels(drawn), Row(tables)] if drawn else []
    )


def referral(of: Evaluated, folder: Path) -> Section:
    """What happens when the least certain records go to a human."""
    blocks: list[Block] = [
        Prose(
            "Records are ranked by predictive entropy. The certain ones are answered, the others "
            "referred. The oracle refers exactly the wrong ones first: no ranking does better."
        )
    ]
    drawn: list[panels.Panel] = []
    tables: list[Block] = []
    for task, found in of.tasks.items():
        entropy, wrong = found.entropy, found.wrong
        drawn += [
            panels.risk_coverage_panel(
                task,
                {
                    "predictive entropy": risk_coverage(entropy, wrong),
                    "mutual information": risk_coverage(
                        found.answer.uncertainty.mutual_information[found.rows], wrong
                    ),
                    "oracle": risk_coverage(wrong.astype(float), wrong),
                },
                folder,
                synthetic=of.synthetic,
            ),
            panels.uncertainty_panel(
                task,
                entropy,
                wrong,
                len(found.classes),
                found.threshold,
                folder,
                synthetic=of.synthetic,
            ),
        ]
        tables += [Heading(task), *_referral_tables(task, found)]
    return Section(
        "referral",
        "Uncertainty and referral",
        [*blocks, Panels(drawn), *tables] if drawn else [],
    )


def subgroups(of: Evaluated, folder: Path) -> Section:
    """Figures by sex, age, site, source, and whatever was asked for."""
    blocks: list[Block] = []
    for task, found in of.tasks.items():
        for column, rows in found.subgroups.items():
            blocks.append(
                Table(
                    f"{task} by {column.removeprefix(task + '/')}",
                    (column.rpartition("/")[2], "n", "groups", *(TITLES[name] for name in SHOWN)),
                    [
                        (
                            row.name,
                            f"< {SMALLEST_GROUP} groups: not shown",
                            *[""] * (len(SHOWN) + 1),
                        )
                        if row.suppressed
                        else (
                            row.name,
                            f"{row.num_records:,}",
                            f"{row.num_groups:,}",
                            *(interval_cell(row.metrics[name]) for name in SHOWN),
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
            f"Subgroups of fewer than {SMALLEST_GROUP} {_groups(of)} are not shown: their figures "
            "would say little and might identify someone. Overlapping intervals are no proof of "
            "equality, and of many differences some look large by chance; none is tested here."
        ),
    )
    return Section("subgroups", "Subgroups", blocks)


def cost(of: Evaluated, folder: Path) -> Section:
    """Parameters, operations, time and memory."""
    found, training = of.cost, of.cost.training
    device = of.evaluated_by.get("device_kind", "unknown device")
    count = len(of.evaluated_by.get("devices", ())) or 1
    draws = of.num_members * of.num_samples
    return Section(
        "cost",
        "Cost",
        [
            Facts(
                [
                    (
                        "Parameters",
                        f"{found.num_parameters:,} each of {_several(of.num_members, 'network')}",
                    ),
                    (
                        "Operations",
                        "not known"
                        if found.flops is None
                        else f"{_scaled(found.flops)}FLOP for one record, one member, one pass",
                    ),
                    (
                        "Time of an answer",
                        f"{1000 * found.seconds_per_record:,.1f} ms a record for {draws} draws "
                        f"(with compilation, in this evaluation) on {count} x {device}",
                    ),
                    ("Peak memory", f"{_scaled(found.peak_memory_bytes)}B"),
                    ("Training time", _training_time(training)),
                    (
                        "Training speed",
                        "not logged"
                        if training.records_per_second is None
                        else f"{training.records_per_second:,.1f} records a second, after the "
                        f"first step, on {training.devices}",
                    ),
                    (
                        "Peak memory in training",
                        "not logged"
                        if training.peak_memory_bytes is None
                        else f"{_scaled(training.peak_memory_bytes)}B",
                    ),
                ]
            )
        ],
    )


def reproduction(of: Evaluated, folder: Path) -> Section:
    """What it takes to get the same figures again."""
    trained, evaluated = of.trained_by, of.evaluated_by

    def packages(environment):
        held = environment.get("packages", {})
        return ", ".join(f"{name} {version}" for name, version in held.items()) or "not known"

    return Section(
        "reproduction",
        "Environment and reproduction",
        [
            Facts(
                [
                    ("Training command", _command(trained)),
                    ("Evaluation command", _command(evaluated)),
                    ("Packages, training", packages(trained)),
                    ("Packages, evaluation", packages(evaluated)),
                ],
                wide=True,
            ),
            Facts(
                [
                    ("Run", ", ".join(str(run) for run in of.runs)),
                    ("Code, training", str(trained.get("git_commit") or "not known")),
                    ("Code, evaluation", str(evaluated.get("git_commit") or "not known")),
                    ("Training seed", str(of.config.train.seed)),
                    ("Split seed", str(of.config.data.split_seed)),
                    ("Seed of samples and resamples", str(of.seed)),
                    ("Python", str(evaluated.get("python", "not known"))),
                    ("Platform", str(evaluated.get("platform", "not known"))),
                    ("Devices", ", ".join(evaluated.get("devices", ())) or "not known"),
                ]
            ),
            Prose(
                "The resolved configuration is config.json in the run; metrics.json, "
                "predictions.csv and predictions.parquet beside this report hold every figure and "
                "every record behind it."
            ),
        ],
    )


SectionMaker = Callable[[Evaluated, Path], Section]

SECTIONS: tuple[SectionMaker, ...] = (
    headline,
    data,
    learning,
    classification,
    curves,
    calibration,
    referral,
    subgroups,
    cost,
    reproduction,
)


def _confusion_table(task: str, found: TaskEvaluation) -> Table:
    rows = []
    for c, counts in zip(found.classes, found.metrics.confusion, strict=True):
        total = max(sum(counts), 1)
        cells = [Cell(f"{n:,}", f"{n / total:.0%}", share=n / total) for n in counts]
        rows.append((c, *cells))
    return Table(
        f"Confusion matrix of {task}",
        ("truth", *found.classes),
        rows,
        note="A row for each true class, a column for each called class; counts, and below them "
        "shares of the true class.",
    )


def _referral_tables(task: str, found: TaskEvaluation) -> list[Block]:
    def row(name: str, of: Referral) -> tuple[str, ...]:
        after = "-" if of.error_after is None else f"{of.error_after:.1%}"
        caught = "-" if of.errors_caught is None else f"{of.errors_caught:.0%}"
        return (name, f"{of.referred:.1%}", after, caught)

    rows = [row(f"{share:.0%} least certain", of) for share, of in found.referrals.items()]
    if found.frozen is not None:
        rows.insert(0, row("frozen rule", found.frozen))
    rows.insert(0, ("nobody referred", "0.0%", f"{found.wrong.mean():.1%}", "0%"))
    tables: list[Table | Facts] = [
        Table(
            f"Referral of {task}",
            ("rule", "referred", "error of the rest", "errors caught"),
            rows,
            note="The frozen rule was fitted on validation records. The other rows use "
            "thresholds of the test records themselves: they describe, they promise nothing.",
        )
    ]
    ranks = found.selective
    facts = [
        ("Area under the risk-coverage curve", figure(ranks["aurc"], 4)),
        ("In excess of the oracle's", figure(ranks["excess_aurc"], 4)),
        ("Generalised (AUGRC)", figure(ranks["augrc"], 4)),
        (
            "AUROC of finding errors",
            "undefined: all records are right, or all wrong"
            if ranks["error_detection_auroc"] is None
            else figure(ranks["error_detection_auroc"]),
        ),
    ]
    if found.set_coverage is not None:
        promised = found.promised
        facts.append(
            (
                f"Prediction sets promised {promised:.0%}",
                f"hold the truth in {found.set_coverage:.1%}, with {found.set_size:.2f} classes "
                "on average",
            )
        )
    if found.certainty is not None:
        t = found.certainty
        tables.append(
            Table(
                f"Certain or uncertain, right or wrong, {task}",
                ("", "right", "wrong"),
                [
                    ("certain", f"{t.certain_right:,}", f"{t.certain_wrong:,}"),
                    ("uncertain (referred)", f"{t.uncertain_right:,}", f"{t.uncertain_wrong:,}"),
                ],
                note="By the frozen rule. Certain and wrong is what harms.",
            )
        )
    return [Row(tables), Facts(facts)]


def _number(label: str, of: Interval) -> Number:
    return Number(label, figure(of.value), interval_text(of), _bar(of))


def _bar(of: Interval) -> tuple[float, float, float] | None:
    if of.low is None or not 0 <= of.low <= of.high <= 1:
        return None
    return of.low, of.value, of.high


def _training_time(training: TrainingCost) -> str:
    if training.seconds is None:
        return "not logged"
    text = f"{_duration(training.seconds)}, with compilation and validation"
    if training.num_attempts > training.num_runs:
        text += f", in {training.num_attempts} attempts"
    return text


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _test_records(of: Evaluated, found: TaskEvaluation) -> str:
    count = f"{found.metrics.num_records:,} labelled test records"
    if of.data.leakage.single_groups:
        return f"{count}, each its own group"
    return f"{count} of {found.metrics.num_groups:,} {_groups(of)}"


def _groups(of: Evaluated) -> str:
    """What a group is called: they are patients only where someone said so."""
    return "records" if of.data.leakage.single_groups else "groups (patients, lesions)"


def _calibrated(of: Evaluated) -> str:
    methods = {t.answer.calibration for t in of.tasks.values()}
    named = sorted(methods - {"none"})
    return f"calibrated by {' and '.join(named)}" if named else "uncalibrated"


def _pairing(of: Evaluated) -> str:
    if of.config.data.source == "phantoms":
        return "the modalities of a record show the same synthetic head"
    meaning = {
        "paired": "the same record id in every modality",
        "index": "strangers side by side, by their place in the lists",
        "random": "strangers side by side, drawn anew in every epoch",
        "by_task": "none: a record has one modality",
    }
    return f"{of.config.data.pairing}: {meaning.get(of.config.data.pairing, '')}"


def _duplicates(of: Evaluated) -> str:
    leak = of.data.leakage
    if of.synthetic:
        return "none: every image is drawn anew"
    if leak.duplicates_share_a_split:
        return "near duplicates share a split (data.duplicates=group)"
    if leak.duplicates is not None:
        return f"{leak.duplicates:,} found and removed from training"
    if of.config.data.split_folder:
        return "as in the splits that were read (data.split_folder)"
    return "kept as distributed (data.duplicates=keep)"


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _count_or_none(count: int) -> str:
    return f"{count:,}" if count else "none"


def _command(environment) -> str:
    words: Sequence[str] = environment.get("command", ())
    if not words:
        return "not known"
    program = Path(words[0]).name
    named = {"cli.py": "drifa", "main.py": "python -m drifa_jax.main"}.get(program, program)
    return f"{named} {shlex.join(words[1:])}"


def _scaled(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:,.2f} {prefix}"
    return f"{value:,.0f} "
