import csv
import io
import json

import numpy as np

from drifa_jax.ablate.scores import Scores
from drifa_jax.ablate.table import as_csv, as_json, as_markdown, document
from drifa_jax.ablate.variants import Variant

VARIANTS = (
    Variant("drifa", "as configured", {}),
    Variant("concatenation", "no attention", {}),
    Variant("only_ct", "ct alone", {}),
)


def of_network(share, seed, num=300):
    """One network's scores of two tasks; a task's records answer right with this probability."""
    draw = np.random.default_rng(seed)
    labels = (np.arange(num) % 2).astype(np.int32)
    called = np.where(draw.random(num) < share, labels, 1 - labels)
    ids = np.array([f"mri:{i:03d}" for i in range(num)])
    probabilities = (0.1 + 0.8 * np.eye(2, dtype=np.float32)[called]).astype(np.float32)
    return {"tumour": Scores(ids, ids, labels, probabilities)}


def study(drifa, plain, num_seeds=3):
    return {
        "drifa": [of_network(drifa, seed) for seed in range(num_seeds)],
        "concatenation": [of_network(plain, seed + 100) for seed in range(num_seeds)],
    }


def sentence(drifa, plain, num_seeds=3):
    of = document(VARIANTS, study(drifa, plain, num_seeds), num_resamples=400)
    return of["tasks"]["tumour"]["verdict"]


def test_the_sentence_says_what_the_figures_say():
    assert "beats plain concatenation" in sentence(0.9, 0.6)
    assert "is worse than plain concatenation" in sentence(0.6, 0.9)
    assert "is not shown to beat" in sentence(0.75, 0.75)
    assert "leaves out most" in sentence(0.9, 0.6, num_seeds=2)
    assert "leaves out most" not in sentence(0.9, 0.6)


def test_without_plain_concatenation_nothing_is_claimed():
    of = document(VARIANTS, {"drifa": [of_network(0.9, 0)]}, num_resamples=50)
    assert "nothing is known about the fusion" in of["tasks"]["tumour"]["verdict"]


def test_differences_are_those_of_the_means_and_lie_in_their_interval():
    of = document(VARIANTS, study(0.8, 0.7), num_resamples=400)["tasks"]["tumour"]["rows"]
    drifa, plain = of
    difference = plain["against_reference"]["balanced_accuracy"]
    expected = (
        plain["metrics"]["balanced_accuracy"]["mean"]
        - drifa["metrics"]["balanced_accuracy"]["mean"]
    )
    assert np.isclose(difference["difference"], expected)
    assert difference["low"] < difference["difference"] < difference["high"]
    assert "against_reference" not in drifa


def test_a_variant_is_compared_on_the_records_it_shares_with_the_reference():
    part = [
        {"tumour": Scores(*(getattr(of["tumour"], f)[:100] for f in Scores.__dataclass_fields__))}
        for of in study(0.8, 0.7)["concatenation"]
    ]
    of = document(VARIANTS, study(0.8, 0.7) | {"only_ct": part}, num_resamples=50)
    row = of["tasks"]["tumour"]["rows"][-1]
    assert row["num_records"] == row["against_reference"]["num_records"] == 100


def test_a_task_that_a_variant_does_not_answer_has_no_row_for_it():
    runs = study(0.8, 0.7)
    runs = {
        name: [of | {"stroke": of["tumour"]} if name == "drifa" else of for of in seeds]
        for name, seeds in runs.items()
    }
    of = document(VARIANTS, runs, num_resamples=50)
    assert [row["variant"] for row in of["tasks"]["stroke"]["rows"]] == ["drifa"]
    assert [row["variant"] for row in of["tasks"]["tumour"]["rows"]] == ["drifa", "concatenation"]


def test_markdown_csv_and_json_hold_the_same_numbers():
    of = document(VARIANTS, study(0.8, 0.7), num_resamples=50)
    mean = of["tasks"]["tumour"]["rows"][0]["metrics"]["balanced_accuracy"]["mean"]
    assert f"{mean:.3f} ±" in as_markdown(of)
    rows = list(csv.DictReader(io.StringIO(as_csv(of))))
    assert len(rows) == 2 * 3
    assert float(rows[1]["mean"]) == mean and rows[1]["metric"] == "balanced_accuracy"
    assert json.loads(as_json(of))["tasks"]["tumour"]["rows"][0]["metrics"]["auroc"]["mean"]


def test_a_test_split_of_one_class_says_that_auroc_is_undefined():
    one = of_network(0.8, 0)["tumour"]
    single = Scores(one.record_ids, one.groups, np.zeros_like(one.labels), one.probabilities)
    of = document(VARIANTS, {"drifa": [{"tumour": single}]}, num_resamples=50)
    assert "undefined" in as_markdown(of)
    assert "one class" in as_json(of)
