"""From a configuration to three splits."""

from __future__ import annotations

import dataclasses
import errno
import os

import numpy as np
import pytest
from PIL import Image

from drifa_jax.config import DataConfig, from_mapping, modality
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.pipeline import training_batches
from drifa_jax.data.split_manifest import describe_split
from drifa_jax.errors import UserError


def data_config(**data) -> DataConfig:
    return from_mapping({"data": data}).data


@pytest.fixture
def two_folders(tmp_path):
    """Grey MRI of two classes with Training and Testing, colour CT of two classes in one tree."""
    generator = np.random.default_rng(0)
    for split, count in (("Training", 8), ("Testing", 4)):
        for name in ("glioma", "healthy"):
            folder = tmp_path / "mri" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (20, 24), np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}{i}.png")
    for name in ("normal", "stroke"):
        folder = tmp_path / "ct" / name
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (30, 18, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{i}.png")
    return {
        "mri": modality(height=16, width=16, channels=1, root=str(tmp_path / "mri"), task="tumour"),
        "ct": modality(height=24, width=32, root=str(tmp_path / "ct"), task="stroke"),
    }


def test_phantoms_give_three_splits_of_the_numbers_asked_for():
    sizes = {"num_train": 5, "num_validation": 3, "num_test": 4}
    small = modality(height=16, width=16, channels=1)
    dataset = open_dataset(data_config(modalities={"mri": small, "ct": small}, phantoms=sizes))
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [5, 3, 4]
    assert dataset.synthetic


def test_files_of_different_sizes_and_channels_make_one_batch(two_folders):
    dataset = open_dataset(data_config(source="files", modalities=two_folders))
    batch = next(training_batches(dataset.train, batch_size=4, seed=0))
    assert batch["images"]["mri"].shape == (4, 16, 16, 1)
    assert batch["images"]["ct"].shape == (4, 24, 32, 3)
    assert set(batch["labels"]) == {"tumour", "stroke"}


@pytest.mark.parametrize("pairing", ("random", "index", "by_task"))
def test_every_test_image_is_labelled_exactly_once(pairing, two_folders):
    dataset = open_dataset(data_config(source="files", modalities=two_folders, pairing=pairing))
    assert np.sum(dataset.test.labels("tumour") >= 0) == 8
    of_ct = sum(np.sum(split.labels("stroke") >= 0) for split in (dataset.validation, dataset.test))
    assert 0 < of_ct < 24


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "photos"}, r"data.source is 'photos'; choose one of \['files', 'phantoms'\]"),
        ({"augmentation": "lots"}, "data.augmentation is 'lots'; choose one of"),
        ({"pairing": "twins"}, "data.pairing is 'twins'; choose one of"),
        ({"modalities": {"mri": {"height": 16}, "ct": {}}}, "mri must be square"),
        ({"modalities": {"mri": {"channels": 1}, "ct": {}}}, "same number of channels"),
        ({"modalities": {"xray": {}}}, "give one size for each of"),
        ({"source": "files", "modalities": {"mri": {"task": "t"}}}, "mri.root is empty.*brain.py"),
        ({"source": "files", "modalities": {"mri": {"root": "x"}}}, "mri.task is empty"),
    ],
)
def test_wrong_field_is_named_with_its_cure(data, message):
    config = data_config(**{"modalities": {"mri": {}, "ct": {}}, **data})
    with pytest.raises(UserError, match=message):
        open_dataset(config)


def test_folder_that_does_not_exist_says_how_to_run_without_data(two_folders):
    two_folders["ct"]["root"] = "/nowhere"
    with pytest.raises(UserError, match=r"/nowhere does not exist.*phantoms"):
        open_dataset(data_config(source="files", modalities=two_folders))


def ids(source):
    return [source.record_id(i) for i in range(len(source))]


@pytest.fixture
def leaking(two_folders, tmp_path):
    """The same folders, where two images of Testing are also in Training."""
    for i in range(2):
        twin = tmp_path / "mri" / "Training" / "glioma" / f"Training{i}.png"
        (tmp_path / "mri" / "Testing" / "glioma" / f"Testing{i}.png").write_bytes(twin.read_bytes())
    return two_folders


