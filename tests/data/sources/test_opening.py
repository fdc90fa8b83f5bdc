"""Every format opens by its name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drifa_jax.config import ModalityConfig
from drifa_jax.data.pairing import combine
from drifa_jax.data.prepare import prepare
from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.sources.opening import FORMATS, open_modality
from drifa_jax.data.splits import shares
from drifa_jax.errors import UserError

SCAN = ModalitySpec("scan", 8, 8, 1)


def scan_at(root, task="kind", format="folders", size=8, channels=1, **fields):
    return ModalityConfig(
        height=size, width=size, channels=channels, root=str(root), task=task, format=format,
        **fields,
    )  # fmt: skip


def opened(config, name="scan"):
    return open_modality(name, config, shares(0.15, 0.2))


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
        "folders": scan_at(root),
        "manifest": scan_at(root, format="manifest", table="table.csv", image_column="file"),
        "npz": scan_at(tmp_path / "set.npz", "kind", "npz", classes=("a", "b")),
        "npy": scan_at(tmp_path / "npy", "kind", "npy", classes=("a", "b")),
    }
    prepare(opened(by_format["folders"]), tmp_path / "prepared")
    by_format["prepared"] = scan_at(tmp_path / "prepared", "kind", "prepared")
    return by_format


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"dicom", "nifti", "tfds"}))
def test_every_format_gives_splits_of_one_modality_and_task(name, locations):
    splits = opened(locations[name])
    assert {"train", "test"} <= set(splits)
    for source in splits.values():
        assert source.modalities == (SCAN,)
        assert source.tasks[0].name == "kind"
        assert source.tasks[0].classes == ("a", "b")
        assert source[0].images["scan"].shape == SCAN.shape


def test_modalities_of_different_formats_are_mixed(locations):
    other = scan_at(locations["folders"].root, "finding", size=16, channels=3)
    sources = {
        "scan": opened(locations["npz"])["train"],
        "photo": opened(other, "photo")["train"],
    }
    record = combine("index", sources, evaluation=False)[0]
    assert record.images["scan"].shape == (8, 8, 1)
    assert record.images["photo"].shape == (16, 16, 3)


def test_wrong_locations_are_named(locations):
    with pytest.raises(UserError, match="format 'zip' of scan is unknown; choose one of"):
        opened(scan_at("x", "kind", "zip"))
    with pytest.raises(UserError, match="Arrays carry no class names"):
        opened(scan_at("x", "kind", "npz"))
    with pytest.raises(UserError, match=r"data\.modalities\.scan\.table is empty"):
        opened(scan_at("x", "kind", "manifest"))
    root = locations["prepared"].root
    with pytest.raises(UserError, match=r"was prepared as .* the configuration asks for"):
        opened(scan_at(root, "kind", "prepared", size=9))
    with pytest.raises(UserError, match=r"prepared for the tasks \['kind'\]"):
        opened(scan_at(root, "stroke", "prepared"))


@pytest.mark.parametrize("field", ["group_pattern", "include"])
def test_what_is_no_regular_expression_is_named(field, folders):
    config = dataclasses.replace(scan_at(folders({"a": 2, "b": 2})), **{field: "("})
    with pytest.raises(
        UserError, match=rf"The {field} '\(' of .* is no regular expression: missing"
    ):
        opened(config)


def test_folders_of_other_classes_are_left_out_where_that_is_asked_for(folders):
    root = folders({"a": 20, "b": 20, "notes": 3})
    config = scan_at(root, classes=("a", "b"), ignore_other_classes=True)
    parts = opened(config)
    assert sum(map(len, parts.values())) == 40
    assert "left out: 3 images of other classes" in parts["train"].notes[0]
