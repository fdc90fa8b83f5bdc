"""From a configuration to three splits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from drifa_jax.config import DataConfig, from_mapping, modality
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.pipeline import training_batches
from drifa_jax.errors import UserError


def data_config(**data) -> DataConfig:
    return from_mapping({"data": data}).data


@pytest.fixture
def two_folders(tmp_path):
    """Grey MRI of two classes with Training and Testing, colour CT of two classes in one tree."""
    generator = np.random.default_rng(0)
    for split, count in (("Training", 8), ("Testing", 4)):
        for name in ("glioma", "healthy"):
            folder = tmp_path / "mri" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (20, 24), np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}{i}.png")
    for name in ("normal", "stroke"):
        folder = tmp_path / "ct" / name
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (30, 18, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{i}.png")
    return {
        "mri": modality(height=16, width=16, channels=1, root=str(tmp_path / "mri"), task="tumour"),
        "ct": modality(height=24, width=32, root=str(tmp_path / "ct"), task="stroke"),
    }


def test_phantoms_give_three_splits_of_the_numbers_asked_for():
    sizes = {"num_train": 5, "num_validation": 3, "num_test": 4}
    small = modality(height=16, width=16, channels=1)
    dataset = open_dataset(data_config(modalities={"mri": small, "ct": small}, phantoms=sizes))
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [5, 3, 4]
    assert dataset.synthetic


def test_files_of_different_sizes_and_channels_make_one_batch(two_folders):
    dataset = open_dataset(data_config(source="files", modalities=two_folders))
    batch = next(training_batches(dataset.train, batch_size=4, seed=0))
    assert batch["images"]["mri"].shape == (4, 16, 16, 1)
    assert batch["images"]["ct"].shape == (4, 24, 32, 3)
    assert set(batch["labels"]) == {"tumour", "stroke"}


@pytest.mark.parametrize("pairing", ("random", "index", "by_task"))
def test_every_test_image_is_labelled_exactly_once(pairing, two_folders):
    dataset = open_dataset(data_config(source="files", modalities=two_folders, pairing=pairing))
    assert np.sum(dataset.test.labels("tumour") >= 0) == 8
    of_ct = sum(np.sum(split.labels("stroke") >= 0) for split in (dataset.validation, dataset.test))
    assert 0 < of_ct < 24


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "photos"}, r"data.source is 'photos'; choose one of \['files', 'phantoms'\]"),
        ({"augmentation": "lots"}, "data.augmentation is 'lots'; choose one of"),
        ({"pairing": "twins"}, "data.pairing is 'twins'; choose one of"),
        ({"modalities": {"mri": {"height": 16}, "ct": {}}}, "mri must be square"),
        ({"modalities": {"mri": {"channels": 1}, "ct": {}}}, "same number of channels"),
        ({"modalities": {"xray": {}}}, "give one size for each of"),
        ({"source": "files", "modalities": {"mri": {"task": "t"}}}, "mri.root is empty.*brain.py"),
        ({"source": "files", "modalities": {"mri": {"root": "x"}}}, "mri.task is empty"),
    ],
)
def test_wrong_field_is_named_with_its_cure(data, message):
    config = data_config(**{"modalities": {"mri": {}, "ct": {}}, **data})
    with pytest.raises(UserError, match=message):
        open_dataset(config)


def test_folder_that_does_not_exist_says_how_to_run_without_data(two_folders):
    two_folders["ct"]["root"] = "/nowhere"
    with pytest.raises(UserError, match=r"/nowhere does not exist.*phantoms"):
        open_dataset(data_config(source="files", modalities=two_folders))
