"""Training starts from drawn weights, or from a folder that holds this very network."""

from __future__ import annotations

import chex
import jax
import pytest

from drifa_jax.config import from_mapping, modality
from drifa_jax.data.dataset import open_dataset
from drifa_jax.errors import UserError
from drifa_jax.interop.network_files import save_network
from drifa_jax.train.experiment import build_experiment
from drifa_jax.train.starting_weights import starting_weights

KEY = jax.random.key(0)


def experiment_of(initial_weights: str = "", width: int = 2):
    small = modality(height=16, width=16, channels=1)
    config = from_mapping(
        {
            "data": {"modalities": {"mri": small, "ct": small}, "phantoms": {"num_train": 8}},
            "model": {"width": width, "backbone": "resnet10"},
            "train": {"batch_size": 8, "initial_weights": initial_weights},
        }
    )
    return build_experiment(config, open_dataset(config.data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights drawn from another key, as `drifa convert` writes them."""
    experiment = experiment_of()
    path = tmp_path_factory.mktemp("weights") / "network"
    save_network(path, experiment.description, *experiment.network.init(jax.random.key(7)))
    return path


def test_without_a_folder_weights_are_drawn_from_the_key():
    experiment = experiment_of()
    chex.assert_trees_all_equal(starting_weights(experiment, KEY), experiment.network.init(KEY))


def test_weights_of_a_folder_are_taken_as_they_are(folder):
    experiment = experiment_of(str(folder))
    expected = experiment.network.init(jax.random.key(7))
    chex.assert_trees_all_equal(starting_weights(experiment, KEY), expected)


def test_weights_of_another_network_are_refused(folder):
    with pytest.raises(UserError, match=r"does not fit the network(.|\n)*conv1/bias \(2,\)"):
        starting_weights(experiment_of(str(folder), width=3), KEY)


def test_folder_without_weights_is_named_with_its_cure(tmp_path):
    with pytest.raises(UserError, match=r"holds no weights.safetensors; give a folder written by"):
        starting_weights(experiment_of(str(tmp_path)), KEY)
