"""A file or folder is whole or absent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

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
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".{gone.pid}-evaluation").mkdir()
    with pytest.raises(KeyboardInterrupt), folder_replaced(path) as fresh:
        assert not list(fresh.iterdir())
        (fresh / "third").write_text("half")
        raise KeyboardInterrupt
    assert [one.name for one in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_processes_that_replace_a_folder_the_last_one_stays_whole(tmp_path):
    path = tmp_path / "evaluation"
    with folder_replaced(path) as fresh:
        (fresh / "first").write_text("whole")
        script = f"""
from drifa_jax.whole_files import folder_replaced
with folder_replaced({str(path)!r}) as fresh:
    (fresh / "other").write_text("whole")
"""
        subprocess.run([sys.executable, "-c", script], check=True)
        assert [one.name for one in path.iterdir()] == ["other"]
    assert [one.name for one in path.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("in_one_step", (True, False))
def test_a_folder_is_never_missing_after_a_kill_at_any_moment(in_one_step, tmp_path):
    path = tmp_path / "evaluation"
    script = f"""
import os, sys
from pathlib import Path
from drifa_jax import whole_files
if not {in_one_step}:
    whole_files._exchanged = lambda *_: False
replace, calls = os.replace, 0
def killed(*names):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        os._exit(9)
    replace(*names)
os.replace = killed
with whole_files.folder_replaced({str(path)!r}) as fresh:
    (fresh / "second").write_text("new")
if calls < int(sys.argv[1]):
    os._exit(0)
"""
    for moment in (1, 2, 3):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        (path / "first").write_text("old")
        code = subprocess.run([sys.executable, "-c", script, str(moment)], check=False).returncode
        # The next attempt fails as well, and takes nothing away.
        with pytest.raises(RuntimeError), folder_replaced(path):
            raise RuntimeError
        (found,) = path.iterdir()
        assert found.name == ("second" if code == 0 else "first")
        assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_behind_goes_and_what_a_living_one_writes_stays(tmp_path):
    path = tmp_path / "net.drifa"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".{gone.pid}-net.drifa"
    living = tmp_path / f".{os.getppid()}-net.drifa"
    other = tmp_path / f".{gone.pid}-other.drifa"
    for file in (left, living, other):
        file.write_text("half")
    with written_whole(path) as partial:
        partial.write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, living, other])


@pytest.mark.parametrize("name", ("x" * 250 + ".csv", "." + "y" * 250, "z." + "a" * 250))
def test_names_as_long_as_a_file_system_allows_are_written(name, tmp_path):
    with written_whole(tmp_path / name) as partial:
        partial.write_text("whole")
        assert name.endswith(partial.suffix)
    (tmp_path / name).unlink()
    with folder_replaced(tmp_path / name) as fresh:
        (fresh / "a").write_text("whole")
    assert [p.name for p in tmp_path.rglob("*")] == [name, "a"]


def test_a_missing_extra_is_named_with_a_command_that_runs_anywhere():
    cure = r"Reading X needs no_such_thing: .* -m pip install .*'pydicom>=.*'nibabel>="
    with pytest.raises(UserError, match=cure):
        optional("no_such_thing", "Reading X", "medical")
