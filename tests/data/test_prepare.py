"""Prepared sets: the same records, resumable, never mixed, problems told or quarantined."""

from __future__ import annotations

import errno
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from drifa_jax.data import prepare as prepare_module
from drifa_jax.data.pairing import combine
from drifa_jax.data.pipeline import training_batches
from drifa_jax.data.prepare import prepare
from drifa_jax.data.record import ModalitySpec, Source
from drifa_jax.data.records import as_records
from drifa_jax.data.sources import prepared as prepared_module
from drifa_jax.data.sources.folders import folder_records, scan_folders
from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.data.sources.prepared import open_prepared
from drifa_jax.data.splits import shares, split_records
from drifa_jax.data.table import TableColumns, add_table
from drifa_jax.errors import UserError
from drifa_jax.whole_files import only_one


def phantoms(size=16):
    return {
        "train": PhantomSource("train", 10, 0, size),
        "test": PhantomSource("test", 3, 0, size),
    }


def assert_same_records(first: Source, second: Source) -> None:
    assert len(first) == len(second)
    for i in range(len(first)):
        one, other = first[i], second[i]
        assert (one.record_id, one.group_id, dict(one.labels)) == (
            other.record_id,
            other.group_id,
            dict(other.labels),
        )
        assert one.images.keys() == other.images.keys()
        for name, image in one.images.items():
            np.testing.assert_array_equal(image, other.images[name])
            assert image.dtype == other.images[name].dtype


def test_prepared_records_equal_the_source(tmp_path):
    splits = phantoms()
    outcome = prepare(splits, tmp_path / "set", shard_size=4)
    assert (outcome.written, outcome.resumed, outcome.quarantined) == (13, 0, 0)
    prepared = open_prepared(tmp_path / "set")
    assert isinstance(prepared["train"], Source)
    assert prepared["train"].synthetic
    assert prepared["train"].tasks == splits["train"].tasks
    for split in splits:
        assert_same_records(prepared[split], splits[split])
        assert prepared[split].attributes(0) == splits[split].attributes(0) != {}
        for task in ("tumour", "stroke"):
            expected = splits[split].labels(task)
            np.testing.assert_array_equal(prepared[split].labels(task), expected)


def test_missing_modalities_and_tables_survive(tmp_path):
    parts = phantoms()["train"]
    rows = {parts.record_id(i): {"age": str(i)} for i in range(0, 10, 2)}
    table = TableColumns("patient", numeric=("age",))
    splits, _ = add_table({"train": as_records(parts).take(range(10))}, rows, table)
    prepare(splits, tmp_path / "set")
    prepared = open_prepared(tmp_path / "set")["train"]
    assert_same_records(prepared, splits["train"])
    assert ["patient" in prepared[i].images for i in range(4)] == [True, False, True, False]


