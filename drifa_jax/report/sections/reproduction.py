"""What the network costs, and what it takes to make the figures again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.facts import TrainingCost
from drifa_jax.report.blocks import (
    Facts,
    Prose,
    Section,
)
from drifa_jax.report.sections.wording import duration, several


def cost(evaluated: Evaluated, folder: Path) -> Section:
    """Parameters, operations, time and memory."""
    found, training = evaluated.cost, evaluated.cost.training
    device = evaluated.evaluated_by.get("device_kind", "unknown device")
    count = len(evaluated.evaluated_by.get("devices", ())) or 1
    draws = evaluated.num_members * evaluated.num_samples
    return Section(
        "cost",
        "Cost",
        [
            Facts(
                [
                    (
                        "Parameters",
                        f"{found.num_parameters:,} each of "
                        f"{several(evaluated.num_members, 'network')}",
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


def reproduction(evaluated: Evaluated, folder: Path) -> Section:
    """What it takes to get the same figures again."""
    training, testing = evaluated.trained_by, evaluated.evaluated_by

    def packages(environment):
        held = environment.get("packages", {})
        return ", ".join(f"{name} {version}" for name, version in held.items()) or "not known"

    return Section(
        "reproduction",
        "Environment and reproduction",
        [
            Facts(
                [
                    ("Training command", _command(training)),
                    ("Evaluation command", _command(testing)),
                    ("Packages, training", packages(training)),
                    ("Packages, evaluation", packages(testing)),
                ],
                wide=True,
            ),
            Facts(
                [
                    ("Run", ", ".join(str(run) for run in evaluated.runs)),
                    ("Code, training", str(training.get("git_commit") or "not known")),
                    ("Code, evaluation", str(testing.get("git_commit") or "not known")),
                    ("Training seed", str(evaluated.config.train.seed)),
                    ("Split seed", str(evaluated.config.data.split_seed)),
                    ("Seed of samples and resamples", str(evaluated.seed)),
                    ("Python", str(testing.get("python", "not known"))),
                    ("Platform", str(testing.get("platform", "not known"))),
                    ("Devices", ", ".join(testing.get("devices", ())) or "not known"),
                ]
            ),
            Prose(
                "The resolved configuration is config.json in the run; metrics.json, "
                "predictions.csv and predictions.parquet beside this report hold every figure and "
                "every record behind it."
            ),
        ],
    )


def _training_time(training: TrainingCost) -> str:
    if training.seconds is None:
        return "not logged"
    text = f"{duration(training.seconds)}, with compilation and validation"
    if training.num_attempts > training.num_runs:
        text += f", in {training.num_attempts} attempts"
    return text


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
