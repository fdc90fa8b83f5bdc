"""Any set of images that TensorFlow Datasets has prepared is read, without TensorFlow."""

from __future__ import annotations

import io
import json
import shutil
import struct
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from drifa_jax.config import ModalityConfig
from drifa_jax.data.sources import tfrecords
from drifa_jax.data.sources.opening import scan_modality
from drifa_jax.errors import UserError

PIXELS = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)


def builder(features, examples, folder, file_format="array_record"):
    """A set with the given features, prepared in a folder; the folder of its version."""

    class Stranger(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0), "test": self._generate_examples(10)}

        def _generate_examples(self, first):
            for number in range(first, first + 6):
                yield number, examples(number)

    made = Stranger(data_dir=str(folder), file_format=file_format)
    tfds.disable_progress_bar()
    made.download_and_prepare()
    return made.data_path


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    features = {
        "scan": tfds.features.Image(shape=(20, 20, 3)),
        "finding": tfds.features.ClassLabel(names=["none", "tumour"]),
        "second": tfds.features.ClassLabel(names=["left", "right"]),
        "person": tfds.features.Text(),
        "box": tfds.features.BBoxFeature(),
        "age": np.int64,
    }

    def example(number):
        box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        return {
            "scan": io.BytesIO(cv2.imencode(".png", PIXELS[..., ::-1])[1].tobytes()),
            "finding": number % 2,
            "second": 0,
            "person": f"p{number // 2}",
            "box": box,
            "age": 40 + number,
        }

    return builder(features, example, tmp_path_factory.mktemp("tfds"))


def read(folder, **fields):
    config = ModalityConfig(height=20, width=20, root=str(folder), format="tfds", **fields)
    return scan_modality("ct", config)


def test_images_labels_splits_groups_and_facts_are_read(stranger):
    records = read(stranger, label_column="finding", group_column="person")
    assert len(records) == 12
    first = records[0]
    assert (first.record_id, first.group_id) == ("train-000000", records.group_id(0))
    assert {records.attributes(i)["age"] for i in range(6)} == {str(40 + n) for n in range(6)}
    np.testing.assert_array_equal(first.images["ct"], PIXELS)
    assert [task.classes for task in records.tasks] == [("none", "tumour")]
    assert len({records.group_id(i) for i in range(12)}) == 6
    assert "tensorflow" not in sys.modules


def test_several_labels_must_be_named(stranger):
    with pytest.raises(UserError, match=r"2 class labels \(finding, second\).*label_column"):
        read(stranger)


def test_a_group_that_is_no_feature_is_refused(stranger):
    with pytest.raises(UserError, match="group_column 'patient' is no feature"):
        read(stranger, label_column="finding", group_column="patient")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="no data set prepared by tfds"):
        read(tmp_path)


@pytest.fixture
def as_tfrecord(stranger, tmp_path):
    """The same set as TensorFlow's own files, and the file of its training split."""
    folder = tmp_path / "1.0.0"
    shutil.copytree(stranger, folder, ignore=shutil.ignore_patterns("*array_record*"))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for file in stranger.glob("*array_record*"):
        records = ArrayRecordDataSource([str(file)])
        with (folder / file.name.replace("array_record", "tfrecord")).open("wb") as written:
            for record in (records[k] for k in range(len(records))):
                length = struct.pack("<Q", len(record))
                checksum = struct.pack("<I", tfrecords._checksum(length))
                written.write(length + checksum + record + b"crc.")
    return folder, next(folder.glob("*train.tfrecord*"))


def test_sets_as_tensorflow_stores_them_are_the_same(stranger, as_tfrecord):
    ours, theirs = (
        read(folder, label_column="finding", group_column="person")
        for folder in (as_tfrecord[0], stranger)
    )
    assert (ours.ids, len(ours)) == (theirs.ids, 12)
    for k in (0, 11):
        assert ours[k].labels == theirs[k].labels
        np.testing.assert_array_equal(ours[k].images["ct"], theirs[k].images["ct"])
    assert "tensorflow" not in sys.modules


def test_the_checksum_is_tensorflows():
    # The first twelve bytes of a file that TensorFlow 2.21 wrote.
    header = bytes.fromhex("4a02000000000000b317fc5f")
    assert tfrecords._checksum(header[:8]) == int.from_bytes(header[8:], "little")


def test_a_file_that_is_cut_off_is_named(as_tfrecord):
    folder, file = as_tfrecord
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=rf"{file.name}: is cut off"):
        read(folder, label_column="finding")


def test_a_set_stored_otherwise_is_refused_with_the_cure(as_tfrecord):
    info = as_tfrecord[0] / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(UserError, match=r"stored as riegeli.*file_format='array_record'"):
        read(as_tfrecord[0], label_column="finding")
