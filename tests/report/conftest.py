"""An evaluation made of drawn predictions: no network is needed to test what is made of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from drifa_jax.config import from_mapping, modality
from drifa_jax.data.record import ModalitySpec
from drifa_jax.evaluate.evaluated import Evaluated
from drifa_jax.evaluate.evaluation import evaluate_tasks
from drifa_jax.evaluate.facts import Cost, DataSummary, Leakage, SplitSummary, TrainingCost
from drifa_jax.post_processing.task import PostProcessingOptions, fit_task
from drifa_jax.predict.described import Description
from drifa_jax.predictions.table import Predictions, Provenance, task_predictions
from drifa_jax.uncertainty.measures import from_samples

TASKS = {"tumour": ("glioma", "<b>none</b> & 'other'"), "stroke": ("no", "early", "late")}


def drawn_uncertainty(labels: np.ndarray, num_classes: int, seed: int):
    """Measures of six samples of a network that is right more often than not."""
    draw = np.random.default_rng(seed)
    logits = 2 * np.eye(num_classes)[labels] + draw.normal(size=(len(labels), num_classes))
    samples = logits + 0.5 * draw.normal(size=(1, 6, len(labels), num_classes))
    p = np.exp(samples)
    return from_samples(p / p.sum(-1, keepdims=True))


def make_evaluated(*, synthetic=True, num_records=240, labels=None, groups=2, attributes=True):
    """An evaluation of `num_records` records, `groups` of each patient."""
    draw = np.random.default_rng(0)
    if labels is None:
        labels = {t: draw.integers(0, len(c), num_records) for t, c in TASKS.items()}
        labels["stroke"][:5] = -1
    known = {t: np.maximum(of, 0) for t, of in labels.items()}
    of_validation = {t: draw.integers(0, len(c), 120) for t, c in TASKS.items()}
    decisions = {
        task: fit_task(
            drawn_uncertainty(of_validation[task], len(classes), 1),
            of_validation[task],
            PostProcessingOptions(),
        )
        for task, classes in TASKS.items()
    }
    tasks = {}
    for task, classes in TASKS.items():
        uncertainty = drawn_uncertainty(known[task], len(classes), 2)
        found = task_predictions(classes, uncertainty, decisions[task])
        tasks[task] = dataclasses.replace(found, truth=labels[task])
    answers = Predictions(
        record_ids=tuple(f"r{i}" for i in range(num_records)),
        tasks=tasks,
        provenance=Provenance(synthetic=synthetic, data="test records"),
        group_ids=tuple(f"p{i // groups}" for i in range(num_records)),
        attributes={
            "sex": tuple("fm"[i % 2] for i in range(num_records)),
            "age": tuple(str(20 + i % 60) for i in range(num_records)),
        }
        if attributes
        else {},
        present={m: np.ones(num_records, bool) for m in ("mri", "ct")},
    )
    counts = {t: dict.fromkeys(c, 10) for t, c in TASKS.items()}
    splits = {
        s: SplitSummary(f"{s} records", num_records, num_records // groups, counts)
        for s in ("train", "validation", "test")
    }
    evaluated = Evaluated(
        runs=(Path("runs/drawn"),),
        num_members=1,
        config=from_mapping({"data": {"modalities": {"mri": modality(), "ct": modality()}}}),
        description=Description(
            (ModalitySpec("mri", 16, 16, 1), ModalitySpec("ct", 16, 16, 1)),
            {"mri": "stretch", "ct": "stretch"},
            TASKS,
            False,
            synthetic,
            "drawn records",
        ),
        steps=(40,),
        num_samples=6,
        seed=0,
        num_records=num_records,
        tasks=evaluate_tasks(
            answers, {t: [found] for t, found in decisions.items()}, num_resamples=100
        ),
        data=DataSummary(splits, Leakage(0, 0, groups == 1, None), synthetic),
        cost=Cost(
            1234567, 7.2e7, 0.031, 900_000_000, TrainingCost(5400.0, 1, 2, 88.0, 2**31, "1 x cpu")
        ),
        learning=[
            {
                "split": s,
                "step": e,
                "epoch": e,
                **{f"{t}/{q}": 1 / e for t in TASKS for q in ("loss", "accuracy")},
            }
            for e in (1, 2, 3)
            for s in ("train", "validation")
        ],
        trained_by={"command": ["drifa", "train"], "git_commit": "abc"},
        evaluated_by={"command": ["drifa", "evaluate"], "devices": ["cpu:0"], "device_kind": "cpu"},
    )
    return answers, evaluated


@pytest.fixture(scope="session")
def evaluated():
    return make_evaluated()


@pytest.fixture(scope="session")
def single_class():
    """Real data without attributes, each record its own group, one class of tumour only."""
    labels = {"tumour": np.zeros(240, int), "stroke": np.arange(240) % 3}
    return make_evaluated(synthetic=False, labels=labels, groups=1, attributes=False)[1]


@pytest.fixture(scope="session")
def evaluation_folder(evaluated, tmp_path_factory) -> Path:
    """The folder that `drifa evaluate` would write, with a picture among its sections."""
    from drifa_jax.report.blocks import Case, Cases, Heading, Pictures, Section, picture
    from drifa_jax.report.evaluation_report import write_evaluation

    answers, of = evaluated
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    folder.mkdir()
    pixels = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    ramp = picture(pixels, alt="a ramp from dark to light", caption="c")
    case = Case("late, 0.93; truth: no", [ramp], [("mri adds", "+0.40")], "r7")
    extra = Section("gallery", "Gallery", [Pictures([ramp]), Heading("stroke"), Cases([case] * 3)])
    write_evaluation(of, answers, folder, extra=[extra])
    return folder


@pytest.fixture(scope="session")
def comparison_folder(evaluation_folder, tmp_path_factory) -> Path:
    """What `drifa compare` writes of an evaluation and a noisier copy of it."""
    import shutil

    from drifa_jax.cli import main
    from drifa_jax.predictions.files import read_predictions, write_predictions

    folder = tmp_path_factory.mktemp("comparison")
    shutil.copytree(evaluation_folder, folder / "noisier")
    path = folder / "noisier" / "predictions.parquet"
    predictions, draw = read_predictions(path), np.random.default_rng(3)
    tasks = {}
    for task, found in predictions.tasks.items():
        p = found.probabilities * np.exp(draw.normal(size=found.probabilities.shape))
        tasks[task] = dataclasses.replace(found, probabilities=p / p.sum(1, keepdims=True))
    write_predictions(dataclasses.replace(predictions, tasks=tasks), path)
    out = folder / "out"
    arguments = [str(evaluation_folder), str(folder / "noisier"), "--out", str(out)]
    assert main(["compare", *arguments, "--resamples", "200"]) == 0
    return out
