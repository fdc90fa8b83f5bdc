"""Full and read-only disks, no home, two at once: whole or nothing, and a clear word."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drifa_jax import cli
from drifa_jax.errors import UserError
from drifa_jax.whole_files import UNWRITABLE, cache_folder, only_one, written_whole

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number", UNWRITABLE)
def test_a_disk_that_takes_nothing_ends_every_command_with_a_word(number, monkeypatch, capsys):
    from drifa_jax.commands import export

    def full(options):
        raise OSError(number, os.strerror(number), "net.drifa")

    monkeypatch.setattr(export, "run", full)
    assert cli.main(["export", "run", "net.drifa"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("drifa export: net.drifa cannot be read or written: ")
    assert os.strerror(number) in said


def test_other_errors_of_the_system_stay_defects(monkeypatch):
    from drifa_jax.commands import export

    def broken(options):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(export, "run", broken)
    with pytest.raises(OSError, match="Invalid argument"):
        cli.main(["export", "run", "net.drifa"])


def test_a_file_that_outgrows_the_disk_leaves_the_old_one(tmp_path):
    """The limit of the size of files stands for the full disk."""
    path = tmp_path / "a.csv"
    path.write_text("old")
    script = f"""
import resource
from drifa_jax.whole_files import written_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with written_whole({str(path)!r}) as partial:
    partial.write_bytes(bytes(10_000))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may write everywhere")
def test_a_folder_that_must_not_be_written_is_left_as_it_is(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError), written_whole(tmp_path / "a") as partial:
        partial.write_text("x")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_without_a_home_compiled_programs_lie_with_temporary_files(monkeypatch):
    def none(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(none))
    assert cache_folder().parent.name == f"cache-of-user-{os.getuid()}"


def test_commands_need_neither_home_nor_tmpdir(finished_run, tmp_path):
    gone = str(tmp_path / "gone")
    environment = {**os.environ, "HOME": gone, "TMPDIR": gone, "PYTHONPATH": str(ROOT)}
    environment.pop("XDG_CACHE_HOME", None)
    script = "import sys; from drifa_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, "evaluate", str(finished_run), "--samples", "0"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        1,
        "drifa evaluate: --samples is 0; it must be at least 1.\n",
    )


def test_a_second_process_is_told_who_is_in(tmp_path):
    with (
        only_one(tmp_path / ".lock", "taken"),
        pytest.raises(UserError, match="taken"),
        only_one(tmp_path / ".lock", "taken"),
    ):
        pass
    with only_one(tmp_path / ".lock", "taken"):
        pass
