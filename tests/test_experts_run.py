"""A product of experts that read every resolution, behind identity gates, through a whole run."""

from __future__ import annotations

import dataclasses
import signal

import chex
import jax
import numpy as np
import pytest
from jax.nn import log_softmax

import drifa_jax
from drifa_jax.commands.train import train_and_test
from drifa_jax.errors import UserError
from drifa_jax.explain.contribution import contributions
from drifa_jax.explain.explanation import explain_records
from drifa_jax.predict.export import export, verify
from drifa_jax.train.experiment import build_experiment
from tests.train import toy
from tests.train.test_loop import stop_after

MEMBERS = 2


def experts_config(**train):
    config = toy.toy_config(
        model={
            "backbone": "toy",
            "readout": "experts",
            "read_stages": "resolutions",
            "fusion": "identity_gates",
            "gate_rank": 2,
        },
        train={"expert_weights": {"ct": 2.0}, "class_weights": "balanced", **train},
        ensemble={"num_members": MEMBERS},
        uncertainty={"num_mc_samples": 2},
    )
    data = dataclasses.replace(config.data, modality_dropout=0.3)
    return dataclasses.replace(config, data=data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts") / "run"
    with jax.numpy_dtype_promotion("standard"):
        assert train_and_test(experts_config(), folder) == 0
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    with jax.numpy_dtype_promotion("standard"):
        return drifa_jax.load(run)


@pytest.fixture(scope="module")
def cases(predictor):
    """Pixels and presence of three records, of which the last lacks the ct."""
    draw = np.random.default_rng(0)
    images = {m: list(draw.integers(0, 256, (3, 16, 16), np.uint8)) for m in ("mri", "ct")}
    images["ct"][2] = None
    return predictor.read(images)


def test_the_prior_of_the_training_records_is_kept_with_the_network(predictor):
    log_prior = predictor.restored.statistics["heads"]["tumour"]["log_prior"]
    np.testing.assert_allclose(np.exp(log_prior).sum(-1), np.ones(MEMBERS), rtol=1e-6)
    # Under balanced class weights each class that occurs counts nearly alike; Laplace's rule
    # leaves a little of the frequencies.
    np.testing.assert_array_equal(log_prior[0], log_prior[1])
    assert np.ptp(np.exp(log_prior[0])) < 0.15


def test_experts_and_their_temperatures_learn(predictor):
    temperatures = predictor.restored.params["heads"]["tumour"]["log_temperatures"]
    assert set(temperatures) == {"mri", "ct", "fused"}
    for values in temperatures.values():
        assert values.shape == (MEMBERS,) and np.all(values != np.log(np.float32(2)))


def test_factors_add_up_to_the_answer_exactly(predictor, cases):
    pixels, present = cases
    restored, classes = predictor.restored, np.array([0, 1, 2])
    shares = contributions(restored, pixels, "tumour", classes, present=present)
    log_prior = restored.statistics["heads"]["tumour"]["log_prior"]
    for member in range(MEMBERS):
        params, statistics = jax.tree.map(
            lambda leaf, i=member: leaf[i], (restored.params, restored.statistics)
        )
        (logits, _), _ = restored.network.apply(
            params,
            statistics,
            {m: np.asarray(x, np.float32) / 255 for m, x in pixels.items()},
            train=False,
            present=present,
        )
        log_p = np.asarray(log_softmax(logits["tumour"]))
        clr_p = log_p - log_p.mean(-1, keepdims=True)
        clr_prior = log_prior[member] - log_prior[member].mean()
        total = sum(factor[member] for factor in shares.factors.values())
        np.testing.assert_allclose(
            total, clr_p[np.arange(3), classes] - clr_prior[classes], atol=1e-5
        )
    assert not np.any(shares.factors["ct"][:, 2])


def test_records_are_explained_with_their_factors(predictor, cases):
    pixels, present = cases
    explained = explain_records(predictor, ["a", "b", "c"], pixels, present, "tumour")
    assert set(explained[0].maps) == {"mri", "ct"}
    assert set(explained[0].factors) == {"mri", "ct", "fused"}
    assert set(explained[2].factors) == {"mri", "fused"}


def test_its_answers_are_calibrated_sampled_and_put_into_sets(predictor, cases):
    pixels, present = cases
    answers = predictor.predict(pixels, present, ["a", "b", "c"]).tasks["tumour"]
    fitted = predictor.post_processing.tasks["tumour"]
    measured = predictor.uncertainty(pixels, present, ["a", "b", "c"])["tumour"]
    # A product is a distribution like any other; what follows takes no notice of how it came about.
    np.testing.assert_allclose(answers.probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        answers.probabilities, fitted.calibrator(measured.probabilities), rtol=1e-6
    )
    np.testing.assert_array_equal(answers.sets, fitted.sets(measured.probabilities))
    assert np.all(measured.mutual_information > 0)
    alone = predictor.uncertainty({m: x[2:] for m, x in pixels.items()},
                                  {m: x[2:] for m, x in present.items()}, ["c"])  # fmt: skip
    np.testing.assert_allclose(
        alone["tumour"].probabilities[0], measured.probabilities[2], atol=1e-6
    )


def test_its_export_answers_alike(predictor, tmp_path):
    export(predictor, tmp_path / "net.drifa")
    verify(predictor, tmp_path / "net.drifa")


def test_resumed_training_is_as_if_never_stopped(run, tmp_path, monkeypatch):
    with jax.numpy_dtype_promotion("standard"):
        with monkeypatch.context() as patch:
            stop_after(5, signal.SIGTERM, patch)
            assert train_and_test(experts_config(), tmp_path / "run") == 143
        assert train_and_test(experts_config(), tmp_path / "run") == 0
        again = drifa_jax.load(tmp_path / "run").restored
        once = drifa_jax.load(run).restored
    chex.assert_trees_all_equal(again.params, once.params)
    chex.assert_trees_all_equal(again.statistics, once.statistics)


def test_weights_of_experts_that_do_not_exist_are_named(predictor):
    from drifa_jax.data.dataset import open_dataset

    config = experts_config(expert_weights={"pet": 1.0})
    with pytest.raises(UserError, match="expert_weights names 'pet'; the experts are ct, fused"):
        build_experiment(config, open_dataset(config.data))
    config = toy.toy_config(train={"expert_weights": {"mri": 1.0}})
    with pytest.raises(UserError, match="has no experts"):
        build_experiment(config, open_dataset(config.data))
