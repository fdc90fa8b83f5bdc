"""Manifests: wide and long tables, missing cells, and every error at once."""

from __future__ import annotations

import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from drifa_jax.config import ModalityConfig
from drifa_jax.data.pairing import join
from drifa_jax.data.readers import dicom, nifti
from drifa_jax.data.record import MISSING_LABEL, ModalitySpec, Source, VolumeSpec
from drifa_jax.data.sources.manifest import ManifestColumns, manifest_records, scan
from drifa_jax.data.splits import shares, split_records
from drifa_jax.data.table import TableColumns, add_table, read_table
from drifa_jax.errors import UserError
from tests.data.readers.dicom_writing import write

MRI, CT = ModalitySpec("mri", 16, 16, 1), ModalitySpec("ct", 8, 8, 1)
WIDE = ManifestColumns(
    "id",
    images={"mri": "mri", "ct": "ct"},
    tasks={"stroke": "stroke"},
    group="patient",
    split="split",
)
GOOD = """id,patient,mri,ct,stroke,split
r1,p1,a/0.png,b/0.png,yes,train
r2,p1,a/1.png,,no,train
r3,p2,,b/1.png,,train
r4,p3,a/2.png,b/2.png,no,test
"""


@pytest.fixture
def images(folders):
    return folders({"a": 3, "b": 3})


def opened(images, text, columns=WIDE, **options):
    table = images / "table.csv"
    table.write_text(text)
    return manifest_records(table, images, columns, [MRI, CT], **options)


def test_wide_form_reads_records_with_missing_cells(images):
    source = opened(images, GOOD)
    assert isinstance(source, Source)
    assert [set(source[i].images) for i in range(4)] == [
        {"mri", "ct"},
        {"mri"},
        {"ct"},
        {"mri", "ct"},
    ]
    assert source.tasks[0].classes == ("no", "yes")
    assert source.labels("stroke").tolist() == [1, 0, MISSING_LABEL, 0]
    assert source.group_id(1) == "p1"
    assert source[0].images["ct"].shape == (8, 8, 1)


def test_rows_of_other_classes_are_left_out_where_that_is_asked_for(images):
    asked = dict(classes={"stroke": ["yes", "maybe"]}, ignore_other_classes=True)
    source = opened(images, GOOD, **asked)
    assert source.ids == ["r1"]
    assert source.tasks[0].classes == ("yes", "maybe")
    assert "left out: 3 rows of other classes or none" in source.notes[0]


def test_long_form_joins_the_images_of_a_record(images):
    text = "id,kind,file,stroke\nr1,mri,a/0.png,yes\nr1,ct,b/0.png,\nr2,ct,b/1.png,no\n"
    columns = ManifestColumns("id", tasks={"stroke": "stroke"}, modality="kind", path="file")
    source = opened(images, text, columns)
    assert len(source) == 2
    assert set(source[0].images) == {"mri", "ct"}
    assert source.labels("stroke").tolist() == [1, 0]


def test_splits_of_the_table_are_honoured(images):
    parts = split_records(opened(images, GOOD), shares(0, 0.15), 0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 3, "test": 1}


def test_a_validation_split_that_the_table_lacks_is_drawn_from_training(images):
    parts = split_records(opened(images, GOOD), shares(0.3, 0.15), 0)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }


def test_splits_are_drawn_by_group_when_the_table_names_none(images):
    columns = ManifestColumns("id", images={"mri": "mri"}, group="patient")
    rows = "".join(f"r{i},p{i // 2},a/{i % 3}.png\n" for i in range(12))
    parts = split_records(opened(images, "id,patient,mri\n" + rows, columns), shares(0.15, 0.15), 0)
    groups = [{part.group_id(i) for i in range(len(part))} for part in parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 6


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ct,stroke", "scan,stroke", "ct: is no column; the table has id, patient, mri, scan"),
        ("r2,", "r1,", "line 3: repeats the id 'r1'"),
        ("a/1.png", "../a/1.png", r"line 3: points outside the root with '\.\./a/1\.png'"),
        ("a/1.png", "/etc/passwd", "points outside the root"),
        ("a/1.png", "a/9.png", "no such image"),
        ("r3,p2,,b/1.png", "r3,p2,,", "r3: has no image in any modality"),
        ("no,test", "no,holdout", "has the split 'holdout'"),
        ("r2,", ",", "line 3: has no id"),
    ],
)
def test_wrong_cells_are_named(images, old, new, words):
    with pytest.raises(UserError, match=words):
        opened(images, GOOD.replace(old, new))


def test_labels_outside_the_declared_classes_are_named(images):
    with pytest.raises(UserError, match="line 2: has the stroke 'yes', not one of"):
        opened(images, GOOD, classes={"stroke": ("no", "maybe")})