def test_interrupted_preparation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = prepare_module._write_shard
    calls = []

    def stops_at_third(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(prepare_module, "_write_shard", stops_at_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(phantoms(), tmp_path / "set", shard_size=4)
    with pytest.raises(UserError, match="was interrupted; give the same"):
        open_prepared(tmp_path / "set")
    monkeypatch.setattr(prepare_module, "_write_shard", whole)
    outcome = prepare(phantoms(), tmp_path / "set", shard_size=4)
    assert (outcome.written, outcome.resumed) == (5, 8)
    assert_same_records(open_prepared(tmp_path / "set")["train"], phantoms()["train"])


def test_another_plan_is_refused(tmp_path):
    prepare(phantoms(), tmp_path / "set")
    with pytest.raises(UserError, match=r"from another plan \(different: modalities\)"):
        prepare(phantoms(size=32), tmp_path / "set")
    other = {**phantoms(), "train": PhantomSource("train", 10, 1, 16)}
    with pytest.raises(UserError, match=r"\(different: splits\)"):
        prepare(other, tmp_path / "set")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="is not empty"):
        prepare(phantoms(), tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]


def test_a_set_of_another_version_is_refused(tmp_path):
    prepare(phantoms(), tmp_path / "set")
    path = tmp_path / "set" / "prepared.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(UserError, match="prepared in the format 99, this version reads 2"):
        open_prepared(tmp_path / "set")
    path.write_text("words")
    with pytest.raises(UserError, match="is not the description"):
        open_prepared(tmp_path / "set")
    with pytest.raises(UserError, match="holds no prepared set"):
        open_prepared(tmp_path)


def test_missing_shards_are_named(tmp_path):
    prepare(phantoms(), tmp_path / "set", shard_size=4)
    (tmp_path / "set" / "train-00001.array_record").unlink()
    with pytest.raises(UserError, match=r"incomplete \(missing shards: \['train-00001'\]"):
        open_prepared(tmp_path / "set")


@pytest.fixture
def broken(folders):
    """Class folders with two images that cannot be decoded."""
    root = folders({"Training/a": 6, "Training/b": 6, "Testing/a": 2, "Testing/b": 2})
    (root / "Training" / "a" / "0.png").write_bytes(b"words")
    data = (root / "Testing" / "b" / "0.png").read_bytes()
    (root / "Testing" / "b" / "0.png").write_bytes(data[:100])
    index = scan_folders(root)
    return split_records(
        folder_records(index, ModalitySpec("scan", 8, 8, 1), "kind"), shares(0.15, 0.15), 0
    )


def test_all_problems_are_told_at_once_and_nothing_is_finished(broken, tmp_path):
    with pytest.raises(UserError, match="2 problems") as caught:
        prepare(broken, tmp_path / "set")
    assert "Training/a/0.png" in str(caught.value)
    assert "Testing/b/0.png" in str(caught.value)
    with pytest.raises(UserError, match="interrupted"):
        open_prepared(tmp_path / "set")


def test_quarantine_leaves_broken_records_out_and_lists_them(broken, tmp_path):
    outcome = prepare(broken, tmp_path / "set", on_problem="quarantine")
    assert outcome.quarantined == 2
    assert sum(len(source) for source in open_prepared(tmp_path / "set").values()) == 14
    report = (tmp_path / "set" / "quarantine.csv").read_text()
    assert "Training/a/0.png" in report
    assert "is not an image" in report
    again = prepare(broken, tmp_path / "set", on_problem="quarantine")
    assert (again.written, again.resumed, again.quarantined) == (0, 14, 2)


def test_prepared_source_is_read_by_workers(tmp_path):
    prepare(phantoms(), tmp_path / "set", shard_size=4)
    source = open_prepared(tmp_path / "set")["train"]
    assert_same_records(pickle.loads(pickle.dumps(source)), source)
    plain = next(training_batches(source, batch_size=4, seed=0))
    iterator = training_batches(source, batch_size=4, seed=0, num_workers=1)
    worked = next(iterator)
    iterator.close()
    np.testing.assert_array_equal(plain["images"]["mri"], worked["images"]["mri"])


def test_unknown_policy_and_differing_splits_are_named(tmp_path):
    with pytest.raises(ValueError, match="on_problem is 'ignore'"):
        prepare(phantoms(), tmp_path / "set", on_problem="ignore")
    mixed = {"train": PhantomSource("train", 4, 0, 16), "test": PhantomSource("test", 4, 0, 32)}
    with pytest.raises(ValueError, match="test split has other modalities"):
        prepare(mixed, tmp_path / "set")


def test_paired_sets_are_read_from_prepared_parts(tmp_path, broken):
    prepare(phantoms(), tmp_path / "brain")
    prepare(broken, tmp_path / "scan", on_problem="quarantine")
    parts = {
        "brain": open_prepared(tmp_path / "brain")["train"],
        "scan": open_prepared(tmp_path / "scan")["train"],
    }
    both = combine("random", parts, evaluation=False)
    batch = next(training_batches(both, batch_size=4, seed=0))
    assert set(batch["images"]) == {"mri", "ct", "scan"}
    assert set(batch["labels"]) == {"tumour", "stroke", "kind"}


def test_exchanged_files_and_edited_descriptions_are_noticed(tmp_path):
    folder = tmp_path / "set"
    prepare(phantoms(), folder, shard_size=4)
    first, second = folder / "train-00000", folder / "train-00001"

    def exchange(suffix):
        pair = first.with_suffix(suffix), second.with_suffix(suffix)
        contents = [path.read_bytes() for path in pair]
        for path, content in zip(pair, reversed(contents), strict=True):
            path.write_bytes(content)

    exchange(".array_record")
    with pytest.raises(UserError, match="holds the images of another record"):
        open_prepared(folder)["train"][0]
    exchange(".parquet")
    with pytest.raises(UserError, match=r"train-00000\.parquet is the index of train-00001"):
        open_prepared(folder)
    exchange(".array_record")
    exchange(".parquet")
    open_prepared(folder)["train"][0]
    path = folder / "prepared.json"
    content = json.loads(path.read_text())
    content["tasks"][0]["classes"].reverse()
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed after it was written"):
        open_prepared(folder)


def test_what_a_process_killed_at_its_start_left_is_no_other_preparation(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for left in (".lock", ".2000000000-plan.json"):
        (folder / left).touch()
    prepare(phantoms(), folder)
    assert not (folder / ".2000000000-plan.json").exists()
    (folder / "plan.json").unlink()
    with pytest.raises(UserError, match="is not empty and holds no preparation"):
        prepare(phantoms(), folder)


def test_two_preparations_of_one_folder_do_not_meet(tmp_path):
    taken = "set is being prepared by another process; wait for it"
    (tmp_path / "set").mkdir()
    with only_one(tmp_path / "set" / ".lock", "-"), pytest.raises(UserError, match=taken):
        prepare(phantoms(), tmp_path / "set")


def test_a_full_disk_ends_a_preparation_with_a_word_and_it_goes_on_later(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"set cannot be written"):
        patch.setattr(prepared_module.parquet, "write_table", full)
        prepare(phantoms(), tmp_path / "set", shard_size=4)
    prepare(phantoms(), tmp_path / "set", shard_size=4)
    assert_same_records(open_prepared(tmp_path / "set")["train"], phantoms()["train"])


def test_an_edited_label_in_an_index_is_noticed_and_its_shard_made_again(tmp_path):
    prepare(phantoms(), tmp_path / "set", shard_size=4)
    path = tmp_path / "set" / "train-00001.parquet"
    table = parquet.read_table(path)
    place = table.column_names.index("label:tumour")
    flipped = pa.array([(y + 1) % 2 for y in table["label:tumour"].to_pylist()], pa.int32())
    parquet.write_table(table.set_column(place, table.schema.field(place), flipped), path)
    with pytest.raises(UserError, match=r"train-00001\.parquet: is not what was written"):
        open_prepared(tmp_path / "set")
    outcome = prepare(phantoms(), tmp_path / "set", shard_size=4)
    assert outcome.written == 4
    assert_same_records(open_prepared(tmp_path / "set")["train"], phantoms()["train"])


def test_a_damaged_shard_is_named_when_it_is_read(tmp_path):
    prepare(phantoms(), tmp_path / "set", shard_size=4)
    path = tmp_path / "set" / "train-00001.array_record"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    records = open_prepared(tmp_path / "set")["train"]
    with pytest.raises(UserError, match="set: holds a shard that is damaged"):
        [records[i] for i in range(len(records))]
