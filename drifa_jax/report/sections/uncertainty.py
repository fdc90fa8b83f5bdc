"""Whether probabilities can be believed, and what referring the uncertain gains."""

from __future__ import annotations

from pathlib import Path

from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.evaluation import TaskEvaluation
from drifa_jax.report import panels
from drifa_jax.report.blocks import (
    Block,
    Facts,
    Heading,
    Panels,
    Prose,
    Row,
    Section,
    Table,
    figure,
)
from drifa_jax.report.canvas import Panel
from drifa_jax.uncertainty.calibration import reliability
from drifa_jax.uncertainty.selective import Referral, risk_coverage


def calibration(evaluated: Evaluated, folder: Path) -> Section:
    """Whether a probability of 0.8 comes true eight times in ten."""
    names = {
        "ece": "ECE, 15 bins of equal width",
        "ece_equal_mass": "ECE, 15 bins of equal size",
        "ece_classwise": "ECE by class",
        "brier": "Brier score",
        "nll": "negative log-likelihood",
    }
    drawn, tables = [], []
    for task, found in evaluated.tasks.items():
        method = found.answer.calibration
        curves_, errors = {"uncalibrated": reliability(found.raw, found.labels)}, {}
        errors["uncalibrated"] = found.calibration["raw"]["ece"]
        if method != "none":
            curves_[method] = reliability(found.probabilities, found.labels)
            errors[method] = found.calibration["shown"]["ece"]
        drawn.append(
            panels.reliability_panel(task, curves_, errors, folder, synthetic=evaluated.synthetic)
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
        + f" ({task})" * (len(evaluated.tasks) > 1)
        for task, found in evaluated.tasks.items()
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


def referral(evaluated: Evaluated, folder: Path) -> Section:
    """What happens when the least certain records go to a human."""
    blocks: list[Block] = [
        Prose(
            "Records are ranked by predictive entropy. The certain ones are answered, the others "
            "referred. The oracle refers exactly the wrong ones first: no ranking does better."
        )
    ]
    drawn: list[Panel] = []
    tables: list[Block] = []
    for task, found in evaluated.tasks.items():
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
                synthetic=evaluated.synthetic,
            ),
            panels.uncertainty_panel(
                task,
                entropy,
                wrong,
                len(found.classes),
                found.threshold,
                folder,
                synthetic=evaluated.synthetic,
            ),
        ]
        tables += [Heading(task), *_referral_tables(task, found)]
    return Section(
        "referral",
        "Uncertainty and referral",
        [*blocks, Panels(drawn), *tables] if drawn else [],
    )


def _referral_tables(task: str, found: TaskEvaluation) -> list[Block]:
    def row(name: str, told: Referral) -> tuple[str, ...]:
        after = "-" if told.error_after is None else f"{told.error_after:.1%}"
        caught = "-" if told.errors_caught is None else f"{told.errors_caught:.0%}"
        return (name, f"{told.referred:.1%}", after, caught)

    rows = [row(f"{share:.0%} least certain", told) for share, told in found.referrals.items()]
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
