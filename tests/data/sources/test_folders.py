"""Class folders: what is read, how it is split, and every error at once."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from drifa_jax.data.record import ModalitySpec, Source
from drifa_jax.data.sources.folders import folder_records, scan_folders
from drifa_jax.data.splits import shares, split_records
from drifa_jax.errors import UserError

SCAN = ModalitySpec("scan", 16, 16, 1)
OFFICIAL = {
    "Training/tumour": 6,
    "Training/healthy": 6,
    "Testing/tumour": 2,
    "Testing/healthy": 2,
}


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(path)


def test_official_folders_are_honoured(folders):
    index = scan_folders(folders(OFFICIAL))
    assert index.classes == ("healthy", "tumour")
    splits = split_records(folder_records(index, SCAN, "tumour"), shares(0.25, 0.15), 0)
    assert {name: len(source) for name, source in splits.items()} == {
        "train": 9,
        "validation": 3,
        "test": 4,
    }
    assert all(splits["test"].record_id(i).startswith("Testing/") for i in range(4))


def test_folder_source_is_a_source_of_its_images(folders):
    root = folders(OFFICIAL)
    source = folder_records(scan_folders(root), SCAN, "tumour")
    assert isinstance(source, Source)
    record = source[3]
    assert record.images["scan"].shape == (16, 16, 1)
    assert record.images["scan"].dtype == np.uint8
    assert record.record_id == source.record_id(3)
    assert record.labels == {"tumour": source.labels("tumour")[3]}
    assert (root / record.record_id).is_file()


def test_suffixes_are_read_in_any_letter_case(folders):
    root = folders({"a": 1, "b": 1})
    picture = Image.fromarray(np.zeros((8, 8), np.uint8))
    for name in ("one.JPG", "two.Jpeg", "three.BMP", "four.TIF", "five.PNG"):
        picture.save(root / "a" / name)
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "a" / "._one.JPG").write_bytes(b"left by another system")
    assert len(scan_folders(root).files) == 7


def test_single_tree_is_split_by_group_and_class(folders):
    root = folders({"a": 0, "b": 0})
    for patient in range(20):
        for piece in range(1 + patient % 3):
            picture = Image.fromarray(np.full((8, 8), patient * 3 + piece, np.uint8))
            picture.save(root / "ab"[patient % 2] / f"{patient} ({piece}).png")
    index = scan_folders(root, group_pattern=r"^(\d+) \(")
    splits = split_records(folder_records(index, SCAN, "kind"), shares(0.2, 0.2), 0)
    groups = {name: {s.group_id(i) for i in range(len(s))} for name, s in splits.items()}
    assert sum(len(g) for g in groups.values()) == len(set().union(*groups.values())) == 20
    assert sum(len(source) for source in splits.values()) == len(index.files)
    for source in splits.values():
        assert set(source.labels("kind")) == {0, 1}
    again = split_records(folder_records(index, SCAN, "kind"), shares(0.2, 0.2), 0)
    other = split_records(folder_records(index, SCAN, "kind"), shares(0.2, 0.2), 1)

    def members(parts):
        return [parts["test"].record_id(i) for i in range(len(parts["test"]))]

    assert members(again) == members(splits)
    assert members(other) != members(splits)


def test_include_chooses_among_nested_folders(folders):
    root = folders({"im_a/im_a/CROPPED": 3, "im_a/im_a": 2, "im_b/im_b/CROPPED": 1})
    assert len(scan_folders(root, include="CROPPED/").files) == 4


def test_declared_classes_fix_the_order(folders):
    index = scan_folders(folders({"a": 1, "b": 1}), classes=("b", "a"))
    assert [index.classes[file.label] for file in index.files] == ["a", "b"]


def test_missing_folder_tells_how_to_go_on(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist[\s\S]*phantoms"):
        scan_folders(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "words"), [("scan.nii.gz", "format=nifti"), ("1.dcm", "format=dicom")]
)
def test_folders_of_another_format_are_named_with_it(name, words, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).touch()
    with pytest.raises(UserError, match=rf"a: holds \w+ files and no pictures; .* {words}"):
        scan_folders(tmp_path)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, "holds no class folders"),
        ({"a": 1, "b": 0}, "is an empty class folder"),
        ({"Training/a": 1, "Testing/a": 1, "Testing/b": 1}, "b: is a class of the test folder"),
        ({"Testing/a": 1}, "no training folder"),
        ({"Training/a": 1, "Testing": 0}, "holds no class folders"),
    ],
)
def test_wrong_folders_are_named(folders, counts, words):
    with pytest.raises(UserError, match=words):
        scan_folders(folders(counts))


def test_every_problem_is_listed_at_once(folders):
    root = folders({"Training/a": 0, "Training/b": 0, "Testing/a": 1, "Testing/c": 1})
    with pytest.raises(UserError, match="3 problems") as caught:
        scan_folders(root)
    assert all(word in str(caught.value) for word in ("Training/a", "Training/b", "c: is a class"))


def test_files_without_a_group_are_named(folders):
    root = folders({"a": 2}, name="patient{number}.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "a" / "stray.png")
    with pytest.raises(UserError, match=r"stray\.png: does not match the group pattern"):
        scan_folders(root, group_pattern=r"patient(\d+)")


def test_undeclared_and_absent_classes_are_named(folders):
    with pytest.raises(UserError, match="2 problems") as caught:
        scan_folders(folders({"a": 1, "b": 1}), classes=("a", "c"))
    assert "b: is a folder but not one of the declared" in str(caught.value)
    assert "c: is a declared class without" in str(caught.value)


def test_broken_image_is_named_when_it_is_read(folders):
    root = folders({"a": 1, "b": 1})
    (root / "a" / "0.png").write_bytes(b"broken")
    source = folder_records(scan_folders(root), SCAN, "kind")
    with pytest.raises(UserError, match=r"a/0\.png: is not an image"):
        source[0]


def test_real_brain_scans_are_read(shared):
    root = shared / "data" / "brain-tumor-mri-dataset"
    splits = split_records(
        folder_records(scan_folders(root), SCAN, "tumour"), shares(0.15, 0.15), 0
    )
    assert len(splits["train"]) + len(splits["validation"]) == 1850
    assert len(splits["test"]) == 591
    assert splits["train"].tasks[0].classes == ("glioma", "meningioma", "notumor", "pituitary")
    assert splits["test"][0].images["scan"].std() > 10


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path):
    for name in ("a/1.png", "a/.ipynb_checkpoints/1.png", "a/._1.png", "b/2.png"):
        draw(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("words")
    (tmp_path / "README.md").write_text("words")
    found = scan_folders(tmp_path)
    assert [file.path for file in found.files] == ["a/1.png", "b/2.png"]
    assert str(found.left_out) == (
        "left out: 1 files beside the class folders, 1 files that are no images (.txt), "
        "1 hidden files, 1 hidden folders"
    )


def test_names_that_are_no_text_are_left_out_and_counted(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        draw(tmp_path / name)
    try:
        shutil.copytree(tmp_path / "a", tmp_path / os.fsdecode(b"n\xe9vus"))
        shutil.copy(tmp_path / "a" / "1.png", tmp_path / "a" / os.fsdecode(b"n\xe9vus.png"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    found = scan_folders(tmp_path)
    assert [file.path for file in found.files] == ["a/1.png", "b/2.png"]
    assert str(found.left_out) == (
        "left out: 2 files or folders whose names are not UTF-8 (rename them)"
    )


def test_linked_folders_are_entered_and_loops_end(tmp_path):
    draw(tmp_path / "elsewhere" / "1.png")
    draw(tmp_path / "root" / "b" / "2.png")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "b" / "loop").symlink_to(tmp_path / "root")
    assert "a/1.png" in [file.path for file in scan_folders(tmp_path / "root").files]


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path):
    draw(tmp_path / "train" / "n\u00e9vus" / "1.png")
    draw(tmp_path / "test" / "ne\u0301vus" / "2.png")
    assert scan_folders(tmp_path).classes == ("n\u00e9vus",)


def test_a_class_in_another_spelling_is_told_which_is_meant(tmp_path):
    draw(tmp_path / "train" / "No Tumor" / "1.png")
    draw(tmp_path / "test" / "no_tumor" / "2.png")
    with pytest.raises(UserError, match=r"no_tumor: .*rename it to 'No Tumor'"):
        scan_folders(tmp_path)


def test_splits_inside_one_wrapping_folder_are_found(tmp_path):
    for split in ("Training", "Testing"):
        draw(tmp_path / "Brain MRI" / split / "glioma" / "1.png")
    index = scan_folders(tmp_path)
    assert index.classes == ("glioma",)
    assert {file.split for file in index.files} == {"train", "test"}