def test_duplicates_of_held_out_images_leave_training_unless_kept(leaking, tmp_path):
    options = {"source": "files", "modalities": leaking, "validation_fraction": 0.25}
    cleaned = open_dataset(data_config(**options))
    kept = open_dataset(data_config(**options, duplicates="keep"))
    held_out = [len(cleaned.parts["mri"][s]) for s in ("train", "validation")]
    distributed = [len(kept.parts["mri"][s]) for s in ("train", "validation")]
    assert sum(held_out) == sum(distributed) - 2
    assert ids(cleaned.parts["mri"]["test"]) == ids(kept.parts["mri"]["test"])
    cleaned.save_splits(tmp_path / "run" / "splits")
    table = (tmp_path / "run" / "splits" / "mri-duplicates.csv").read_text()
    assert table.count("exact") == 2
    assert not (tmp_path / "run" / "splits" / "ct-duplicates.csv").exists()


def test_saved_splits_are_used_again(leaking, tmp_path):
    options = {"source": "files", "modalities": leaking}
    first = open_dataset(data_config(**options, split_seed=5))
    first.save_splits(tmp_path / "splits")
    again = open_dataset(data_config(**options, split_folder=str(tmp_path / "splits")))
    for name, splits in first.parts.items():
        for split, source in splits.items():
            assert ids(source) == ids(again.parts[name][split])
    other = open_dataset(data_config(**options, split_seed=6))
    assert ids(other.parts["ct"]["test"]) != ids(first.parts["ct"]["test"])


def test_modality_dropout_drops_modalities_from_training_records_alone():
    sizes = {"num_train": 32, "num_validation": 3, "num_test": 4}
    small = modality(height=16, width=16, channels=1)
    options = {"modalities": {"mri": small, "ct": small}, "phantoms": sizes}
    dataset = open_dataset(data_config(**options, modality_dropout=0.5))
    assert dataset.may_lack_modalities
    batch = next(
        training_batches(dataset.train, batch_size=32, seed=0, transform=dataset.transform)
    )
    held = np.stack([batch["present"]["mri"], batch["present"]["ct"]])
    assert held.any(axis=0).all()
    # Each is dropped with probability 0.5, less the rescues: 12 of 32 expected, deviation 2.7.
    assert 3 <= (~held[0]).sum() <= 22
    with pytest.raises(UserError, match="modality_dropout"):
        open_dataset(data_config(**options, modality_dropout=1.5))


def test_unknown_treatment_of_duplicates_is_named(two_folders):
    with pytest.raises(UserError, match=r"data\.duplicates is 'ignore'"):
        open_dataset(data_config(source="files", modalities=two_folders, duplicates="ignore"))


def test_columns_of_a_manifest_become_a_modality_of_their_own(tmp_path):
    generator = np.random.default_rng(0)
    rows = ["image_id,label,lesion,age,sex"]
    for i in range(40):
        pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append(f"{i},{'ab'[i // 2 % 2]},L{i // 2},{i if i % 5 else ''},{'mf'[i % 2]}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    skin = modality(
        height=16,
        width=16,
        root=str(tmp_path),
        format="manifest",
        table="table.csv",
        task="skin",
        group_column="lesion",
        numeric_columns=("age",),
        categorical_columns=("sex",),
    )
    dataset = open_dataset(data_config(source="files", modalities={"photo": skin}))
    assert [m.name for m in dataset.train.modalities] == ["photo", "photo_table"]
    batch = next(training_batches(dataset.train, batch_size=8, seed=0))
    # age and its flag, m, f, missing, unseen
    assert batch["images"]["photo_table"].shape == (8, 6)
    train = [dataset.train[i] for i in range(len(dataset.train))]
    ages = [r.images["photo_table"][0] for r in train if not r.images["photo_table"][1]]
    assert np.mean(ages) == pytest.approx(0, abs=1e-5)
    assert np.std(ages) == pytest.approx(1, abs=1e-5)
    wrong = skin | {"id_column": "patient"}
    with pytest.raises(UserError, match="patient: is no column"):
        open_dataset(data_config(source="files", modalities={"photo": wrong}))


def test_folds_test_every_record_once(two_folders):
    options = {"source": "files", "modalities": two_folders, "num_folds": 3, "duplicates": "keep"}
    folds = [open_dataset(data_config(**options, fold=fold)) for fold in range(3)]
    for name, size in (("mri", 24), ("ct", 24)):
        tested = [one for dataset in folds for one in ids(dataset.parts[name]["test"])]
        assert len(tested) == len(set(tested)) == size
        for dataset in folds:
            assert sum(len(part) for part in dataset.parts[name].values()) == size
    with pytest.raises(UserError, match=r"data\.fold is 3"):
        open_dataset(data_config(**options, fold=3))
    with pytest.raises(UserError, match=r"data\.num_folds: .* cannot fill"):
        open_dataset(data_config(**{**options, "num_folds": 40}))


