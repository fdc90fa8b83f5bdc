"""Each check finds what it is for, and a sound set passes them all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drifa_jax.data.record import ModalitySpec
from drifa_jax.data.records import as_records
from drifa_jax.data.sources.folders import folder_records, scan_folders
from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.data.splits import shares, split_records
from drifa_jax.data.verify import inspect, verify


def checks(sources, **options):
    facts = {split: inspect(source) for split, source in sources.items()}
    return {check.name: check for check in verify(sources, facts, **options)}


@pytest.fixture(scope="module")
def sound():
    return {
        "train": PhantomSource("train", 40, 0, 32),
        "test": PhantomSource("test", 10, 0, 32),
    }


class Changed:
    """A source whose records pass through a function."""

    def __init__(self, source, change):
        self._source, self._change = source, change

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return self._change(index, self._source[index])


def test_a_sound_set_passes(sound):
    found = checks(sound)
    assert {check.status for name, check in found.items() if name != "groups"} == {"ok"}
    assert found["counts"].finding == "train 40, test 10"
    assert found["groups"].status == "warning"


def test_repeated_records_and_groups_are_errors(sound):
    leaking = {"train": sound["train"], "test": as_records(sound["train"]).take([3, 4])}
    found = checks(leaking)
    assert found["record ids"].status == "error"
    assert found["groups"].status == "error"
    assert "2 held-out records are pixel-identical" in found["duplicates"].finding


def test_absent_classes_and_imbalance_are_told(sound):
    labels = sound["train"].labels("stroke")
    without = {**sound, "train": as_records(sound["train"]).take(np.flatnonzero(labels != 1))}
    assert (
        "test holds the class ischaemic, which training does not"
        in checks(without)["labels of stroke"].finding
    )
    big = PhantomSource("train", 400, 0, 16)
    labels = big.labels("stroke")
    few = np.concatenate(
        [np.flatnonzero(labels == 0), *(np.flatnonzero(labels == k)[:2] for k in (1, 2))]
    )
    skewed = {"train": as_records(big).take(few), "test": PhantomSource("test", 10, 0, 16)}
    assert "imbalanced" in checks(skewed)["labels of stroke"].finding
    assert checks(skewed)["labels of stroke"].status == "warning"


def test_blank_images_are_warned_of(sound):
    def blank(index, record):
        if index != 2:
            return record
        images = {**record.images, "mri": np.zeros_like(record.images["mri"])}
        return dataclasses.replace(record, images=images)

    found = checks({**sound, "test": Changed(sound["test"], blank)})
    assert found["blank images"].finding.startswith("1 of one grey level")


def test_missing_modalities_are_counted(sound):
    def alone(index, record):
        return dataclasses.replace(record, images={"ct": record.images["ct"]})

    one = {**sound, "test": Changed(sound["test"], alone)}
    assert checks(one)["modalities"].finding == "mri 40 of 50, ct 50 of 50"
    assert checks(one)["modalities"].status == "ok"
    assert checks(one, require_all_modalities=True)["modalities"].status == "error"
    never = {split: Changed(source, alone) for split, source in sound.items()}
    assert "no record holds ['mri']" in checks(never)["modalities"].finding


def test_unreadable_records_differing_sizes_and_lacking_splits_are_errors(sound, folders):
    assert checks({"train": sound["train"]})["counts"].status == "error"
    sizes = {"train": sound["train"], "test": PhantomSource("test", 10, 0, 16)}
    assert checks(sizes)["sizes"].status == "error"
    root = folders({"Training/a": 2, "Training/b": 2, "Testing/a": 1, "Testing/b": 1})
    (root / "Testing" / "a" / "0.png").write_bytes(b"words")
    spec = ModalitySpec("scan", 16, 16, 1)
    splits = split_records(folder_records(scan_folders(root), spec, "kind"), shares(0, 0.15), 0)
    found = checks(splits)["decodability"]
    assert found.status == "error"
    assert "Testing/a/0.png" in found.finding


def test_levels_are_those_of_the_pixels(sound):
    facts = inspect(sound["test"])
    pixels = np.stack([sound["test"][i].images["mri"] for i in range(10)]).astype(float)
    expected = (pixels.mean(), pixels.std(), pixels.min(), pixels.max())
    np.testing.assert_allclose(facts.levels["mri"], expected)
