"""A split survives being saved, and notices changed data."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from drifa_jax.data.sources.phantoms import PhantomSource
from drifa_jax.data.split_manifest import describe_split, load_split
from drifa_jax.data.splits import split_source
from drifa_jax.errors import UserError

HEAD = '{"format": "drifa-split-1", "seed": 0, "splits": '
FRACTIONS = {"train": 0.5, "validation": 0.25, "test": 0.25}


@pytest.fixture
def source():
    return PhantomSource("train", 16, 0, 16)


def ids(part):
    return [part.record_id(i) for i in range(len(part))]


def test_saved_split_is_the_same_when_reloaded(source, tmp_path):
    parts = split_source(source, FRACTIONS, seed=3)
    describe_split(parts, 3).save(tmp_path / "split.json")
    loaded = load_split(tmp_path / "split.json")
    assert loaded == describe_split(parts, 3)
    again = loaded.apply(source, check_content=True)
    assert {name: ids(part) for name, part in again.items()} == {
        name: ids(part) for name, part in parts.items()
    }


def test_missing_records_are_listed(source):
    manifest = describe_split(split_source(source, FRACTIONS, 0), 0, hash_content=False)
    with pytest.raises(UserError, match="8 problems") as caught:
        manifest.apply(PhantomSource("train", 8, 0, 16))
    assert "phantom-train-000015" in str(caught.value)


def test_assigning_splits_lists_missing_records_too(source):
    manifest = describe_split(split_source(source, FRACTIONS, 0), 0, hash_content=False)
    assert len(manifest.assigned(source)) == 16
    with pytest.raises(UserError, match=r"8 problems [\s\S]*phantom-train-000015: is in the"):
        manifest.assigned(PhantomSource("train", 8, 0, 16))


def test_a_record_moved_to_another_split_by_hand_is_noticed(source, tmp_path):
    path = tmp_path / "split.json"
    describe_split(split_source(source, FRACTIONS, 0), 0, hash_content=False).save(path)
    content = json.loads(path.read_text())
    content["splits"]["train"].append(content["splits"]["test"].pop())
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"split\.json: .*was changed"):
        load_split(path)


def test_an_error_while_a_manifest_is_written_leaves_the_old_one(source, tmp_path, monkeypatch):
    path = tmp_path / "split.json"
    path.write_text("old")

    def full(self, text):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    manifest = describe_split(split_source(source, FRACTIONS, 0), 0, hash_content=False)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        manifest.save(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_changed_images_are_listed(source):
    manifest = describe_split(split_source(source, FRACTIONS, 0), 0)
    other = PhantomSource("train", 16, 1, 16)
    manifest.apply(other)
    with pytest.raises(UserError, match="has other images than when it was split"):
        manifest.apply(other, check_content=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "is not a split manifest"),
        ('{"format": "drifa-split-9", "seed": 0, "splits": {}}', "has the format 'drifa-split-9'"),
        ('{"seed": 0}', "is not a split manifest"),
        ("[" * 100_000, "is not a split manifest"),
        (f"{HEAD}{{}}, 'extra': 1}}".replace("'", '"'), "unknown fields .'extra'."),
        (f'{HEAD}{{"train": [["a", "a", 1]]}}}}', "are not three texts"),
        (f'{HEAD}{{"train": [["a", "a", ""]], "test": [["a", "a", ""]]}}}}', "more than once"),
    ],
)
def test_wrong_files_are_named(text, words, tmp_path):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(UserError, match=words):
        load_split(tmp_path / "split.json")
    with pytest.raises(UserError, match="does not exist"):
        load_split(tmp_path / "none.json")
