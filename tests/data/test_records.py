"""The table of records: chosen, put together, regrouped and kept without losing anything."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from drifa_jax.config import from_mapping, modality
from drifa_jax.data.dataset import open_dataset
from drifa_jax.data.pairing import combine, labelled_parts
from drifa_jax.data.record import ModalitySpec, Record, TaskSpec
from drifa_jax.data.records import as_records, concatenate
from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.data.splits import group_ids
from drifa_jax.errors import UserError


class Numbers:
    """Images that hold their own index; counts how often it is read."""

    synthetic = True

    def __init__(self, name, task, count):
        self.description = f"numbers {name}"
        self.modalities = (ModalitySpec(name, 4, 4, 1),)
        self.tasks = (TaskSpec(task, ("even", "odd")),)
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        image = np.full((4, 4, 1), index, np.uint8)
        return Record(
            self.record_id(index), self.group_id(index), {self.modalities[0].name: image},
            {self.tasks[0].name: index % 2},
        )  # fmt: skip

    def labels(self, task):
        return (np.arange(self.count) % 2).astype(np.int32)

    def record_id(self, index):
        return f"r{index}"

    def group_id(self, index):
        return f"g{index // 2}"

    def attributes(self, index):
        return {}


def test_only_modalities_drops_images_and_keeps_labels():
    sources = {"mri": Numbers("mri", "tumour", 6), "ct": Numbers("ct", "stroke", 4)}
    source = combine("index", sources, evaluation=True).only(("ct",))
    assert [spec.name for spec in source.modalities] == ["ct"]
    assert set(source[5].images) == {"ct"} and source[5].labels["tumour"] == 1
    assert "ct only" in source.description


def test_regrouped_changes_groups_alone():
    source = as_records(Numbers("mri", "tumour", 4)).regrouped(["a", "a", "b", "b"])
    assert group_ids(source) == ["a", "a", "b", "b"] == [source[i].group_id for i in range(4)]
    assert source[3].record_id == "r3"


def test_in_memory_reads_each_record_once():
    numbers = Numbers("mri", "tumour", 3)
    source = as_records(numbers).in_memory()
    for _ in range(2):
        for index in range(3):
            assert source[index].images["mri"][0, 0, 0] == index
    assert numbers.reads == 3


def test_take_reads_the_records_it_names():
    source = PhantomSource("train", 10, 0, 16)
    part = as_records(source).take([7, 2])
    assert len(part) == 2
    assert part.record_id(0) == part[0].record_id == source.record_id(7)
    np.testing.assert_array_equal(part.labels("stroke"), source.labels("stroke")[[7, 2]])
    assert part.synthetic and part.attributes(0) == source.attributes(7)


def test_concatenated_records_read_like_one_table():
    source = PhantomSource("train", 7, 0, 16)
    records = as_records(source)
    whole = concatenate([records.take([3, 1]), records.take([6]), records.take([0, 2])])
    assert whole.ids == [source.record_id(i) for i in (3, 1, 6, 0, 2)]
    assert whole[2].record_id == whole.record_id(2) == whole.group_id(2)
    np.testing.assert_array_equal(whole[2].images["mri"], source[6].images["mri"])
    np.testing.assert_array_equal(whole.labels("stroke"), source.labels("stroke")[[3, 1, 6, 0, 2]])
    with pytest.raises(IndexError):
        whole[5]


def test_records_of_several_readers_are_read_by_their_own():
    first, second = Numbers("mri", "tumour", 3), Numbers("mri", "tumour", 4)
    whole = concatenate([as_records(first), as_records(second).take([3, 0])])
    assert [int(whole[i].images["mri"][0, 0, 0]) for i in range(5)] == [0, 1, 2, 3, 0]


def test_records_are_the_same_in_a_data_worker():
    records = as_records(PhantomSource("train", 4, 0, 16)).take([2, 0])
    again = pickle.loads(pickle.dumps(records))
    assert again.ids == records.ids
    np.testing.assert_array_equal(again[1].images["ct"], records[1].images["ct"])


@pytest.mark.parametrize("strategy", ["index", "by_task", "random"])
def test_labelled_parts_are_the_same_however_strangers_are_paired(strategy):
    sources = {"mri": Numbers("mri", "tumour", 6), "ct": Numbers("ct", "stroke", 4)}
    source = combine(strategy, sources, evaluation=True)
    labels = source.labels("stroke")
    ids, groups = labelled_parts(source, "stroke")
    kept = np.flatnonzero(labels >= 0)
    assert {ids[i] for i in kept} == {f"ct:r{i}" for i in range(4)} and len(kept) == 4
    assert {groups[i] for i in kept} == {"ct:g0", "ct:g1"}


def phantoms(**data):
    small = modality(height=16, width=16, channels=1)
    sizes = {"num_train": 4, "num_validation": 2, "num_test": 3}
    values = {"modalities": {"mri": small, "ct": small}, "phantoms": sizes, **data}
    return from_mapping({"data": values}).data


def test_one_phantom_modality_alone_has_the_same_patients():
    both = open_dataset(phantoms()).test
    alone = open_dataset(phantoms(only_modalities=("ct",), in_memory=True)).test
    assert set(alone[1].images) == {"ct"}
    np.testing.assert_array_equal(alone[1].images["ct"], both[1].images["ct"])
    assert alone[1].labels == both[1].labels and alone.record_id(2) == both.record_id(2)


def test_an_unknown_modality_is_named():
    with pytest.raises(UserError, match=r"only_modalities names \['pet'\].*mri"):
        open_dataset(phantoms(only_modalities=("pet",)))


def test_grouping_duplicates_keeps_them_in_one_split(tmp_path):
    """Twenty pictures, each three times under other names, in one class folder or the other."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / ("ill" if number % 2 else "well")
        folder.mkdir(exist_ok=True)
        image = Image.fromarray(draw.integers(0, 256, (16, 16), np.uint8))
        for copy in range(3):
            image.save(folder / f"{number}-{copy}.png")
    mri = modality(height=16, width=16, channels=1, root=str(tmp_path), task="tumour")
    config = phantoms(source="files", modalities={"mri": mri}, duplicates="group")
    for folds in (0, 4):
        dataset = open_dataset(dataclasses.replace(config, num_folds=folds))
        seen = {}
        for split in ("train", "validation", "test"):
            source = getattr(dataset, split)
            for index in range(len(source)):
                number = source.record_id(index).split(":")[1].split("/")[1].split("-")[0]
                seen.setdefault(number, set()).add(split)
        assert len(seen) == 20 and all(len(splits) == 1 for splits in seen.values())
