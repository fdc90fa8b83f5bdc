"""The folds of one cross-validation: every record is answered by a run that never saw it."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from PIL import Image

from drifa_jax.cli import main
from drifa_jax.config import from_mapping, modality
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.split_manifest import load_split
from drifa_jax.predict import predictor as predictor_module
from drifa_jax.predict import streaming
from drifa_jax.predictions.files import read_predictions
from tests.predict.conftest import write_run


@pytest.fixture(autouse=True)
def small_batches_and_standard_promotion(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setattr(streaming, "LARGEST_BATCH", 4)
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """Two of three folds of 36 pictures of noise, untrained."""
    draw, tmp_path = np.random.default_rng(0), tmp_path_factory.mktemp("folds")
    for name in ("benign", "malignant"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(18):
            pixels = draw.integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{name}{k}.png")
    runs = []
    for fold in (0, 2):
        values = modality(root=str(tmp_path / "data"), height=16, width=16, channels=1, task="dx")
        config = from_mapping(
            {
                "data": {
                    "source": "files",
                    "modalities": {"ct": values},
                    "num_folds": 3,
                    "fold": fold,
                },
                "model": {
                    "width": 4,
                    "backbone": "resnet10",
                    "mfa_parts": (),
                    "fuse_at": (-1,),
                },
                "train": {"batch_size": 8, "num_epochs": 1},
                "uncertainty": {"num_mc_samples": 2},
            }
        )
        run = write_run(config, tmp_path / f"fold-{fold}", fold)
        open_dataset(config.data).save_splits(run / "splits")
        runs.append(run)
    return runs


def test_folds_are_pooled_out_of_fold_and_the_report_says_so(folds, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--resamples", "100", "--no-explanations"]
    assert main(["evaluate", *map(str, folds), *arguments]) == 0
    document = json.loads((out / "metrics.json").read_text())
    assert document["folds"] == [0, 2] and document["num_records"] == 24
    assert "Out of fold: 2 of 3 folds" in (out / "report.html").read_text()
    pooled = read_predictions(out / "predictions.parquet")
    for number, run in enumerate(folds):
        alone = tmp_path / f"alone-{number}"
        assert main(["evaluate", str(run), "--out", str(alone), *arguments[2:]]) == 0
        own = read_predictions(alone / "predictions.parquet")
        place = {name: i for i, name in enumerate(pooled.record_ids)}
        both = pooled.take([place[name] for name in own.record_ids])
        np.testing.assert_array_equal(both["dx"].probabilities, own["dx"].probabilities)


def test_folds_below_a_folder_are_an_ensemble(folds, capsys):
    folder = folds[0].parent
    image = folder / "data" / "benign" / "benign0.png"
    assert main(["predict", str(folder), f"ct={image}", "--no-post-processing"]) == 0
    assert "2 member(s)" in capsys.readouterr().out


def test_what_calibrates_an_ensemble_of_folds_was_answered_by_who_never_saw_it(folds):
    both = predictor_module.load(*folds, post_processing=False)
    parts = predictor_module._kept_apart(both)
    assert [member.restored.runs for member, _ in parts] == [(run,) for run in folds]
    for member, validation in parts:
        (run,) = member.restored.runs
        trained_on = load_split(run / "splits" / "ct.json").splits["train"]
        assert len(validation) and not set(validation.ids) & {e.record_id for e in trained_on}
