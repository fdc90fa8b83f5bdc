"""Containers that others made: damaged, lying about sizes, or pointing at other files."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile

import numpy as np
import pytest

from drifa_jax.data.problems import FileError
from drifa_jax.data.readers import containers
from drifa_jax.errors import UserError
from drifa_jax.interop import network_files

ARRAYS = {
    "a": np.arange(600, dtype=np.float32).reshape(20, 30),
    "b": np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32),
}
FLIPS = 60


def write_npz(path):
    np.savez_compressed(path, **ARRAYS)


def write_hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as opened:
        for name, values in ARRAYS.items():
            opened[f"layers/{name}"] = values


def write_safetensors(path):
    numpy = pytest.importorskip("safetensors.numpy")
    checksum = network_files._checksum(ARRAYS)
    numpy.save_file(ARRAYS, path, metadata={network_files.CHECKSUM: checksum})


def write_torch(path):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(values) for name, values in ARRAYS.items()}, path)


def read_hdf5(path):
    found = containers.read_hdf5(path, path, "layers")
    return {name.removeprefix("layers/"): values for name, values in found.items()}


def read_torch(path):
    return {name: tensor.numpy() for name, tensor in containers.read_torch(path).items()}


KINDS = {
    "npz": (write_npz, containers.read_npz, True),
    "hdf5": (write_hdf5, read_hdf5, False),
    "safetensors": (write_safetensors, network_files.read_safetensors, True),
    "torch": (write_torch, read_torch, True),
}
"""Kind -> how it is written and read, and whether it has checksums."""


def same(found):
    return found.keys() == ARRAYS.keys() and all(
        np.array_equal(found[name], values) for name, values in ARRAYS.items()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_whole_containers_give_what_was_written(kind, tmp_path):
    write, read, _ = KINDS[kind]
    write(path := tmp_path / f"whole.{kind}")
    if kind == "npz":
        path = tmp_path / "whole.npz"
    assert same(read(path))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_containers_are_named_and_checksums_hold(kind, tmp_path):
    """Random flipped bits and cuts: no other error, and no other numbers where sums are kept."""
    write, read, has_checksums = KINDS[kind]
    write(path := tmp_path / f"damaged.{kind}")
    content, moments = path.read_bytes(), random.Random(0)
    for number in range(FLIPS + 10):
        changed = bytearray(content)
        if number < FLIPS:
            place = moments.randrange(8 * len(changed))
            changed[place // 8] ^= 1 << place % 8
        else:
            del changed[moments.randrange(len(changed)) :]
        path.write_bytes(changed)
        try:
            found = read(path)
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            assert same(found) or not has_checksums


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(
                file, {"shape": (400, 2**20), "fortran_order": False, "descr": "|u1"}
            )
            for _ in range(400):
                file.write(bytes(2**20))
    with pytest.raises(FileError, match=r"bomb\.npz: declares 419,\d+,\d+ bytes of content in"):
        containers.read_npz(path)


def npy_header(shape, descr="<f4"):
    packed = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        packed, {"shape": shape, "fortran_order": False, "descr": descr}
    )
    return packed.getvalue()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (npy_header((2**40,)), "declares more of x than it holds"),
        (npy_header((4,), "|O"), r"holds Python objects \(x\)"),
        (b"no header", "is not a readable .npz file"),
    ],
)
def test_an_array_that_declares_what_it_does_not_hold_is_refused(header, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header)
    with pytest.raises(FileError, match=words):
        containers.read_npz(tmp_path / "a.npz")


def test_a_small_hdf5_file_that_declares_gigabytes_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as opened:
        opened.create_dataset("layers/x", (3 * 2**28,), "f4", chunks=(2**20,))
    with pytest.raises(FileError, match=r"declares 3,221,225,472 bytes"):
        read_hdf5(path)


@pytest.mark.parametrize("how", ("external link", "soft link", "virtual", "external storage"))
def test_hdf5_that_reads_other_files_is_refused(how, tmp_path):
    h5py = pytest.importorskip("h5py")
    write_hdf5(tmp_path / "secret.h5")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as opened:
        group = opened.create_group("layers")
        if how == "external link":
            group["x"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "layers/a")
        elif how == "soft link":
            group["x"] = h5py.SoftLink("/elsewhere")
        elif how == "virtual":
            layout = h5py.VirtualLayout((20, 30), "f4")
            layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "layers/a", (20, 30))
            group.create_virtual_dataset("x", layout)
        else:
            group.create_dataset("x", (4,), "f4", external=[(tmp_path / "secret.h5", 0, 16)])
    words = "holds a link" if "link" in how else "in other files"
    with pytest.raises(FileError, match=words):
        read_hdf5(path)


def test_hdf5_groups_that_hold_themselves_end(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as opened:
        opened["layers/x"] = np.ones(3, np.float32)
        opened["layers/again"] = opened["layers"]
    assert list(read_hdf5(tmp_path / "a.h5")) == ["x"]


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 80) + json.dumps({"a": {"dtype": "F32", "shape": [2**40]}}).encode(),
        b"",
    ],
)
def test_a_safetensors_header_with_false_sizes_is_refused(content, tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"a\.safetensors: is no whole safetensors file"):
        containers.read_safetensors(path)


def test_a_torch_tensor_larger_than_its_memory_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    torch.save({"x": torch.ones(1, dtype=torch.float16).expand(2**30)}, path)
    with pytest.raises(FileError, match=r"a\.pth: declares 4,294,967,296 bytes"):
        containers.read_torch(path)


def test_an_archive_that_names_a_file_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", b"2")
    with pytest.raises(FileError, match="holds a name twice"):
        containers.read_npz(tmp_path / "a.npz")


def test_an_archive_whose_directory_swallows_an_array_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **ARRAYS)
    content = bytearray(path.read_bytes())
    # The first entry of the directory says that its comment reaches over the second.
    first = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", first + 4)
    length = content.index(b"PK\x05\x06") - second
    content[first + 32 : first + 34] = length.to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(FileError, match="its directory lacks entries"):
        containers.read_npz(path)