def test_links_out_of_the_root_are_refused(images, tmp_path):
    outside = tmp_path / "secret.png"
    outside.write_bytes((images / "a" / "0.png").read_bytes())
    (images / "a" / "link.png").symlink_to(outside)
    with pytest.raises(UserError, match="points outside the root"):
        opened(images, GOOD.replace("a/1.png", "a/link.png"))


def test_every_problem_is_listed_at_once(images):
    text = GOOD.replace("a/1.png", "a/9.png").replace("no,test", "no,later")
    with pytest.raises(UserError, match="2 problems"):
        opened(images, text)


def test_wrong_rows_are_quarantined_when_asked(images, tmp_path):
    text = GOOD.replace("a/1.png", "../a/1.png") + "r1,p9,a/0.png,,no,test\nr9,p9,,,no,test\n"
    source = opened(images, text, quarantine=tmp_path / "report.csv")
    assert [source.record_id(i) for i in range(len(source))] == ["r1", "r3", "r4"]
    report = (tmp_path / "report.csv").read_text()
    assert report.count("\n") == 4
    assert all(word in report for word in ("line 3", "repeats the id 'r1'", "r9,has no image"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("no,test", "no,train", "test: is an empty split"),
        ("r4,p3", "r4,p1", "1 groups lie in more than one split.*'p1' in train and test"),
        ("no,test", "late,test", "late: is a class of stroke in test that training does not hold"),
    ],
)
def test_wrong_splits_are_named(images, old, new, words):
    with pytest.raises(UserError, match=words):
        split_records(opened(images, GOOD.replace(old, new)), shares(0, 0.15), 0)


def test_a_record_with_two_images_of_one_modality_is_named(images):
    text = "id,kind,file\nr1,mri,a/0.png\nr1,mri,a/1.png\nr2,pet,a/2.png\n"
    with pytest.raises(UserError, match=r"second mri image[\s\S]*'pet'|'pet'[\s\S]*second mri"):
        opened(images, text, ManifestColumns("id", modality="kind", path="file"))


def test_missing_root_and_empty_table_are_named(images, tmp_path):
    with pytest.raises(UserError, match="has no rows"):
        opened(images, "id,mri\n", ManifestColumns("id", images={"mri": "mri"}))
    with pytest.raises(UserError, match=r"folder .*nowhere"):
        manifest_records(images / "table.csv", tmp_path / "nowhere", WIDE, [MRI])


def test_real_ham10000_reads_images_lesions_and_patients(shared):
    root = shared / "data" / "skin-cancer-mnist-ham10000"
    columns = ManifestColumns(
        "image_id", images={"dermoscopy": "image_id"}, tasks={"skin": "dx"}, group="lesion_id"
    )
    skin = ModalitySpec("dermoscopy", 32, 32, 3)
    source = manifest_records(root / "HAM10000_metadata.csv", root, columns, [skin])
    assert len(source) == 2409
    assert source.tasks[0].classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    parts = split_records(source, shares(0.15, 0.15), 0)
    rows = {row["image_id"]: row for row in read_table(root / "HAM10000_metadata.csv")}
    table = TableColumns("patient", numeric=("age",), categorical=("sex", "localization"))
    joined, encoding = add_table(parts, rows, table)
    assert 40 < encoding.means[0] < 65
    record = joined["test"][0]
    assert set(record.images) == {"dermoscopy", "patient"}
    assert len({source.group_id(i) for i in range(len(source))}) == 1759


@pytest.mark.parametrize(("cell", "file"), [("1.2.826.7", "1.2.826.7.png"), ("1.0", "1.png")])
def test_an_image_is_found_by_an_identifier_with_dots(cell, file, tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / file)
    (tmp_path / "table.csv").write_text(f"id,mri\nr1,{cell}\n")
    columns = ManifestColumns("id", images={"mri": "mri"})
    records = manifest_records(tmp_path / "table.csv", tmp_path, columns, [MRI])
    assert records[0].images["mri"].shape == MRI.shape


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_cells_are_separated_by_what_the_header_is(images, mark):
    text = GOOD.replace(",", mark).replace("yes", '"a,b;c"')
    assert opened(images, text).tasks[0].classes == ("a,b;c", "no")


def scanned(root, name="mri", **fields):
    fields = {"table": "table.csv", "id_column": "id", "image_column": name, "task": "dx"} | fields
    fields |= {"root": str(root), "format": "manifest"}
    return scan(name, ModalityConfig(height=16, width=16, channels=1, **fields))


def test_a_row_without_the_image_of_one_modality_is_anothers(images):
    text = "id,mri,ct,label\nr1,a/0.png,b/0.png,x\nr2,,b/1.png,y\nr3,a/1.png,NA,y\n"
    (images / "table.csv").write_text(text)
    parts = {name: scanned(images, name) for name in ("mri", "ct")}
    assert [part.ids for part in parts.values()] == [["r1", "r3"], ["r1", "r2"]]
    assert parts["mri"].notes == (f"{images / 'table.csv'}: left out: 1 rows without mri",)
    assert join(parts).ids == ["r1", "r3", "r2"]


