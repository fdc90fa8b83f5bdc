"""Archives unpack into their folder or not at all."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from drifa_jax.data.archive import is_archive, unpack
from drifa_jax.errors import UserError


def make_zip(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return path


def make_tar(path, names, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, 0, "/etc/passwd"
            archive.addfile(member, io.BytesIO())
    return path


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_sound_archives_are_unpacked_once(make, tmp_path):
    path = make(tmp_path / ("a.zip" if make is make_zip else "a.tar.gz"), ["a/1.png", "b/2.png"])
    assert is_archive(path)
    folder = unpack(path, tmp_path / "out")
    assert (folder / "a" / "1.png").is_file()
    (folder / "a" / "1.png").unlink()
    unpack(path, tmp_path / "out")
    assert not (folder / "a" / "1.png").exists()


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "a/../../evil.png", "C:\\evil"])
def test_names_that_leave_the_folder_are_refused(make, name, tmp_path):
    path = make(tmp_path / ("a.zip" if make is make_zip else "a.tar.gz"), ["good.png", name])
    with pytest.raises(UserError, match="points outside the archive"):
        unpack(path, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()
    assert not list(tmp_path.rglob("evil*"))


def test_links_and_broken_archives_are_refused(tmp_path):
    linked = make_tar(tmp_path / "l.tgz", ["link.png"], tarfile.SYMTYPE)
    with pytest.raises(UserError, match="is a link or a device"):
        unpack(linked, tmp_path / "out")
    (tmp_path / "b.zip").write_bytes(b"words")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tmp_path / "b.zip", tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        unpack(tmp_path / "none.zip", tmp_path / "out")
