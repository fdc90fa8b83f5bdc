"""Files and rows are read for prediction exactly as they were for training."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from drifa_jax.cli import main
from drifa_jax.config import from_mapping, modality
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.record import ModalitySpec
from drifa_jax.errors import UserError
from drifa_jax.predict.described import Description
from drifa_jax.predict.inputs import find_cases
from drifa_jax.predict.predictor import load
from drifa_jax.predict.reading import DICOM, NIFTI, Reading, read_item
from drifa_jax.predict.restored import describe, save_description
from drifa_jax.predictions.files import flat_rows


def configured(root, **of_modality):
    return from_mapping(
        {
            "data": {
                "source": "files",
                "modalities": {
                    "ct": modality(
                        height=16,
                        width=16,
                        channels=1,
                        root=str(root),
                        task="stroke",
                        **of_modality,
                    )
                },
                "validation_fraction": 0.3,
                "test_fraction": 0.2,
                "duplicates": "keep",
                "pairing": "paired",
            },
            "model": {"width": 2, "backbone": "resnet10"},
            "train": {"batch_size": 8, "num_epochs": 1},
            "uncertainty": {"num_mc_samples": 2},
        }
    )


def described(config, folder):
    """The description that training saves, read back."""
    dataset = open_dataset(config.data)
    save_description(folder, describe(config.data, dataset))
    values = json.loads((folder / "preprocessing.json").read_text())
    return dataset, Description.from_json(values)


def records(dataset, name="ct"):
    """Every record's array of one modality, as a multiset of bytes."""
    splits = (dataset.train, dataset.validation, dataset.test)
    return sorted(s[i].images[name].tobytes() for s in splits for i in range(len(s)))


def read_again(description, cases, name="ct"):
    (spec,) = (spec for spec in description.modalities if spec.name == name)
    reading = description.readings[name]
    return sorted(read_item(x, spec, reading, name).tobytes() for x in cases.images[name])


def write_dicom(path, hounsfield, patient):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, generate_uid()
    data.PatientID, data.SeriesInstanceUID, data.StudyInstanceUID = patient, patient, patient
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.Rows, data.Columns = hounsfield.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = (hounsfield + 1024).astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("window", ["brain", ""])
def test_dicom_files_are_read_as_in_training(window, tmp_path):
    draw = np.random.default_rng(0)
    for k in range(12):
        kind = ("normal", "ischaemic")[k % 2]
        write_dicom(
            tmp_path / "ct" / kind / f"{k}.dcm", draw.integers(-50, 120, (20, 24)), f"1.2.{k}"
        )
    config = configured(tmp_path / "ct", format="dicom", window=window, fit="pad")
    dataset, description = described(config, tmp_path)
    assert description.readings["ct"] == Reading(DICOM, "pad", window)
    cases = find_cases([str(tmp_path / "ct")], description.readings)
    assert len(cases.record_ids) == 12 and "normal/0" in cases.record_ids
    assert read_again(description, cases) == records(dataset)


def test_nifti_volumes_are_read_as_their_slices_in_training(tmp_path):
    draw = np.random.default_rng(0)
    for k in range(6):
        path = tmp_path / "ct" / ("normal", "ischaemic")[k % 2] / f"v{k}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = draw.normal(size=(10, 12, 9)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, 1.0, 1.0, 1.0])), path)
    config = configured(tmp_path / "ct", format="nifti")
    dataset, description = described(config, tmp_path)
    cases = find_cases([str(tmp_path / "ct")], description.readings)
    assert len(cases.record_ids) == 6 * 5 and "normal/v0/axial-004" in cases.record_ids
    assert read_again(description, cases) == records(dataset)

    volume = tmp_path / "ct" / "normal" / "v0.nii.gz"
    one = find_cases([f"ct={volume}:4"], description.readings)
    assert one.record_ids == ("v0:4",)
    row = cases.record_ids.index("normal/v0/axial-004")
    (spec,), reading = description.modalities, description.readings["ct"]
    np.testing.assert_array_equal(
        read_item(one.images["ct"][0], spec, reading, ""),
        read_item(cases.images["ct"][row], spec, reading, ""),
    )
    for item, message in ((volume, r"name one, as .*v0.nii.gz:\d"), (f"{volume}:9", "but not 9")):
        with pytest.raises(UserError, match=message):
            read_item(item, spec, reading, "")


@pytest.mark.parametrize("name", ["scan.nii.gz", "slice.dcm", "scan.npy", "notes.txt"])
def test_what_is_no_picture_is_refused_by_a_network_of_pictures(name, tmp_path):
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(UserError, match=rf"{name}: is none of what .* was trained on: \.jpg"):
        read_item(str(tmp_path / name), ModalitySpec("ct", 16, 16, 1), Reading(), "x")


def test_volumes_that_cannot_be_matched_are_named(tmp_path):
    for name, depth in (("a", 9), ("b", 21)):
        image = nibabel.Nifti1Image(np.zeros((4, 4, depth), np.float32), np.eye(4))
        nibabel.save(image, tmp_path / f"{name}.nii")
    readings = {"t1": Reading(NIFTI), "t2": Reading(NIFTI), "ct": Reading()}
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "c.png")
    given = [f"t1={tmp_path}/a.nii", f"t2={tmp_path}/b.nii", f"ct={tmp_path}/c.png"]
    with pytest.raises(UserError, match="different numbers of slices"):
        find_cases(given, readings)
    cases = find_cases([given[0], f"{given[1]}:7", given[2]], readings)
    assert len(cases.record_ids) == 5
    assert set(cases.images["t2"]) == {tmp_path / "b.nii:7"}
    assert set(cases.images["ct"]) == {tmp_path / "c.png"}


