"""`drifa benchmark` on a small paired set: folds, resuming, holes, and sets that are others."""

from __future__ import annotations

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from drifa_jax.benchmark import running
from drifa_jax.benchmark.manifests import load
from drifa_jax.cli import main
from tests.train import toy  # noqa: F401  (registers the backbone "toy")

CONFIG = """
from drifa_jax.config import default_config, modality

def get_config(variant=""):
    config = default_config()
    config.data.source = "files"
    both = dict(height=16, width=16, channels=1, format="manifest", task="lesion",
                table="table.csv", id_column="id", label_column="label", group_column="patient",
                root=ROOT)
    config.data.modalities = {
        "mri": modality(image_column="mri", numeric_columns=("age",), **both),
        "ct": modality(image_column="ct", **both),
    }
    config.data.pairing, config.data.duplicates = "paired", "keep"
    config.data.num_folds = 2
    config.model.backbone = "toy"
    config.train.batch_size, config.train.num_epochs, config.train.schedule = 32, 6, "cosine"
    config.train.learning_rate = 0.02
    return config
"""
METHODS = ("best", "concatenation", "only_ct")
NUM_RECORDS, NUM_FOLDS = 64, 2


def write_set(root, labels):
    """Bright or dark pictures, two records a patient; the last record lacks its ct."""
    draw = np.random.default_rng(0)
    rows = []
    for i, label in enumerate(labels):
        row = {"id": f"r{i:02}", "patient": f"p{i // 2}", "label": label, "age": 30 + i % 7}
        for m in ("mri", "ct"):
            level = 60 + 80 * (label == "bright") * (m == "mri" or i % 3 > 0)
            pixels = np.clip(draw.normal(level, 40, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{m}-{i}.png")
            row[m] = f"{m}-{i}.png"
        rows.append(row)
    rows[-1]["ct"] = ""
    with (root / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_config(folder, labels):
    root = folder / "data"
    root.mkdir(parents=True)
    write_set(root, labels)
    (folder / "views.py").write_text(f"ROOT = {str(root)!r}\n{CONFIG}")
    return folder / "views.py"


def benchmark(config, workdir, *arguments):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return main(
            ["benchmark", str(config), "--workdir", str(workdir), "--seeds", "0,1",
             "--methods", "best,only_ct", *arguments]
        )  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    labels = ["bright" if i // 2 % 2 else "dark" for i in range(NUM_RECORDS)]
    return write_config(tmp_path_factory.mktemp("set"), labels)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("benchmark")
    assert benchmark(config, workdir) == 0
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def read(workdir):
    return json.loads((workdir / "benchmark.json").read_text())


def test_every_method_is_tested_on_every_fold_under_every_condition(finished):
    rows = read(finished)["sets"]["views"]["rows"]
    assert [row["method"] for row in rows] == list(METHODS)
    conditions = set(rows[0]["conditions"])
    assert {"complete", "without ct", "noise in mri", "wrong patient in mri_table"} <= conditions
    assert rows[0]["conditions"]["complete"]["auroc"]["mean"] > 0.8
    assert len(rows[0]["conditions"]["complete"]["nll"]["by_fold"]) == NUM_FOLDS
    assert rows[0]["flops"] > 0 and rows[0]["train_bytes"] > 0
    # A method that reads the ct alone has nothing to say without it.
    assert rows[2]["conditions"]["without ct"]["auroc"]["mean"] is None
    assert set(rows[0]["against_reference"]["auroc"]) >= {"difference", "low", "high", "p"}


def test_folds_test_every_record_once_and_tear_no_patient_apart(finished):
    manifest = load(finished / "views" / "manifest.json")
    tested = []
    for fold in range(NUM_FOLDS):
        splits = manifest.of_fold(fold).splits
        groups = [{e.group_id for e in entries} for entries in splits.values()]
        assert not set.intersection(groups[0], groups[1] | groups[2])
        tested += [e.record_id for e in splits["test"]]
    assert sorted(tested) == [f"r{i:02}" for i in range(NUM_RECORDS)]


def test_a_table_and_a_page_are_written(finished):
    with (finished / "benchmark.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["figure"] for line in lines} == {
        "auroc", "balanced_accuracy", "nll", "ece", "aurc"
    }  # fmt: skip
    page = (finished / "benchmark.html").read_text()
    assert "concatenation of every resolution" in page and "NOT FINISHED" not in page


def test_what_is_finished_is_not_trained_again(copied, config, monkeypatch, capsys):
    before = read(copied)["sets"]

    def train_seeds(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(running, "train_seeds", train_seeds)
    assert benchmark(config, copied) == 0
    assert read(copied)["sets"] == before
    assert "6 jobs, 6 finished before" in capsys.readouterr().err


def test_a_table_with_holes_says_so_and_draws_no_conclusion(copied, config):
    (copied / "views" / "fold-1" / "best.npz").unlink()
    assert benchmark(config, copied, "--table-only") == 1
    found = read(copied)
    assert found["sets"]["views"]["holes"] == {"best": 1}
    assert "No conclusion" in found["sets"]["views"]["verdict"]
    assert all("against_reference" not in row for row in found["sets"]["views"]["rows"])
    assert "NOT FINISHED" in (copied / "benchmark.html").read_text()


def test_what_was_lost_is_found_again_bit_by_bit(copied, config):
    before = read(copied)["sets"]["views"]["rows"][0]["conditions"]
    (copied / "views" / "fold-1" / "best.npz").unlink()
    assert benchmark(config, copied) == 0
    assert read(copied)["sets"]["views"]["rows"][0]["conditions"] == before


def test_another_configuration_trains_anew(copied, config):
    assert benchmark(config, copied, "--table-only", "--config.train.num_epochs=7") == 1
    assert "missing" in read(copied)["sets"]["views"]["verdict"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lose", "1 of 64 records of the manifest are missing from the data (first 'r00')"),
        ("add", "1 of 65 records of the data are not in the manifest (first 'new')"),
        ("alter", "1 of 64 records hold other files than the manifest says (first 'r03')"),
    ],
)
def test_a_set_that_is_not_that_of_the_manifest_is_refused(
    finished, tmp_path, config, change, message, capsys
):
    root = shutil.copytree(config.parent / "data", tmp_path / "data")
    table = root / "table.csv"
    lines = table.read_text().splitlines()
    if change == "lose":
        del lines[1]
    elif change == "add":
        lines.append(lines[1].replace("r00", "new"))
    else:
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(root / "mri-3.png")
    table.write_text("\n".join(lines) + "\n")
    workdir = shutil.copytree(finished, tmp_path / "workdir")
    assert benchmark(config, workdir, "--root", f"views={root}", "--table-only") == 1
    said = capsys.readouterr().err
    assert message in said and "another version" in said
    assert message in read(workdir)["not_finished"][0]


def test_a_fold_without_a_class_is_refused(tmp_path, capsys):
    labels = ["bright" if i < 2 else "dark" for i in range(NUM_RECORDS)]
    config = write_config(tmp_path, labels)
    assert benchmark(config, tmp_path / "workdir") == 1
    assert "hold no bright; leave such classes out" in capsys.readouterr().err
    assert not (tmp_path / "workdir" / "views" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing-v1"], "there is no suite 'nothing-v1'; choose paired-v1"),
        (["paired-v1", "--root", "milk=/"], "write SET=FOLDER, SET one of milk10k"),
        (["paired-v1", "--root", "milk10k=/nowhere"], "there is no folder '/nowhere'"),
        (["paired-v1", "--seeds", "1,1"], "give different numbers"),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_set_without_a_folder_leaves_a_hole_and_says_how_to_fill_it(tmp_path, capsys):
    assert main(["benchmark", "paired-v1", "--workdir", str(tmp_path)]) == 1
    assert "add --root milk10k=FOLDER" in capsys.readouterr().err
    assert read(tmp_path)["not_finished"][3].startswith("ham10000: nothing says where it lies")
