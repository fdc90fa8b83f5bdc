"""The command on a toy without attention, which compiles fast."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from drifa_jax.ablate import running, scores
from drifa_jax.cli import main
from drifa_jax.predictions.files import read_predictions
from drifa_jax.train.loop import Interrupted
from tests.train import toy  # noqa: F401  (it enters its parts into the registry)

CONFIG = """
from drifa_jax.config import default_config, modality

def get_config(variant=""):
    config = default_config()
    small = modality(height=16, width=16, channels=1)
    config.data.modalities = {"mri": small, "ct": small}
    config.data.in_memory = True
    config.data.phantoms = {"num_train": 32, "num_validation": 12, "num_test": 40, "seed": 0}
    config.model.backbone = "toy"
    config.model.mfa_parts = config.model.stage_mfa_parts = config.model.mifa_parts = ()
    config.train.batch_size, config.train.num_epochs = 16, 1
    config.eval.batch_size = 8
    return config
"""
ARGUMENTS = ("--variants", "late_averaging", "--seeds", "0,3")


@pytest.fixture(autouse=True)
def standard_dtype_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "small.py"
    path.write_text(CONFIG)
    return path


def ablate(config_file, workdir, *arguments):
    return main(["ablate", str(config_file), "--workdir", str(workdir), *ARGUMENTS, *arguments])


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ablations") / "finished"
    with jax.numpy_dtype_promotion("standard"):
        assert ablate(config_file, workdir) == 0
    return workdir


def stored(workdir):
    return {
        str(path.parent.relative_to(workdir)): scores.scores_of(read_predictions(path))
        for path in sorted(workdir.glob(f"*/*/{running.PREDICTIONS_FILE}"))
    }


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        for task in first[name]:
            for field in scores.Scores.__dataclass_fields__:
                np.testing.assert_array_equal(
                    getattr(first[name][task], field), getattr(second[name][task], field)
                )


def test_every_variant_and_seed_is_kept_and_tabled(finished):
    found = stored(finished)
    assert list(found) == [
        "drifa/seed-0", "drifa/seed-3", "late_averaging/seed-0", "late_averaging/seed-3"
    ]  # fmt: skip
    one, other = found["drifa/seed-0"]["tumour"], found["drifa/seed-3"]["tumour"]
    assert len(one.labels) == 40
    np.testing.assert_array_equal(one.record_ids, other.record_ids)
    assert np.any(one.probabilities != other.probabilities)
    np.testing.assert_allclose(one.probabilities.sum(-1), 1, rtol=1e-5)
    document = json.loads((finished / "ablation.json").read_text())
    assert document["seeds"] == [0, 3] and document["not_finished"] == []
    assert document["environment"]["device_kind"] and document["synthetic"] is True
    assert all(row["num_params"] > 0 for row in document["tasks"]["tumour"]["rows"])
    text = (finished / "ablation.md").read_text()
    assert text.startswith("SYNTHETIC") and "`late_averaging`" in text
    assert (finished / "ablation.csv").read_text().startswith("task,variant")


def test_the_same_command_again_trains_nothing(finished, config_file, monkeypatch, capsys):
    monkeypatch.setattr(running, "train", lambda *_: pytest.fail("a finished run was trained"))
    assert ablate(config_file, finished) == 0
    assert "4 of 4 networks are finished already" in capsys.readouterr().err


def test_an_interrupted_ablation_goes_on_to_the_same_figures(
    finished, config_file, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "interrupted"
    count = iter(range(10))

    def train_two(*arguments):
        if next(count) == 2:
            raise Interrupted(2)
        return original(*arguments)

    original = running.train
    monkeypatch.setattr(running, "train", train_two)
    assert ablate(config_file, workdir) == 130
    assert len(stored(workdir)) == 2
    assert (workdir / "ablation.md").read_text().count("NOT FINISHED: 2 of 4 networks") == 1
    monkeypatch.setattr(running, "train", original)
    assert ablate(config_file, workdir) == 0
    assert "2 of 4 networks are finished already" in capsys.readouterr().err
    assert_equal(stored(finished), stored(workdir))


def test_one_that_fails_is_named_and_the_others_go_on(config_file, finished, tmp_path, monkeypatch):
    from drifa_jax.errors import UserError

    workdir = tmp_path / "failing"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "late_averaging" / "seed-3")

    def fail(*_):
        raise UserError("Step 7: the loss is nan.")

    monkeypatch.setattr(running, "train", fail)
    assert ablate(config_file, workdir) == 1
    document = json.loads((workdir / "ablation.json").read_text())
    assert document["failed"] == {"late_averaging/seed-3": "Step 7: the loss is nan."}


def test_another_configuration_in_the_same_folder_is_refused(finished, config_file, capsys):
    assert ablate(config_file, finished, "--config.train.learning_rate=0.1") == 1
    assert "train.learning_rate" in capsys.readouterr().err


def test_damaged_scores_are_named(finished, config_file, tmp_path, capsys):
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    path = workdir / "drifa" / "seed-0" / running.PREDICTIONS_FILE
    path.write_bytes(path.read_bytes()[:100])
    assert ablate(config_file, workdir, "--table-only") == 1
    message = capsys.readouterr().err
    assert str(path) in message and "delete it" in message


@pytest.mark.parametrize("seeds", ["", "0,0", "-1", "one"])
def test_seeds_that_make_no_sense_are_refused(seeds, config_file, tmp_path, capsys):
    assert main(["ablate", str(config_file), "--workdir", str(tmp_path), f"--seeds={seeds}"]) == 1
    assert "--seeds" in capsys.readouterr().err
