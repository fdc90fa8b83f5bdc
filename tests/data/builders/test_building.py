"""Builders store public sets in their own layouts, and what they stored is read back."""

from __future__ import annotations

import importlib
import sys

import cv2
import numpy as np
import pytest

from drifa_jax.config import ModalityConfig
from drifa_jax.data.builders.building import BUILDERS, build
from drifa_jax.data.builders.ham10000 import Ham10000
from drifa_jax.data.builders.medical_images import check_counts, stored_bytes
from drifa_jax.data.record import ModalitySpec, Source
from drifa_jax.data.sources.opening import open_modality, scan_modality
from drifa_jax.data.splits import shares
from drifa_jax.errors import UserError

PHOTO = ModalitySpec("photo", 16, 16, 3)
FRACTIONS = {"train": 0.5, "validation": 0.25, "test": 0.25}


def at(folder):
    return ModalityConfig(
        height=PHOTO.height, width=PHOTO.width, root=str(folder), task="skin", format="tfds"
    )


def picture(seed: int, channels: int = 3) -> np.ndarray:
    shape = (20, 24, 3) if channels == 3 else (20, 24)
    return np.random.Generator(np.random.Philox(seed)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def skin(tmp_path_factory):
    """A download in the layout of HAM10000 with drawn pictures, and what was built of it."""
    root = tmp_path_factory.mktemp("downloads") / "skin-cancer-mnist-ham10000"
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    kinds = Ham10000.FACTS.classes
    for k in range(28):
        part = root / f"HAM10000_images_part_{1 + k % 2}"
        part.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(part / f"ISIC_{k:07d}.jpg"), picture(k, 3 if k % 3 else 1))
        rows.append(f"HAM_{k // 2},ISIC_{k:07d},{kinds[k // 2 % 7]},histo,{40 + k}.0,male,back")
    (root / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")
    return root.parent, build("ham10000", root.parent, tmp_path_factory.mktemp("built"))


def test_built_set_is_array_record_and_needs_no_tensorflow(skin):
    _, folder = skin
    assert list(folder.glob("*.array_record*"))
    assert "tensorflow" not in sys.modules


def test_built_source_has_images_labels_lesions_and_the_table(skin):
    root, folder = skin
    source = scan_modality(PHOTO.name, at(folder))
    assert isinstance(source, Source)
    assert len(source) == 28
    by_id = {source.record_id(i): i for i in range(28)}
    index = by_id["ISIC_0000005"]
    record = source[index]
    assert record.group_id == "HAM_2"
    assert record.labels == {"skin": 2}
    assert source.attributes(index)["age"] == "45.0"
    path = next(root.rglob("ISIC_0000005.jpg"))
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    resized = cv2.resize(expected, (16, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(record.images["photo"], resized)


def test_built_splits_keep_lesions_whole(skin):
    splits = open_modality(PHOTO.name, at(skin[1]), FRACTIONS)
    groups = [{part.group_id(i) for i in range(len(part))} for part in splits.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 14


def test_description_states_origin_and_completeness(skin):
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(str(skin[1])).info
    assert "Tschandl" in info.citation
    assert info.metadata["complete"] is False
    assert info.metadata["counts"]["full"]["akiec"] == 4
    assert len(info.metadata["counts_sha256"]) == 64


def test_published_counts_are_recognised():
    found = check_counts(Ham10000.FACTS, Ham10000.FACTS.published)
    assert found["complete"]
    assert sum(Ham10000.FACTS.published["full"].values()) == 10015


def test_grey_and_bmp_images_become_colour_png_without_loss(tmp_path):
    grey = picture(1, channels=1)
    cv2.imwrite(str(tmp_path / "a.bmp"), grey)
    stored = cv2.imdecode(np.frombuffer(stored_bytes(tmp_path / "a.bmp"), np.uint8), -1)
    np.testing.assert_array_equal(stored, np.repeat(grey[..., None], 3, axis=2))
    cv2.imwrite(str(tmp_path / "b.jpg"), picture(2))
    assert stored_bytes(tmp_path / "b.jpg") == (tmp_path / "b.jpg").read_bytes()


def test_missing_downloads_and_unknown_names_are_told(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist[\s\S]*Download HAM10000"):
        build("ham10000", tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match="'mnist' is unknown; choose one of"):
        build("mnist", tmp_path, tmp_path)
    with pytest.raises(UserError, match="holds no data set prepared by tfds"):
        scan_modality(PHOTO.name, at(tmp_path))


REAL = {
    "ham10000": ("skin-cancer-mnist-ham10000", 2409, 1759),
    "sipakmed": ("cervical-cancer-largest-dataset-sipakmed", 20, None),
    "brain_tumor_mri": ("brain-tumor-mri-dataset", 2441, None),
    "iq_othnccd_lung_ct": ("the-iqothnccd-lung-cancer-dataset", 817, None),
    "brain_stroke_ct": ("brain-stroke-ct-image-dataset", 950, 61),
    "covid_chestxray": ("covid-chestxray-dataset", 189, None),
    "sars_cov2_ct": ("sarscov2-ctscan-dataset", 880, None),
}


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_real_subsets_are_listed(name, shared):
    folder, count, groups = REAL[name]
    module, kind = BUILDERS[name]
    builder = getattr(importlib.import_module(f"drifa_jax.data.builders.{module}"), kind)
    examples = builder.list_examples(None, shared / "data" / folder)
    listed = [one for some in examples.values() for one in some]
    assert len(listed) == count
    assert len({one.record_id for one in listed}) == count
    assert {one.label for one in listed} <= set(builder.FACTS.classes)
    if groups is not None:
        assert len({one.group_id for one in listed}) == groups


def test_built_sets_open_by_their_format(skin):
    splits = open_modality(PHOTO.name, at(skin[1]), shares(0.15, 0.25))
    assert set(splits) == {"train", "validation", "test"}
    assert splits["test"].tasks[0].name == "skin"
