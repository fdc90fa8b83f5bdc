"""Run directories of untrained tiny networks, made without training, and images for them."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from drifa_jax.config import from_mapping, modality
from drifa_jax.data.dataset import open_dataset
from drifa_jax.predict import streaming
from drifa_jax.predict.predictor import load
from drifa_jax.predict.restored import describe
from drifa_jax.train.checkpoint import Checkpoints
from drifa_jax.train.experiment import build_experiment
from drifa_jax.train.run_directory import CONFIG_FILE
from drifa_jax.train.state import initial_state

NUM_SAMPLES = 3


def make_run(folder: Path, *seeds: int) -> Path:
    """A run whose best checkpoint is its initial state; an ensemble of several seeds."""
    config = from_mapping(
        {
            "data": {
                "modalities": {
                    "mri": modality(height=16, width=16, channels=1),
                    "ct": modality(height=16, width=16, channels=1),
                },
                "phantoms": {"num_train": 8, "num_validation": 24, "num_test": 8},
            },
            "model": {
                "width": 4,
                "backbone": "resnet10",
                "mfa_parts": (),
                "fuse_at": (0, -1),
            },
            "train": {"batch_size": 8, "num_epochs": 1},
            "uncertainty": {"num_mc_samples": NUM_SAMPLES},
            "ensemble": {"num_members": len(seeds)},
        }
    )
    return write_run(config, folder, *seeds)


def write_run(config, folder: Path, *seeds: int) -> Path:
    """An untrained run of a configuration."""
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(config.to_json())
    dataset = open_dataset(config.data)
    experiment = build_experiment(config, dataset)
    with jax.numpy_dtype_promotion("standard"):
        states = [
            initial_state(*experiment.network.init(jax.random.key(seed)), experiment.optimizer)
            for seed in seeds
        ]
        state = states[0]
        if len(seeds) > 1:
            state = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        description = describe(config.data, dataset).to_json()
        with Checkpoints(folder / "checkpoints", description=description) as checkpoints:
            checkpoints.save(state, {}, validation_loss=[1.0] * len(seeds))
            checkpoints.wait()
    return folder


@pytest.fixture(scope="session", autouse=True)
def small_batches():
    """Few compiled shapes, and those of `tests/serve`, which runs in the same process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "LARGEST_BATCH", 4)
        yield


@pytest.fixture(scope="session")
def untrained_run():
    """`untrained_run(config, folder)`."""
    return write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "first", 0)


@pytest.fixture(scope="session")
def second_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "second", 1)


@pytest.fixture(scope="session")
def ensemble_run(tmp_path_factory) -> Path:
    """One run with both of them as members."""
    return make_run(tmp_path_factory.mktemp("runs") / "ensemble", 0, 1)


@pytest.fixture(scope="session")
def predictor(run):
    """With its post-processing fitted and saved in the run."""
    return load(run)


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    """Four records at the network's size."""
    draw = np.random.default_rng(0)
    return {m: draw.integers(0, 256, (4, 16, 16, 1), np.uint8) for m in ("mri", "ct")}


@pytest.fixture(scope="session")
def folder(tmp_path_factory, arrays) -> Path:
    """The same records as `mri/case0.png`, `ct/case0.png` and so on."""
    folder = tmp_path_factory.mktemp("images")
    for name, images in arrays.items():
        (folder / name).mkdir()
        for row, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(folder / name / f"case{row}.png")
    return folder


@pytest.fixture
def edited_run(run, tmp_path):
    """A function that makes a copy of the run with another configuration."""

    def copy(**model) -> Path:
        import shutil

        folder = tmp_path / "edited"
        shutil.copytree(run, folder)
        values = json.loads((folder / CONFIG_FILE).read_text())
        values["model"] |= model
        (folder / CONFIG_FILE).write_text(json.dumps(values))
        return folder

    return copy
