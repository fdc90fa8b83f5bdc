"""Arrays in the layouts of MedMNIST and of the authors' notebooks."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.data.record import ModalitySpec, Source, TaskSpec
from drifa_jax.data.sources.arrays import ArraySource, npy_splits, npz_splits
from drifa_jax.errors import UserError

SCAN, KIND = ModalitySpec("scan", 8, 8, 1), TaskSpec("kind", ("a", "b", "c"))
PIXELS = np.random.Generator(np.random.Philox(0)).integers(0, 256, (6, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_array_source_is_a_source_of_its_images():
    source = ArraySource("set", PIXELS, LABELS[:, None], SCAN, KIND)
    assert isinstance(source, Source)
    np.testing.assert_array_equal(source[4].images["scan"][..., 0], PIXELS[4])
    assert source[4].labels == {"kind": 1}
    assert source.record_id(4) == "set/000004"


def test_float_images_and_one_hot_labels_are_understood():
    one_hot = np.eye(3)[LABELS]
    unit = ArraySource("set", PIXELS / 255.0, one_hot, SCAN, KIND)
    full = ArraySource("set", PIXELS.astype(np.float32), one_hot, SCAN, KIND)
    np.testing.assert_array_equal(unit[3].images["scan"][..., 0], PIXELS[3])
    np.testing.assert_array_equal(full[3].images["scan"][..., 0], PIXELS[3])
    assert unit.labels("kind").tolist() == LABELS.tolist()


def test_medmnist_layout_has_three_splits(tmp_path):
    arrays = {}
    for prefix, size in (("train", 4), ("val", 1), ("test", 2)):
        arrays[f"{prefix}_images"] = PIXELS[:size]
        arrays[f"{prefix}_labels"] = LABELS[:size, None]
    np.savez(tmp_path / "set.npz", **arrays)
    splits = npz_splits(tmp_path / "set.npz", SCAN, KIND)
    assert {name: len(s) for name, s in splits.items()} == {"train": 4, "validation": 1, "test": 2}


def test_npy_pairs_stay_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS)
    np.save(tmp_path / "y.npy", LABELS)
    splits = npy_splits({"train": (tmp_path / "x.npy", tmp_path / "y.npy")}, SCAN, KIND)
    assert isinstance(splits["train"]._images, np.memmap)
    np.testing.assert_array_equal(splits["train"][5].images["scan"][..., 0], PIXELS[5])


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
        ArraySource("set", images, labels, SCAN, KIND)


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"words")
    with pytest.raises(UserError, match="not a readable"):
        npz_splits(tmp_path / "bad.npz", SCAN, KIND)
    np.savez(tmp_path / "half.npz", train_images=PIXELS)
    with pytest.raises(UserError, match=r"lacks \['train_labels'\]"):
        npz_splits(tmp_path / "half.npz", SCAN, KIND)
    with pytest.raises(UserError, match="does not exist"):
        npy_splits({"train": (tmp_path / "x.npy", tmp_path / "y.npy")}, SCAN, KIND)
    objects = np.array([{"code": 1}], dtype=object)
    np.save(tmp_path / "objects.npy", objects)
    with pytest.raises(UserError, match="not a readable"):
        npy_splits({"train": (tmp_path / "objects.npy", tmp_path / "y.npy")}, SCAN, KIND)


def test_real_medmnist_file_is_read(shared):
    task = TaskSpec("pneumonia", ("normal", "pneumonia"))
    path = shared / "data" / "medmnist" / "pneumoniamnist.npz"
    splits = npz_splits(path, ModalitySpec("xray", 28, 28, 1), task)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [1821, 203, 351]
