"""Archives unpack into their folder or not at all."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from drifa_jax.data import archive as archive_module
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


def test_names_of_windows_and_of_macos_become_folders_of_one_spelling(tmp_path):
    decomposed = "ne\u0301vus"
    path = make_zip(tmp_path / "a.zip", [r"Training\benign\1.png", f"Training/{decomposed}/2.png"])
    folder = unpack(path, tmp_path / "out")
    assert (folder / "Training" / "benign" / "1.png").is_file()
    assert (folder / "Training" / "n\u00e9vus" / "2.png").is_file()
    met = make_zip(tmp_path / "b.zip", ["ne\u0301vus/1.png", "n\u00e9vus/1.png"])
    with pytest.raises(UserError, match="is there twice, in two spellings"):
        unpack(met, tmp_path / "met")


def test_encrypted_archives_are_named(tmp_path):
    path = make_zip(tmp_path / "a.zip", ["a/1.png"])
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(signature) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip: is encrypted"):
        unpack(path, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["data.7z", "data.rar", "data.csv"])
def test_files_that_cannot_be_unpacked_are_named_with_a_cure(tmp_path, name):
    (tmp_path / name).write_bytes(b"7z\xbc\xaf\x27\x1c")
    assert is_archive(tmp_path / name)
    with pytest.raises(UserError, match=r"\(zip and tar are read\)\. Unpack it"):
        unpack(tmp_path / name, tmp_path / "out")


def test_archives_that_promise_too_much_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "BOMB_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", b"\0" * 2**21)
    with pytest.raises(UserError, match=r"a\.zip: would take 0\.0 GiB unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_tar_that_promises_too_much_is_left_at_the_first_name_beyond(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "BOMB_BYTES", 2**20)
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = 2**20
            archive.addfile(info, io.BytesIO(bytes(2**20)))
    with pytest.raises(UserError, match=r"would take 0\.0 GiB unpacked, or more"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
