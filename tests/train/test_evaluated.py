"""What is evaluated in the place of the weights in training, and that it changes no training."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import signal

import chex
import jax
import numpy as np
import optax
import pytest

from drifa_jax.commands.train import train_and_test
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.pipeline import training_batches
from drifa_jax.errors import UserError
from drifa_jax.models.pixels import scale_pixels
from drifa_jax.predict.restored import restore
from drifa_jax.train.batch_statistics import StatisticsEstimate
from drifa_jax.train.checkpoint import Checkpoints
from drifa_jax.train.experiment import build_experiment
from drifa_jax.train.metrics_log import read_metrics
from drifa_jax.train.program import Program
from drifa_jax.train.state import initial_state
from drifa_jax.train.step import make_train_step
from tests.train import toy
from tests.train.test_loop import stop_after
from tests.train.test_parameter_groups import batch_of
from tests.train.test_program import layout

TUNED = {
    "frozen": ["ct"],
    "rate_scales": {"backbone": 0.5},
    "layer_decay": 0.5,
    "stochastic_depth": 0.5,
    "weight_decay": 0.01,
    "average_decay": 0.6,
    "statistics_batches": 2,
}
"""Everything at once."""
TUNED_CONFIG = toy.toy_config(backbone="toy_layers", train=TUNED)


def experiment_of(*, data=None, **train):
    config = toy.toy_config(train=train)
    if data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    return build_experiment(config, open_dataset(config.data))


def state_of(experiment):
    weights = experiment.network.init(jax.random.key(0))
    return initial_state(
        *weights, experiment.optimizer, 1, experiment.groups, experiment.evaluation
    )


def test_averages_follow_the_weights_with_a_decay_that_rises():
    experiment = experiment_of(average_decay=0.15, frozen=["ct"])
    state = before = state_of(experiment)
    step = jax.jit(
        make_train_step(
            experiment.network,
            optax.sgd(0.1),
            experiment.losses,
            groups=experiment.groups,
            evaluation=experiment.evaluation,
        )
    )
    state = dataclasses.replace(
        state, optimizer_state=optax.sgd(0.1).init(experiment.groups.trained(state.params))
    )
    expected = np.asarray(before.params["heads"]["tumour"]["head"], np.float64)
    mean = np.asarray(before.statistics["branches"]["mri"]["norm"]["mean"], np.float64)
    for number in range(4):
        state, _ = step(state, batch_of(experiment), jax.random.key(1))
        decay = min(0.15, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * state.params["heads"]["tumour"]["head"]
        mean = decay * mean + (1 - decay) * state.statistics["branches"]["mri"]["norm"]["mean"]
    params, statistics = state.weights()
    # Four steps of float32.
    np.testing.assert_allclose(params["heads"]["tumour"]["head"], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(statistics["branches"]["mri"]["norm"]["mean"], mean, rtol=1e-5)
    chex.assert_trees_all_equal(params["branches"]["ct"], before.params["branches"]["ct"])


def test_averaging_changes_nothing_in_training():
    plain, averaging = experiment_of(), experiment_of(average_decay=0.9)
    states = []
    for experiment in (plain, averaging):
        step = make_train_step(
            experiment.network,
            experiment.optimizer,
            experiment.losses,
            evaluation=experiment.evaluation,
        )
        states.append(jax.jit(step)(state_of(experiment), batch_of(experiment), jax.random.key(1)))
    (ours, sums), (theirs, their_sums) = states
    chex.assert_trees_all_equal(ours, dataclasses.replace(theirs, evaluated=None))
    chex.assert_trees_all_equal(sums, their_sums)


def first_batches(experiment, count):
    stream = training_batches(
        experiment.dataset.train,
        batch_size=experiment.config.train.batch_size,
        seed=0,
        transform=experiment.dataset.transform,
    )
    return list(itertools.islice(stream, count))


def means_and_variances(state, batch, modality):
    """Of the toy backbone's convolution, over the records that have the modality."""
    images = scale_pixels(batch["images"])[modality][np.asarray(batch["present"][modality])]
    kernel = state.params["branches"][modality]["kernel"]
    maps = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return {"mean": np.mean(maps, (0, 1, 2)), "var": np.var(maps, (0, 1, 2))}


