"""A file or folder is whole or absent."""

from __future__ import annotations

import pytest

from drifa_jax.errors import UserError
from drifa_jax.extras import optional
from drifa_jax.whole_files import folder_replaced, written_whole


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.json"
    with written_whole(path) as partial:
        partial.write_text("{}")
        assert partial.suffix == ".json" and partial.parent == tmp_path
        assert not path.exists()
    assert path.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_whole_too(tmp_path):
    path = tmp_path / "net"
    path.mkdir()
    with pytest.raises(KeyboardInterrupt), written_whole(path) as partial:
        partial.mkdir()
        (partial / "weights").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path] and not list(path.iterdir())
    with written_whole(path) as partial:
        partial.mkdir()
        (partial / "weights").write_text("whole")
    assert (path / "weights").read_text() == "whole"


def test_a_folder_takes_the_place_of_an_older_one_or_leaves_it(tmp_path):
    path = tmp_path / "evaluation"
    for text in ("first", "second"):
        with folder_replaced(path) as fresh:
            (fresh / text).write_text(text)
        assert [one.name for one in path.iterdir()] == [text]
    (tmp_path / ".evaluation.new").mkdir()  # of a killed process
    with pytest.raises(KeyboardInterrupt), folder_replaced(path) as fresh:
        assert not list(fresh.iterdir())
        (fresh / "third").write_text("half")
        raise KeyboardInterrupt
    assert [one.name for one in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_extra_is_named():
    with pytest.raises(UserError, match=r'Reading X needs no_such_thing: .*"drifa-jax\[medical\]"'):
        optional("no_such_thing", "Reading X", "medical")
