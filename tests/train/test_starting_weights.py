"""Training starts from drawn weights, or from a folder that holds this very network."""

from __future__ import annotations

import chex
import jax
import pytest

from drifa_jax.commands.train import train_and_test
from drifa_jax.config import from_mapping, modality
from drifa_jax.data import dataset
from drifa_jax.data.dataset import open_dataset
from drifa_jax.errors import UserError
from drifa_jax.interop.network_files import save_network
from drifa_jax.train.experiment import build_experiment
from drifa_jax.train.program import Program
from drifa_jax.train.starting_weights import starting_weights

KEY = jax.random.key(0)


def config_of(initial_weights: str = "", width: int = 2):
    small = modality(height=16, width=16, channels=1)
    return from_mapping(
        {
            "data": {"modalities": {"mri": small, "ct": small}, "phantoms": {"num_train": 8}},
            "model": {"width": width, "backbone": "resnet10", "mfa_parts": (), "fuse_at": (-1,)},
            "train": {"batch_size": 8, "initial_weights": initial_weights},
        }
    )


def experiment_of(initial_weights: str = "", width: int = 2):
    config = config_of(initial_weights, width)
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


def test_weights_of_another_network_are_refused_before_anything_is_compiled(
    folder, tmp_path, monkeypatch
):
    monkeypatch.delattr(Program, "start_compiling")
    with pytest.raises(UserError, match=r"does not fit the network(.|\n)*conv1/bias \(2,\)"):
        train_and_test(config_of(str(folder), width=3), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "words"), [("", r"holds no weights\.safetensors"), ("nowhere", "is no folder")]
)
def test_folder_without_weights_is_named_before_data_are_read(name, words, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "open_dataset", None)
    config = config_of(str(tmp_path / name))
    with pytest.raises(UserError, match=f"{words}; give a folder written by `drifa convert`"):
        train_and_test(config, tmp_path / "run")
