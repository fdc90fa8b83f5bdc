"""`drifa predict --dicom-sr --dicom-sc` from files to files: all of them, or none."""

from __future__ import annotations

import dataclasses
import json

import highdicom
import numpy as np
import pydicom
import pytest

from drifa_jax.cli import main
from drifa_jax.predict.predictor import Predictor
from drifa_jax.predict.reading import DICOM, Reading
from drifa_jax.predict.restored import restore


@pytest.fixture(scope="module")
def predictor(finished_run) -> Predictor:
    """The shared run, which was trained on pictures, as if it had been trained on DICOM."""
    made = Predictor(restore([finished_run]), num_samples=2)
    readings = {name: Reading(DICOM) for name in made.description.readings}
    made.description = dataclasses.replace(made.description, readings=readings)
    return made


@pytest.fixture
def predict(predictor, finished_run, monkeypatch, tmp_path):
    """The command on that network; returns its exit code."""
    monkeypatch.setattr("drifa_jax.commands.predict.open_predictor", lambda *_: predictor)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["predict", str(finished_run), *map(str, arguments)])


@pytest.fixture
def study(studies, tmp_path):
    """Two cases of two patients in folders of modalities; the second lacks nothing."""
    draw = np.random.default_rng(0)
    for k, patient in enumerate(("Doe^Jane", "Roe^Richard"), start=1):
        for place, (name, kind) in enumerate((("mri", studies.MR), ("ct", studies.CT)), start=1):
            pixels = draw.integers(0, 255, (16, 16), np.uint8).tobytes()
            data = studies.header(patient, k, place, kind, Rows=16, Columns=16, PixelData=pixels)
            (tmp_path / "study" / name).mkdir(parents=True, exist_ok=True)
            studies.written(tmp_path / "study" / name / f"case-{k}.dcm", data)
    return tmp_path / "study"


def objects(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_case_has_its_report_and_capture_of_its_own_patient(predict, study, tmp_path):
    assert predict(study, "--dicom-sr", "sr", "--dicom-sc", "sc", "--json", "all.json") == 0
    rows = json.loads((tmp_path / "all.json").read_text())
    assert sorted(objects(tmp_path / "sr")) == ["00001-case-1.dcm", "00002-case-2.dcm"]
    assert sorted(objects(tmp_path / "sc")) == sorted(
        f"0000{k}-case-{k}-{task}.dcm" for k in (1, 2) for task in ("tumour", "stroke")
    )
    names = ("Doe^Jane", "Roe^Richard")
    for k, row in enumerate(rows):
        report = highdicom.sr.srread(tmp_path / "sr" / f"0000{k + 1}-case-{k + 1}.dcm")
        capture = pydicom.dcmread(tmp_path / "sc" / f"0000{k + 1}-case-{k + 1}-tumour.dcm")
        assert report.PatientName == capture.PatientName == names[k]
        for group in report.content.get_image_measurement_groups():
            told = {e.name.meaning: e.value.meaning for e in group.get_qualitative_evaluations()}
            assert told["Diagnosis"] == row[f"{group.tracking_identifier}/predicted"]
            assert [i.referenced_sop_instance_uid for i in group.source_images] == [
                f"1.2.3.{k + 1}.1",
                f"1.2.3.{k + 1}.2",
            ]
    for name, content in (objects(tmp_path / "sr") | objects(tmp_path / "sc")).items():
        other = names["case-1" in name]
        for foreign in (other, "scanner-host-7", str(tmp_path), str(study)):
            assert foreign.encode() not in content


def test_the_same_command_writes_the_same_and_overwrites_nothing(predict, study, tmp_path, capsys):
    assert predict(study, "--dicom-sr", "sr") == 0
    before = objects(tmp_path / "sr")
    assert predict(study, "--dicom-sr", "sr") == 0
    assert predict(study, "--dicom-sr", "again") == 0
    assert objects(tmp_path / "sr") == objects(tmp_path / "again") == before
    (tmp_path / "sr" / "00001-case-1.dcm").write_bytes(b"corrected by hand")
    before = objects(tmp_path / "sr")
    assert predict(study, "--dicom-sr", "sr", "--dicom-sc", "sc", "--csv", "a.csv") == 1
    assert "sr holds other objects" in capsys.readouterr().err
    assert objects(tmp_path / "sr") == before
    assert not (tmp_path / "sc").exists() and not (tmp_path / "a.csv").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_codes_of_a_standard_are_written(predict, study, predictor, tmp_path):
    classes = predictor.description.tasks["tumour"]
    codes = {"tumour": {name: [f"1000{k}", "SCT", name] for k, name in enumerate(classes)}}
    (tmp_path / "codes.json").write_text(json.dumps(codes))
    assert predict(study, "--dicom-sr", "sr", "--codes", "codes.json") == 0
    report = highdicom.sr.srread(tmp_path / "sr" / "00001-case-1.dcm")
    schemes = {
        group.tracking_identifier: evaluation.value.scheme_designator
        for group in report.content.get_image_measurement_groups()
        for evaluation in group.get_qualitative_evaluations()
        if evaluation.name.meaning == "Diagnosis"
    }
    assert schemes == {"tumour": "SCT", "stroke": "99DRIFACLASS"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dicom-sr", "x", "--dicom-sc", "x"], "name the same folder"),
        (["--dicom-sr", "file.txt"], "is a file"),
        (["--dicom-sr", "no/folder"], "does not exist"),
        (["--dicom-sc", "full"], "holds other files"),
        (["--codes", "codes.json"], "give --dicom-sr"),
        (["--dicom-sr", "x", "--codes", "no.json"], "cannot be read"),
    ],
)
def test_flags_that_do_not_fit_are_named_and_nothing_is_written(
    flags, message, predict, study, tmp_path, capsys
):
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    assert predict(study, *flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_case_of_two_patients_is_refused_before_anything_is_predicted(
    predict, study, tmp_path, capsys
):
    mixed = [f"mri={study / 'mri' / 'case-1.dcm'}", f"ct={study / 'ct' / 'case-2.dcm'}"]
    assert predict(*mixed, "--dicom-sr", "sr", "--csv", "a.csv") == 1
    told = capsys.readouterr().err
    assert "several patients" in told and "case-1.dcm" in told and "case-2.dcm" in told
    assert not (tmp_path / "sr").exists() and not (tmp_path / "a.csv").exists()


def test_a_missing_extra_is_named(predict, study, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    assert predict(study, "--dicom-sr", "sr") == 1
    told = capsys.readouterr().err
    assert "pip install" in told and "highdicom" in told
