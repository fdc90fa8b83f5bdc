"""Containers of arrays that somebody else made: npz, HDF5, safetensors, PyTorch.

What a file declares is compared with what it holds before anything of it is allocated, so that
two megabytes cannot take four gigabytes; and whatever a library raises over a damaged file becomes
a `FileError` that names it (`problems.reading`).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drifa_jax.data.problems import FileError, reading

LARGEST_RATIO, ROOM = 200, 256 * 2**20
"""A file may declare `ROOM` bytes more than `LARGEST_RATIO` times its size. Masks compress a
hundredfold, but not a thousandfold."""

LONGEST_HEADER = 16 * 2**20
"""Bytes of the names and shapes of a safetensors file: a hundred thousand tensors."""

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
END_OF_ZIP, LONGEST_COMMENT, ZIP64 = 22, 2**16 - 1, 2**16 - 1
"""Bytes of the record that ends an archive, of the comment behind it, and the number of entries
of one that counts them elsewhere."""

SAFETENSORS_DTYPES = frozenset(
    "F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL".split()  # those of fewer bits are codes
)
DAMAGED = "is damaged or truncated, so that it must be copied or downloaded again"


def check_growth(path: Path, declared: int) -> None:
    """Refuses a file that would grow beyond reason.

    Args:
      path: the file.
      declared: bytes that its content says to take.

    Raises:
      FileError: naming it.
    """
    held = path.stat().st_size
    if declared > LARGEST_RATIO * held + ROOM:
        raise FileError(
            path,
            f"declares {declared:,} bytes of content in {held:,}, as only a damaged or a "
            "malicious file does, so it was not opened; get it again from where it was made",
        )


def check_zip(path: Path, *, whole: bool = False) -> list[str]:
    """Names in a zip archive that may be read; `whole` compares all checksums as well.

    Raises:
      FileError: when it declares too much, holds a name twice, or is damaged.
    """
    with reading(path, DAMAGED), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        check_growth(path, sum(entry.file_size for entry in entries))
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names):
            raise FileError(path, f"holds a name twice, so that {DAMAGED.partition(', ')[2]}")
        if _number_of_entries(path) not in (len(entries), ZIP64):
            raise ValueError("its directory lacks entries")
        if whole and (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} is not what was written")
    return names


def _number_of_entries(path: Path) -> int:
    """As the end of an archive says it: a damaged directory may swallow entries in silence."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END_OF_ZIP - LONGEST_COMMENT))
        tail = file.read()
    end = tail[tail.rfind(b"PK\x05\x06") :]
    return int.from_bytes(end[10:12], "little")


def read_npz(path: str | Path, wanted: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file by name; of those `wanted`, the ones that it holds.

    Raises:
      FileError: when it is damaged, holds Python objects, or an array declares more than there is.

    Test: tests/robustness/test_containers.py.
    """
    path = Path(path)
    check_zip(path)
    with reading(path, "is not a readable .npz file"), zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
            name = entry.filename.removesuffix(".npy")
            if dtype.hasobject:
                raise FileError(
                    path, f"holds Python objects ({name}), which can run code; save arrays alone"
                )
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise FileError(path, f"declares more of {name} than it holds: it {DAMAGED}")
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays.files if wanted is None else [n for n in wanted if n in arrays.files]
            return {name: arrays[name] for name in names}


def read_hdf5(path: Path, file: Any, group: str, without: str = "") -> dict[str, np.ndarray]:
    """The numbers below a group of an HDF5 file, by their full names.

    Args:
      path: for messages, and whose size bounds what is read.
      file: the same, or an open file inside of it.
      group: name.
      without: datasets whose names hold this are left out.

    Raises:
      FileError: when it is damaged, declares more than it holds, or anything in the group lies
        elsewhere: links, virtual datasets and external storage read other files.
      KeyError: with the names that it has, when it has no such group.

    Test: tests/robustness/test_containers.py.
    """
    import h5py

    with reading(path, DAMAGED), h5py.File(file, "r") as opened:
        if group in opened.keys() and opened.get(group, getlink=True).__class__ is h5py.HardLink:
            datasets = dict(_datasets(path, opened[group], group, set()))
            datasets = {n: d for n, d in datasets.items() if not without or without not in n}
            check_growth(path, sum(data.size * data.dtype.itemsize for data in datasets.values()))
            for name, data in datasets.items():
                if data.dtype.kind not in "fiub" and data.dtype.name != "bfloat16":
                    raise FileError(path, f"holds {data.dtype} under {name}, not numbers")
            return {name: np.asarray(data[...]) for name, data in datasets.items()}
        names = sorted(opened)[:8]
    raise KeyError(names)


def _datasets(path: Path, group: Any, where: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every dataset below a group; groups that hold themselves are entered once."""
    import h5py

    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        return
    seen.add(address)
    for name in group:
        full = f"{where}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise FileError(path, f"holds a link ({full}), which may read other files; remove it")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(path, item, full, seen)
        elif isinstance(item, h5py.Dataset):
            if item.is_virtual or item.external:
                raise FileError(path, f"keeps {full} in other files; save it with its own numbers")
            yield full, item


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors of a safetensors file by name, and its metadata; pure data.

    Raises:
      FileError: when it is no whole safetensors file.
    """
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
    from safetensors import safe_open

    path = Path(path)
    with reading(path, f"is no whole safetensors file: it {DAMAGED}"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > min(LONGEST_HEADER, path.stat().st_size):
            raise ValueError(f"its header declares {length:,} bytes")
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                if (dtype := file.get_slice(name).get_dtype()) not in SAFETENSORS_DTYPES:
                    raise FileError(
                        path,
                        f"{name} has dtype {dtype}, as quantised weights have; use the checkpoint "
                        "in float32, float16 or bfloat16",
                    )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, dict(file.metadata() or {})


def read_torch(path: str | Path) -> Any:
    """What `torch.save` wrote, tensors and plain containers alone; no code in it runs.

    Raises:
      FileError: when it is damaged, holds more than tensors, or declares more than it holds.
    """
    import pickle
    import warnings

    import torch

    path = Path(path)
    with reading(path, "cannot be read"), path.open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        # PyTorch compares no checksums.
        check_zip(path, whole=True)
    with reading(path, f"is no whole PyTorch file: it {DAMAGED}"), warnings.catch_warnings():
        # Of odd pickle protocols, which either load or fail below.
        warnings.simplefilter("ignore", UserWarning)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise FileError(
                path,
                "holds more than tensors, or is damaged, and was not opened: loading such a "
                "pickle can run code. Save the weights alone: torch.save(model.state_dict(), F)",
            ) from error
    check_growth(path, sum(_tensor_bytes(loaded)))
    return loaded


def _tensor_bytes(loaded: Any) -> Iterator[int]:
    """Of every tensor in nested mappings, as its shape declares it; memory may be shared."""
    if hasattr(loaded, "detach"):
        yield loaded.numel() * max(4, loaded.element_size())
    elif isinstance(loaded, Mapping):
        for value in loaded.values():
            yield from _tensor_bytes(value)
