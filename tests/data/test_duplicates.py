"""Duplicates across splits are found, told apart, and leave training."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import cv2
import numpy as np
import pytest

from drifa_jax.data.duplicates import (
    content_hash,
    difference_hash,
    find_duplicates,
    groups_with_duplicates,
    remove_duplicates,
    same_files,
    write_table,
)
from drifa_jax.data.record import ModalitySpec, Record, TaskSpec
from drifa_jax.data.records import as_records
from drifa_jax.data.sources.folders import folder_records, scan_folders
from drifa_jax.data.splits import shares, split_records


def scene(seed: int) -> np.ndarray:
    """A smooth picture of its own for every seed."""
    grid = np.random.Generator(np.random.Philox(seed)).random((6, 6), dtype=np.float32)
    smooth = cv2.resize(grid, (64, 64), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth * 255, 0, 255).astype(np.uint8)[:, :, None]


class Pictures:
    synthetic, description = True, "pictures"
    modalities = (ModalitySpec("scan", 64, 64, 1),)
    tasks = (TaskSpec("kind", ("a", "b")),)

    def __init__(self, name, images, labels=None):
        self.name, self.images = name, images
        self._labels = np.array(labels or [0] * len(images), np.int32)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        name = self.record_id(index)
        label = {"kind": int(self._labels[index])}
        image = self.images[index]
        return Record(name, name, {} if image is None else {"scan": image}, label)

    def labels(self, task):
        return self._labels

    def record_id(self, index):
        return f"{self.name}{index}"

    group_id = record_id

    def attributes(self, index):
        return {}


def noisy(image: np.ndarray) -> np.ndarray:
    """As if it had been saved as a JPEG of middling quality."""
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0)[
        ..., None
    ]


@pytest.fixture
def splits():
    return {
        "train": Pictures("train", [scene(0), scene(1), scene(2), None, scene(3)]),
        "validation": Pictures("val", [scene(4), scene(5)]),
        "test": Pictures(
            "test", [scene(6), noisy(scene(1)), scene(2), None, scene(5)], [0, 0, 1, 0, 0]
        ),
    }


def test_exact_and_near_duplicates_are_told_apart(splits):
    found = {(d.removed_id, d.kept_id): d for d in find_duplicates(splits)}
    assert set(found) == {("train1", "test1"), ("train2", "test2"), ("val1", "test4")}
    assert found["train1", "test1"].kind == "near"
    assert 0 <= found["train1", "test1"].distance <= 8
    assert found["train2", "test2"].kind == "exact"
    assert found["train2", "test2"].distance == 0
    assert not found["train2", "test2"].same_labels
    assert found["val1", "test4"].same_labels


def test_exact_duplicates_can_be_asked_for_alone(splits):
    assert [d.removed_id for d in find_duplicates(splits, max_distance=-1)] == ["train2", "val1"]


def test_duplicates_leave_training_and_validation_but_never_test(splits):
    cleaned = remove_duplicates(splits, find_duplicates(splits))
    ids = {name: [s.record_id(i) for i in range(len(s))] for name, s in cleaned.items()}
    assert ids["train"] == ["train0", "train3", "train4"]
    assert ids["validation"] == ["val0"]
    assert cleaned["test"].ids == as_records(splits["test"]).ids
    assert "without 2 duplicates" in cleaned["train"].description
    assert find_duplicates(cleaned) == []


def test_table_lists_every_pair(splits, tmp_path):
    found = find_duplicates(splits)
    write_table(tmp_path / "out" / "duplicates.csv", found)
    lines = (tmp_path / "out" / "duplicates.csv").read_text().splitlines()
    rows = list(csv.DictReader(lines))
    assert len(rows) == 3
    assert rows[0]["removed_id"] == "train1"


def test_near_duplicates_share_a_group():
    source = Pictures("r", [scene(0), scene(1), noisy(scene(0)), scene(2)])
    groups = groups_with_duplicates(source)
    assert groups == ["r0", "r1", "r0", "r3"]


def test_hash_forgives_brightness_and_size_but_not_another_picture():
    first = scene(7)
    dimmed = (first * 0.8).astype(np.uint8)
    smaller = cv2.resize(first, (40, 40), interpolation=cv2.INTER_AREA)[..., None]

    def distance(image):
        return int(np.bitwise_count(difference_hash(first) ^ difference_hash(image)).sum())

    assert distance(first) == 0
    assert distance(dimmed) <= 8
    assert distance(smaller) <= 8
    assert min(distance(scene(seed)) for seed in range(8, 40)) > 40


def test_content_hash_sees_pixels_and_names():
    one = Record("a", "a", {"scan": scene(0)}, {})
    assert content_hash(one) == content_hash(Record("b", "b", {"scan": scene(0).copy()}, {}))
    assert content_hash(one) != content_hash(Record("a", "a", {"other": scene(0)}, {}))
    assert content_hash(one) != content_hash(Record("a", "a", {"scan": scene(1)}, {}))


def test_real_brain_scans_leak_from_training_into_testing(shared):
    index = scan_folders(shared / "data" / "brain-tumor-mri-dataset")
    records = folder_records(index, ModalitySpec("mri", 160, 160, 1), "tumour")
    scans = split_records(records, shares(0, 0.15), 0)
    exact = find_duplicates(scans, max_distance=-1)
    # The published description of this subset counts 103 testing images identical to training.
    assert len({d.kept_id for d in exact}) == 103
    assert all(d.same_labels for d in exact)
    assert not find_duplicates(remove_duplicates(scans, exact), max_distance=-1)


def test_files_of_the_same_bytes_are_found_without_decoding(tmp_path):
    contents = {
        "a": b"x" * 40_000,
        "b": b"x" * 39_999 + b"y",
        "c": b"z",
        "d": b"x" * 40_000,
        "e": b"",
    }
    files = [tmp_path / name for name in contents]
    for file, content in zip(files, contents.values(), strict=True):
        file.write_bytes(content)
    assert same_files([*files, tmp_path / "gone", tmp_path / "f"]) == [[0, 3]]


def test_no_byte_is_read_twice_to_compare_files(tmp_path, monkeypatch):
    sizes = {"small": 100, "also small": 100, "large": 40_000, "also large": 40_000}
    files = [tmp_path / name for name in sizes]
    for file, size in zip(files, sizes.values(), strict=True):
        file.write_bytes(b"x" * size)
    read = []

    class Counted(io.FileIO):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

        def read(self, size=-1):
            content = super().read(size)
            read.append(len(content))
            return content

    monkeypatch.setattr(Path, "open", lambda self, mode: Counted(self, mode))
    assert same_files(files) == [[0, 1], [2, 3]]
    assert sum(read) == sum(sizes.values())
