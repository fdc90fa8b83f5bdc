"""Manifests: wide and long tables, missing cells, and every error at once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from drifa_jax.data.record import MISSING_LABEL, ModalitySpec, Source
from drifa_jax.data.sources.manifest import ManifestColumns, manifest_records
from drifa_jax.data.splits import shares, split_records
from drifa_jax.data.table import TableColumns, add_table, read_table
from drifa_jax.errors import UserError

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


def test_rows_of_other_classes_are_left_out_where_that_is_asked_for(images, caplog):
    asked = dict(classes={"stroke": ["yes", "maybe"]}, ignore_other_classes=True)
    source = opened(images, GOOD, **asked)
    assert source.ids == ["r1"]
    assert source.tasks[0].classes == ("yes", "maybe")
    assert "left out: 3 rows of other classes or none" in caplog.text


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
