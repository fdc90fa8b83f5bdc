"""Every format opens by its name."""

from __future__ import annotations

import numpy as np
import pytest

from drifa_jax.data.pairing import combine
from drifa_jax.data.prepare import prepare
from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.sources.opening import FORMATS, Location, open_location
from drifa_jax.errors import UserError

SCAN = ModalitySpec("scan", 8, 8, 1)


@pytest.fixture
def locations(folders, tmp_path):
    """A location of every format that needs no extra library, of two classes."""
    root = folders({"a": 20, "b": 20})
    names = [f"{k}/{i}.png" for k in "ab" for i in range(20)]
    rows = "".join(f"{i},{name},{name[0]}\n" for i, name in enumerate(names))
    (root / "table.csv").write_text("image_id,file,label\n" + rows)
    pixels = np.arange(10 * 64, dtype=np.uint8).reshape(10, 8, 8)
    labels = np.arange(10) % 2
    arrays = {
        f"{s}_{k}": v
        for s in ("train", "val", "test")
        for k, v in (("images", pixels), ("labels", labels))
    }
    np.savez(tmp_path / "set.npz", **arrays)
    (tmp_path / "npy").mkdir()
    for split in ("train", "test"):
        np.save(tmp_path / "npy" / f"x_{split}.npy", pixels)
        np.save(tmp_path / "npy" / f"y_{split}.npy", labels)
    by_format = {
        "folders": Location(SCAN, str(root), "kind"),
        "manifest": Location(
            SCAN, str(root), "kind", "manifest", table="table.csv", image_column="file"
        ),
        "npz": Location(SCAN, str(tmp_path / "set.npz"), "kind", "npz", classes=("a", "b")),
        "npy": Location(SCAN, str(tmp_path / "npy"), "kind", "npy", classes=("a", "b")),
    }
    prepare(open_location(by_format["folders"]), tmp_path / "prepared")
    by_format["prepared"] = Location(SCAN, str(tmp_path / "prepared"), "kind", "prepared")
    return by_format


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"dicom", "nifti", "tfds"}))
def test_every_format_gives_splits_of_one_modality_and_task(name, locations):
    splits = open_location(locations[name])
    assert {"train", "test"} <= set(splits)
    for source in splits.values():
        assert source.modalities == (SCAN,)
        assert source.tasks[0].name == "kind"
        assert source.tasks[0].classes == ("a", "b")
        assert source[0].images["scan"].shape == SCAN.shape


def test_modalities_of_different_formats_are_mixed(locations):
    photo = ModalitySpec("photo", 16, 16, 3)
    other = Location(photo, locations["folders"].root, "finding")
    sources = {
        "scan": open_location(locations["npz"])["train"],
        "photo": open_location(other)["train"],
    }
    record = combine("index", sources, evaluation=False)[0]
    assert record.images["scan"].shape == (8, 8, 1)
    assert record.images["photo"].shape == (16, 16, 3)


def test_wrong_locations_are_named(locations):
    with pytest.raises(UserError, match="format 'zip' of scan is unknown; choose one of"):
        open_location(Location(SCAN, "x", "kind", "zip"))
    with pytest.raises(UserError, match="Arrays carry no class names"):
        open_location(Location(SCAN, "x", "kind", "npz"))
    with pytest.raises(UserError, match="manifest of scan is not named"):
        open_location(Location(SCAN, "x", "kind", "manifest"))
    root = locations["prepared"].root
    with pytest.raises(UserError, match=r"was prepared as .* the configuration asks for"):
        open_location(Location(ModalitySpec("scan", 9, 9, 1), root, "kind", "prepared"))
    with pytest.raises(UserError, match=r"prepared for the tasks \['kind'\]"):
        open_location(Location(SCAN, root, "stroke", "prepared"))
