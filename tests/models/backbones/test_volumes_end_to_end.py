"""A small run on NIfTI volumes through the commands: training, prediction, maps, export."""

from __future__ import annotations

import csv
import json

import jax
import nibabel
import numpy as np
import pytest

from drifa_jax.cli import main
from drifa_jax.commands.train import train_and_test
from drifa_jax.config import from_mapping, modality
from drifa_jax.errors import UserError
from drifa_jax.predict.predictor import load


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two classes of ten volumes each: bright on the left, or on the right."""
    root, draw = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    for kind in ("left", "right"):
        (root / kind).mkdir()
        for k in range(10):
            values = draw.random((16, 16, 8)).astype(np.float32)
            values[:8] += kind == "right"
            values[8:] += kind == "left"
            nibabel.save(
                nibabel.Nifti1Image(values, np.diag([-1, 1, 2, 1])), root / kind / f"{k}.nii"
            )
    return root


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    mri = modality(
        depth=4, height=16, width=16, channels=1, format="nifti", root=str(scans), task="side"
    )
    config = from_mapping(
        {
            "data": {
                "source": "files",
                "modalities": {"mri": mri},
                "pairing": "paired",
                "augmentation": "ct",
                "test_fraction": 0.25,
                "validation_fraction": 0.25,
            },
            "model": {
                "backbone": "resnet10",
                "width": 2,
                "mfa_parts": (),
                "fuse_at": (-1,),
            },
            "train": {"batch_size": 8, "num_epochs": 1},
            "eval": {"batch_size": 8},
            "uncertainty": {"num_mc_samples": 2, "fit_decisions": False},
        }
    )
    folder = tmp_path_factory.mktemp("run") / "run"
    # Optax raises a float to an integer power, which strict dtypes forbid.
    with jax.numpy_dtype_promotion("standard"):
        assert train_and_test(config, folder) == 0
    return folder


def test_a_file_is_one_record(run, scans, tmp_path):
    table = tmp_path / "answers.csv"
    assert main(["predict", str(run), str(scans / "left" / "0.nii"), "--csv", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 2


def test_a_slice_is_refused_with_the_volume_to_give(run, scans):
    volume = scans / "left" / "0.nii"
    predictor = load(run, post_processing=False)
    with pytest.raises(UserError, match="names a slice, and the network reads whole volumes"):
        predictor({"mri": [f"{volume}:3"]})


def test_the_map_of_a_volume_has_its_shape_and_its_picture_shows_slices(run, scans, tmp_path):
    out = tmp_path / "maps"
    assert main(["explain", str(run), str(scans / "left" / "0.nii"), "--out", str(out)]) == 0
    assert len(list(out.glob("*.png"))) == 1
    (case,) = json.loads((out / "explanations.json").read_text())["explanations"]
    assert all(len(found["hottest"]) == 3 for found in case["maps"].values())


def test_the_exported_network_answers_as_the_live_one(run, tmp_path, scans):
    path, volume = tmp_path / "net.drifa", str(scans / "right" / "1.nii")
    assert main(["export", str(run), str(path)]) == 0
    tables = [tmp_path / "live.csv", tmp_path / "exported.csv"]
    for source, table in zip((run, path), tables, strict=True):
        assert main(["predict", str(source), volume, "--csv", str(table)]) == 0
    (live,), (exported,) = (
        list(csv.DictReader(table.read_text().splitlines())) for table in tables
    )
    numbers = {name: value for name, value in live.items() if value.startswith("0.")}
    assert numbers
    for name, value in numbers.items():
        np.testing.assert_allclose(float(exported[name]), float(value), atol=2e-5)