def test_one_hot_labels_of_a_second_table_and_rows_of_one_modality(images):
    (images / "table.csv").write_text(
        "id,type,file\nr1,mri,a/0.png\nr1,ct,b/0.png\nr2,mri,a/1.png\nr2,ct,b/1.png\n"
    )
    (images / "truth.csv").write_text("id,MEL,NV\nr1,1.0,0.0\nr2,0.0,1.0\n")
    fields = {"image_column": "file", "label_table": "truth.csv", "label_column": "MEL,NV"}
    records = scanned(images, "ct", rows="type=ct", **fields)
    assert records.ids == ["r1", "r2"]
    assert records.tasks[0].classes == ("MEL", "NV")
    assert records.labels("dx").tolist() == [0, 1]
    assert "left out: 2 rows of another type than 'ct'" in records.notes[0]
    with pytest.raises(UserError, match="repeats the id 'r1'; rows of one modality are chosen"):
        scanned(images, **fields)
    with pytest.raises(UserError, match="these are one-hot, and can be named together: MEL,NV"):
        scanned(images, rows="type=ct", **{**fields, "label_column": "label"})
    with pytest.raises(UserError, match=r"No row of .* has the type 'pet'; there are \['ct', 'mr"):
        scanned(images, rows="type=pet", **fields)


def test_records_without_a_group_are_groups_of_their_own_and_told(images):
    rows = "".join(f"r{k},a/0.png,x,{'NA' if k else 'p'}\n" for k in range(3))
    (images / "table.csv").write_text("id,mri,label,patient\n" + rows)
    records = scanned(images, group_column="patient")
    assert records.groups == ["p", "r1", "r2"]
    assert "2 records have no patient; each is a group of its own" in records.notes[0]


def test_dicom_files_and_slices_of_volumes_may_be_named(tmp_path):
    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "1.2.826.7")
    shutil.copy(get_testdata_file("MR_small.dcm"), tmp_path / "scan.dcm")
    voxels = np.arange(6 * 5 * 8, dtype=np.int16).reshape(6, 5, 8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "head.nii.gz")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "flat.png")
    names = ["1.2.826.7", "scan", "flat", "head", "head.nii.gz:7"]
    rows = "".join(f"r{k},{name},{'ab'[k % 2]}\n" for k, name in enumerate(names))
    (tmp_path / "table.csv").write_text("id,mri,label\n" + rows)
    records = scanned(tmp_path)
    slices = [f"r3/axial-{k:03d}" for k in nifti.slice_numbers(tmp_path / "head.nii.gz")]
    assert records.ids == ["r0", "r1", "r2", *slices, "r4"]
    assert records.groups == ["r0", "r1", "r2", *["r3"] * len(slices), "r4"]
    assert all(record.images["mri"].shape == (16, 16, 1) for record in records)
    direct = dicom.read_image(tmp_path / "scan.dcm", records.modalities[0], fit="stretch")
    np.testing.assert_array_equal(records[1].images["mri"], direct)


@pytest.fixture
def series_table(tmp_path):
    """Two folders of one series of three slices each, one without, and a table that names them."""
    for number in range(2):
        for k in range(3):
            write(
                tmp_path / f"study/{number}/{k}",
                np.full((4, 4), 20 * k, np.uint16),
                ImagePositionPatient=[0, 0, k],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            )
    (tmp_path / "study/empty").mkdir()
    table = tmp_path / "t.csv"

    def opened(spec, *cells):
        rows = "".join(f"r{k},{cell},yes\n" for k, cell in enumerate(cells))
        table.write_text(f"id,ct,stroke\n{rows}")
        columns = ManifestColumns("id", images={"ct": "ct"}, tasks={"stroke": "stroke"})
        return manifest_records(table, tmp_path, columns, [spec], window="brain")

    return opened


def test_a_folder_of_one_series_is_a_volume_of_one_record(series_table):
    records = series_table(VolumeSpec("ct", 3, 4, 4, 1), "study/0", "study/1/")
    assert [record.record_id for record in records] == ["r0", "r1"]
    # Window 0..80 HU.
    assert records[1].images["ct"][:, 0, 0, 0].tolist() == [0, 64, 128]


def test_folders_that_cannot_be_read_are_named(series_table, tmp_path):
    with pytest.raises(UserError, match=r"line 2: names the folder 'study/empty', which holds no"):
        series_table(VolumeSpec("ct", 3, 4, 4, 1), "study/empty", "study/0")
    with pytest.raises(UserError, match=r"names the folder 'study/0'; name one file .*\(depth\)"):
        series_table(CT, "study/0")
