"""What lies below a path: files by kind, and what the headers of images say."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from drifa_jax.data.decode import IMAGE_SUFFIXES
from drifa_jax.data.problems import LeftOut
from drifa_jax.data.readers.dicom_files import claims_dicom
from drifa_jax.data.sources.walking import names_below
from drifa_jax.errors import UserError
from drifa_jax.whole_files import cache_folder, written_whole

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr")
ARRAY_SUFFIXES = (".npz",)
MOST_HEADERS = 20_000
"""Headers that are read; of a larger set so many, evenly spread."""
MOST_PIXELS = 48
"""Images that are decoded, to see whether colour files hold grey."""
MASKS = ("mask", "masks", "_seg", "segmentation", "annotation")


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image says.

    Attributes:
      width, height: in pixels.
      channels: 1 or 3.
      bits: of a channel.
    """

    width: int
    height: int
    channels: int
    bits: int


@dataclass(frozen=True)
class Survey:
    """Files below a folder by kind; names are relative to it, with forward slashes."""

    root: Path
    images: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    nifti: tuple[str, ...] = ()
    dicom: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    masks: int = 0
    others: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        kinds = {
            "images": len(self.images),
            "tables": len(self.tables),
            "NIfTI volumes": len(self.nifti),
            "DICOM files": len(self.dicom),
            "array files": len(self.arrays),
            "masks": self.masks,
        } | {f"files that are none of these ({suffix})": n for suffix, n in self.others}
        return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "nothing"


def survey(path: Path) -> Survey:
    """Lists the files at a path; hidden ones and masks are left aside.

    Raises:
      UserError: if there is nothing at the path.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if path.is_file():
        root, names = path.parent, [path.name]
    else:
        root, names = path, sorted(names_below(path, LeftOut()))
    kinds: dict[str, list[str]] = {
        kind: [] for kind in ("images", "tables", "nifti", "dicom", "arrays")
    }
    others: Counter[str] = Counter()
    masks = 0
    for name in names:
        lower = name.lower()
        kind = _kind(root, name, lower)
        if kind is None:
            others[PurePosixPath(lower).suffix or "no suffix"] += 1
        elif kind == "images" and any(word in lower for word in MASKS):
            masks += 1
        else:
            kinds[kind].append(name)
    return Survey(
        root,
        **{kind: tuple(found) for kind, found in kinds.items()},
        masks=masks,
        others=tuple(others.most_common(5)),
    )


def _kind(root: Path, name: str, lower: str) -> str | None:
    for kind, suffixes in (
        ("images", IMAGE_SUFFIXES),
        ("tables", TABLE_SUFFIXES),
        ("nifti", NIFTI_SUFFIXES),
        ("arrays", ARRAY_SUFFIXES),
    ):
        if lower.endswith(suffixes):
            return kind
    if lower.endswith((".dcm", ".dicom", ".ima")):
        return "dicom"
    # DICOM files often have no suffix, or the end of a UID for one.
    if not PurePosixPath(lower).suffix.strip(".0123456789") and claims_dicom(root / name):
        return "dicom"
    return None


def image_headers(
    root: Path,
    names: Sequence[str],
    advance: Callable[[int], None] = lambda count: None,
    cache: Path | None = None,
) -> dict[str, ImageHeader | None]:
    """Name -> header, of all images or of an even sample of many; None where none can be read.

    Args:
      root: what the names are relative to.
      names: of images.
      advance: called with the number of files read.
      cache: file that keeps what was read, by path, size and time of change.
    """
    if len(names) > MOST_HEADERS:
        spread = np.linspace(0, len(names) - 1, MOST_HEADERS).astype(int)
        names = [names[i] for i in spread]
    known = _cached(cache)

    def header(name: str) -> tuple[str, list[int] | None]:
        path = root / name
        try:
            status = path.stat()
        except OSError:
            return f"{path}|gone", None
        key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
        found = known[key] if key in known else _header(path)
        advance(1)
        return key, found

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = list(pool.map(header, names))
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(cache) as partial:
            partial.write_text(json.dumps(known | dict(read)))
    return {
        name: None if found is None else ImageHeader(*found)
        for name, (_, found) in zip(names, read, strict=True)
    }


def cache_file(root: Path) -> Path:
    """Where headers of a folder are kept between two plans, in the user's cache."""
    name = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
    return cache_folder() / "headers" / f"{name}.json"


def _cached(cache: Path | None) -> Mapping[str, list[int] | None]:
    if cache is None or not cache.is_file():
        return {}
    try:
        content = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _header(path: Path) -> list[int] | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            channels = 1 if image.mode in ("1", "L", "I", "F", "I;16", "I;16B", "LA") else 3
            bits = 16 if image.mode.startswith(("I", "F")) else 8
            return list(asdict(ImageHeader(*image.size, channels, bits)).values())
    except Exception:  # whatever is wrong with it, verify names it when it reads all pixels
        return None


def looks_grey(root: Path, names: Sequence[str]) -> bool:
    """Whether a sample of images holds no colour, whatever the files have room for."""
    from PIL import Image

    spread = np.linspace(0, len(names) - 1, min(MOST_PIXELS, len(names))).astype(int)
    coloured = 0
    for name in [names[i] for i in spread]:
        try:
            with Image.open(root / name) as image:
                image.draft("RGB", (128, 128))
                pixels = np.asarray(image.convert("RGB").resize((64, 64)), np.int16)
        except Exception:  # as above
            continue
        # Marks in a corner of a grey picture are no colour: the mean over the picture decides.
        coloured += float((pixels.max(-1) - pixels.min(-1)).mean()) > 6
    return coloured <= 0.02 * len(spread)
