"""Arrays in the layouts of MedMNIST and of the authors' notebooks."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.config import DataConfig, ModalityConfig
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.record import ModalitySpec, Source, TaskSpec
from drifa_jax.data.sources.arrays import array_records, scan_npy, scan_npz
from drifa_jax.data.splits import split_records
from drifa_jax.errors import UserError

SCAN, KIND = ModalitySpec("scan", 8, 8, 1), TaskSpec("kind", ("a", "b", "c"))
PIXELS = np.random.Generator(np.random.Philox(0)).integers(0, 256, (6, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def scan_config(root, size=8, classes=KIND.classes):
    return ModalityConfig(
        height=size, width=size, channels=1, root=str(root), task="kind", classes=classes
    )


def test_array_source_is_a_source_of_its_images():
    source = array_records("set", PIXELS, LABELS[:, None], SCAN, KIND)
    assert isinstance(source, Source)
    np.testing.assert_array_equal(source[4].images["scan"][..., 0], PIXELS[4])
    assert source[4].labels == {"kind": 1}
    assert source.record_id(4) == "set/000004"


def test_float_images_and_one_hot_labels_are_understood():
    one_hot = np.eye(3)[LABELS]
    unit = array_records("set", PIXELS / 255.0, one_hot, SCAN, KIND)
    full = array_records("set", PIXELS.astype(np.float32), one_hot, SCAN, KIND)
    np.testing.assert_array_equal(unit[3].images["scan"][..., 0], PIXELS[3])
    np.testing.assert_array_equal(full[3].images["scan"][..., 0], PIXELS[3])
    assert unit.labels("kind").tolist() == LABELS.tolist()


def test_medmnist_layout_has_three_splits(tmp_path):
    arrays = {}
    for prefix, size in (("train", 4), ("val", 1), ("test", 2)):
        arrays[f"{prefix}_images"] = PIXELS[:size]
        arrays[f"{prefix}_labels"] = LABELS[:size, None]
    np.savez(tmp_path / "set.npz", **arrays)
    splits = split_records(scan_npz("scan", scan_config(tmp_path / "set.npz")), {"train": 1.0}, 0)
    assert {name: len(s) for name, s in splits.items()} == {"train": 4, "validation": 1, "test": 2}


def test_npy_pairs_stay_on_disk(tmp_path):
    for split in ("train", "test"):
        np.save(tmp_path / f"x_{split}.npy", PIXELS)
        np.save(tmp_path / f"y_{split}.npy", LABELS)
    records = scan_npy("scan", scan_config(tmp_path))
    assert isinstance(records.readers["scan"].readers[0].images, np.memmap)
    np.testing.assert_array_equal(records[5].images["scan"][..., 0], PIXELS[5])


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((6, 8, 8, 5), np.uint8), LABELS, r"have the shape \(6, 8, 8, 5\)"),
        (PIXELS.astype(np.float32) * np.nan, LABELS, "NaN or infinite pixels in records"),
        (PIXELS - 300.0, LABELS, "range from -300"),
        (PIXELS, LABELS[:5], "are 5 for 6 images"),
        (PIXELS, LABELS + 1, r"hold \[3\], outside the 3 classes"),
        (PIXELS, LABELS + 0.5, "wanted .* class numbers"),
        (PIXELS, np.ones((6, 3)), "neither class numbers nor one-hot"),
        (PIXELS[:0], LABELS[:0], "are none"),
        (PIXELS > 3, LABELS, "have the type bool"),
    ],
)
def test_wrong_arrays_are_named(images, labels, words):
    with pytest.raises(UserError, match=words):
        array_records("set", images, labels, SCAN, KIND)


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"words")
    with pytest.raises(UserError, match=r"bad\.npz: is damaged or truncated"):
        scan_npz("scan", scan_config(tmp_path / "bad.npz"))
    np.savez(tmp_path / "half.npz", train_images=PIXELS)
    with pytest.raises(UserError, match=r"lacks \['train_labels'\]"):
        scan_npz("scan", scan_config(tmp_path / "half.npz"))
    with pytest.raises(UserError, match="does not exist"):
        scan_npy("scan", scan_config(tmp_path))
    objects = np.array([{"code": 1}], dtype=object)
    np.save(tmp_path / "x_train.npy", objects)
    with pytest.raises(UserError, match="not a readable"):
        scan_npy("scan", scan_config(tmp_path))


def test_real_medmnist_file_is_read(shared):
    path = shared / "data" / "medmnist" / "pneumoniamnist.npz"
    config = scan_config(path, 28, ("normal", "pneumonia"))
    splits = split_records(scan_npz("xray", config), {"train": 1.0}, 0)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [1821, 203, 351]


def volumes_config(path, **fields):
    side = {"height": 8, "width": 8, "depth": 4, "channels": 1, "task": "kind"}
    return ModalityConfig(**{**side, "root": str(path), "classes": KIND.classes, **fields})


def save_medmnist(path, images):
    arrays = {}
    for prefix in ("train", "val", "test"):
        arrays |= {f"{prefix}_images": images, f"{prefix}_labels": LABELS[: len(images), None]}
    np.savez(path, **arrays)


def test_volumes_of_medmnist_are_read_whole(tmp_path):
    volumes = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8), np.uint8)
    save_medmnist(tmp_path / "set.npz", volumes)
    records = scan_npz("scan", volumes_config(tmp_path / "set.npz"))
    np.testing.assert_array_equal(records[2].images["scan"][..., 0], volumes[2])


@pytest.mark.parametrize(
    ("shape", "depth", "words"),
    [
        ((3, 8, 8), 4, r"wanted volumes .* of pictures set data\.modalities\.scan\.depth=0"),
        ((3, 8, 8, 3), 4, r"wanted volumes .* of pictures set data\.modalities\.scan\.depth=0"),
        ((3, 1, 8, 8), 4, r"volumes need 2 slices or more.*depth=0"),
        ((3, 4, 9, 9), 0, r"of volumes set data\.modalities\.scan\.depth"),
        ((3, 3, 9, 9), 0, r"channels come last, as numpy.moveaxis.*; of volumes set"),
        ((3, 1, 4, 9, 9), 4, r"channels come last, as numpy.moveaxis\(images, 1, -1\)"),
        ((3, 9, 9, 4), 0, r"4 channels cannot be read. .* \[n, h, w\], and data.pairing=paired"),
        ((3, 4, 9, 9, 2), 4, r"2 channels cannot be read. .* \[n, d, h, w\], and data.pairing="),
    ],
)
def test_pictures_for_volumes_and_the_reverse_name_the_field(tmp_path, shape, depth, words):
    save_medmnist(tmp_path / "set.npz", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=words):
        scan_npz("scan", volumes_config(tmp_path / "set.npz", depth=depth))


def test_two_channels_of_a_volume_meet_as_two_modalities(tmp_path):
    """What the message above proposes."""
    volumes = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 2), np.uint8)
    for k, name in enumerate(("t1", "t2")):
        (tmp_path / name).mkdir()
        save_medmnist(tmp_path / name / "set.npz", volumes[..., k])
    config = DataConfig(
        source="files",
        modalities={
            name: volumes_config(tmp_path / name / "set.npz", format="npz") for name in ("t1", "t2")
        },
        pairing="paired",
        duplicates="keep",
    )
    record = open_dataset(config).test[2]
    for k, name in enumerate(("t1", "t2")):
        np.testing.assert_array_equal(record.images[name][..., 0], volumes[2, ..., k])