@pytest.mark.parametrize("lacking", (False, True))
def test_estimated_statistics_are_means_over_batches_that_have_the_modality(lacking):
    options = {"data": {"modality_dropout": 0.9}, "batch_size": 1} if lacking else {}
    experiment = experiment_of(statistics_batches=4, frozen=["ct"], **options)
    state = state_of(experiment)
    template = Program(experiment, layout()).template
    estimated = StatisticsEstimate(experiment, layout(), template)(state).evaluated
    estimate = estimated.statistics["branches"]
    batches = [b for b in first_batches(experiment, 4) if np.any(b["present"]["mri"])]
    assert (0 < len(batches) < 4) == lacking, "the case is not what it should be"
    seen = [means_and_variances(state, batch, "mri") for batch in batches]
    expected = jax.tree.map(lambda *values: np.mean(values, axis=0), *seen)
    # Means of float32 in another order.
    chex.assert_trees_all_close(estimate["mri"]["norm"], expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(estimate["ct"], state.statistics["branches"]["ct"])


def test_the_model_of_a_checkpoint_is_what_is_evaluated_and_training_goes_on_from_its_own(
    tmp_path,
):
    experiment = experiment_of(average_decay=0.9, statistics_batches=2, frozen=["ct"])
    state = state_of(experiment)
    numbers = itertools.count()
    # No two leaves alike, so that none can take another's place.
    state = jax.tree.map(lambda leaf: np.full_like(leaf, next(numbers)), state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, 0.5)
        chex.assert_trees_all_equal(checkpoints.newest(state)[0], state)
        model = checkpoints.best(state)
    chex.assert_trees_all_equal((model.params, model.statistics), state.weights())
    assert np.any(
        model.params["heads"]["tumour"]["head"] != state.params["heads"]["tumour"]["head"]
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    with jax.numpy_dtype_promotion("standard"):
        assert train_and_test(TUNED_CONFIG, workdir) == 0
    return workdir


def newest_state(workdir):
    experiment = build_experiment(TUNED_CONFIG, open_dataset(TUNED_CONFIG.data))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.newest(state_of(experiment))


@pytest.mark.parametrize("step", (3, 4))
def test_a_run_with_every_option_resumes_as_if_never_stopped(
    step, undisturbed, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(step, signal.SIGTERM, patch)
        assert train_and_test(TUNED_CONFIG, tmp_path) == 128 + signal.SIGTERM
    assert train_and_test(TUNED_CONFIG, tmp_path) == 0
    chex.assert_trees_all_equal(newest_state(tmp_path), newest_state(undisturbed))
    assert read_metrics(tmp_path) == read_metrics(undisturbed)
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / name).read_text() == (undisturbed / name).read_text()


def test_a_reader_predicts_with_what_was_validated(undisturbed):
    state, _ = newest_state(undisturbed)
    read = restore([undisturbed])
    assert read.steps == (int(state.step),), "the last epoch is the best of this run"
    for ours, theirs in zip((read.params, read.statistics), state.weights(), strict=True):
        alone = jax.tree.map(operator.itemgetter(0), jax.device_get(ours))
        chex.assert_trees_all_equal(alone, jax.device_get(theirs))


def test_statistics_cannot_be_estimated_where_there_is_no_batch_norm():
    with pytest.raises(
        UserError, match=r"train\.statistics_batches is 2, but no branch in training"
    ):
        experiment_of(statistics_batches=2, frozen=["branches"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("average_decay", 1.0), ("average_decay", -0.1), ("statistics_batches", -1)],
)
def test_options_out_of_range_name_their_field(field, value):
    with pytest.raises(UserError, match=rf"train\.{field} is {value}; it must be"):
        toy.toy_config(train={field: value})
