"""One step on any number of devices, for any number of members, in whatever pieces: one result.

SGD, because Adam turns rounding of gradients near zero into steps of full size.
"""

from __future__ import annotations

import dataclasses
import operator

import chex
import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from drifa_jax import sharding
from drifa_jax.data.dataset import open_dataset
from drifa_jax.rng import stream
from drifa_jax.sharding import AXES, Layout, put
from drifa_jax.train.batch_statistics import StatisticsEstimate
from drifa_jax.train.experiment import build_experiment
from drifa_jax.train.feed import Feed
from drifa_jax.train.optimizer import with_scales
from drifa_jax.train.program import Program, put_keys
from drifa_jax.train.starting_weights import starting_weights
from drifa_jax.train.state import initial_state
from tests.train import toy

pytestmark = pytest.mark.usefixtures("every_device")

NUM_STEPS = 5
# Sums over a batch in another order, five steps of a learning rate of 0.1: float32 rounding.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def experiment():
    config = toy.toy_config()
    built = build_experiment(config, open_dataset(config.data))
    return dataclasses.replace(built, optimizer=optax.sgd(0.1))


def layout(ensemble=1, data=1, model=1, **options) -> Layout:
    devices = jax.devices()[: ensemble * data * model]
    return Layout(
        jax.make_mesh(
            (ensemble, data, model), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
        ),
        **options,
    )


def trained(experiment, on: Layout, seed: int = 0, program: Program | None = None):
    """The state after a few steps, and the losses on the way, `[step]` or `[step, e]`."""
    config = experiment.config
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    experiment = dataclasses.replace(experiment, config=config)
    program = program or Program(experiment, on)
    program.use_seed(seed)
    weights = starting_weights(experiment, stream(put_keys(seed, on), "init"))
    state = initial_state(
        *weights, experiment.optimizer, on.num_members, experiment.groups, experiment.evaluation
    )
    state = jax.tree.map(lambda leaf, like: put(leaf, like.sharding), state, program.template)
    feed, losses = Feed(experiment, on, 0), []
    for _ in range(NUM_STEPS):
        state, sums = program(state, feed.next(lambda: False)[1], 0)
        losses.append(np.asarray(sums["total"]))
    feed.close()
    if experiment.evaluation.statistics_batches:
        state = StatisticsEstimate(experiment, on, program.template)(state)
    return state, np.stack(losses)


@pytest.fixture(scope="module")
def tuned():
    """A frozen branch, rates by layer, skipped blocks, averages, statistics estimated anew."""
    config = toy.toy_config(
        backbone="toy_layers",
        train={
            "frozen": ["ct"],
            "layer_decay": 0.5,
            "stochastic_depth": 0.5,
            "average_decay": 0.5,
            "statistics_batches": 2,
        },
    )
    built = build_experiment(config, open_dataset(config.data))
    scaled = with_scales(optax.sgd(0.1), built.groups.rate_scales)
    return dataclasses.replace(built, optimizer=scaled)


@pytest.fixture(scope="module")
def tuned_alone(tuned):
    return by_seed(tuned)


@pytest.fixture(scope="module")
def alone(experiment):
    """The runs of one network on one device, by seed."""
    return by_seed(experiment)


def by_seed(experiment):
    program = Program(experiment, layout())
    return {seed: trained(experiment, layout(), seed, program) for seed in (0, 1)}


def assert_close(one, other):
    chex.assert_trees_all_close(jax.device_get(one), jax.device_get(other), **TOLERANCE)


@pytest.mark.parametrize("count", (2, 4, 8))
def test_number_of_devices_changes_no_result(count, experiment, alone):
    assert_close(trained(experiment, layout(data=count)), alone[0])


@pytest.mark.parametrize("axes", ({"data": 4}, {"data": 2, "model": 2}, {"model": 4}))
def test_state_in_pieces_changes_no_result(axes, experiment, alone, monkeypatch):
    monkeypatch.setattr(sharding, "LARGE", 64)
    on = layout(**axes, shard_state=True)
    state, losses = trained(experiment, on)
    assert_close((state, losses), alone[0])
    wide = state.params["heads"]["tumour"]["wide"]
    assert wide.addressable_data(0).size == wide.size // 4


@pytest.mark.parametrize(
    "axes", ({}, {"data": 2}, {"ensemble": 2}, {"ensemble": 2, "data": 2, "model": 2})
)
def test_member_of_an_ensemble_is_the_run_with_its_seed(axes, experiment, alone):
    state, losses = trained(experiment, layout(**axes, num_members=2))
    for member in (0, 1):
        own = jax.tree.map(operator.itemgetter(member), state)
        assert_close((own, losses[:, member]), alone[member])
    assert np.all(losses[:, 0] != losses[:, 1])


@pytest.mark.parametrize("number", (1, 2))
def test_activations_computed_again_change_no_result(number, experiment, alone, monkeypatch):
    """Of one network whose state lies in pieces; of two members."""
    monkeypatch.setattr(sharding, "LARGE", 64)
    train = dataclasses.replace(experiment.config.train, rematerialise=True)
    config = dataclasses.replace(experiment.config, train=train)
    on = layout(ensemble=number, data=2, shard_state=True, num_members=number)
    state, losses = trained(dataclasses.replace(experiment, config=config), on)
    for member in range(number):
        of = operator.itemgetter(member) if number > 1 else lambda x: x
        own = jax.tree.map(of, state)
        assert_close((own, losses[:, member] if number > 1 else losses), alone[member])


def test_fine_tuning_over_devices_and_in_pieces_changes_no_result(tuned, tuned_alone, monkeypatch):
    monkeypatch.setattr(sharding, "LARGE", 64)
    on = layout(data=4, model=2, shard_state=True)
    assert_close(trained(tuned, on), tuned_alone[0])


def test_fine_tuned_member_of_an_ensemble_is_the_run_with_its_seed(tuned, tuned_alone):
    state, losses = trained(tuned, layout(ensemble=2, data=2, num_members=2))
    for member in (0, 1):
        own = jax.tree.map(operator.itemgetter(member), state)
        assert_close((own, losses[:, member]), tuned_alone[member])


def test_members_over_the_ensemble_axis_hold_only_their_own_state(experiment):
    program = Program(experiment, layout(ensemble=2, num_members=2))
    wide = program.template.params["heads"]["tumour"]["wide"]
    assert wide.sharding.shard_shape(wide.shape)[0] == 1


def test_step_is_compiled_once_and_knows_its_cost(experiment):
    on = layout(data=2)
    program = Program(experiment, on)
    weights = starting_weights(experiment, stream(put_keys(0, on), "init"))
    state = initial_state(*weights, experiment.optimizer)
    state = jax.tree.map(lambda leaf, like: put(leaf, like.sharding), state, program.template)
    feed = Feed(experiment, on, 0)
    state, sums = program(state, feed.next(lambda: False)[1], 15)
    feed.close()
    assert int(sums["asked"]) == 15
    program.analyse()
    # The convolutions forward and backward: 8 records, 2 modalities, 8 x 8 outputs, 3 x 3 x 4.
    assert program.flops > 2 * 8 * 2 * 64 * 36
    assert program.device_bytes["temporary"] > 0