def paired_config(folder, *, with_split=True, **data):
    """Two manifests of one cohort; the second lacks every third record."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = {"a": ["id,file,label,patient,split"], "b": ["id,file,label,patient,split"]}
    for i in range(30):
        for name in rows if i % 3 else ("a",):
            pixels = generator.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{i}.png")
            split = ("train", "train", "test")[i // 2 % 3] if with_split else ""
            rows[name].append(f"r{i},{name}{i}.png,{'xy'[i % 2]},p{i // 2},{split}")
    modalities = {}
    for name, lines in rows.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        modalities[name] = modality(
            height=16, width=16, channels=1, root=str(folder), format="manifest", task="dx",
            table=f"{name}.csv", id_column="id", image_column="file", group_column="patient",
            split_column="split" if with_split else "",
        )  # fmt: skip
    options = {"source": "files", "modalities": modalities, "pairing": "paired", **data}
    return data_config(**options)


@pytest.mark.parametrize("with_split", (True, False))
def test_paired_modalities_with_missing_rows_are_split_together(with_split, tmp_path):
    dataset = open_dataset(paired_config(tmp_path / "set", with_split=with_split))
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sum(len(set(ids(split))) for split in splits) == 30
    assert len(set().union(*(ids(split) for split in splits))) == 30
    if with_split:
        assert all(int(one[1:]) // 2 % 3 == 2 for one in ids(dataset.test))


def test_modalities_that_put_one_id_in_different_splits_are_refused(tmp_path):
    config = paired_config(tmp_path / "set")
    table = tmp_path / "set" / "b.csv"
    table.write_text(table.read_text().replace(",p0,train", ",p0,test"))
    with pytest.raises(UserError, match=r"'r1' \(train and test\)"):
        open_dataset(config)


@pytest.fixture
def saved(two_folders, tmp_path):
    """A configuration of drawn splits, and the folder where a run saved them."""
    two_folders.pop("mri")
    config = data_config(source="files", modalities=two_folders)
    open_dataset(config).save_splits(tmp_path / "splits")
    return config, tmp_path / "splits"


def test_a_run_keeps_its_splits_when_a_record_comes(saved, tmp_path):
    config, splits = saved
    before = open_dataset(config, splits)
    before.refuse_changes(splits)
    pixels = np.random.default_rng(9).integers(0, 256, (30, 18, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ct" / "normal" / "aa.png")
    after = open_dataset(config, splits)
    assert [ids(after.parts["ct"][s]) for s in ("train", "validation", "test")] == [
        ids(before.parts["ct"][s]) for s in ("train", "validation", "test")
    ]
    assert after.test.description == before.test.description
    with pytest.raises(UserError, match=r"1 records are new \(normal/aa.png\).*split_folder="):
        after.refuse_changes(splits)


def test_a_run_names_what_changed_and_what_is_gone(saved, tmp_path):
    config, splits = saved
    path = tmp_path / "ct" / "stroke" / "stroke3.png"
    Image.fromarray(np.full((30, 18, 3), 7, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"1 records hold other images \(stroke/stroke3.png\)"):
        open_dataset(config, splits).refuse_changes(splits)
    path.unlink()
    with pytest.raises(UserError, match=r"stroke/stroke3.png: is in the .* split but not in"):
        open_dataset(config, splits)


def test_a_split_folder_without_the_splits_of_paired_modalities_is_refused(tmp_path):
    config = paired_config(tmp_path / "data")
    folder = tmp_path / "splits"
    folder.mkdir()
    elsewhere = dataclasses.replace(config, split_folder=str(folder))
    words = r"data\.split_folder: .*splits holds no paired\.json.*no a\.json, b\.json"
    with pytest.raises(UserError, match=words):
        open_dataset(elsewhere)
    # As an earlier release saved them, one by one; then a half of them.
    first = open_dataset(config)
    for name in ("a", "b"):
        parts = {
            split: part.take(
                [i for i, one in enumerate(part.ids) if name == "a" or int(one[1:]) % 3]
            )
            for split, part in first.parts["paired"].items()
        }
        describe_split(parts, 0, hash_content=False).save(folder / f"{name}.json")
    again = open_dataset(elsewhere)
    assert ids(again.test) == ids(first.test)
    (folder / "b.json").unlink()
    for options in ({"config": elsewhere}, {"config": config, "saved": folder}):
        with pytest.raises(UserError, match=r"splits holds no paired\.json.*\(no b\.json\)"):
            open_dataset(**options)


def test_splits_and_what_they_left_out_are_whole_or_absent(leaking, tmp_path, monkeypatch):
    dataset = open_dataset(data_config(source="files", modalities=leaking))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        dataset.save_splits(tmp_path / "splits")
    assert not list((tmp_path / "splits").iterdir())