def test_foreign_files_are_named(tmp_path):
    spec = ModalitySpec("mri", 16, 16, 1)
    (tmp_path / "a.dcm").write_bytes(b"no scan")
    (tmp_path / "a.nii").write_bytes(b"no scan")
    for text, kind, message in (
        ("a.dcm", DICOM, "a.dcm: is not a DICOM file"),
        ("b.dcm", DICOM, "b.dcm: cannot be read"),
        ("a.nii:3", NIFTI, "a.nii: is not a NIfTI file"),
        ("b.nii:3", NIFTI, "b.nii: there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            read_item(str(tmp_path / text), spec, Reading(kind), "x")
    with pytest.raises(UserError, match="x: is a row of a table"):
        read_item({"age": 3}, spec, Reading(), "x")


@pytest.fixture(scope="module")
def table_data(tmp_path_factory):
    """Images with a table of a number and a category, some cells empty."""
    root = tmp_path_factory.mktemp("table")
    draw = np.random.default_rng(0)
    with (root / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "label", "age", "site", "split"])
        for k in range(64):
            Image.fromarray(draw.integers(0, 256, (16, 16), np.uint8)).save(root / f"s{k}.png")
            age = "" if k % 7 == 0 else 30 + k
            split = ("train", "train", "val", "test")[k % 4] if k < 16 else ("train", "val")[k % 2]
            site = "back" if k % 3 else ""
            writer.writerow([f"s{k}", ("mild", "severe")[k // 2 % 2], age, site, split])
    return root


@pytest.fixture(scope="module")
def table_config(table_data):
    return configured(
        table_data,
        format="manifest",
        table="table.csv",
        split_column="split",
        numeric_columns=("age",),
        categorical_columns=("site",),
    )


def test_rows_are_encoded_as_in_training(table_config, table_data, tmp_path):
    dataset, description = described(table_config, tmp_path)
    assert description.may_lack_modalities
    cases = find_cases(
        [f"ct={table_data}", f"ct_table={table_data / 'table.csv'}"], description.readings
    )
    assert len(cases.record_ids) == 64
    by_id = {}
    for source in (dataset.train, dataset.validation, dataset.test):
        for i in range(len(source)):
            by_id[source.record_id(i)] = source[i].images
    spec = description.modalities[1]
    for one, row in zip(cases.record_ids, cases.images["ct_table"], strict=True):
        if row is None:
            assert "ct_table" not in by_id[one]
        else:
            features = read_item(row, spec, description.readings["ct_table"], one)
            np.testing.assert_array_equal(features, by_id[one]["ct_table"])


def test_tables_that_do_not_fit_are_explained(table_config, table_data, tmp_path):
    _, description = described(table_config, tmp_path)
    image = f"ct={table_data}/s1.png"
    for text, arguments, message in (
        ("age\n3\n", [image], "has no column site"),
        ("site,age\nback,3\nback,4\n", [image], "has no column 'record_id' or 'image_id'"),
        ("record_id,site,age\nx,back,3\ny,back,4\n", [image], "none is named 's1'"),
        ("record_id,site,age\nx,back,3\nx,back,4\n", [image], "line 3 repeats 'x'"),
        ("record_id,site,age\nx,back,3\n", [f"ct={table_data}"], "no row is named like an image"),
        ("record_id,site,age\n", [image], "has no rows"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            find_cases([*arguments, f"ct_table={tmp_path}/t.csv"], description.readings)
    (tmp_path / "t.csv").write_text("record_id,ct,age\nx,,3\n")
    with pytest.raises(UserError, match="site: is missing, a column of ct_table"):
        find_cases([str(tmp_path / "t.csv")], description.readings)
    spec, reading = description.modalities[1], description.readings["ct_table"]
    for item, message in (
        ("row", "give a row of the table, a mapping of the columns age, site"),
        ({"age": 3}, "the row lacks the column site"),
        ({"age": "old", "site": ""}, "'old' in the column 'age' is not a number"),
        ({"age": None, "site": ""}, "every value of the row is missing"),
    ):
        with pytest.raises(UserError, match=message):
            read_item(item, spec, reading, "x")


def test_a_run_with_a_table_predicts_from_the_command_line(
    table_config, table_data, untrained_run, tmp_path, capsys
):
    run = untrained_run(table_config, tmp_path / "run", 0)
    names = ["s1", "s2", "s3", "s4"]
    lines = [f"{name},{table_data}/{name}.png,5{k},back" for k, name in enumerate(names)]
    table = tmp_path / "cases.csv"
    table.write_text("\n".join(["record_id,ct,age,site", *lines]) + "\n")
    out = tmp_path / "out.json"
    assert main(["predict", str(run), str(table), "--json", str(out)]) == 0
    assert "p-value" in capsys.readouterr().out
    rows = json.loads(out.read_text())
    assert all(0 < row["ood/p_value"] <= 1 for row in rows)
    predictor = load(run)
    images = {"ct": [table_data / f"{name}.png" for name in names]}
    clinic = [{"age": 50 + k, "site": "back"} for k in range(4)]
    again = flat_rows(predictor(images | {"ct_table": clinic}, names))
    without = flat_rows(predictor(images, names))
    for row, same, other in zip(rows, again, without, strict=True):
        assert row["stroke/p(mild)"] == pytest.approx(same["stroke/p(mild)"])
        assert row["stroke/p(mild)"] != other["stroke/p(mild)"]
