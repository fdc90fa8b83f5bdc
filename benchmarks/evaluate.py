"""Where the time of `drifa evaluate` goes: the network, the statistics, the report.

    python -m benchmarks.evaluate

Predictions of 10,000 records (two tasks of 7 and 4 classes, one to five records a patient, three
subgroup columns) are drawn, since the statistics do not care where they come from. The network is
timed on a few records at E=5 members and T=30 samples and scaled to 10,000; its size is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from drifa_jax.evaluate.evaluation import evaluate_tasks
from drifa_jax.evaluate.intervals import bootstrap, group_numbers
from drifa_jax.evaluate.metrics import measured
from drifa_jax.evaluate.resamples import ScoredRecords
from drifa_jax.models.building import drifa_net
from drifa_jax.models.functional import Functional
from drifa_jax.network_options import NetworkOptions
from drifa_jax.post_processing.task import PostProcessingOptions, fit_task
from drifa_jax.predictions.table import Predictions, task_predictions
from drifa_jax.uncertainty.mc_dropout import make_sampler, record_words
from drifa_jax.uncertainty.measures import from_samples

TASKS = {"lesion": tuple("abcdefg"), "tumour": ("glioma", "meningioma", "pituitary", "none")}
NUM_RECORDS, NUM_RESAMPLES, MEMBERS, SAMPLES = 10_000, 2_000, 5, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network-records", type=int, default=4, help="0 leaves the network out")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    answers, decisions = drawn()

    lesion = answers["lesion"]
    records = ScoredRecords(lesion.probabilities, lesion.truth, group_numbers(answers.record_ids))
    measured(records.everything())
    seconds, _ = timed(
        lambda: bootstrap(
            lambda weights: measured(records(weights)),
            NUM_RECORDS,
            num_resamples=NUM_RESAMPLES,
            seed=0,
        )
    )
    say(f"bootstrap, 1 task, 7 classes, {NUM_RESAMPLES:,} x {NUM_RECORDS:,}", seconds)
    statistics, tasks = timed(
        lambda: evaluate_tasks(
            answers, {t: [found] for t, found in decisions.items()}, num_resamples=NUM_RESAMPLES
        )
    )
    say("all statistics, 2 tasks, 3 subgroup columns", statistics)
    report, size = timed(lambda: written(answers, tasks))
    say(f"tables, figures and report ({size / 1e6:.1f} MB)", report)
    if options.network_records:
        network = network_seconds(options)
        say(f"network, E={MEMBERS}, T={SAMPLES}, width {options.width}, {options.size} px", network)
        share = network / (network + statistics + report)
        print(f"the network takes {share:.1%} of {NUM_RECORDS:,} records' evaluation")


def drawn() -> tuple[Predictions, dict]:
    """Answers to records of patients with one to five of them, and rules fitted on others."""
    draw = np.random.default_rng(0)
    patients = np.repeat(np.arange(NUM_RECORDS), draw.integers(1, 6, NUM_RECORDS))[:NUM_RECORDS]
    tasks, decisions = {}, {}
    for task, classes in TASKS.items():
        labels = draw.integers(0, len(classes), NUM_RECORDS)
        logits = 2 * np.eye(len(classes))[labels]
        logits = logits + draw.normal(size=(1, 6, NUM_RECORDS, len(classes)))
        p = np.exp(logits)
        uncertainty = from_samples(p / p.sum(-1, keepdims=True))
        decisions[task] = fit_task(uncertainty, labels, PostProcessingOptions())
        found = task_predictions(classes, uncertainty, decisions[task])
        tasks[task] = dataclasses.replace(found, truth=labels)
    every = range(NUM_RECORDS)
    attributes = {
        "sex": tuple("fm"[i % 2] for i in every),
        "age": tuple(str(i % 90) for i in every),
        "site": tuple(f"site {i % 4}" for i in every),
    }
    present = {m: np.ones(NUM_RECORDS, bool) for m in ("mri", "ct")}
    answers = Predictions(
        record_ids=tuple(f"record-{i}" for i in every),
        tasks=tasks,
        group_ids=tuple(f"patient-{i}" for i in patients),
        attributes=attributes,
        present=present,
    )
    return answers, decisions


def written(answers: Predictions, tasks) -> int:
    """Writes the folder; the report's size in bytes."""
    from drifa_jax.config import from_mapping, modality
    from drifa_jax.data.record import ModalitySpec
    from drifa_jax.evaluate.evaluated import Evaluated
    from drifa_jax.evaluate.facts import Cost, DataSummary, Leakage, SplitSummary, TrainingCost
    from drifa_jax.evaluate.folders import REPORT_FILE
    from drifa_jax.predict.described import Description
    from drifa_jax.report.evaluation_report import write_evaluation

    counts = {task: dict.fromkeys(classes, 1) for task, classes in TASKS.items()}
    split = SplitSummary("drawn records", NUM_RECORDS, NUM_RECORDS, counts)
    specs = (ModalitySpec("mri", 64, 64, 1), ModalitySpec("ct", 64, 64, 1))
    lines = [
        {
            "split": s,
            "epoch": e,
            "step": e,
            **{f"{t}/{q}": 1 / e for t in TASKS for q in QUANTITIES},
        }
        for e in range(1, 201)
        for s in ("train", "validation")
    ]
    of = Evaluated(
        runs=(Path("drawn"),),
        num_members=MEMBERS,
        config=from_mapping({"data": {"modalities": {"mri": modality(), "ct": modality()}}}),
        description=Description(specs, {}, TASKS, False, True, "drawn records"),
        steps=(1,),
        num_samples=SAMPLES,
        seed=0,
        num_records=NUM_RECORDS,
        tasks=tasks,
        data=DataSummary(
            dict.fromkeys(("train", "validation", "test"), split), Leakage(0, 0, False, 0), True
        ),
        cost=Cost(1, 1.0, 1.0, 1, TrainingCost()),
        learning=lines,
        trained_by={},
        evaluated_by={},
    )
    with tempfile.TemporaryDirectory() as folder:
        write_evaluation(of, answers, Path(folder))
        return (Path(folder) / REPORT_FILE).stat().st_size


QUANTITIES = ("loss", "accuracy")


def network_seconds(options: argparse.Namespace) -> float:
    """Of 10,000 records, from a few, without compilation."""
    network = Functional(
        lambda rngs: drifa_net(
            {"mri": 1, "ct": 1},
            {task: len(classes) for task, classes in TASKS.items()},
            options=NetworkOptions(width=options.width),
            rngs=rngs,
        )
    )
    params, statistics = network.init(jax.random.key(0))
    members = jax.tree.map(
        lambda leaf: np.stack([np.asarray(leaf)] * MEMBERS), (params, statistics)
    )
    sampler = make_sampler(network, num_samples=SAMPLES)
    count = options.network_records
    pixels = {m: np.zeros((count, options.size, options.size, 1), np.uint8) for m in ("mri", "ct")}
    words = record_words([str(i) for i in range(count)])

    def run():
        return jax.block_until_ready(
            sampler(*members, pixels, jax.random.key(0), words, None, None)
        )

    run()
    return timed(run)[0] / count * NUM_RECORDS


def timed(function):
    """Seconds and the result."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def say(what: str, seconds: float) -> None:
    print(f"{what:70s} {seconds:10.2f} s", flush=True)


if __name__ == "__main__":
    main()
