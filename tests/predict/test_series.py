"""A network of volumes whose table names folders of DICOM series: trained, asked, explained."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from drifa_jax.cli import main
from drifa_jax.config import from_mapping, modality
from drifa_jax.predict.predictor import load
from tests.data.readers.dicom_writing import write


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A table of twelve folders of four slices each; every second one is bright."""
    root = tmp_path_factory.mktemp("cohort")
    draw = np.random.default_rng(0)
    rows = ["id,ct,label"]
    for number in range(12):
        for k in range(4):
            stored = draw.integers(0, 60, (10, 12)) + 60 * (number % 2)
            write(
                root / f"study/{number}/{k}.dcm",
                stored.astype(np.uint16),
                PatientID=f"p{number}",
                SeriesInstanceUID=f"1.2.{number}",
                ImagePositionPatient=[0, 0, 5 * k],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                PixelSpacing=[1, 1],
            )
        rows.append(f"r{number},study/{number},{('normal', 'bleeding')[number % 2]}")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def run(cohort, untrained_run, tmp_path_factory):
    config = from_mapping(
        {
            "data": {
                "source": "files",
                "modalities": {
                    "ct": modality(
                        depth=4,
                        height=16,
                        width=16,
                        channels=1,
                        slice_attention=True,
                        root=str(cohort),
                        format="manifest",
                        table=str(cohort / "table.csv"),
                        window="brain",
                        task="bleeding",
                        id_column="id",
                        image_column="ct",
                        label_column="label",
                    )
                },
                "validation_fraction": 0.3,
                "test_fraction": 0.3,
                "duplicates": "keep",
                "pairing": "paired",
            },
            "model": {"width": 2, "backbone": "resnet10", "mfa_parts": (), "fuse_at": (-1,)},
            "train": {"batch_size": 4, "num_epochs": 1},
            "uncertainty": {"num_mc_samples": 2},
        }
    )
    return untrained_run(config, tmp_path_factory.mktemp("runs") / "series", 0)


def predicted(run, tmp_path, *images):
    out = tmp_path / "answers.csv"
    arguments = ["predict", str(run), *map(str, images), "--csv", str(out), "--no-post-processing"]
    assert main(arguments) == 0
    with out.open() as file:
        return {row["record_id"]: row for row in csv.DictReader(file)}


def test_a_table_and_paths_of_series_give_the_same_answers(run, cohort, tmp_path):
    table = cohort / "new.csv"
    table.write_text("record_id,ct\n3,study/3\n4,study/4/\n")
    answers = predicted(run, tmp_path, table)
    assert list(answers) == ["3", "4"]
    one = predicted(run, tmp_path, cohort / "study/3")
    assert one == predicted(run, tmp_path, f"ct={cohort / 'study/3'}") == {"3": answers["3"]}
    everything = predicted(run, tmp_path, cohort / "study")
    assert len(everything) == 12 and everything["4"] == answers["4"]


def test_series_are_read_as_in_training(run, cohort):
    predictor = load(run, post_processing=False)
    test = predictor.restored.open_dataset().test
    places = {"r" + folder.name: folder for folder in (cohort / "study").iterdir()}
    pixels, _ = predictor.read({"ct": [places[record.record_id] for record in test]})
    np.testing.assert_array_equal(pixels["ct"], [record.images["ct"] for record in test])


def test_a_series_is_explained_by_its_slices(run, cohort, tmp_path):
    # The class called has no positive evidence in this untrained network; the other one has.
    of_class = ["--task", "bleeding", "--class", "bleeding", "--out", str(tmp_path / "e")]
    assert main(["explain", str(run), str(cohort / "study/3"), *of_class]) == 0
    (told,) = json.loads((tmp_path / "e/explanations.json").read_text())["explanations"]
    assert told["record_id"] == "3" and len(told["maps"]["ct"]["hottest"]) == 3
    assert (tmp_path / "e/001-3-bleeding.png").is_file()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("study/3/0.dcm", "study/3/0.dcm: holds one slice,.* give the folder of its series"),
        (
            "study",
            "line 2: names 'study', but .*study is a folder; wanted .* a folder with a DICOM",
        ),
        ("study/99", "line 2: names 'study/99', but .*study/99 does not exist"),
    ],
)
def test_what_is_no_series_is_named_with_its_cure(cell, message, run, cohort, tmp_path, capsys):
    table = cohort / "bad.csv"
    table.write_text(f"record_id,ct\nx,{cell}\n")
    assert main(["predict", str(run), str(table), "--no-post-processing"]) == 1
    assert re.search(message, capsys.readouterr().err)
